"""What the papers claim, as numbers of a run: a measure of each claim, for every method."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from turnwise.evaluation.contenders import Run
from turnwise.replay.store import TrajectoryReader
from turnwise.runs.directory import RunDirectory
from turnwise.statistics import Estimate, crossed_bootstrap
from turnwise.trajectory import Trajectory
from turnwise.view.credit import Recipes, name_of

BINS = 30
"""Parts of the budget over which a learning curve is averaged."""

Measurement = float | tuple[float, ...]
"""A number, or several that are shown together: a course, a profile."""


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


def credit_of_the_sure(of: Measured) -> float:
    """Mean size of the advantage on the tokens of an episode's surer turns, over that on its less sure ones.

    The halves of an episode's turns by their mean entropy (of an odd number the middle one is in neither), a mean over
    the episodes that the last tenth of the updates trained on. 1: entropy makes no difference, as in GRPO, where all
    tokens of an episode have one advantage. nan where advantages cannot be made again (PPO's values are not stored), or
    are not those that the run logged.
    """
    run = RunDirectory(of.run.path)
    recipes, logged = Recipes(run), {int(line["update"]): line for line in of.run.metrics}
    first = len(logged) - max(1, round(len(logged) / 10))
    sums = [0.0, 0.0]
    for flush in TrajectoryReader(run.trajectories_path).flushes():
        credited = recipes.credit(flush.update, flush.trajectories, logged.get(flush.update, {}))
        if credited.why_not or credited.agrees is False:
            return math.nan
        if flush.update < first:
            continue
        for trajectory in flush.trajectories:
            trained = credited.trained.get(name_of(trajectory))
            if trained is not None and trained.advantages is not None:
                halves = _halves(trajectory, trained.advantages)
                for half, values in enumerate(halves if all(halves) else ()):
                    sums[half] += math.fsum(map(abs, values)) / len(values)
    return sums[0] / sums[1] if all(sums) else math.nan


def _halves(trajectory: Trajectory, advantages: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    """Advantages of the tokens of the surer half of a trajectory's turns, and of the other half."""
    turns = [(float(np.mean(t.entropies)), own) for t, own in zip(trajectory.turns, advantages, strict=True) if own]
    order = [own for _, own in sorted(turns, key=lambda turn: turn[0])]
    half = len(order) // 2
    sure, unsure = ([x for own in part for x in own] for part in (order[:half], order[len(order) - half :]))
    return sure, unsure


def _courses(of: Measured) -> tuple[int, int]:
    """Different courses of action among the attempts at one task in one update, and attempts; looks are neither."""
    leaves = [t for t in of.trajectories() if not t.only_looked_at]
    courses = {(t.policy_version, t.task.key, tuple(turn.action for turn in t.turns)) for t in leaves}
    return len(courses), len(leaves)


def courses_per_leaf(of: Measured) -> float:
    """Different courses of action for each attempt, in (0, 1]; 1: no two attempts at a task did the same."""
    courses, leaves = _courses(of)
    return courses / leaves if leaves else math.nan


def courses_per_token(of: Measured) -> float:
    """Different courses of action for 1000 sampled tokens: a trunk's are sampled once, a look's are paid for."""
    tokens = sum(line["sampled_tokens"] for line in of.run.metrics)
    return 1000 * _courses(of)[0] / tokens if tokens else math.nan


@dataclass(frozen=True, slots=True)
class Claim:
    """A measure, whose claim it tests, which direction would bear it out, and what it says, for a reader."""

    title: str
    paper: str
    better: str
    measure: Callable[[Measured], Measurement]
    says: str


CLAIMS = (
    Claim(
        *("entropy swing", "EPO", "lower", entropy_swing),
        "mean change of the entropy from one update to the next, as a share of its mean",
    ),
    Claim(
        *("largest setback, points", "EPO", "lower", largest_setback),
        "how far the learning curve ever fell below what it had reached",
    ),
    Claim(
        *("credit of the sure", "EMPG", "higher", credit_of_the_sure),
        "mean size of the advantage on the tokens of the surer half of an episode's turns, over that on the other "
        "half, in the last tenth of the updates; 1 where entropy makes no difference",
    ),
    Claim(
        *("budget to the baseline's level", "SPEAR", "lower", tokens_to_level),
        "share of the budget until the curve is where the baseline's ends",
    ),
    Claim(
        *("courses per leaf", "AEPO", "higher", courses_per_leaf),
        "different courses of action among the attempts at a task in an update, for each attempt: how unlike they are",
    ),
    Claim(
        *("courses per 1000 tokens", "AEPO", "higher", courses_per_token),
        "the same for 1000 sampled tokens: what they cost. Branches that share a trunk are cheaper by that alone, "
        "however alike they end",
    ),
)


def number(value: Measurement) -> float:
    """A measurement that is a single number."""
    assert not isinstance(value, tuple)
    return value


def over_seeds(values: Sequence[float]) -> Estimate | None:
    """Mean with its interval over seeds, of the runs where the measure exists; None where it never does."""
    known = [[value] for value in values if math.isfinite(value)]
    return crossed_bootstrap(known) if known else None
