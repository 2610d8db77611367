"""``turnwise serve``: a trained agent as an endpoint for anyone's client."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from turnwise.assembly.policies import WhichCheckpoint

console = Console()


def serve(
    target: Annotated[str, typer.Argument(help="A run, a model folder or a hub name.")],
    settings: Annotated[list[str] | None, typer.Argument(help="Settings of the agent: agent.KEY=VALUE.")] = None,
    host: Annotated[str, typer.Option(help="Another than this machine's own needs --api-key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8000,
    api_key: Annotated[
        str | None, typer.Option(help="What clients must send; default: the variable TURNWISE_SERVE_KEY, if set.")
    ] = None,
    name: Annotated[str, typer.Option(help="What clients call the model.")] = "agent",
    record: Annotated[
        Path | None, typer.Option(help="New folder for the conversations, like a run's; or FILE.jsonl.")
    ] = None,
    checkpoint: Annotated[str | None, typer.Option(help="last, best or an update; default: the run's own.")] = None,
    slots: Annotated[int, typer.Option(min=1, help="Conversations that are open at once.")] = 16,
    idle: Annotated[float, typer.Option(min=1.0, help="Seconds of silence after which one ends.")] = 600.0,
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0, help="Of requests that name none.")] = 1.0,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse settings of sampling that are ignored.")] = False,
    device: Annotated[str, typer.Option()] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="torch threads.")] = 1,
) -> None:
    """Offer a trained agent through an OpenAI-compatible endpoint, with tools, thoughts and streams.

    Conversations can be recorded; POST /v1/feedback says what one was worth. Ctrl-C ends.

    [dim]turnwise serve runs/first --record served[/dim]
    """
    import torch

    from turnwise.assembly.serving import Offer, Service
    from turnwise.commands.bench import quiet
    from turnwise.training.interrupt import Interrupts

    quiet()
    torch.set_num_threads(threads)
    offer = Offer(
        host=host,
        port=port,
        api_key=api_key or os.environ.get("TURNWISE_SERVE_KEY"),
        name=name,
        record=record,
        checkpoint=which_checkpoint(checkpoint),
        agent=_agent_settings(settings or []),
        num_slots=slots,
        idle_s=idle,
        temperature=temperature,
        device=device,
        strict=strict,
    )
    with closing(Service(target, offer)) as service, Interrupts(service.stop):
        console.print(f"serving {service.url} (model {name!r}); stop with Ctrl-C", highlight=False)
        service.run()


def which_checkpoint(name: str | None) -> WhichCheckpoint | None:
    """What ``--checkpoint`` names. Raises ValueError for another word."""
    if name is not None and name.isdecimal():
        return int(name)
    if name not in (None, "last", "best"):
        raise ValueError(f"--checkpoint is last, best or the number of an update, got {name!r}")
    return "best" if name == "best" else "last" if name == "last" else None


def _agent_settings(settings: Sequence[str]) -> dict[str, object]:
    """``agent.KEY=VALUE`` settings as a dictionary. Raises ValueError for others."""
    from turnwise.config.overrides import override

    made = override({}, settings)
    if others := sorted(set(made) - {"agent"}):
        raise ValueError(f"turnwise serve takes settings of the agent alone, agent.KEY=VALUE; got {', '.join(others)}")
    return dict(made.get("agent", {}))
