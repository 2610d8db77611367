"""Showing a comparison: tables for a terminal, Markdown, and learning curves as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group
from rich.table import Table
from rich.text import Text

from turnwise.evaluation.compare import Comparison
from turnwise.evaluation.methods import Difference, Method
from turnwise.statistics import Estimate
from turnwise.svg import Line, Panel, small_multiples

_AXES = {"turns": "turns", "tokens": "sampled tokens", "seconds": "wall seconds"}


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table whose cells are text."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def sheets(comparison: Comparison) -> list[Sheet]:
    """The tables: results for each decoding, areas under the learning curves, and the course of training."""
    decodings = dict.fromkeys(name for method in comparison.methods for name in method.after)
    found = [*(_results(comparison, name) for name in decodings), _areas(comparison), _course(comparison)]
    return [sheet for sheet in found if len(sheet.header) > 1 and sheet.rows]


def comparison_table(comparison: Comparison) -> Group:
    """The tables for a terminal, with the legend below."""
    parts: list[Table | Text] = []
    for sheet in sheets(comparison):
        table = Table(title=sheet.title, title_justify="left")
        for column in sheet.header:
            table.add_column(column, overflow="fold")
        for row in sheet.rows:
            table.add_row(*(Text(cell) for cell in row))
        parts.append(table)
    return Group(*parts, *(Text(f"- {note}") for note in legend(comparison)))


def markdown(comparison: Comparison) -> str:
    """The tables and the legend as Markdown."""
    blocks = []
    for sheet in sheets(comparison):
        lines = [sheet.header, ("---",) * len(sheet.header), *sheet.rows]
        table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        blocks.append(f"**{sheet.title}**\n\n{table}")
    return "\n\n".join([*blocks, "\n".join(f"- {note}" for note in legend(comparison))]) + "\n"


def legend(comparison: Comparison) -> list[str]:
    """How the numbers were made, then the comparison's notes."""
    ends = ", ".join(f"{value:,.0f} {_AXES[axis]}" for axis, value in comparison.horizon.items())
    return [
        f"Panel: {comparison.env} {comparison.split}, {comparison.num_tasks} tasks, hash {comparison.panel_hash}.",
        "Intervals: 95 %, bootstrap over seeds and tasks (one run: Wilson, or over tasks). "
        f"Differences are to {comparison.baseline}, paired by seed and task.",
        "Detectable: the smallest true difference found with 80 % power at 5 %, 2.80 standard errors. More episodes: "
        "about how many more of each method, seeds and tasks in proportion, to resolve a difference of this size.",
        *([f"Area: mean {comparison.unit} in training up to {ends}, where the shortest run ends."] if ends else []),
        *comparison.notes,
    ]


def curves_svg(comparison: Comparison) -> str:
    """Learning curves: training success against sampled tokens, one panel for each method, the baseline in grey.

    Lines are means over seeds, and bands reach from the lowest to the highest seed. Evaluations have no curve. Raises
    ValueError where a run has no update, or there is no run.
    """
    if any(method.spent and method.curve is None for method in comparison.methods):
        raise ValueError("no learning curve: at least one run has not made a single update")
    trained = [method for method in comparison.methods if method.curve is not None]
    if not trained:
        raise ValueError("no learning curve: evaluations have none, give folders of runs")
    base = next((method for method in trained if method.name == comparison.baseline), None)
    others = [method for method in trained if method is not base]
    percent = 100.0 if comparison.unit == "success" else 1.0
    behind = [_line(base, percent, muted=True)] if base else []
    panels = [Panel(method.name, [*behind, _line(method, percent)]) for method in others]
    panels = panels or [Panel(method.name, [_line(method, percent)]) for method in trained]
    heights = [y for panel in panels for line in panel.lines for y in (*line.low, *line.high)]
    y_range = (0.0, 100.0) if percent == 100 else (min(heights), max(max(heights), min(heights) + 1e-9))
    unit = f"Training {comparison.unit}{' in %' if percent == 100 else ''} by sampled tokens"
    labels = [unit, "band: all seeds" + (f"; grey: {base.name}" if others and base else "")]
    return small_multiples(panels, labels=labels, y_range=y_range)


def _line(method: Method, scale: float, muted: bool = False) -> Line:
    curve = method.curve
    assert curve is not None
    mean, low, high = ([scale * y for y in ys] for ys in (curve.mean, curve.low, curve.high))
    return Line(curve.tokens, mean, low, high, muted)


def _results(comparison: Comparison, decoding: str) -> Sheet:
    percent = comparison.unit == "success"
    trained = any(method.before for method in comparison.methods)
    header = (
        "method",
        "seeds",
        "before",
        "after" if trained else "measured",
        f"difference to {comparison.baseline}",
        "detectable",
        "more episodes",
    )
    rows = []
    for method in (method for method in comparison.methods if decoding in method.after):
        before, after = method.before.get(decoding), method.after[decoding]
        found = method.differences.get(decoding)
        change = _change(found, percent) if found else ("", "", "")
        seeds = ", ".join(map(str, method.seeds))
        rows.append((method.name, seeds, _value(before, percent, bare=True), _value(after, percent), *change))
    unit = "success in %" if percent else "mean return"
    return _without_empty(Sheet(f"{'After training, ' if trained else ''}{decoding}: {unit}", header, tuple(rows)))


def _change(found: Difference, percent: bool) -> tuple[str, str, str]:
    more = "-" if found.more_episodes is None else f"{found.more_episodes:,}"
    is_point = found.estimate.low == found.estimate.high  # nothing varied, so that nothing is known of the noise
    return _value(found.estimate, percent, sign="+", bare=is_point), _number(found.detectable, percent), more


def _areas(comparison: Comparison) -> Sheet:
    percent = comparison.unit == "success"
    header = ["method"]
    for axis in comparison.horizon:
        header += [f"by {_AXES[axis]}", "difference"]
    rows = []
    for method in comparison.methods:
        if method.curve is None:
            continue
        row = [method.name]
        for axis in comparison.horizon:
            gain = method.area_gains.get(axis)
            row.append(_value(method.areas[axis], percent, bare=True))
            row.append(_value(gain, percent, sign="+", bare=gain is not None and gain.num == 1))
        rows.append(tuple(row))
    unit = "success in %" if percent else "return"
    return _without_empty(Sheet(f"Mean {unit} while training (area under the curve)", tuple(header), tuple(rows)))


def _course(comparison: Comparison) -> Sheet:
    header = (
        *("method", "updates", "turns", "tokens", "wall s", "entropy start / middle / end", "acted in updates"),
        "mechanisms: mean (in updates)",
    )
    rows = []
    for method in (method for method in comparison.methods if method.spent):
        spent = (f"{method.spent[name]:,.0f}" for name in ("updates", "turns", "tokens", "seconds"))
        entropy = " / ".join(f"{nats:.3f}" for nats in method.entropy or ())
        acted = ", ".join(f"{name.replace('_', ' ')} {100 * share:.0f} %" for name, share in method.acted.items())
        counted = (
            f"{name.replace('_', ' ')} {mean:.3g} ({100 * share:.0f} %)"
            for name, (mean, share) in method.mechanisms.items()
        )
        rows.append((method.name, *spent, entropy, acted, ", ".join(counted)))
    return _without_empty(Sheet("Course of training, means over seeds", header, tuple(rows)))


def _without_empty(sheet: Sheet) -> Sheet:
    """The table without its empty columns."""
    kept = [i for i, name in enumerate(sheet.header) if name and any(row[i] for row in sheet.rows)]

    def pick(row: Sequence[str]) -> tuple[str, ...]:
        return tuple(row[i] for i in kept)

    return Sheet(sheet.title, pick(sheet.header), tuple(pick(row) for row in sheet.rows))


def _value(estimate: Estimate | None, percent: bool, *, sign: str = "", bare: bool = False) -> str:
    """``73.8 [68.1, 78.8]`` in percent, or with three digits. ``bare`` leaves the interval out."""
    if estimate is None:
        return ""
    value, low, high = (_number(x, percent, sign) for x in (estimate.value, estimate.low, estimate.high))
    return value if bare else f"{value} [{low}, {high}]"


def _number(value: float, percent: bool, sign: str = "") -> str:
    if not math.isfinite(value):
        return "-"
    return f"{100 * value:{sign}.1f}" if percent else f"{value:{sign}.3f}"
