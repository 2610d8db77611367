"""Commands about worlds: list, play, check, measure and serve them. Heavy imports wait until a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

console = Console()

EnvSettings = Annotated[list[str] | None, typer.Argument(help="Settings of the environment: key=value.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def envs() -> None:
    """List the environments: what they are, splits and their sizes."""
    from turnwise.commands.lists import envs_table

    console.print(envs_table())


def play(
    env: Annotated[str, typer.Argument(help="gymnasium id.")] = "turnwise/Household-v0",
    settings: EnvSettings = None,
    agent: Annotated[
        str,
        typer.Option(help="human, expert[:knowing], random, a run, a model folder or hub name, openai:MODEL@URL."),
    ] = "human",
    opponent: Annotated[str, typer.Option(help="In a game: as --agent, or self for both sides.")] = "expert",
    split: Annotated[str, typer.Option(help="Panel of tasks.")] = "train",
    task: Annotated[int, typer.Option(min=0, help="Number of the task in its panel.")] = 0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of an agent with a model; 0 is greedy.")] = 1.0,
) -> None:
    """Play one episode: you at the terminal, or watch a trained agent, a model, the expert or a random agent.

    [dim]turnwise play turnwise/Household-v0 --agent runs/RUN --split test --task 3[/dim]
    """
    from turnwise.commands.play import play as run_play

    run_play(console, env, _kwargs(settings), agent, split, task, seed, opponent, temperature)


def check_env(
    env: Annotated[str, typer.Argument(help="gymnasium id, or module:ns/Id-v0 for your own.")],
    settings: EnvSettings = None,
    seconds: Annotated[float, typer.Option(min=1.0, help="How long to look, about.")] = 30.0,
    as_json: JsonOption = False,
) -> None:
    """Check whether an environment is fit for training. Exit code 1 where a check fails.

    Determinism, interleaving, odd actions, truncation, snapshots, leaks between splits, expert success, speed.
    """
    import json

    from turnwise.commands.check_env import check_table, plain
    from turnwise.envs.check import check

    report = check(env, seconds, **_kwargs(settings))
    if as_json:
        typer.echo(json.dumps(plain(report), indent=1))
    else:
        console.print(check_table(report))
    if not report.ok:
        raise typer.Exit(1)


def bench_env(
    env: Annotated[str, typer.Argument(help="gymnasium id.")] = "turnwise/Household-v0",
    settings: EnvSettings = None,
    games: Annotated[int | None, typer.Option(min=1, help="Different tasks to play; 100, or 10 against.")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="CPU seconds to measure for.")] = 5.0,
    split: Annotated[str, typer.Option(help="Panel of tasks.")] = "train",
    against: Annotated[str | None, typer.Option(help="official: the official package, same games and actions.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Steps per second on one core: random admissible actions through gymnasium.make, admissible list included."""
    from dataclasses import asdict

    from turnwise.envs.bench import bench, bench_against_official

    kwargs = _kwargs(settings)
    if against is None:
        numbers = asdict(bench(num_games=games or 100, seconds=seconds, env_id=env, split=split, **kwargs))
    elif against == "official":
        numbers = asdict(bench_against_official(env, num_games=games or 10, split=split, **kwargs))
    else:
        raise ValueError(f"--against {against!r}: expected official")
    print_numbers(console, numbers, as_json)


def serve_search(
    corpus: Annotated[list[Path] | None, typer.Argument(help="Files of documents; none: the generated world.")] = None,
    host: Annotated[str, typer.Option()] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
    topk: Annotated[int, typer.Option(min=1, help="Documents per query, unless the request says.")] = 3,
    retriever: Annotated[str, typer.Option(help="bm25 (in memory) or bm25s (index on disk).")] = "bm25",
    difficulty: Annotated[str, typer.Option(help="Of the generated world: easy, medium, hard.")] = "easy",
) -> None:
    """Offer Search-R1's retrieval protocol (POST /retrieve) over a corpus."""
    from turnwise.commands.serve_search import serve

    paths = [str(path) for path in corpus] if corpus else None
    serve(
        paths,
        host,
        port,
        topk,
        retriever,
        difficulty,
        on_ready=lambda url: console.print(f"serving {url}/retrieve; stop with Ctrl-C", highlight=False),
    )


def print_numbers(to: Console, numbers: dict[str, Any], as_json: bool) -> None:
    """Print names and values, one on each line, and after them JSON if ``as_json``."""
    import json

    for name, value in numbers.items():
        to.print(f"{name:<20} {value:.4g}" if isinstance(value, float) else f"{name:<20} {value}", highlight=False)
    if as_json:
        typer.echo(json.dumps(numbers))


def _kwargs(settings: list[str] | None) -> dict[str, Any]:
    from turnwise.config.overrides import override

    return override({}, settings or [])
