"""What the mechanisms of EPO, EMPG, SPEAR and AEPO do, as numbers of a run: the measures of the settings of one paper.

A course of training is told by its thirds: means over the first, the second and the last third of the updates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby

import numpy as np
from claims import Claim, Measured, largest_setback

from turnwise.replay.store import TrajectoryReader
from turnwise.runs.directory import RunDirectory
from turnwise.trajectory import Group, group_by_task

END = 30
"""Updates at the end of a run over which it is asked how even its success is."""
SMOOTH = 5
"""Updates over which success in training is averaged before it is compared with a level."""


def thirds(values: Sequence[float]) -> tuple[float, ...]:
    """Means over the thirds of a sequence: the course of training."""
    return tuple(mean(part.tolist()) for part in np.array_split(np.array(values, dtype=float), 3))


def mean(values: Iterable[float]) -> float:
    """nan of nothing."""
    known = [value for value in values if math.isfinite(value)]
    return math.fsum(known) / len(known) if known else math.nan


def successes(of: Measured) -> list[float]:
    """Success in training, update by update."""
    return [line["success"] for line in of.run.metrics]


def flushes(of: Measured) -> Iterator[list[Group]]:
    """The groups of each update, in order, without episodes that failed or were only looked at."""
    for _, found in groupby(
        TrajectoryReader(RunDirectory(of.run.path).trajectories_path).flushes(), lambda f: f.update
    ):
        played = [t for flush in found for t in flush.trajectories]
        yield group_by_task(t for t in played if t.end != "error" and not t.only_looked_at)


def of_updates(of: Measured, measure: Callable[[Sequence[Group]], float]) -> tuple[float, ...]:
    """The course of a number of an update's groups."""
    return thirds([measure(groups) for groups in flushes(of)])


def entropies(of: Measured) -> tuple[float, ...]:
    return thirds([math.nan if line.get("entropy") is None else line["entropy"] for line in of.run.metrics])


# EPO


def entropy_by_turn(of: Measured) -> tuple[float, ...]:
    """Mean entropy of a turn, nats, in each quarter of the longest episode's turns, in the last updates."""
    last = of.run.metrics[-END:][0]["update"]
    turns = [
        (n, float(np.mean(turn.entropies)))
        for flush in TrajectoryReader(RunDirectory(of.run.path).trajectories_path).flushes()
        if flush.update >= last
        for t in flush.trajectories
        for n, turn in enumerate(t.turns)
    ]
    span = max(n for n, _ in turns) + 1
    return tuple(mean(h for n, h in turns if 4 * n // span == quarter) for quarter in range(4))


def lost_groups(of: Measured) -> tuple[float, ...]:
    """Share of the groups that lost all of their attempts."""
    return of_updates(of, lambda groups: mean(not any(t.success for t in group.trajectories) for group in groups))


def updates_to_half(of: Measured) -> float:
    """Updates until success in training, averaged over the last few, is 50 %; one more than there are: never."""
    found = successes(of)
    for n in range(SMOOTH, len(found) + 1):
        if mean(found[n - SMOOTH : n]) >= 0.5:
            return float(n)
    return len(found) + 1.0


def spread_at_the_end(of: Measured) -> float:
    """Standard deviation of success in training over the last updates, in points."""
    return 100 * float(np.std(successes(of)[-END:]))


EPO = (
    Claim(
        *("entropy by quarter of the turns", "EPO", "even", entropy_by_turn),
        f"mean entropy of a turn, in nats, in each quarter of the longest episode, in the last {END} updates",
    ),
    Claim(*("lost groups", "EPO", "lower", lost_groups), "share of the groups that lost all attempts, by thirds"),
    Claim(
        *("updates to 50 %", "EPO", "lower", updates_to_half),
        f"until success in training is 50 % over {SMOOTH} updates; one more than there are: never",
    ),
    Claim(
        *("spread at the end, points", "EPO", "lower", spread_at_the_end),
        f"standard deviation of success in training over the last {END} updates",
    ),
    Claim(
        *("largest setback, points", "EPO", "lower", largest_setback),
        "how far the learning curve ever fell below what it had reached",
    ),
)

EFFECTS: Mapping[str, tuple[Claim, ...]] = {"epo": EPO}
"""The measures of a setting; those that are not here have the claims of all methods."""
