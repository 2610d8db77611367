"""Stored episodes on a terminal: a list of them, and one in full."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from turnwise.agents.actions import unsent
from turnwise.agents.dialogue import action_text, lines
from turnwise.grading.agreement import Graded, judged_text
from turnwise.runs.rejudging import Rejudged
from turnwise.runs.trajectories import Stored
from turnwise.statistics import UNKNOWN, estimate_text, number_text
from turnwise.trajectory import Trajectory, Turn

_COLUMNS = ("episode", "update", "type", "end", "success", "return", "turns", "tokens", "forked from")
_NUMBERS = ("update", "return", "turns", "tokens")
_VERDICTS = {True: "yes", False: "no", None: "?"}
_STYLES = {True: "green", False: "red", None: "dim"}


@dataclass(slots=True)
class Listing:
    """The first ``limit`` of some trajectories (0: all), and totals over all of them.

    ``returns`` is the sum over those that did not fail: what a failed one was paid so far is no return.
    """

    limit: int
    rows: list[Stored] = field(default_factory=list)
    num: int = 0
    known: int = 0
    won: int = 0
    failed: int = 0
    returns: float = 0.0

    @classmethod
    def of(cls, found: Iterable[Stored], limit: int) -> Listing:
        made = cls(limit)
        for stored in found:
            trajectory = stored.trajectory
            made.num += 1
            made.known += trajectory.success is not None
            made.won += bool(trajectory.success)
            if trajectory.end == "error":
                made.failed += 1
            else:
                made.returns += trajectory.total_reward
            if not limit or len(made.rows) < limit:
                made.rows.append(stored)
        return made

    def summary(self) -> str:
        parts = [f"{self.num:,} trajectories"]
        if self.known:
            parts.append(f"success {self.won:,} of {self.known:,}")
        if sound := self.num - self.failed:
            parts.append(f"mean return {self.returns / sound:.3g}")
        if self.failed:
            parts.append(f"{self.failed:,} failed and left out")
        if len(self.rows) < self.num:
            parts.append(f"the first {len(self.rows)} shown: --limit 0 shows all")
        return " · ".join(parts)

    def table(self) -> RenderableType:
        rows = [(summary_row(stored), stored.trajectory.success) for stored in self.rows]
        columns = [column for column in _COLUMNS if any(row[column] != "" for row, _ in rows)]
        table = Table(title="Trajectories", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for column in columns:
            justify: Any = "right" if column in _NUMBERS else "left"
            table.add_column(
                column, overflow="fold", justify=justify, no_wrap=column in ("episode", "success", *_NUMBERS)
            )
        for row, success in rows:
            cells = {**row, "success": _VERDICTS[success], "return": f"{row['return']:.3g}"}
            styles = {"success": _STYLES[success]}
            table.add_row(*(Text(printable(str(cells[c])), styles.get(c, "")) for c in columns))
        return Group(table, Text(self.summary()))


def summary_row(stored: Stored) -> dict[str, Any]:
    """One line about a trajectory, as JSON values. ``tokens`` counts sampled tokens."""
    trajectory = stored.trajectory
    fork = trajectory.fork
    return {
        "episode": trajectory.episode,
        "update": stored.update,
        "task": trajectory.task.index,
        "type": trajectory.task.type,
        "end": f"{trajectory.end}: {trajectory.end_reason}" if trajectory.end_reason else trajectory.end,
        "success": trajectory.success,
        "return": trajectory.total_reward,
        "turns": len(trajectory.turns),
        "tokens": trajectory.num_sampled_tokens,
        "forked from": f"{fork.parent} after {fork.turn}{f' + {fork.tokens} tokens' if fork.tokens else ''}"
        if fork
        else "",
    }


def rejudged_table(found: Rejudged) -> RenderableType:
    """What grading the stored episodes again has changed."""
    table = Table(title=f"{found.num:,} episodes graded again, {found.changed:,} paid otherwise", title_justify="left")
    for column in ("", "as stored", "now"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("mean return", *(number_text(value) for value in found.returns))
    both = (found.before, found.after)
    for name in dict.fromkeys(name for side in both if side is not None for name in side.means):
        told = (None if side is None else side.means.get(name) for side in both)
        table.add_row(Text(printable(name)), *(UNKNOWN if value is None else number_text(value) for value in told))
    for name, value_of in _JUDGED.items():
        values = [UNKNOWN if side is None else value_of(side) for side in both]
        if any(value != UNKNOWN for value in values):
            table.add_row(name, *(Text(printable(value)) for value in values))
    parts: list[RenderableType] = [table]
    if found.left:
        parts.append(Text(f"{found.left:,} episodes had failed, and were left as they are"))
    if found.took:
        parts.append(Text(judged_text(found.took)))
    return Group(*parts)


_JUDGED: dict[str, Callable[[Graded], str]] = {
    "judge": lambda side: side.judge or UNKNOWN,
    "verdict": lambda side: UNKNOWN if side.verdict is None else number_text(side.verdict),
    "agrees with success": lambda side: UNKNOWN if side.agreement is None else estimate_text(side.agreement),
    "verdict on won": lambda side: UNKNOWN if side.on_won is None else number_text(side.on_won),
    "verdict on lost": lambda side: UNKNOWN if side.on_lost is None else number_text(side.on_lost),
}


def episode_page(seats: Sequence[Stored]) -> RenderableType:
    """One episode in full: what each stored seat saw, replied and earned, turn by turn."""
    return Group(*(part for stored in seats for part in _page(stored)))


def _page(stored: Stored) -> Iterable[RenderableType]:
    trajectory = stored.trajectory
    row = summary_row(stored)
    lines = [f"task {trajectory.task.key} ({trajectory.task.env}, {trajectory.task.split} {trajectory.task.index})"]
    lines += [f"{trajectory.task.type}"] if trajectory.task.type else []
    lines += [f"update {stored.update}, environment seed {trajectory.seed}, attempt {trajectory.sample}"]
    lines += [f"policy version {trajectory.policy_version}, adapter {trajectory.adapter_hash or '-'}"]
    lines += [f"player {trajectory.player}, role {trajectory.role}"] if trajectory.player else []
    if (fork := trajectory.fork) is not None:
        begun = f" and {fork.tokens} tokens of the next reply" if fork.tokens else ""
        lines += [f"forked from {fork.parent} after {fork.turn} turns{begun}"]
    lines += [f"{row['end']}; success {_VERDICTS[trajectory.success]}; return {trajectory.total_reward:.6g}"]
    lines += [f"score {trajectory.score:.6g}"] if trajectory.score is not None else []
    lines += grade_lines(trajectory)
    yield Panel(Text(printable("\n".join(lines))), title=Text(printable(trajectory.episode)), title_align="left")
    for number, turn in enumerate(trajectory.turns):
        yield from _turn(trajectory, number, turn)


def grade_lines(trajectory: Trajectory) -> list[str]:
    """Who paid what, with a judge's reasons."""
    if trajectory.grading is None:
        return []
    lines = [f"the world paid {trajectory.world_reward:.6g}"]
    lines += [f"judged by {trajectory.grading.judge}"] if trajectory.grading.judge else []
    for grade in trajectory.grading.grades:
        reason = f": {grade.reason}" if grade.reason else ""
        lines.append(f"{grade.name} gave {grade.value:.6g}, paid {grade.value * grade.weight:.6g}{reason}")
    return lines


def _turn(trajectory: Trajectory, number: int, turn: Turn) -> Iterable[RenderableType]:
    fresh = "" if turn.continues or number == 0 else " · fresh context"
    taken = trajectory.fork is not None and number >= trajectory.fork.turn  # by another than who played its parent
    actor = f" · {trajectory.policy}" if taken and trajectory.policy else ""
    yield Text(printable(f"[{number}]{fresh}{actor}"), "dim")
    for role, text in lines(turn) or [("", turn.observation)]:
        yield Text.assemble((f"{printable(role)}: " if role else "", "cyan"), printable(text))
    if turn.reply.strip() != turn.action:
        yield Text(printable(turn.reply), "italic")
    yield Text.assemble(("> ", "bold cyan"), (printable(action_text(turn)), "bold"), (_numbers(turn), "dim"))


def _numbers(turn: Turn) -> str:
    parts = [] if turn.valid else ["not valid" if turn.action else f"not valid: {unsent(turn.reply)}"]
    parts += [f"reward {turn.reward:g}"] if turn.reward else []
    if len(turn.action_ids):
        entropy, logprob = float(np.mean(turn.entropies[turn.action_mask])), float(np.sum(turn.logprobs))
        parts.append(f"{len(turn.action_ids)} tokens, entropy {entropy:.3f}, log-prob {logprob:.2f}")
    return "   " + " · ".join(parts) if parts else ""


def printable(text: str) -> str:
    """Text of a model or a world that is safe to print: control characters and lone surrogates become escapes."""
    return "".join(
        repr(char)[1:-1] if unicodedata.category(char) in ("Cc", "Cs", "Cf") and char not in "\n\t" else char
        for char in text
    )
