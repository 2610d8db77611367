"""Runs side by side: pooled over seeds, paired by seed and task with a baseline, on the same panel from the same start.

Runs that differ in nothing but the seed are one method. Beside folders of runs, files of ``turnwise evaluate --out``
are taken; what has no seed of its own (an expert, a model folder, an endpoint) stands against every seed of the others.
What would make a comparison unfair (another world, panel or starting model) is refused; what weakens it is said in
``Comparison.notes``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from turnwise.errors import unknown
from turnwise.evaluation.contenders import AXES, Run, read
from turnwise.evaluation.pooling import cells, panels_differ, pooled_rate
from turnwise.evaluation.report import without_nan
from turnwise.statistics import Estimate, crossed_bootstrap, detectable, more_to_resolve

_SHARES = ("clip_share", "dual_clip_share", "dropped_groups", "skipped_steps")
_TERMS, _MECHANISMS = "regularizers/", "mechanisms/"
"""Metrics that are 0 in an update in which their mechanism did nothing."""

_BINS = 30  # of a plotted curve
_UNEQUAL = 1.1  # budgets further apart than this factor are worth a note


@dataclass(frozen=True, slots=True)
class Difference:
    """To the baseline, paired. ``more_episodes`` of each side would resolve one of this size; None: it is exactly 0."""

    estimate: Estimate
    seeds: tuple[int, ...]
    detectable: float
    more_episodes: int | None


@dataclass(frozen=True, slots=True)
class Band:
    """A learning curve over sampled tokens: mean, lowest and highest seed, all [N]."""

    tokens: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Method:
    """Runs that differ in their seed alone. Reports by decoding (``sampled``, ``greedy``); the rest is of training.

    ``areas`` are mean heights of the learning curve up to the comparison's horizon on each axis, ``area_gains`` their
    differences to the baseline, paired by seed; ``spent`` is the mean of a run. ``acted`` is the share of updates in
    which each mechanism did something, where the metrics tell; ``mechanisms`` give the mean of what parts count
    themselves, and the share of updates in which it was not 0.
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


@dataclass(frozen=True, slots=True)
class Comparison:
    """``unit`` is ``success`` or, where the world does not say what that is, ``return``."""

    env: str
    split: str
    panel_hash: str
    num_tasks: int
    unit: str
    baseline: str
    horizon: dict[str, float]
    methods: tuple[Method, ...]
    notes: tuple[str, ...]


def compare(paths: Sequence[str | Path], baseline: str | None = None) -> Comparison:
    """Compare runs and evaluations; ``baseline`` names the method that differences are to, by default the first's.

    Raises ValueError for runs on different worlds, panels or starting models, for one run given twice, and where no
    seed is shared with the baseline.
    """
    if not paths:
        raise ValueError("nothing to compare: give the folders of at least one run")
    runs = [run for path in paths for run in read(path)]
    _check_ground(runs)
    groups = _named(_grouped(runs))
    if baseline is not None and baseline not in groups:
        raise unknown("baseline", baseline, groups)
    base = baseline or next(iter(groups))
    trained = [run for run in runs if run.has_course]
    horizon = {axis: min(((run.curve(axis).spent or (0.0,))[-1] for run in trained), default=0.0) for axis in AXES}
    horizon = {axis: end for axis, end in horizon.items() if end > 0}
    first = next(iter(runs[0].after.values()))
    return Comparison(
        env=first.env,
        split=first.split,
        panel_hash=first.panel_hash,
        num_tasks=first.num_tasks,
        unit="success" if all(run.by_success for run in runs) else "return",
        baseline=base,
        horizon=horizon,
        methods=tuple(
            _method(name, own, groups[base] if name != base else [], horizon) for name, own in groups.items()
        ),
        notes=tuple(_notes(groups, base)),
    )


def plain(comparison: Comparison) -> dict[str, Any]:
    """For ``--json``: the same numbers as dictionaries and lists, nan as None."""
    return dict(without_nan(asdict(comparison)))


def _check_ground(runs: Sequence[Run]) -> None:
    """Same world, same panel, for each seed the same starting weights; each difference names the two runs."""
    first = runs[0]
    for run in runs[1:]:
        _same("environments", first, run, *_worlds(first, run))
        _same_panel(first, run)
        if run.by_success != first.by_success:
            raise ValueError(f"{first.path} and {run.path} cannot be compared: only one of them knows what success is")
    of_seed: dict[int, Run] = {}
    for run in runs:
        if run.seed is not None:
            other = of_seed.setdefault(run.seed, run)
            _same(f"starting models for seed {run.seed}", other, run, other.start, run.start)


def _worlds(*runs: Run) -> list[dict[str, Any]]:
    """What each was measured in, and among runs the split that they were trained on."""
    names = [key for run in runs for key in run.settings if key.startswith(("env.", "opponents."))]
    if any(run.seed is None for run in runs):
        names = [name for name in names if name != "env.split"]
    return [{name: run.settings.get(name) for name in names} for run in runs]


def _same(what: str, first: Run, second: Run, a: Any, b: Any) -> None:
    if a == b:
        return
    if isinstance(a, dict):
        differing = [key for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key)]
        a, b = (", ".join(f"{key}={side.get(key)}" for key in differing) for side in (a, b))
    raise ValueError(
        f"{first.path} and {second.path} cannot be compared: they have different {what} ({a} against {b}). "
        "Compare runs that differ in their method and seed alone"
    )


def _same_panel(first: Run, second: Run) -> None:
    a, b = (next(iter(run.after.values())) for run in (first, second))  # all decodings share the panel
    if difference := panels_differ(a, b):
        raise ValueError(f"{first.path} and {second.path} cannot be compared: {difference}")


def _grouped(runs: Iterable[Run]) -> list[list[Run]]:
    """Runs of equal settings together, in order of appearance and seed."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        group = groups.setdefault(json.dumps(run.settings, sort_keys=True), [])
        twin = next((other for other in group if other.seed == run.seed), None)
        if twin is not None:
            raise ValueError(f"{twin.path} and {run.path} are the same method and seed: one run, counted twice")
        group.append(run)
    return [sorted(group, key=lambda run: run.seed or 0) for group in groups.values()]


def _named(groups: Sequence[list[Run]]) -> dict[str, list[Run]]:
    """Each by its algorithm or name; those of one algorithm by the settings in which they differ, too."""
    named: dict[str, list[Run]] = {}
    for group in groups:
        own, kind = group[0].settings, group[0].method
        alike = [other[0].settings for other in groups if other[0].method == kind]
        differing = [key for key in own if any(other.get(key) != own[key] for other in alike)]
        name = " ".join([kind, *(f"{key.removeprefix('algorithm.')}={own[key]}" for key in differing)])
        named[name if name not in named else f"{name} ({group[0].path})"] = group
    return named


def _method(name: str, runs: Sequence[Run], base: Sequence[Run], horizon: Mapping[str, float]) -> Method:
    """``base`` are the baseline's runs, none for the baseline itself."""
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
    """Means over the runs; {} of evaluations, whose training is not known."""
    if not all(run.has_course for run in runs):
        return {}
    return {
        "updates": float(np.mean([len(run.metrics) for run in runs])),
        **{axis: float(np.mean([sum(map(cost, run.metrics)) for run in runs])) for axis, cost in AXES.items()},
    }


def _difference(pairs: Sequence[tuple[Run, Run]], decoding: str) -> Difference:
    sides = [(run.after[decoding], other.after[decoding]) for run, other in pairs]
    gaps = [[x - y for x, y in zip(cells(a), cells(b), strict=True)] for a, b in sides]
    estimate = crossed_bootstrap(gaps)
    episodes = sum(len(task) for report, _ in sides for task in report.outcomes)
    seeds = tuple(
        seed for run, other in pairs if (seed := run.seed if run.seed is not None else other.seed) is not None
    )
    return Difference(estimate, seeds, detectable(estimate), more_to_resolve(estimate, episodes))


def _entropy(runs: Sequence[Run]) -> tuple[float, float, float] | None:
    """Mean entropy of the sampled tokens early, midway and late, over the runs."""
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


def _notes(groups: Mapping[str, Sequence[Run]], base: str) -> Iterable[str]:
    """What a reader should know before believing the numbers."""
    seeds = {name: {run.seed for run in runs if run.seed is not None} for name, runs in groups.items()}
    if lonely := [name for name, own in seeds.items() if len(own) == 1]:
        yield f"One seed only ({', '.join(lonely)}): the intervals are over tasks and say nothing about other seeds."
    alone = {name: sorted(own ^ seeds[base]) for name, own in seeds.items() if own and seeds[base] not in (own, set())}
    if alone:
        shown = ", ".join(f"{name} {left}" for name, left in alone.items())
        yield f"Differences are over the seeds that a method has in common with {base}; without a partner: {shown}."
    every = [run for runs in groups.values() for run in runs]
    spent = [sum(line["sampled_tokens"] for line in run.metrics) for run in every if run.has_course]
    if spent and max(spent) > _UNEQUAL * min(spent):
        yield f"Budgets differ: the runs sampled between {min(spent):,} and {max(spent):,} tokens."
    drawn = {run.after["sampled"].temperature for run in every if "sampled" in run.after and run.seed is not None}
    if len(drawn) > 1:
        yield f"Sampled at different temperatures: {', '.join(f'{t:g}' for t in sorted(drawn))}."
    for run in every:
        for name, report in run.after.items():
            if report.errors:
                yield (
                    f"{report.errors} {name} episodes of {run.path} failed in their environment and are left out of "
                    f"{report.errors + report.num_episodes}: the rest need not be alike."
                )
        if met := next(iter(run.after.values())).overlap:
            told = ", ".join(f"{use} {num}" for use, num in met.items())
            yield f"WARNING: {run.path} has met tasks of this panel ({told}): this is no success on unseen tasks."
    if (others := len(groups) - 1) >= 5:
        yield f"{others} methods against one baseline: at 95 %, one in twenty differs by chance where none does."
