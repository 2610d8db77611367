"""Commands about the episodes that a run has stored: find, show, export them, and play them again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

console = Console()

RunArg = Annotated[str, typer.Argument(help="Folder of a run, or a trajectory file.")]


def trajectories(
    run: RunArg,
    updates: Annotated[str, typer.Option(help="One update, or first:end (10:20 is without 20).")] = "",
    task: Annotated[str, typer.Option(help="Index in its split, or content key.")] = "",
    task_type: Annotated[str, typer.Option("--type", help="Task type.")] = "",
    split: Annotated[str, typer.Option(help="Split of the task.")] = "",
    success: Annotated[str, typer.Option(help="yes, no, or unknown.")] = "",
    min_return: Annotated[float | None, typer.Option(help="Lowest total reward.")] = None,
    max_return: Annotated[float | None, typer.Option(help="Highest total reward.")] = None,
    end: Annotated[str, typer.Option(help="terminated, truncated, or error.")] = "",
    player: Annotated[str, typer.Option(help="Seat in a game.")] = "",
    text: Annotated[str, typer.Option(help="In an observation, reply or action; any case.")] = "",
    limit: Annotated[int | None, typer.Option(min=0, help="Rows shown: 20; 0: all.")] = None,
    show: Annotated[str | None, typer.Option(help="This episode in full.")] = None,
    export: Annotated[Path | None, typer.Option(help="Write FILE.jsonl, FILE.parquet or a datasets FOLDER.")] = None,
    form: Annotated[
        str | None,
        typer.Option("--format", help="Of the export: trajectories, sft (chat messages), tokens (exact ids and mask)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines instead of a table.")] = False,
) -> None:
    """Find, show and export the training episodes of a run.

    [dim]turnwise trajectories RUN --success yes --updates 20: --export won.jsonl --format sft[/dim]
    """
    import json

    from turnwise.runs.exporting import export_trajectories
    from turnwise.runs.trajectories import Selection, find, parse_updates, select
    from turnwise.runs.trajectory_tables import Listing, episode_page, summary_row

    returns = (min_return, max_return)
    selection = Selection(parse_updates(updates), "", task, task_type, split, success, returns, end, player, text)
    if show is not None:
        if selection != Selection() or export is not None or form is not None or limit is not None or as_json:
            raise ValueError("--show shows one episode in full: leave the other options out")
        console.print(episode_page(find(run, show)))
        return
    if export is not None:
        if limit is not None or as_json:
            raise ValueError("--export writes every selected row: leave --limit and --json, which are for a list, out")
        num = export_trajectories(run, selection, export, form or "trajectories")
        console.print(f"{num:,} rows: {export}", highlight=False, markup=False)
        return
    if form is not None:
        raise ValueError("--format is of an export: add --export FILE, or leave it out")
    listing = Listing.of(select(run, selection), 20 if limit is None else limit)
    if as_json:
        typer.echo("".join(json.dumps(summary_row(stored)) + "\n" for stored in listing.rows), nl=False)
        if len(listing.rows) < listing.num and limit is None:  # whoever reads JSON would count the lines
            told = f"the first {len(listing.rows)} of {listing.num:,} trajectories: --limit 0 prints all"
            Console(stderr=True).print(told, highlight=False, soft_wrap=True)
    else:
        console.print(listing.table())


def replay(
    run: RunArg,
    episode: Annotated[str | None, typer.Argument(help="Its name, as `turnwise trajectories` lists it.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every stored episode.")] = False,
    sample: Annotated[int | None, typer.Option(min=1, help="So many of them, drawn at random.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of that draw: 0.")] = None,
) -> None:
    """Play stored episodes again in their world, and compare. Exit code 1 where one differs.

    Every observation, validity, reward, the end and the success are compared.
    """
    from turnwise.runs import reproducing
    from turnwise.runs.trajectory_tables import printable

    if sum((episode is not None, everything, sample is not None)) != 1:
        raise ValueError("say which: an EPISODE (`turnwise trajectories RUN` lists them), --sample N, or --all")
    if seed is not None and sample is None:
        raise ValueError("--seed draws the episodes of --sample N: add that, or leave it out")
    tally = reproducing.Tally()
    if episode is not None:
        tally.add(reproducing.reproduce(run, episode))
    else:
        tally = reproducing.reproduce_many(run, sample, seed or 0)
    for found in tally.differing:
        console.print(f"{printable(found.episode)}: ", printable(str(found.difference)), markup=False)
    console.print(tally.summary(), highlight=False, markup=False)
    if tally.different:
        raise typer.Exit(1)


def rejudge(
    run: RunArg,
    settings: Annotated[
        list[str] | None, typer.Argument(help="Settings of rewards, such as rewards.judge.weight=2 or judge.view=last.")
    ] = None,
    rubric: Annotated[str | None, typer.Option(help="Another rubric, a YAML file.")] = None,
    model: Annotated[
        str | None, typer.Option(help=r"Another judge, openai:MODEL\[@URL]. MODEL decides which verdicts are known.")
    ] = None,
    functions: Annotated[
        list[str] | None, typer.Option("--functions", help="Other functions, MODULE:NAME; may be repeated.")
    ] = None,
    updates: Annotated[str, typer.Option(help="One update, or first:end (10:20 is without 20).")] = "",
    out: Annotated[Path | None, typer.Option(help="A new trajectory file with the new rewards.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Compute the rewards of a run's stored episodes again, and say what changes. The run stays as it is.

    Without options its own functions and judge grade again; verdicts that are known are not asked for.

    [dim]turnwise rejudge RUN --rubric stricter.yaml --out stricter.jsonl.gz[/dim]
    """
    import json

    from rich.progress import Progress

    from turnwise.config.overrides import beside, override
    from turnwise.runs.rejudging import rejudge as grade_again
    from turnwise.runs.trajectories import parse_updates
    from turnwise.runs.trajectory_tables import rejudged_table

    words = [word if word.startswith("rewards.") else f"rewards.{word}" for word in settings or []]
    options = [f"rewards.judge.rubric={json.dumps(rubric)}"] if rubric is not None else []
    options += [f"rewards.judge.model={json.dumps(model)}"] if model is not None else []
    options += [f"rewards.functions={json.dumps(functions)}"] if functions else []
    changes = override({}, beside(options, words)).get("rewards", {})
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("episodes", total=None)
        found = grade_again(
            run, changes, updates=parse_updates(updates), out=out, on_episode=lambda _: progress.advance(bar)
        )
    if as_json:
        typer.echo(json.dumps(found.plain(), indent=1))
    else:
        console.print(rejudged_table(found))
    if found.failed:
        told = f"{found.failed:,} episodes could not be graded; the first: {found.first_failure}"
        Console(stderr=True).print(told, markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1)
