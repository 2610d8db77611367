"""The table of a setting's arms, as Markdown, from the rows that record.py keeps: results and measures, over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from claims import Claim, over_seeds
from effects import EFFECTS
from record import recorded
from settings import SETTINGS

from turnwise.statistics import Estimate

Rows = Mapping[int, Mapping[str, Any]]
"""The rows of one arm, by seed."""


def arms_page(setting: str, rows: Sequence[dict[str, Any]]) -> str:
    """The whole document. Raises ValueError where there is nothing to show, or rows do not belong together."""
    if not rows:
        raise ValueError("no arm is recorded yet: run.py, then record.py")
    found = SETTINGS[setting]
    summary = recorded(rows, found)
    of: dict[str, Rows] = {}
    for name in summary["to_base"]:
        of[name] = {row["seed"]: row for row in rows if row["algorithm"] == name}
    commits = ", ".join(commit[:7] for commit in summary["commits"])
    about = (
        f"`python benchmarks/learning/run.py --setting {setting}`, commits {commits}. "
        f"{found.num_updates} updates a run. After: sampled success on unseen tasks, in %, with its 95 % interval over "
        "seeds and tasks. Differences are to the arm that is named, paired by seed (and task)."
    )
    claims = EFFECTS[setting]
    parts = [
        f"# {setting}",
        about,
        table(["arm", "seeds", "before", "after", "to its base"], [_result(of[n], n, summary) for n in of]),
        table(
            ["arm", *(f"{c.title} ({c.paper}: {c.better})" for c in claims)],
            [_measures(n, of, found, claims) for n in of],
        ),
        "\n".join(f"- {claim.title}: {claim.says}." for claim in claims),
        table(["arm", "command, without the seed"], [[n, f"`{_command(of[n])}`"] for n in of]),
    ]
    return "\n\n".join(parts) + "\n"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *rows))


def _result(rows: Rows, name: str, summary: Mapping[str, Any]) -> list[str]:
    pooled = summary["to_base"][name]
    before = math.fsum(row["before"]["value"] for row in rows.values()) / len(rows)
    gap = pooled["difference"]
    told = (
        "" if gap is None else f"{gap['to']}: {_points(gap['estimate'], '+')}, detectable {100 * gap['detectable']:.1f}"
    )
    return [name, ", ".join(map(str, sorted(rows))), f"{100 * before:.1f}", _points(pooled["after"]), told]


def _points(found: Mapping[str, float], sign: str = "") -> str:
    value, low, high = (f"{100 * found[part]:{sign}.1f}" for part in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _measures(name: str, of: Mapping[str, Rows], setting: Any, claims: Sequence[Claim]) -> list[str]:
    base = of.get(setting.arm(name).base or "", {})
    return [name, *(_measure(claim.title, of[name], base) for claim in claims)]


def _measure(title: str, rows: Rows, base: Rows) -> str:
    """The mean over seeds, and of a single number its difference to the base; several numbers with strokes between."""
    own = {seed: _numbers(row["measures"].get(title)) for seed, row in rows.items()}
    held = {seed: _numbers(row["measures"].get(title)) for seed, row in base.items()}
    size = max(map(len, own.values()))
    means = [over_seeds([found[i] for found in own.values() if i < len(found)]) for i in range(size)]
    shown = " / ".join("-" if each is None else f"{each.value:.3g}" for each in means)
    if size > 1:
        return shown
    gap = over_seeds([own[seed][0] - held[seed][0] for seed in own if seed in held])
    return shown + _change(gap)


def _numbers(value: Any) -> list[float]:
    return [math.nan if x is None else float(x) for x in (value if isinstance(value, list) else [value])]


def _change(gap: Estimate | None) -> str:
    if gap is None:
        return ""
    interval = f" [{gap.low:+.3g}, {gap.high:+.3g}]" if gap.num > 1 else ""
    return f" ({gap.value:+.3g}{interval})"


def _command(rows: Rows) -> str:
    words = next(iter(rows.values()))["command"].split()
    return " ".join(word for word in words if not word.startswith("seed="))
