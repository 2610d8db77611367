"""``turnwise plan``: how much memory a run will need. Heavy imports wait until the command runs."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

console = Console()


def plan(
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="A configuration (a YAML path or a shipped name), then key.path=value settings."),
    ] = None,
    env: Annotated[str | None, typer.Option("--env", help="gymnasium id, or module:ns/Id-v0 for your own.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Folder, config.json or hub name; only its shape is read.")
    ] = None,
    memory: Annotated[float | None, typer.Option(min=0.0, help="GiB to fit into; default: what is free now.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Predict the memory of a training run, and the microbatch that fits.

    Exit code 2 where nothing fits: the message names what takes most and what to change.

    [dim]turnwise plan household --model Qwen/Qwen3-0.6B agent.max_context_tokens=4096 --memory 16[/dim]
    """
    import json

    from turnwise.assembly.run import demand_of
    from turnwise.config.files import load_config
    from turnwise.training.plan import GIB, THRESHOLD, available_memory, fit

    words = list(settings or [])
    name = words.pop(0) if words and "=" not in words[0] else None
    config = load_config(name, [*words, *([f"model.path={model}"] if model else [])], env=env)
    available = int(memory * GIB) if memory is not None else available_memory(config.device)
    shape, demand = demand_of(config)
    found = fit(shape, demand, available)
    asked = demand.microbatch_tokens
    smaller = found.microbatch_tokens if found.microbatch_tokens < asked else None
    if as_json:
        parts = {part.name: part.bytes for part in found.parts}
        numbers = {"total": found.total, "available": available, "microbatch_tokens": found.microbatch_tokens}
        typer.echo(json.dumps({**numbers, "parts": parts}))
        return
    table = Table("part", "MiB", "", box=None, header_style="bold")
    table.columns[1].justify = "right"
    for part in found.parts:
        table.add_row(part.name, f"{part.bytes / 2**20:,.1f}", part.how)
    table.add_row("[bold]total[/bold]", f"[bold]{found.total / 2**20:,.1f}[/bold]", f"{available / 2**20:,.0f} free")
    console.print(table)
    if found.total > available:
        console.print(f"It fits only where freed blocks go back: start with [bold]{THRESHOLD}=1048576[/bold] set.")
    if smaller is not None:
        console.print(f"It fits with [bold]optimizer.microbatch_tokens={smaller}[/bold] (configured: {asked}).")
