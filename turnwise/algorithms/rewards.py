"""Reward tables, and the shapers that make a new one. The trajectories' raw rewards are never touched."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from turnwise.algorithms.planning import Scorer
from turnwise.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class RewardTable:
    """Shaped rewards of trajectories' turns, ``[i][n]`` for turn n of trajectory i, in the shapers' units.

    ``earned`` counts towards the episode's return, which every turn is credited with. ``own`` is what a turn
    alone answers for (an invalid action's penalty): estimators that credit rows or turns give it to no other
    one.
    """

    earned: tuple[tuple[float, ...], ...]
    own: tuple[tuple[float, ...], ...]

    def total(self, trajectory: int) -> float:
        """Undiscounted return, both kinds together, rounded once: the order of the turns is no matter."""
        return math.fsum((*self.earned[trajectory], *self.own[trajectory]))

    def turns(self, trajectory: int) -> tuple[float, ...]:
        """Both kinds together, turn by turn."""
        return tuple(e + o for e, o in zip(self.earned[trajectory], self.own[trajectory], strict=True))

    def select(self, trajectories: Iterable[int]) -> RewardTable:
        """The table of some of the trajectories, in the given order."""
        kept = list(trajectories)
        return RewardTable(tuple(self.earned[i] for i in kept), tuple(self.own[i] for i in kept))


def raw_rewards(trajectories: Sequence[Trajectory]) -> RewardTable:
    """The table that shapers start from: the environments' rewards, nothing of one's own."""
    return RewardTable(
        tuple(tuple(float(r) for r in t.rewards) for t in trajectories),
        tuple((0.0,) * len(t.turns) for t in trajectories),
    )


class RewardShaper(Protocol):
    """Point W: a new table from the old one; may ask the scorer about tokens."""

    def shape(self, trajectories: Sequence[Trajectory], rewards: RewardTable, scorer: Scorer) -> RewardTable: ...


@dataclass(frozen=True, slots=True)
class RewardScale:
    """Multiplies every reward, so that a success is worth what the paper says (verl-agent: 10)."""

    factor: float

    def shape(self, trajectories: Sequence[Trajectory], rewards: RewardTable, scorer: Scorer) -> RewardTable:
        earned, own = (
            tuple(tuple(self.factor * r for r in row) for row in part) for part in (rewards.earned, rewards.own)
        )
        return RewardTable(earned, own)


@dataclass(frozen=True, slots=True)
class InvalidActionPenalty:
    """Takes ``coef`` reward units from every turn whose reply held no valid action, as that turn's own."""

    coef: float

    def shape(self, trajectories: Sequence[Trajectory], rewards: RewardTable, scorer: Scorer) -> RewardTable:
        own = (
            tuple(r - self.coef * (not turn.valid) for r, turn in zip(row, t.turns, strict=True))
            for row, t in zip(rewards.own, trajectories, strict=True)
        )
        return replace(rewards, own=tuple(own))
