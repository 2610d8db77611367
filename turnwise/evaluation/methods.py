"""One method of a comparison: what its runs measured, how they learned, and how they differ from the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from turnwise.evaluation.contenders import AXES, Run
from turnwise.evaluation.pooling import cells, pooled_rate
from turnwise.statistics import Estimate, crossed_bootstrap, detectable, more_to_resolve

_SHARES = ("clip_share", "dual_clip_share", "dropped_groups", "skipped_steps")
_TERMS, _MECHANISMS = "regularizers/", "mechanisms/"
"""Metrics that are 0 in an update in which their mechanism did nothing."""

_BINS = 30  # of a plotted curve


@dataclass(frozen=True, slots=True)
class Difference:
    """A method's difference to the baseline, paired by seed and task.

    ``detectable`` is the smallest true difference that this comparison would find with 80 % power at 5 %. About
    ``more_episodes`` more episodes of each method would resolve a difference of this size; None where it is exactly 0,
    and where every task of every seed differs by the same.
    """

    estimate: Estimate
    seeds: tuple[int, ...]
    detectable: float
    more_episodes: int | None


@dataclass(frozen=True, slots=True)
class Band:
    """A learning curve over sampled tokens: the mean, lowest and highest seed at each place, all [N]."""

    tokens: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Method:
    """Runs that differ in their seed alone.

    ``before``, ``after`` and ``differences`` are measurements, by decoding (``sampled``, ``greedy``). The rest is about
    training. ``areas`` are mean heights of the learning curve up to the comparison's horizon on each axis, and
    ``area_gains`` their differences to the baseline, paired by seed. ``spent`` is the mean over the runs. ``acted``
    is the share of updates in which each mechanism had an effect, where the metrics show it. ``mechanisms`` holds, for
    each count that an algorithm's parts log, its mean and the share of updates in which it was not 0.
    """

    name: str
    runs: tuple[str, ...]
    seeds: tuple[int, ...]
    before: dict[str, Estimate]
    after: dict[str, Estimate]
    differences: dict[str, Difference]
    areas: dict[str, Estimate]
    area_gains: dict[str, Estimate]
    spent: dict[str, float]
    entropy: tuple[float, float, float] | None  # nats, in the first, middle and last tenth of the updates
    acted: dict[str, float]
    mechanisms: dict[str, tuple[float, float]]
    curve: Band | None


def method_of(name: str, runs: Sequence[Run], base: Sequence[Run], horizon: Mapping[str, float]) -> Method:
    """The method of some runs. ``base`` are the baseline's runs, empty for the baseline itself.

    Raises ValueError where no seed is shared with the baseline, or no decoding was measured for both.
    """
    pairs = [(run, other) for run in runs for other in base if run.seed == other.seed or None in (run.seed, other.seed)]
    if base and not pairs:
        raise ValueError(
            f"{name} has no seed in common with the baseline: {[run.seed for run in runs]} against "
            f"{[run.seed for run in base]}. Comparisons are paired by seed and task: train one with the other's"
        )
    decodings = [d for d in runs[0].after if all(d in run.after for run in (*runs, *base))]
    if not decodings:
        raise ValueError(
            f"{name} was measured {' and '.join(runs[0].after)}, the baseline {' and '.join(base[0].after)}: measure "
            "one as the other"
        )
    if not all(run.metrics for run in runs):
        horizon = {}
    heights = {
        axis: {run.path: run.curve(axis).mean([0.0, end])[0] for run in (*runs, *base) if run.metrics}
        for axis, end in horizon.items()
    }
    return Method(
        name=name,
        runs=tuple(str(run.path) for run in runs),
        seeds=tuple(run.seed for run in runs if run.seed is not None),
        before={
            d: pooled_rate([run.before[d] for run in runs]) for d in decodings if all(d in run.before for run in runs)
        },
        after={d: pooled_rate([run.after[d] for run in runs]) for d in decodings},
        differences={d: _difference(pairs, d) for d in decodings if pairs},
        areas={axis: crossed_bootstrap([[of[run.path]] for run in runs]) for axis, of in heights.items()},
        area_gains={
            axis: crossed_bootstrap([[of[run.path] - of[other.path]] for run, other in pairs])
            for axis, of in heights.items()
            if pairs and all(other.metrics for _, other in pairs)
        },
        spent=_spent(runs),
        entropy=_entropy(runs),
        acted=_acted(runs),
        mechanisms=_mechanisms(runs),
        curve=_band(runs, horizon["tokens"]) if "tokens" in horizon else None,
    )


def _spent(runs: Sequence[Run]) -> dict[str, float]:
    """What a run spent, as means over the runs; {} for evaluations, whose training is not known."""
    if not all(run.has_course for run in runs):
        return {}
    return {
        "updates": float(np.mean([len(run.metrics) for run in runs])),
        **{axis: float(np.mean([sum(map(cost, run.metrics)) for run in runs])) for axis, cost in AXES.items()},
    }


def _difference(pairs: Sequence[tuple[Run, Run]], decoding: str) -> Difference:
    reports = [(run.after[decoding], other.after[decoding]) for run, other in pairs]
    gaps = [[x - y for x, y in zip(cells(a), cells(b), strict=True)] for a, b in reports]
    estimate = crossed_bootstrap(gaps)
    episodes = sum(len(task) for report, _ in reports for task in report.outcomes)
    seeds = tuple(
        seed for run, other in pairs if (seed := run.seed if run.seed is not None else other.seed) is not None
    )
    return Difference(estimate, seeds, detectable(estimate), more_to_resolve(estimate, episodes))


def _entropy(runs: Sequence[Run]) -> tuple[float, float, float] | None:
    """Mean entropy of the sampled tokens in the first, middle and last tenth of the updates, over the runs."""
    found = [[line["entropy"] for line in run.metrics if line.get("entropy") is not None] for run in runs]
    if not all(found):
        return None

    def around(place: float) -> float:
        parts = []
        for values in found:
            width = max(1, len(values) // 10)
            start = round(place * (len(values) - width))
            parts.append(np.mean(values[start : start + width]))
        return float(np.mean(parts))

    return around(0.0), around(0.5), around(1.0)


def _acted(runs: Sequence[Run]) -> dict[str, float]:
    lines = [line for run in runs for line in run.metrics]
    names = dict.fromkeys(key for line in lines for key in line if key in _SHARES or key.startswith(_TERMS))
    return {name.removeprefix(_TERMS): float(np.mean([bool(line.get(name)) for line in lines])) for name in names}


def _mechanisms(runs: Sequence[Run]) -> dict[str, tuple[float, float]]:
    lines = [line for run in runs for line in run.metrics]
    found = {}
    for name in dict.fromkeys(key for line in lines for key in line if key.startswith(_MECHANISMS)):
        values = np.array([line.get(name) or 0.0 for line in lines])
        found[name.removeprefix(_MECHANISMS)] = (float(values.mean()), float((values != 0).mean()))
    return found


def _band(runs: Sequence[Run], end: float) -> Band:
    edges = np.linspace(0.0, end, _BINS + 1)
    heights = np.array([run.curve("tokens").mean(edges.tolist()) for run in runs])  # [S, N]
    centres = (edges[:-1] + edges[1:]) / 2
    return Band(*(tuple(x.tolist()) for x in (centres, heights.mean(0), heights.min(0), heights.max(0))))
