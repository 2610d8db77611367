"""Reward tables, and the shapers that make a new one. The trajectories' raw rewards are never touched."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from turnwise.learning.planning import Scorer
from turnwise.learning.settings import RewardSettings
from turnwise.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class RewardTable:
    """Shaped rewards of trajectories' turns, ``[i][n]`` for turn n of trajectory i, in the shapers' units.

    ``earned`` counts towards the episode's return, which every turn is credited with. ``own`` is what a turn
    alone answers for (an invalid action's penalty): estimators that credit rows or turns give it to no other
    one. ``whole`` [i] is added to the episode's return and is no turn's doing (a bonus for its length): no step
    return contains it; () stands for zeros. ``turnless`` [i] is what an episode without turns was paid
    (``Trajectory.turnless_reward``): its group compares it, and no turn is credited; () stands for zeros.
    """

    earned: tuple[tuple[float, ...], ...]
    own: tuple[tuple[float, ...], ...]
    whole: tuple[float, ...] = ()
    turnless: tuple[float, ...] = ()

    def total(self, trajectory: int) -> float:
        """Undiscounted return, all kinds together, rounded once: the order of the turns is no matter."""
        return math.fsum((*self._paid(trajectory), *self.own[trajectory], self.extra(trajectory)))

    def paid(self, trajectory: int) -> float:
        """What counts towards the return of the episode alone, rounded once: no penalty, nothing for its length."""
        return math.fsum(self._paid(trajectory))

    def _paid(self, trajectory: int) -> tuple[float, ...]:
        return self.earned[trajectory] or self.turnless[trajectory : trajectory + 1]

    def extra(self, trajectory: int) -> float:
        """What is added to the whole episode's return; nothing to one without turns, which nobody is to answer for."""
        return self.whole[trajectory] if self.whole and self.earned[trajectory] else 0.0

    def along(self, trajectory: int) -> tuple[float, ...]:
        """What is earned turn by turn, with what the whole episode gets on its last turn."""
        row = self.earned[trajectory]
        return (*row[:-1], row[-1] + self.extra(trajectory)) if row else row

    def turns(self, trajectory: int) -> tuple[float, ...]:
        """All kinds together, turn by turn."""
        return tuple(e + o for e, o in zip(self.along(trajectory), self.own[trajectory], strict=True))

    def select(self, trajectories: Iterable[int]) -> RewardTable:
        """The table of some of the trajectories, in the given order."""
        kept = list(trajectories)
        earned, own = (tuple(part[i] for i in kept) for part in (self.earned, self.own))
        turnless = tuple(self.turnless[i] for i in kept if self.turnless)
        return RewardTable(earned, own, tuple(self.extra(i) for i in kept), turnless)

    def after(self, turns: Sequence[int]) -> RewardTable:
        """The table without the first ``turns[i]`` turns of each trajectory i. What the whole episode gets stays."""
        earned, own = (
            tuple(row[start:] for row, start in zip(part, turns, strict=True)) for part in (self.earned, self.own)
        )
        return RewardTable(earned, own, tuple(self.extra(i) for i in range(len(earned))), self.turnless)

    def with_extra(self, amounts: Sequence[float]) -> RewardTable:
        """The table with more added to each episode's return, [N] in the shapers' units."""
        return replace(self, whole=tuple(self.extra(i) + amount for i, amount in enumerate(amounts)))


def raw_rewards(trajectories: Sequence[Trajectory]) -> RewardTable:
    """The table that shapers start from: the environments' rewards, nothing of one's own."""
    return RewardTable(
        tuple(tuple(float(r) for r in t.rewards) for t in trajectories),
        tuple((0.0,) * len(t.turns) for t in trajectories),
        turnless=tuple(t.turnless_reward for t in trajectories) if any(t.turnless_reward for t in trajectories) else (),
    )


class RewardShaper(Protocol):
    """Point W: a new table from the old one; may ask the scorer about tokens."""

    def shape(self, trajectories: Sequence[Trajectory], rewards: RewardTable, scorer: Scorer) -> RewardTable: ...


@runtime_checkable
class ShaperOfUpdate(RewardShaper, Protocol):
    """A shaper that has a course over the run's updates."""

    def at(self, update: int) -> RewardShaper:
        """The shaper of one update: the one that learns, whichever weights played."""
        ...


@runtime_checkable
class ComparesAnswers(RewardShaper, Protocol):
    """A shaper that pays by the answers of a group's episodes (``Trajectory.answer``), which not every world has."""

    compares_answers: bool


@dataclass(frozen=True, slots=True)
class RewardScale:
    """Multiplies every reward, so that a success is worth ``factor`` (verl-agent: 10)."""

    factor: float

    def shape(self, trajectories: Sequence[Trajectory], rewards: RewardTable, scorer: Scorer) -> RewardTable:
        earned, own = (
            tuple(tuple(self.factor * r for r in row) for row in part) for part in (rewards.earned, rewards.own)
        )
        whole, turnless = (tuple(self.factor * r for r in part) for part in (rewards.whole, rewards.turnless))
        return RewardTable(earned, own, whole, turnless)


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


def shapers_of(settings: RewardSettings) -> tuple[RewardShaper, ...]:
    """The shapers that a run's reward settings ask for. They are applied before the recipe's own shapers."""
    scale = () if settings.scale == 1.0 else (RewardScale(settings.scale),)
    penalty = settings.invalid_action_penalty * settings.success
    return (*scale, InvalidActionPenalty(penalty)) if penalty else scale
