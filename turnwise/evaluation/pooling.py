"""Pooling the reports of several seeds of one method, with intervals over seeds and tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from turnwise.evaluation.report import Report
from turnwise.statistics import Estimate, crossed_bootstrap, wilson


@dataclass(frozen=True, slots=True)
class Pooled:
    """Several reports as one. Rates have bootstrap intervals over seeds and tasks; other numbers are means.

    ``mean_return`` has an interval too: over seeds and tasks where the world does not say what success is, else over
    seeds alone. Episodes that failed in their
    environment (``errors``) are left out. Where no other episode was played the means are nan.
    """

    num_seeds: int
    num_tasks: int
    episodes: int
    success: Estimate | None
    per_type: dict[str, Estimate]
    pass_at: dict[int, float]
    mean_return: Estimate
    score: Estimate | None
    mean_turns: float
    mean_action_tokens: float
    invalid_share: float
    errors: int

    @classmethod
    def from_plain(cls, raw: dict[str, Any]) -> Pooled:
        """Inverse of ``asdict`` after writing to JSON and reading back."""
        lost = [name for name, value in raw["mean_return"].items() if value is None]
        given = {
            **raw,
            "success": Estimate(**raw["success"]) if raw["success"] else None,
            "per_type": {kind: Estimate(**rate) for kind, rate in raw["per_type"].items()},
            "pass_at": {int(k): value for k, value in raw["pass_at"].items()},
            **{name: math.nan for name in ("mean_turns", "mean_action_tokens", "invalid_share") if raw[name] is None},
            "mean_return": Estimate(**{**raw["mean_return"], **dict.fromkeys(lost, math.nan)}),
            "score": Estimate(**raw["score"]) if raw["score"] else None,
        }
        return cls(**given)


def pool(reports: Sequence[Report]) -> Pooled:
    """Pool reports of one decoding, one for each seed.

    Raises ValueError for different panels, or different numbers of samples.
    """
    first = reports[0]
    for other in reports[1:]:
        if difference := panels_differ(first, other):
            raise ValueError(f"{first.name} and {other.name} cannot be pooled: {difference}")
    if len({report.samples for report in reports}) > 1:
        raise ValueError(f"{first.name} and others cannot be pooled: they played different numbers of samples")
    known = all(report.success is not None for report in reports)
    types = _types(reports)
    ks = [k for k in first.pass_at if all(k in report.pass_at for report in reports)]
    return Pooled(
        num_seeds=len(reports),
        num_tasks=first.num_tasks,
        episodes=sum(len(task) for report in reports for task in report.outcomes),
        success=pooled_rate(reports) if known else None,
        per_type={kind: _of_type(reports, kind) for kind in sorted({*types} - {""})} if known else {},
        pass_at={k: float(np.mean([r.pass_at[k] for r in reports])) for k in ks} if known else {},
        mean_return=_return(reports),
        score=crossed_bootstrap([_means(r.scores) for r in reports]) if all(r.scores for r in reports) else None,
        mean_turns=_mean([r.mean_turns for r in reports]),
        mean_action_tokens=_mean([r.mean_action_tokens for r in reports]),
        invalid_share=_mean([r.invalid_share for r in reports]),
        errors=sum(report.errors for report in reports),
    )


def pooled_rate(reports: Sequence[Report]) -> Estimate:
    """Success over all reports (mean return where success is unknown), with a bootstrap over seeds and tasks.

    A single report keeps its own interval. A rate of exactly 0 or 1 gets Wilson's interval over the tasks of which an
    episode counts.
    """
    if len(reports) == 1 and reports[0].success is not None:
        return reports[0].success
    return _rate([cells(report) for report in reports], known=reports[0].success is not None)


def cells(report: Report) -> list[float]:
    """Mean outcome of each task, [task]; nan where every episode of a task failed in its environment."""
    return _means(report.outcomes)


def panels_differ(first: Report, second: Report) -> str:
    """How the panels of two reports differ, as part of a sentence; ``""`` where they are the same."""
    if first.panel_hash == second.panel_hash:
        return ""
    a, b = (f"{r.env} {r.split}, {r.num_tasks} tasks, hash {r.panel_hash}" for r in (first, second))
    said = f"they have different test panels ({a} against {b}"
    if not (first.keys and second.keys):
        return said + ")"
    shorter, longer = sorted((first.keys, second.keys), key=len)
    common = len(set(shorter) & set(longer))
    if longer[: len(shorter)] == shorter:
        return f"{said}: the shorter is the beginning of the other; measure both with --tasks {len(shorter)})"
    if sorted(shorter) == sorted(longer):
        return f"{said}: the same tasks in another order)"
    return f"{said}: {common or 'no'} task{'s' if common > 1 else ''} in common)"


def _types(reports: Sequence[Report]) -> list[str]:
    """Type of each task, [task], from any report that knows it.

    A world may tell the type at the start of an episode, so a report whose episode failed does not know it.
    """
    columns = zip(*(report.types for report in reports if report.types), strict=True)
    return [next((kind for kind in told if kind), "") for told in columns]


def _mean(values: Sequence[float]) -> float:
    """Mean over the reports in which an episode counted; nan where there are none."""
    counted = [value for value in values if math.isfinite(value)]
    return float(np.mean(counted)) if counted else math.nan


def _return(reports: Sequence[Report]) -> Estimate:
    """The mean return: over seeds and tasks where a task's outcome is its return, over seeds alone elsewhere."""
    if all(report.success is None for report in reports):
        return pooled_rate(reports)
    means = [report.mean_return for report in reports]
    if not any(map(math.isfinite, means)):
        return Estimate(math.nan, math.nan, math.nan, 0)
    return crossed_bootstrap([[mean] for mean in means])


def _of_type(reports: Sequence[Report], kind: str) -> Estimate:
    chosen = [index for index, own in enumerate(_types(reports)) if own == kind]
    return _rate([[cells(report)[index] for index in chosen] for report in reports], known=True)


def _rate(rows: Sequence[Sequence[float]], known: bool) -> Estimate:
    """The estimate over ``[seed][task]`` cells, of which some may be nan."""
    if not np.isfinite(np.asarray(rows)).any():
        return wilson(0, 0) if known else Estimate(math.nan, math.nan, math.nan, 0)
    found = crossed_bootstrap(rows)
    if known and found.value in (0.0, 1.0):
        num = int(np.isfinite(np.asarray(rows)).any(0).sum())
        return wilson(int(found.value) * num, num)
    return found


def _means(outcomes: Sequence[Sequence[float]]) -> list[float]:
    return [float(np.mean(task)) if task else math.nan for task in outcomes]
