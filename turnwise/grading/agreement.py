"""What graders gave the episodes of a panel or an update, and whether the judge agrees with the world."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from turnwise.agents.chat_client import uncounted_text
from turnwise.statistics import Estimate, wilson
from turnwise.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class Graded:
    """Grades of ``num`` episodes.

    ``means`` are the mean values by name, ``world_return`` is the mean return of the world alone. ``judge`` names the
    model and the rubric, and ``verdict`` is the mean verdict in [0, 1]. ``agreement`` is the share of the episodes in
    which a verdict of 0.5 or more goes with the world's own success; ``on_won`` and ``on_lost`` are the mean verdicts
    there. They are None without a judge, or where the world does not say what success is.
    """

    num: int
    means: dict[str, float]
    world_return: float
    judge: str = ""
    verdict: float | None = None
    agreement: Estimate | None = None
    on_won: float | None = None
    on_lost: float | None = None

    @classmethod
    def from_plain(cls, raw: dict[str, Any]) -> Graded:
        """Inverse of ``asdict`` after writing to JSON and reading back."""
        return cls(**{**raw, "agreement": Estimate(**raw["agreement"]) if raw["agreement"] else None})


def graded(trajectories: Iterable[Trajectory]) -> Graded | None:
    """The grades of those that have some; None where none has."""
    found = [t.grading for t in trajectories if t.grading is not None and t.end != "error"]
    if not found:
        return None
    values: defaultdict[str, list[float]] = defaultdict(list)
    for grading in found:
        for grade in grading.grades:
            values[grade.name].append(grade.value)
    judged = [(g.verdict, g.success) for g in found if g.verdict is not None]
    known = [(verdict, won) for verdict, won in judged if won is not None]
    return Graded(
        num=len(found),
        means={name: float(np.mean(own)) for name, own in values.items()},
        world_return=float(np.mean([g.world_return for g in found])),
        judge=next((g.judge for g in found if g.judge), ""),
        verdict=_mean([verdict for verdict, _ in judged]),
        agreement=wilson(sum((verdict >= 0.5) == won for verdict, won in known), len(known)) if known else None,
        on_won=_mean([verdict for verdict, won in known if won]),
        on_lost=_mean([verdict for verdict, won in known if not won]),
    )


def judged_text(took: Mapping[str, float]) -> str:
    """``the judge: 64 verdicts (3 known before), 61 requests, 81,204 prompt and 4,120 completion tokens``."""
    counts = ("given", "found", "requests", "prompt_tokens", "completion_tokens", "uncounted")
    used = {name: int(took.get(name, 0)) for name in counts}
    cost = f", cost {took['cost']:.4f}" if "cost" in took else ""
    return (
        f"the judge: {used['given'] + used['found']:,} verdicts ({used['found']:,} known before), "
        f"{used['requests']:,} requests, {used['prompt_tokens']:,} prompt and {used['completion_tokens']:,} completion "
        f"tokens{cost}{uncounted_text(used['uncounted'])}"
    )


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
