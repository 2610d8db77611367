"""Self-imitation: a policy's own good episodes are kept for a while and trained on again (SPEAR's replay stream).

An example: an episode returns 1 in a group of mean 0.25, so that its advantage is positive and it is kept. In the next
update it is replayed, with the advantage 1 - P50. P50 is the median of the group means of recent updates. As the policy
improves, P50 rises. Once it reaches 1, the episode is not replayed any more.

Kept episodes lie in the trajectory buffer's ``replay`` stream, each group with the reward table of its collection:

    enters    units of the fresh stream with a mean advantage > 0
    leaves    after ``tolerance`` updates, beyond ``buffer_size`` units, or all at once after a replay (``when_full``)
    replayed  units with  R - P50 > 0,  drawn uniformly;   advantage  R - P50  (over P50 of the groups' stds)
    without recalibration   all units, with the advantage they entered with

A unit is a trajectory, or in the released code a training row of one (an agent with a context window has several rows
in an episode). R is the trajectory's return; for a row it is the episode's return with the penalties of this row only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise, repeat
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from turnwise.algorithms.composing import ComposerAround
from turnwise.learning.metrics import Metrics
from turnwise.learning.parts import AdvantageEstimator, Composer, Samples, Schedule, Stream, Streams, required
from turnwise.learning.rewards import RewardTable
from turnwise.learning.settings import Settings
from turnwise.replay.batch import TokenBatch, layout
from turnwise.replay.buffer import Entry, TrajectoryBuffer, TurnRewards
from turnwise.trajectory import Group, Trajectory

STREAM = "replay"
FULL = 1.5  # `when_full`: this many times the buffer's size of units above P50


class Unit(NamedTuple):
    """A trajectory or row that is kept and drawn as one, with its shaped rewards and its mean advantage when fresh."""

    trajectory: Trajectory
    rewards: TurnRewards
    advantage: float = 0.0

    @property
    def total(self) -> float:
        return math.fsum((*self.rewards[0], *self.rewards[1]))


def rows_of(unit: Unit) -> list[Unit]:
    """A trajectory's training rows as units of their own.

    Each row has the whole episode's return: what the other rows earned is added to its last turn. Penalties are those
    of its own turns only.
    """
    (earned, own), turns = unit.rewards, unit.trajectory.turns
    starts = [n for n, turn in enumerate(turns) if not turn.continues]
    rows = []
    for start, end in pairwise([*starts, len(turns)]):
        part = earned[start:end]
        rest = math.fsum((*earned[:start], *earned[end:]))
        rewards = ((*part[:-1], part[-1] + rest), own[start:end])
        rows.append(Unit(replace(unit.trajectory, turns=turns[start:end]), rewards))
    return rows


class RecentReturns:
    """Means and population stds of recent groups' returns, update by update. P50 is the median over all the groups."""

    def __init__(self, max_groups: int) -> None:
        self.max_groups = max_groups
        self.updates: list[list[tuple[float, float]]] = []

    def __len__(self) -> int:
        return sum(map(len, self.updates))

    def add(self, groups: Sequence[Sequence[float]]) -> None:
        """Add one update's groups of returns. First drop the oldest while over ``max_groups`` are held."""
        while len(self) > self.max_groups:
            self.updates.pop(0)
        self.updates.append([(float(np.mean(group)), float(np.std(group))) for group in groups if len(group)])

    def median(self) -> tuple[float, float] | None:
        """(P50 of the means, P50 of the stds), or None if no group is held.

        If most groups have equal returns, the P50 of the stds would be 0. Then it is taken over the groups with a
        positive std, and is 0 only if there are none.
        """
        held = [group for update in self.updates for group in update]
        if not held:
            return None
        mean, std = np.percentile(np.array(held), 50, axis=0)
        if not std:
            std = np.percentile([found for _, found in held if found > 0] or [0.0], 50)
        return float(mean), float(std)


class ReplaySettings(Settings):
    """Which fresh episodes are kept, for how long, and which of them are replayed."""

    replay: Literal["every_update", "when_full"] = Field(
        default="every_update",
        description="When to imitate: always, or once the buffer is full, emptying it (released).",
    )
    unit: Literal["trajectory", "row"] = Field(
        default="trajectory", description="What is kept and drawn: a trajectory, or a training row (released)."
    )
    buffer_size: int = Field(default=2048, ge=1, description="Units kept at most; when_full: 1.5 times it is full.")
    draw: int | None = Field(
        default=None,
        ge=1,
        description="Units replayed at most in an update; null: as many as are fresh (when_full: buffer_size).",
    )
    powers: bool = Field(default=False, description="Draw a power of two of the units that are good enough (released).")
    tolerance: int = Field(default=5, ge=1, description="Age in updates up to which a unit is kept.")
    age_from: Literal["now", "newest"] = Field(
        default="now", description="Ages count from now, or from the newest update that anything is kept of (released)."
    )
    keep: Literal["above", "at_least"] = Field(
        default="above", description="Imitate returns above P50, or at least as high (released)."
    )
    normalize_std: bool | None = Field(
        default=None, description="Divide R - P50 by the P50 of the groups' stds; null: where the base divides."
    )
    recalibrate: bool = Field(
        default=True, description="Compare with the P50 of now; false: the advantage of the time of collection."
    )
    advantage_decay: float = Field(
        default=1.0, gt=0, le=1, description="Factor on that advantage, with recalibrate=false (w)."
    )
    baseline_groups: int = Field(default=10240, ge=1, description="Recent groups that P50 is taken over.")


class SelfImitation(ComposerAround):
    """Adds the stream ``replay`` to the streams of ``inner``, and keeps the good units of the stream ``fresh``.

    ``coef`` gives the stream's coefficient at an update; where it is 0 nothing is replayed. ``fresh_age`` is how long,
    in updates, the buffer must keep fresh groups for other parts.
    """

    def __init__(self, inner: Composer, rule: ReplaySettings, coef: Schedule, seed: int, fresh_age: int = 0) -> None:
        super().__init__(inner)
        self.streams = (*inner.streams, STREAM)
        self.rule, self.coef, self.seed, self.fresh_age = rule, coef, seed, fresh_age
        self.returns = RecentReturns(rule.baseline_groups)
        self.median: tuple[float, float] | None = None
        self.replayed: list[Unit] = []
        self._buffer = TrajectoryBuffer()

    def compose(self, update: int, samples: Samples, buffer: TrajectoryBuffer) -> Streams:
        found = self.inner.compose(update, samples, buffer)
        self._buffer, self.median = buffer, self.returns.median()
        coef = self.coef(update)
        self.occurred.count("coef", coef)
        if coef == 0.0 or self.median is None or (self.rule.replay == "when_full" and not self.is_full(buffer)):
            return found
        fresh = found["fresh"]
        chosen = self._drawn(update, len(fresh.batch) if self.rule.unit == "row" else len(fresh.samples.trajectories))
        if self.rule.replay == "when_full":
            buffer.retain(lambda entry: entry.stream != STREAM)
        self.occurred.count("replayed", len(chosen))
        self.replayed = chosen
        if not chosen:
            return found
        table = RewardTable(tuple(u.rewards[0] for u in chosen), tuple(u.rewards[1] for u in chosen))
        replayed = Samples(tuple(Group(u.trajectory.task, (u.trajectory,)) for u in chosen), table)
        rewards = [table.turns(n) for n in range(len(chosen))]
        batch = layout(replayed.groups, rewards=rewards, version=update, stream=STREAM)
        return Streams((*found, Stream(replayed, batch, coef)), found.dropped_groups)

    def is_full(self, buffer: TrajectoryBuffer) -> bool:
        """Whether more than 1.5 * buffer_size units lie above P50."""
        return self.num_above(buffer) > FULL * self.rule.buffer_size

    def num_above(self, buffer: TrajectoryBuffer) -> int:
        """The number of kept units whose return is above P50."""
        median = self.returns.median()
        return 0 if median is None else sum(unit.total > median[0] for unit in units(buffer))

    def eligible(self, buffer: TrajectoryBuffer) -> list[Unit]:
        """The kept units that may be replayed now, oldest first."""
        if self.median is None:
            return []
        if not self.rule.recalibrate:
            return list(units(buffer))
        level, at_least = self.median[0], self.rule.keep == "at_least"
        return [unit for unit in units(buffer) if unit.total > level or (at_least and unit.total == level)]

    def num_drawn(self, num_eligible: int, num_fresh: int) -> int:
        """The number of eligible units that are replayed."""
        limit = self.rule.draw or (self.rule.buffer_size if self.rule.replay == "when_full" else num_fresh)
        if self.rule.powers and num_eligible:
            num_eligible = 1 << (num_eligible.bit_length() - 1)
        return min(num_eligible, limit)

    def _drawn(self, update: int, num_fresh: int) -> list[Unit]:
        good = self.eligible(self._buffer)
        order = np.random.default_rng([self.seed, update, len(good)]).permutation(len(good))
        return [good[i] for i in sorted(order[: self.num_drawn(len(good), num_fresh)])]

    def after_update(self, update: int, streams: Streams, metrics: Metrics) -> None:
        super().after_update(update, streams, metrics)
        self._expire(update)
        fresh, returns, number = streams["fresh"], [], 0
        credit = unit_credit(fresh.batch, len(fresh.samples.trajectories), self.rule.unit)
        for group in fresh.samples.groups:
            members = range(number, number := number + len(group.trajectories))
            found = [self._units(fresh.samples, n) for n in members]
            returns.append([float(np.mean([unit.total for unit in made])) for made in found if made])
            pairs = (pair for n, made in zip(members, found, strict=True) for pair in zip(made, credit[n], strict=True))
            good = [unit._replace(advantage=advantage) for unit, advantage in pairs if advantage > 0]
            self.occurred.count("kept_share", len(good), sum(map(len, found)))
            if good:
                kept = Group(group.task, tuple(unit.trajectory for unit in good))
                rewards, advantages = tuple(unit.rewards for unit in good), tuple(unit.advantage for unit in good)
                self._buffer.keep(kept, update, STREAM, rewards, advantages)
        self.returns.add(returns)
        if self.rule.replay == "every_update":
            self._trim()

    def _expire(self, update: int) -> None:
        """Drop units that will be too old in the next update, and fresh groups that no part needs any more."""
        newest = max((entry.update for entry in self._buffer.entries(STREAM)), default=update)
        now = update + 1 if self.rule.age_from == "now" else newest
        limits = {True: (now, self.rule.tolerance), False: (update + 1, self.fresh_age)}

        def young(entry: Entry) -> bool:
            reference, age = limits[entry.stream == STREAM]
            return reference - entry.update <= age

        self._buffer.retain(young)

    def _trim(self) -> None:
        """Drop the oldest groups until at most ``buffer_size`` units are kept."""
        held, kept = 0, set()
        for entry in reversed(self._buffer.entries(STREAM)):
            held += len(entry.group.trajectories)
            if held <= self.rule.buffer_size:
                kept.add(id(entry))
        self._buffer.retain(lambda entry: entry.stream != STREAM or id(entry) in kept)

    def _units(self, samples: Samples, number: int) -> list[Unit]:
        trajectory, table = samples.trajectories[number], samples.rewards
        if not trajectory.turns:
            return []
        whole = Unit(trajectory, (table.along(number), table.own[number]))
        return rows_of(whole) if self.rule.unit == "row" else [whole]

    def own_state(self) -> dict[str, Any]:
        return {"returns": self.returns.updates}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        self.returns.updates = [[(mean, std) for mean, std in update] for update in state["returns"]]


def units(buffer: TrajectoryBuffer) -> Iterator[Unit]:
    """The kept units, oldest first."""
    for entry in buffer.entries(STREAM):
        yield from map(Unit, entry.group.trajectories, entry.rewards or (), entry.advantages or repeat(0.0))


def unit_credit(batch: TokenBatch, num_trajectories: int, unit: Literal["trajectory", "row"]) -> list[list[float]]:
    """[trajectory][unit]: the mean advantage of the unit's action tokens, 0 if it has none."""
    sums = required(batch.advantages, "advantages").double().sum(1).tolist()
    found: list[list[tuple[float, int]]] = [[] for _ in range(num_trajectories)]
    for trajectory, value, tokens in zip(
        batch.trajectory.tolist(), sums, batch.action_mask.sum(1).tolist(), strict=True
    ):
        found[trajectory].append((value, tokens))
    if unit == "row":
        return [[value / max(tokens, 1) for value, tokens in rows] for rows in found]
    return [[math.fsum(v for v, _ in rows) / max(sum(n for _, n in rows), 1)] if rows else [] for rows in found]


class Recalibrated(AdvantageEstimator):
    """R - P50 on all action tokens of a unit; with ``normalize_std`` divided by (P50 of the groups' stds + ``eps``)."""

    def __init__(self, memory: SelfImitation, eps: float = 1e-6) -> None:
        self.memory, self.eps = memory, eps
        self.unit = "deviation" if memory.rule.normalize_std else "reward"

    def estimate(self, stream: Stream) -> Tensor:
        assert self.memory.median is not None, "a replay without a baseline"
        level, deviation = self.memory.median
        totals = [stream.samples.rewards.total(n) for n in range(len(stream.samples.trajectories))]
        scale = deviation + self.eps if self.memory.rule.normalize_std and deviation else 1.0
        per_unit = recalibrated(torch.tensor(totals, dtype=torch.float64), level, scale)
        return per_unit[stream.batch.trajectory].float().unsqueeze(1) * stream.batch.action_mask


class StoredAdvantage(AdvantageEstimator):
    """A unit's mean advantage when it was fresh, times ``advantage_decay``, on all its action tokens."""

    def __init__(self, memory: SelfImitation) -> None:
        self.memory = memory
        self.unit = "deviation" if memory.rule.normalize_std else "reward"

    def estimate(self, stream: Stream) -> Tensor:
        decay = self.memory.rule.advantage_decay
        per_unit = torch.tensor([decay * unit.advantage for unit in self.memory.replayed])
        return per_unit[stream.batch.trajectory].unsqueeze(1) * stream.batch.action_mask


def recalibrated(returns: Tensor, level: float, scale: float = 1.0) -> Tensor:
    """(return - level) / scale, [N]."""
    return (returns - level) / scale
