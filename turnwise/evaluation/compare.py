"""Comparing methods: their runs are pooled over seeds, and paired by seed and task with those of a baseline.

Runs that differ in nothing but the seed are one method. Files of ``turnwise evaluate --out`` can be compared as well as
folders of runs. A target without a seed of its own (an expert, a model folder, an endpoint) is paired with every seed
of the others. A comparison that would be unfair, of different worlds, panels or starting models, is refused.
``Comparison.notes`` says what weakens one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from turnwise.errors import unknown
from turnwise.evaluation.contenders import AXES, Run, read
from turnwise.evaluation.methods import Method, method_of
from turnwise.evaluation.pooling import panels_differ
from turnwise.jsonfile import without_nan

_UNEQUAL = 1.1  # budgets further apart than this factor are worth a note


@dataclass(frozen=True, slots=True)
class Comparison:
    """All methods on one panel. ``unit`` is ``success``, or ``return`` where the world does not say what success is."""

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
    """Compare runs and evaluations. ``baseline`` names the method that differences are taken to; default: the first.

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
            method_of(name, own, groups[base] if name != base else [], horizon) for name, own in groups.items()
        ),
        notes=tuple(_notes(groups, base)),
    )


def plain(comparison: Comparison) -> dict[str, Any]:
    """The comparison as JSON values, with None in place of nan."""
    return dict(without_nan(asdict(comparison)))


def _check_ground(runs: Sequence[Run]) -> None:
    """Check that all runs have the same world and panel, and for each seed the same starting weights.

    Raises ValueError that names the first two runs that differ.
    """
    first = runs[0]
    for run in runs:
        _check_unit(run)
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


def _check_unit(run: Run) -> None:
    """Raise ValueError where one measurement of a run has successes and another returns: both are its outcomes."""
    every = {f"{name} {when}": r for when in ("before", "after") for name, r in getattr(run, when).items()}
    known = {what: report.success is not None for what, report in every.items() if report.num_episodes}
    if len(set(known.values())) > 1:
        lacking = ", ".join(what for what, knows in known.items() if not knows)
        raise ValueError(
            f"{run.path} cannot be compared: some episodes of its measurements ({lacking}) do not say whether they are "
            "a success, and those of the others do. A world tells info['success'] at each episode's end, or never"
        )


def _worlds(*runs: Run) -> list[dict[str, Any]]:
    """The world that each was measured in, and for runs the split that they were trained on."""
    names = [key for run in runs for key in run.settings if key.startswith(("env.", "opponents."))]
    if any(run.seed is None for run in runs):
        names = [name for name in names if name != "env.split"]
    return [{name: run.settings.get(name) for name in names} for run in runs]


def _same(what: str, first: Run, second: Run, a: Any, b: Any) -> None:
    if a == b:
        return
    if isinstance(a, dict):
        differing = [key for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key)]
        a, b = (", ".join(f"{key}={own.get(key)}" for key in differing) for own in (a, b))
    raise ValueError(
        f"{first.path} and {second.path} cannot be compared: they have different {what} ({a} against {b}). "
        "Compare runs that differ in their method and seed alone"
    )


def _same_panel(first: Run, second: Run) -> None:
    a, b = (next(iter(run.after.values())) for run in (first, second))  # all decodings share the panel
    if difference := panels_differ(a, b):
        raise ValueError(f"{first.path} and {second.path} cannot be compared: {difference}")


def _grouped(runs: Iterable[Run]) -> list[list[Run]]:
    """Runs with equal settings as one group. Groups are in order of appearance, runs in order of their seeds."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        group = groups.setdefault(json.dumps(run.settings, sort_keys=True), [])
        twin = next((other for other in group if other.seed == run.seed), None)
        if twin is not None:
            raise ValueError(f"{twin.path} and {run.path} are the same method and seed: one run, counted twice")
        group.append(run)
    return [sorted(group, key=lambda run: run.seed or 0) for group in groups.values()]


def _named(groups: Sequence[list[Run]]) -> dict[str, list[Run]]:
    """The groups by the name of their algorithm. Groups of one algorithm are also named by the settings that differ."""
    named: dict[str, list[Run]] = {}
    for group in groups:
        own, kind = group[0].settings, group[0].method
        alike = [other[0].settings for other in groups if other[0].method == kind]
        differing = [key for key in own if any(other.get(key) != own[key] for other in alike)]
        name = " ".join([kind, *(f"{key.removeprefix('algorithm.')}={own[key]}" for key in differing)])
        named[name if name not in named else f"{name} ({group[0].path})"] = group
    return named


def _notes(groups: Mapping[str, Sequence[Run]], base: str) -> Iterable[str]:
    """What weakens the comparison, one sentence each."""
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
    for name, own_runs in groups.items():
        ended = [run for run in own_runs if run.settings.get("max_sampled_tokens") is None]  # by a number of updates
        reached = sorted({run.update for run in ended if run.update is not None})
        if len(reached) > 1:
            yield f"{name} is of seeds after {', '.join(map(str, reached))} updates: some were not finished."
    if untrained := [str(run.path) for run in every if run.has_course and not run.metrics]:
        yield f"No update was made in {', '.join(untrained)}: what is after training there is the model before it."
    if (others := len(groups) - 1) >= 5:
        yield f"{others} methods against one baseline: at 95 %, one in twenty differs by chance where none does."
