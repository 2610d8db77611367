"""What the console shows at a run's end: closing lines, an episode that the demo's agent won, the next commands."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from turnwise.agents.chat_client import uncounted_text
from turnwise.clock import time_line
from turnwise.commands.display import LiveDisplay, gain_line, result_table, sparkline
from turnwise.evaluation.report import Report
from turnwise.grading.verdicts import FILE as VERDICTS
from turnwise.grading.verdicts import spent_in
from turnwise.jobs import Result
from turnwise.runs.directory import RunDirectory
from turnwise.runs.trajectory_tables import printable
from turnwise.statistics import share_text
from turnwise.trajectory import Trajectory

Ending = Callable[[Console, Result, LiveDisplay], None]

SMOKE = "A smoke run: every part works once, on a tiny model. Nothing is expected to be learned in it."
"""The first line of ``turnwise demo --smoke``."""


def closing(console: Console, result: Result, display: LiveDisplay) -> None:
    """Show success before and after training, where the time went, the curve of training success, and the folder."""
    if result.after:
        console.print(result_table(result))
    _course(console, result)
    if result.gain is not None:
        console.print(gain_line(result.gain, result.after["sampled"]), highlight=False)
    elif why := _no_gain(result):
        console.print(why, highlight=False, soft_wrap=True)
    _whereabouts(console, result)


def demo_closing(console: Console, result: Result, display: LiveDisplay) -> None:
    """Show the same, then an unseen task that the agent wins, turn by turn, and three commands to try next."""
    closing(console, result, display)
    win_and_next(console, result, display)


def win_and_next(console: Console, result: Result, display: LiveDisplay) -> None:
    """Show an unseen task that the agent wins, and the next commands."""
    console.print()
    console.print(won_episode(result, display.won))
    console.print()
    console.print(next_commands(result.path), soft_wrap=True)


def smoke_closing(console: Console, result: Result, display: LiveDisplay) -> None:
    """Show that every part ran. There is no table of success, since so short a run learns nothing."""
    updates = len(RunDirectory.open(result.path).metrics())
    console.print(
        f"[green]Every part ran[/green]: warm start, measuring, {updates} updates with checkpoints, measuring again.",
        highlight=False,
    )
    console.print(
        "Nothing was expected to be learned in so short a run: `turnwise demo` trains an agent that learns.",
        highlight=False,
    )
    _whereabouts(console, result)


def _course(console: Console, result: Result) -> None:
    lines = RunDirectory.open(result.path).metrics()
    if spent := time_line(lines):
        console.print(f"time  {spent}", highlight=False)
    if judged := judged_line(RunDirectory.open(result.path)):
        console.print(judged, highlight=False, markup=False, soft_wrap=True)
    curve = [line["success"] for line in lines if line["success"] is not None]
    if curve:
        ends = f"{share_text(curve[0])} → {share_text(curve[-1])}"
        console.print(f"training success  {sparkline(curve)}  {ends}", highlight=False)


def _no_gain(result: Result) -> str:
    """Why a run has no gain; "" without a test panel."""
    if not result.trained:
        return "no update was made: nothing was trained, and nothing could be gained"
    if not (result.before and result.after):
        return ""
    if (result.before["sampled"].success is None) != (result.after["sampled"].success is None):
        return "no gain: some episodes before or after training do not say whether they are a success"
    return "no gain: no task has an episode without an error before and after training"


def judged_line(run: RunDirectory) -> str:
    """What the judge of a run took in all, measurements included; "" without one."""
    config, found = run.config().rewards.judge, run.path / VERDICTS
    if config is None or not found.exists():
        return ""
    spent = spent_in(found)
    cost = spent.cost(config.endpoint)
    told = f"judge {config.model}, rubric {config.rubric.hash}: {spent.requests:,} requests, "
    told += f"{spent.prompt_tokens:,} prompt and {spent.completion_tokens:,} completion tokens"
    return told + ("" if cost is None else f", cost {cost:.4f}") + uncounted_text(spent.uncounted)


def _whereabouts(console: Console, result: Result) -> None:
    spent = f"({result.seconds:.0f} s, {result.cpu_seconds:.0f} CPU s)"
    console.print(f"run: {result.path}   {spent}", highlight=False, markup=False, soft_wrap=True)


# --- a win ---


def unseen_win(result: Result, won: Mapping[str, Trajectory]) -> tuple[Trajectory, bool] | None:
    """A won episode of the test panel, of median length, and whether its task was lost before training.

    ``won`` holds successful episodes by task key. The episode is of a task that was lost before training where there
    is such a task. None where no task was won.
    """
    after, before = result.after.get("sampled"), result.before.get("sampled")
    wins = [won[key] for key in _tasks(after, True) if key in won]
    lost = set(_tasks(before, False))
    learned = [trajectory for trajectory in wins if trajectory.task.key in lost]
    chosen = sorted(learned or wins, key=lambda trajectory: len(trajectory.turns))
    return (chosen[(len(chosen) - 1) // 2], bool(learned)) if chosen else None


def _tasks(report: Report | None, success: bool) -> Iterable[str]:
    """Keys of the tasks that were won in some attempt (``success``), or lost in all; none where success is unknown."""
    if report is None or report.success is None:
        return []
    tried = zip(report.keys, report.outcomes, strict=True)
    return [key for key, outcomes in tried if outcomes and any(outcomes) == success]


def won_episode(result: Result, won: Mapping[str, Trajectory]) -> RenderableType:
    """The episode of ``unseen_win``, turn by turn."""
    found = unseen_win(result, won)
    if found is None:
        return Text("The agent won no task of the test panel: there is no episode to show.")
    trajectory, learned = found
    told = "lost before training and wins now" if learned else "wins"
    title = Text.assemble(("An unseen task that the agent ", "bold"), (told, "bold green"))
    kind = trajectory.task.type.replace("_", " ")
    title.append(f"  ({trajectory.task.split} task {trajectory.task.index}{f', {kind}' if kind else ''})", "dim")
    turns = Table.grid(padding=(0, 1))
    turns.add_column(justify="right", style="dim")
    turns.add_column(overflow="fold")
    for number, turn in enumerate(trajectory.turns, start=1):
        seen = "\n".join(line for line in turn.observation.splitlines() if line.strip())
        turns.add_row(str(number), Text(printable(seen)))
        turns.add_row(Text(">", "bold cyan"), Text(printable(turn.action or turn.reply), "bold"))
    ending = Text(f"Won in {len(trajectory.turns)} turns.", "green")
    return Group(title, Padding(turns, (1, 0, 1, 2)), ending)


# --- going on ---


def next_commands(folder: Path) -> Text:
    """Three commands to try next with a run, each on a line of its own. Print it with ``soft_wrap``."""
    run, program = shlex.quote(str(folder)), command_name()
    commands = {
        f"{program} view {run}": "every training episode, token by token, in one HTML file",
        f"{program} evaluate {run} --samples 4": "four attempts at each unseen task: pass@4",
        f"{program} train --resume {run} num_updates=N": "train on, up to N updates",
    }
    lines = [Text.assemble((f"\n  {told}", "bold"), (f"\n      {what}", "dim")) for told, what in commands.items()]
    return Text.assemble(("Next", "bold"), *lines)


def command_name() -> str:
    """How to call ``turnwise`` here: by its name where a shell finds it, else by the script beside this Python."""
    if shutil.which("turnwise") is not None:
        return "turnwise"
    script, here = Path(sys.executable).with_name("turnwise"), Path.cwd()
    if not script.exists():
        return "python -m turnwise.cli"
    return shlex.quote(str(script.relative_to(here) if script.is_relative_to(here) else script))


def stopped_line(folder: Path) -> str:
    """What is left of a run that a second Ctrl-C ended, and how to continue."""
    run = RunDirectory(folder)
    again = f"`turnwise train --resume {shlex.quote(str(folder))}`"
    if not (folder / "config.yaml").exists():
        return "stopped before the run began: nothing is left of it, the same command starts again"
    if not run.has_checkpoint:
        return f"stopped at once, before the first checkpoint: {again} begins the run again"
    return f"stopped at once: {again} goes on after its newest checkpoint"
