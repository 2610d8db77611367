"""``turnwise steering``: a vector for agent.decoding.steering. Heavy imports wait until the command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from turnwise.commands.bench import quiet

console = Console()


def steering(
    run: Annotated[str, typer.Argument(help="A run of one policy, whose stored episodes are taken.")],
    to: Annotated[Path, typer.Option("--to", help="A new file for the vector.")],
    layer: Annotated[int | None, typer.Option(min=0, help="After which layer, from 0; default: the middle.")] = None,
    updates: Annotated[
        str,
        typer.Option(
            help="Of one update, or first:end (10:20 is without 20); default: the latest up to the checkpoint."
        ),
    ] = "",
    contexts: Annotated[int, typer.Option(min=2, help="How many contexts at most.")] = 512,
    checkpoint: Annotated[
        str, typer.Option(help="Whose states: last, best, or the number of an update; 0: before training.")
    ] = "last",
) -> None:
    """Fit a steering vector to a run's episodes: the direction of states in which actions are less sure (EAST).

    [dim]turnwise steering RUN --to unsure.safetensors[/dim]
    [dim]turnwise train household agent.decoding.steering.file=unsure.safetensors[/dim]
    """
    from turnwise.assembly.policies import load_policies
    from turnwise.assembly.steering import check_new, fit, write
    from turnwise.runs.trajectories import Selection, parse_updates, run_of, select, updates_of

    quiet()
    opened = run_of(run)
    sides = opened.sides()
    if sides != [""]:
        raise ValueError(f"{run} has policies for {', '.join(sides)}: a steering vector is fitted to a run of one")
    which = checkpoint if checkpoint in ("last", "best") else int(checkpoint) if checkpoint.isdigit() else None
    if which is None:
        raise ValueError(f"--checkpoint {checkpoint!r}: expected last, best or the number of an update")
    if opened.config().agent.decoding.steering is not None:
        raise ValueError(
            f"{run} is itself steered, so that its episodes are not those of the model whose states are read: take a "
            "run that is not"
        )
    check_new(to)
    chosen = parse_updates(updates)
    policy = load_policies(opened, sides, which)[""]  # type: ignore[arg-type]
    model = policy.sampler
    newest_first = (range(update, update + 1) for update in reversed(updates_of(run)) if update <= policy.version)
    ranges = newest_first if chosen is None else [chosen]
    episodes = (stored.trajectory for each in ranges for stored in select(run, Selection(updates=each)))
    found = fit(model, episodes, layer, contexts)
    write(found, to)
    console.print(
        f"steering vector: {to} (layer {found.layer} of {model.config.num_hidden_layers}, {found.contexts} contexts, "
        f"mean norm of a state {found.size:.3g}, of the vector before scaling {float(found.direction.norm()):.3g})",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
