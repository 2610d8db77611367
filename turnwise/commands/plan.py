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

    from turnwise.assembly.settling import demand_of
    from turnwise.config.files import load_config
    from turnwise.config.overrides import beside
    from turnwise.training.plan import GIB, available_memory, fit

    words = list(settings or [])
    name = words.pop(0) if words and "=" not in words[0] else None
    config = load_config(name, beside([f"model.path={model}"] if model else [], words), env=env)
    available = int(memory * GIB) if memory is not None else available_memory(config.device)
    shape, asked = demand_of(config)
    plan = fit(shape, asked, available)
    found = plan.demand
    if as_json:
        parts = {part.name: part.bytes for part in plan.parts}
        stages = {stage: plan.held(stage) for stage in ("always", "sampling", "update")}
        numbers = {"total": plan.total, "available": available, "microbatch_tokens": found.microbatch_tokens}
        typer.echo(json.dumps({**numbers, "num_slots": found.num_slots, "parts": parts, "stages": stages}))
        return
    table = Table("part", "MiB", "held", "", box=None, header_style="bold")
    table.columns[1].justify = "right"
    for part in plan.parts:
        table.add_row(part.name, f"{part.bytes / 2**20:,.1f}", part.stage, part.how)
    peak = f"[bold]{plan.total / 2**20:,.1f}[/bold]"
    table.add_row("[bold]peak[/bold]", peak, plan.peak, f"{available / 2**20:,.0f} free")
    console.print(table)
    if found.tokens < asked.tokens:
        told = f"(configured: {asked.microbatch_tokens})"
        console.print(f"It fits with [bold]optimizer.microbatch_tokens={found.microbatch_tokens}[/bold] {told}.")
    if found.num_slots < asked.num_slots:
        console.print(f"It fits with [bold]rollout.num_slots={found.num_slots}[/bold].")
