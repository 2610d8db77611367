"""The command line: thin doors to ``experiment`` and its neighbours. Heavy imports wait until a command needs them."""

from __future__ import annotations

import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

# Waiting threads should sleep, not spin: on shared cores spinning barriers cost several times the work itself.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import typer
from rich.console import Console
from rich.markup import escape

from turnwise.commands import bench, measuring, runs, serve, worlds
from turnwise.commands import convert as conversion
from turnwise.commands import plan as cli_plan
from turnwise.commands import template as templates
from turnwise.commands import view as views
from turnwise.commands.bench import EnvOption, quiet
from turnwise.commands.serve_vllm import serve_vllm
from turnwise.commands.steering import steering
from turnwise.errors import place, with_place

if TYPE_CHECKING:
    from turnwise.commands.display import LiveDisplay
    from turnwise.commands.ending import Ending
    from turnwise.jobs import Result
    from turnwise.runs.checkpoints import CheckpointName

app = typer.Typer(
    name="turnwise",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(bench.app, name="bench")
for _command in (
    worlds.envs,
    worlds.play,
    worlds.check_env,
    worlds.serve_search,
    runs.trajectories,
    runs.replay,
    runs.rejudge,
):
    app.command()(_command)
app.command()(measuring.evaluate)
app.command()(measuring.compare)
app.command()(views.view)
app.command()(cli_plan.plan)
app.command()(conversion.convert)
app.command()(templates.template)
app.command()(serve.serve)
app.command()(serve_vllm)
app.command()(steering)

console = Console()

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

SettingsArg = Annotated[
    list[str] | None,
    typer.Argument(help="A configuration (a YAML path or a shipped name), then key.path=value settings."),
]


def _version(asked: bool) -> None:
    if asked:
        from turnwise import __version__

        typer.echo(f"turnwise {__version__}")
        raise typer.Exit


@app.callback()
def _turnwise(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version, and end.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Train, evaluate and play language-model agents in multi-turn text worlds."""


@app.command()
def train(
    settings: SettingsArg = None,
    env: EnvOption = None,
    algorithm: Annotated[
        str | None, typer.Option("--algorithm", help="A name of `turnwise algorithms`, or module:recipe.")
    ] = None,
    tools: Annotated[
        str | None,
        typer.Option(
            "--tools", help="Functions or a class of yours as the world: module:NAME, with --tasks, --reward."
        ),
    ] = None,
    mcp: Annotated[
        list[str] | None,
        typer.Option("--mcp", help="Tools of an MCP server: its command line or address; may be given several times."),
    ] = None,
    program: Annotated[
        str | None,
        typer.Option("--program", help='An agent program as the world: module:NAME or "python cli.py", with --tasks.'),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option("--tasks", help=r"Their tasks: FILE.jsonl, or hf:DATASET\[@REVISION]\[#CONFIG]\[:SPLIT]."),
    ] = None,
    reward: Annotated[
        str | None, typer.Option("--reward", help="What judges an episode: module:FUNCTION(task, tools, reply).")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the run; default runs/ENV-ALGORITHM-N.")] = None,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", help="Continue this run, with settings that may still change, such as num_updates=N."),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Shorthand for seed=N.")] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the resolved configuration as YAML, and end.")
    ] = False,
) -> None:
    """Train an agent and measure it on unseen tasks before and after.

    [dim]turnwise train --env turnwise/Household-v0 --algorithm grpo optimizer.lr=5e-4 num_updates=40[/dim]
    [dim]turnwise train --program my_agent:agent --tasks questions.jsonl model.path=FOLDER_OR_NAME[/dim]
    [dim]turnwise train --resume runs/household-grpo-s0-1 num_updates=80[/dim]
    """
    if resume is not None:
        if env or algorithm or out or tools or mcp or program or tasks or reward or seed is not None:
            raise ValueError("--resume takes world, algorithm, folder and seed from the run: leave them out")
        if print_config:
            raise ValueError("--print-config is for a run that begins: RUN/config.yaml holds a run's")
        _resume(resume, settings or [])
        return
    from turnwise.commands.shorthands import world_of
    from turnwise.config.files import dump_config, load_config

    env, more = world_of(env, tools=tools, mcp=mcp or (), program=program, tasks=tasks, reward=reward)
    name, given = _words(settings, [*more, *([f"seed={seed}"] if seed is not None else [])])
    config = load_config(name, given, env=env, algorithm=algorithm)
    if print_config:
        typer.echo(dump_config(config), nl=False)
        return
    from turnwise.commands.ending import closing
    from turnwise.jobs import new_folder, title_of
    from turnwise.jobs import train as run_train

    folder = out or new_folder(config)
    _run(folder, title_of(config), config.num_updates, lambda display: run_train(config, folder, display), closing)


def _resume(folder: Path, changes: Sequence[str]) -> None:
    from turnwise.commands.ending import closing
    from turnwise.jobs import resume, resumed_config, title_of
    from turnwise.runs.directory import RunDirectory

    shown = resumed_config(RunDirectory.open(folder), changes)
    _run(folder, title_of(shown), shown.num_updates, lambda display: resume(folder, display, changes), closing)


# By whether it is a smoke run, which wins nothing: that its groups are rewarded alike is no warning there.
_DEMOS = {False: ["household"], True: ["smoke", "watchdog.uniform_groups=null"]}


@app.command()
def demo(
    seed: Annotated[int | None, typer.Option(help="Shorthand for seed=N.")] = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Under a minute: every part runs, nothing is learned.")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the run.")] = None,
    settings: SettingsArg = None,
) -> None:
    """The main job: from an untrained model to an agent that does household tasks, on two CPU cores.

    Ends with exit code 1 where the 95 % interval of the gain includes 0 (not with --smoke).
    """
    more = [f"seed={seed}"] if seed is not None else []
    from turnwise.commands.ending import SMOKE, demo_closing, smoke_closing
    from turnwise.config.files import load_config
    from turnwise.jobs import new_folder, title_of
    from turnwise.jobs import train as run_train

    name, given = _words([*_DEMOS[smoke], *(settings or [])], more)
    config = load_config(name, given)
    folder = out or new_folder(config)
    if smoke:
        console.print(SMOKE, highlight=False)
    ending = smoke_closing if smoke else demo_closing
    result = _run(
        folder, title_of(config), config.num_updates, lambda display: run_train(config, folder, display), ending
    )
    if not smoke and (result.gain is None or result.gain.low <= 0):
        console.print("[red]The gain is not distinguishable from 0.[/red]")
        raise typer.Exit(1)


def _checkpoint(name: str | None) -> CheckpointName | None:
    if name not in (None, "last", "best"):
        raise ValueError(f"--checkpoint is last or best, got {name!r}")
    return "best" if name == "best" else "last" if name == "last" else None


@app.command()
def configs() -> None:
    """List the shipped configurations."""
    from turnwise.config.files import config_folder, shipped_configs

    for name in shipped_configs():
        first = (config_folder() / f"{name}.yaml").read_text().splitlines()[0].lstrip("# ")
        console.print(f"[bold]{name:<12}[/bold] {first}", highlight=False)


@app.command()
def algorithms(
    name: Annotated[str | None, typer.Argument(help="One of them, or module:recipe; all without.")] = None,
) -> None:
    """List the algorithms, or show one: paper, equations, every setting, and where paper and released code part."""
    from turnwise.commands.lists import algorithm_page, algorithms_table

    if name is None:
        console.print(algorithms_table())
    else:
        console.print(algorithm_page(name))


@app.command()
def settings(section: Annotated[str, typer.Argument(help="Such as optimizer or warmstart; all without.")] = "") -> None:
    """Every setting of a run: its default and what it means."""
    from turnwise.commands.lists import settings_table

    console.print(settings_table(section))


@app.command()
def warmstart(
    settings: SettingsArg = None,
    env: EnvOption = None,
    model: Annotated[
        str | None, typer.Option(help="Folder or hub name of a model, or an adapter, to clone into.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Clone anew even if the cache holds this model.")] = False,
    to: Annotated[Path | None, typer.Option("--to", help="A new folder for it, beside the cache.")] = None,
) -> None:
    """Clone the environment's expert into a model folder, or with LoRA into an adapter's (cached)."""
    from turnwise.commands.display import LiveDisplay
    from turnwise.config.files import load_config
    from turnwise.jobs import has_warmstart
    from turnwise.jobs import warmstart as run_warmstart
    from turnwise.models.loading import check_device

    name, given = _words(settings, [f"model.path={json.dumps(model)}"] if model is not None else [])
    if model is not None:
        given = ["model={}", *given]
    config = load_config(name, given, env=env)
    if config.warmstart is None:  # as for a pretrained model
        config = load_config(name, ["warmstart={}", *given], env=env)
    check_device(config.device)
    quiet()
    import torch

    torch.set_num_threads(config.threads)
    try:
        with LiveDisplay(console, 0, "turnwise warmstart") as display:
            display.stage("clone" if fresh or not has_warmstart(config) else "cached")
            folder = run_warmstart(config, display.cloning, fresh=fresh, to=to)
    except KeyboardInterrupt:
        console.print("stopped: the same command goes on from the last minute that was saved", highlight=False)
        raise typer.Exit(130) from None
    console.print(f"model: {folder}", highlight=False)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    to: Annotated[Path, typer.Option("--to", help="New folder.")],
    adapter: Annotated[bool, typer.Option("--adapter", help="The peft adapter alone, not merged weights.")] = False,
    checkpoint: Annotated[str | None, typer.Option(help="last or best; default: the run's own.")] = None,
    side: Annotated[str | None, typer.Option(help="Role whose policy, where a game has one for each.")] = None,
) -> None:
    """Write a run's policy as a merged Hugging Face folder, or as its adapter."""
    from turnwise.jobs import export as run_export

    quiet()
    folder = run_export(run, to, adapter=adapter, checkpoint=_checkpoint(checkpoint), side=side)
    console.print(f"{'adapter' if adapter else 'merged model'}: {folder}", highlight=False)


def _words(given: list[str] | None, more: Sequence[str] = ()) -> tuple[str | None, list[str]]:
    """(name of a configuration, settings): the first word without ``=`` is the name. Options stand for ``more``."""
    from turnwise.config.overrides import beside

    words = list(given or [])
    name = words.pop(0) if words and "=" not in words[0] else None
    return name, beside(more, words)


def _run(folder: Path, title: str, num_updates: int, work: Callable[[LiveDisplay], Result], ending: Ending) -> Result:
    """Train under the display; then the closing lines."""
    from turnwise.commands.display import LiveDisplay
    from turnwise.commands.ending import stopped_line
    from turnwise.jobs import follow_if_told
    from turnwise.training.faults import InterruptedRunError

    quiet()
    follow_if_told()
    try:
        with LiveDisplay(console, num_updates, title) as display:
            result = work(display)
    except InterruptedRunError as stopped:
        console.print(str(stopped), highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(stopped.exit_code) from None
    except KeyboardInterrupt:
        console.print(stopped_line(folder), highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(130) from None
    ending(console, result, display)
    return result


def main() -> None:
    """Entry point: a user's mistake is one message and exit code 2, never a traceback (TURNWISE_DEBUG=1 shows it)."""
    warnings.formatwarning = _sentence
    sys.path.insert(0, os.getcwd())  # so that module:Your/Env-v0 and module:recipe are found here, as with python -m
    try:
        app()
    except Exception as error:  # a user's world, program or function may raise anything
        ours = not isinstance(error, (ValueError, OSError, RuntimeError, MemoryError)) and not place(error)
        if ours or os.environ.get("TURNWISE_DEBUG"):
            raise
        Console(stderr=True).print(f"[red]Error:[/red] {escape(_reason(error))}", highlight=False, soft_wrap=True)
        sys.exit(getattr(error, "exit_code", 2))


def _sentence(message: Warning | str, *where: Any, **more: Any) -> str:
    """A warning as one sentence, without its place and without the colours that gymnasium writes into its own."""
    return f"Warning: {_COLOUR.sub('', str(message))}\n"


def _reason(error: Exception) -> str:
    """What went wrong and what to do; faults that are not the user's say how to see more."""
    from turnwise.training.faults import is_out_of_memory

    if isinstance(error, ValueError) or hasattr(error, "exit_code"):
        return str(error)
    if is_out_of_memory(error):
        return f"out of memory: lower rollout.num_slots or optimizer.microbatch_tokens ({error!r})"
    trains = sys.argv[1:2] in (["train"], ["demo"])
    goes_on = "; from a checkpoint, if there is one, `turnwise train --resume RUN` goes on" if trains else ""
    return f"{with_place(error)} (TURNWISE_DEBUG=1 shows where{goes_on})"


if __name__ == "__main__":
    main()
