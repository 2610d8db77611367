"""``turnwise evaluate`` and ``turnwise compare``: how well somebody plays. Heavy imports wait until a command runs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from turnwise.commands.bench import EnvOption, JsonOption, quiet
from turnwise.commands.serve import which_checkpoint

console = Console()


def evaluate(
    targets: Annotated[
        list[str],
        typer.Argument(
            help="A run (several: seeds of one method, pooled), RUN/checkpoints/update-N, a model folder or hub name, "
            "openai:MODEL, random, expert[:knowing]; then settings: agent.KEY=VALUE, endpoint.KEY=VALUE, "
            "rewards.KEY=VALUE, env.kwargs.KEY=VALUE, env.success_threshold=VALUE, env.process=true, "
            "env.step_timeout_s=S, rollout.env_threads=N, ray.address=ADDRESS, eval.max_error_share=SHARE."
        ),
    ],
    env: EnvOption = None,
    split: Annotated[str | None, typer.Option(help="Panel of tasks; default: the run's test panel.")] = None,
    tasks: Annotated[int | None, typer.Option(min=1, help="The first N tasks only.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Episodes per task; pass@k needs k of them.")] = 1,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 1.0,
    greedy: Annotated[bool, typer.Option("--greedy", help="Greedy decoding too, beside sampling.")] = False,
    top_p: Annotated[float, typer.Option(min=0.01, max=1.0)] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="0: off.")] = 0,
    checkpoint: Annotated[
        str | None, typer.Option(help="last, best or an update (0: its beginning); default: the run's own.")
    ] = None,
    opponent: Annotated[
        str | None, typer.Option(help="In a game: random, expert, self, a run, a model folder or openai:MODEL.")
    ] = None,
    base_url: Annotated[str | None, typer.Option(help="Of openai:MODEL, such as http://127.0.0.1:8000/v1.")] = None,
    slots: Annotated[int, typer.Option(min=1, help="Episodes at once.")] = 64,
    shards: Annotated[int | None, typer.Option(min=1, help="Shorthand for rollout.shards=N.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the draws; default: the run's.")] = None,
    device: Annotated[str, typer.Option()] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="torch threads.")] = 1,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write everything here as JSON; interrupted, the same command goes on.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Success rate on a fixed panel, with its 95 % interval, per task type, and pass@k.

    Episodes that fail in their environment are counted and left out; exit code 1 where more than
    eval.max_error_share of them do.

    [dim]turnwise evaluate runs/s0 runs/s1 runs/s2 --greedy --out s012.json[/dim]
    """
    import torch
    from rich.progress import Progress

    from turnwise.config.files import parse_section
    from turnwise.config.overrides import beside, override
    from turnwise.evaluation.evaluate import evaluate_all
    from turnwise.evaluation.subjects import Asked, Overrides
    from turnwise.evaluation.tables import evaluation_table

    settings = [word for word in targets if "=" in word and not os.path.exists(word)]  # False for a long one
    options = [f"endpoint.base_url={base_url}"] if base_url is not None else []
    options += [f"rollout.shards={shards}"] if shards is not None else []
    changes = parse_section(Overrides, override({}, beside(options, settings)))
    quiet()
    torch.set_num_threads(threads)
    asked = Asked(
        env=env,
        env_kwargs=changes.env.kwargs,
        split=split,
        tasks=tasks,
        samples=samples,
        temperature=temperature,
        greedy=greedy,
        top_p=top_p,
        top_k=top_k,
        checkpoint=which_checkpoint(checkpoint),
        agent=changes.agent,
        rewards=changes.rewards,
        success_threshold=changes.env.success_threshold,
        env_where=changes.env.where(),
        num_slots=slots,
        shards=changes.rollout.shards,
        ray=changes.ray,
        env_threads=changes.rollout.env_threads,
        seed=seed,
        device=device,
        opponent=opponent,
        endpoint=changes.endpoint,
        max_error_share=changes.eval.max_error_share,
    )
    try:
        with Progress(console=Console(stderr=True), transient=True) as progress:
            bar = progress.add_task("episodes", total=None)
            found = evaluate_all(
                [word for word in targets if word not in settings],
                asked,
                out=out,
                on_episode=lambda _: progress.advance(bar),
            )
    except KeyboardInterrupt:
        hint = "the same command goes on" if out is not None else "with --out it could go on"
        console.print(f"stopped; {hint}", highlight=False)
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(json.dumps(found.plain(), indent=1))
    else:
        console.print(evaluation_table(found))
    for why in found.refused:
        Console(stderr=True).print(f"[red]Error:[/red] {escape(why)}", highlight=False, soft_wrap=True)
    if found.refused:
        raise typer.Exit(1)


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Folders of runs, files of `turnwise evaluate --out`; seeds of one method are pooled."),
    ],
    baseline: Annotated[
        str | None, typer.Option(help="Method that others are compared with; default: the first.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the learning curves into this SVG file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Several runs against each other: success, paired differences with intervals, areas under the learning curves.

    Runs on different panels, worlds or warm starts are refused.
    """
    from turnwise.evaluation.compare import compare as run_compare
    from turnwise.evaluation.compare import plain
    from turnwise.evaluation.comparison_view import comparison_table, curves_svg

    comparison = run_compare(runs, baseline=baseline)
    if plot is not None:
        drawn = curves_svg(comparison)
        plot.parent.mkdir(parents=True, exist_ok=True)
        plot.write_text(drawn)
    if as_json:
        typer.echo(json.dumps(plain(comparison), indent=1))
    else:
        console.print(comparison_table(comparison))
