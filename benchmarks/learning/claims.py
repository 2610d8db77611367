"""What the papers claim, as numbers of a run: a measure of each claim, for every method."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from turnwise.evaluation.compare import Run
from turnwise.records.rundir import RunDirectory
from turnwise.replay.store import TrajectoryReader
from turnwise.statistics import Estimate, crossed_bootstrap
from turnwise.trajectory import Trajectory

BINS = 30
"""Parts of the budget over which a learning curve is averaged."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One run, and the baseline's run of the same seed; ``end``: sampled tokens up to which curves are read."""

    run: Run
    baseline: Run
    end: float

    def trajectories(self) -> list[Trajectory]:
        """Every sound episode of training."""
        return [t for t in TrajectoryReader(RunDirectory(self.run.path).trajectories_path) if t.end != "error"]

    def heights(self, run: Run) -> list[float]:
        return run.curve("tokens").mean(np.linspace(0.0, self.end, BINS + 1).tolist())


def entropy_swing(of: Measured) -> float:
    """Mean change of the entropy from one update to the next, as a share of its mean."""
    found = [line["entropy"] for line in of.run.metrics if line.get("entropy") is not None]
    return float(np.abs(np.diff(found)).mean() / np.mean(found)) if len(found) > 1 and any(found) else math.nan


def largest_setback(of: Measured) -> float:
    """How far the learning curve ever fell below what it had reached before, in points."""
    heights = np.array(of.heights(of.run))
    return 100 * float((np.maximum.accumulate(heights) - heights).max())


def tokens_to_level(of: Measured) -> float:
    """Share of the budget until the curve is where the baseline's ends (its last tenth); 1: never before."""
    level = np.mean(of.heights(of.baseline)[-BINS // 10 :])
    reached = [i for i, height in enumerate(of.heights(of.run)) if height >= level]
    return (reached[0] + 1) / BINS if reached else 1.0


def confidence_gap(of: Measured) -> float:
    """Entropy of the turns of lost episodes less that of won ones, in nats, in the last tenth of the updates."""
    first = 0.9 * len(of.run.metrics)
    entropies: dict[bool, list[float]] = {True: [], False: []}
    for trajectory in of.trajectories():
        if trajectory.policy_version >= first and trajectory.success is not None:
            turns = (turn.entropies for turn in trajectory.turns if len(turn.entropies))
            entropies[trajectory.success] += [float(np.mean(turn)) for turn in turns]
    return float(np.mean(entropies[False]) - np.mean(entropies[True])) if all(entropies.values()) else math.nan


def diversity(of: Measured) -> float:
    """Different courses of action, of one task in one update, for 1000 sampled tokens."""
    courses, tokens = set(), 0
    for trajectory in of.trajectories():
        actions = tuple(turn.action for turn in trajectory.turns)
        courses.add((trajectory.policy_version, trajectory.task.key, actions))
        tokens += trajectory.num_sampled_tokens
    return 1000 * len(courses) / tokens if tokens else math.nan


@dataclass(frozen=True, slots=True)
class Claim:
    """A measure, whose claim it tests, and which direction would bear it out."""

    title: str
    paper: str
    better: str
    measure: Callable[[Measured], float]


CLAIMS = (
    Claim("entropy swing", "EPO", "lower", entropy_swing),
    Claim("largest setback, points", "EPO", "lower", largest_setback),
    Claim("confidence gap, nats", "EMPG", "higher", confidence_gap),
    Claim("budget to the baseline's level", "SPEAR", "lower", tokens_to_level),
    Claim("courses per 1000 tokens", "AEPO", "higher", diversity),
)


def over_seeds(values: Sequence[float]) -> Estimate | None:
    """Mean with its interval over seeds, of the runs where the measure exists; None where it never does."""
    known = [[value] for value in values if math.isfinite(value)]
    return crossed_bootstrap(known) if known else None
