"""More attempts at another temperature: who plays them, and which of them are trained on (arbitrary-entropy AEPO)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from turnwise.algorithms.composing import ComposerAround
from turnwise.learning.credit import group_advantages
from turnwise.learning.parts import AdvantageEstimator, Composer, Samples, Stream, Streams, Unit
from turnwise.learning.planning import Rollouts
from turnwise.replay.batch import layout
from turnwise.replay.buffer import TrajectoryBuffer
from turnwise.trajectory import RolloutFinished, Task, Trajectory

STREAM = "heated"


@dataclass(frozen=True, slots=True)
class Thermostat:
    """``high`` while the entropy is not above ``target``, else ``low``; entropies in nats for a token."""

    target: float
    high: float
    low: float

    def temperature(self, entropy: float) -> float:
        return self.high if entropy <= self.target else self.low


class HeatedAttempts(ComposerAround):
    """Plays a share of an update's tasks once more, at the thermostat's temperature, and trains on the best of that.

    As a planner it plays ``group_size`` attempts at every task, and as many more, numbered from ``group_size`` on, at
    the first tasks. As a composer it gives the former to the inner one, and makes a stream of the latter: those whose
    advantage among their like is above ``threshold`` deviations, ``most`` at most, half of that above the target.
    With ``coef`` None they take the place of as many of the first attempts, in one mean; else the stream has that
    factor. Keeps the last update's entropy: the mean over the tokens of all sound attempts that were not heated,
    whether they are trained on or not. So the thermostat also turns where every group is uniform.
    """

    def __init__(
        self,
        inner: Composer,
        thermostat: Thermostat,
        *,
        group_size: int,
        share: float,
        most: int,
        threshold: float,
        coef: float | None,
    ) -> None:
        super().__init__(inner)
        self.streams = (*inner.streams, STREAM)
        self.thermostat, self.group_size, self.share = thermostat, group_size, share
        self.most, self.threshold, self.coef = most, threshold, coef
        self.entropy = 0.0

    def plan(self, tasks: Sequence[Task], rollouts: Rollouts, spare: Iterable[Task] = ()) -> list[Trajectory]:
        heat, again = self.thermostat.temperature(self.entropy), tasks[: max(1, int(self.share * len(tasks)))]
        order = [rollouts.start(task, sample) for task in tasks for sample in range(self.group_size)]
        more = range(self.group_size, 2 * self.group_size)
        order += [rollouts.start(task, sample, heat) for task in again for sample in more]
        finished: dict[int, list[Trajectory]] = {rollout: [] for rollout in order}
        for event in rollouts.events():
            if isinstance(event, RolloutFinished):
                finished[event.rollout].append(event.trajectory)
        return [trajectory for rollout in order for trajectory in finished[rollout]]

    def compose(self, update: int, samples: Samples, buffer: TrajectoryBuffer) -> Streams:
        usual, heated = (self._part(samples, is_heated) for is_heated in (False, True))
        streams = self.inner.compose(update, usual, buffer)
        chosen = self._chosen(heated)
        rewards = [chosen.rewards.turns(n) for n in range(len(chosen.trajectories))]
        stream = Stream(chosen, layout(chosen.groups, rewards=rewards, version=update, stream=STREAM))
        self.occurred.count("temperature", self.thermostat.temperature(self.entropy))
        self.occurred.count("kept_share", len(chosen.trajectories), len(heated.trajectories))
        fresh = streams["fresh"]
        if self.coef is None:
            fresh, stream = replaced(fresh, stream, len(chosen.trajectories))
        else:
            stream = replace(stream, coef=self.coef)
        self.entropy = mean_entropy(usual.trajectories, self.entropy)  # last: what is above is by the last update's
        others = (fresh if each.name == "fresh" else each for each in streams)
        return replace(streams, streams=(*others, stream))

    def _part(self, samples: Samples, is_heated: bool) -> Samples:
        """The attempts that were heated, or those that were not."""
        groups, places, place = [], list[int](), 0
        for group in samples.groups:
            own = [n for n, t in enumerate(group.trajectories) if self.was_heated(t) == is_heated]
            if own:
                groups.append(replace(group, trajectories=tuple(group.trajectories[n] for n in own)))
            places += [place + n for n in own]
            place += len(group.trajectories)
        return Samples(tuple(groups), samples.rewards.select(places))

    def was_heated(self, trajectory: Trajectory) -> bool:
        return trajectory.fork is None and trajectory.sample >= self.group_size

    def _chosen(self, heated: Samples) -> Samples:
        """The first of the sound attempts that are better than their like."""
        sound = [n for n, t in enumerate(heated.trajectories) if t.end != "error"]
        sizes = torch.tensor([len(group.trajectories) for group in heated.groups], dtype=torch.int64)
        owner = torch.arange(len(sizes)).repeat_interleave(sizes)[sound]
        totals = torch.tensor([heated.rewards.total(n) for n in sound], dtype=torch.float64)
        good = group_advantages(totals, owner) > self.threshold
        most = self.most if self.entropy <= self.thermostat.target else min(self.most, int(good.sum())) // 2
        kept = [n for n, is_good in zip(sound, good.tolist(), strict=True) if is_good][:most]
        groups, place = [], 0
        for group in heated.groups:
            own = tuple(t for n, t in enumerate(group.trajectories) if place + n in kept)
            groups += [replace(group, trajectories=own)] if own else []
            place += len(group.trajectories)
        return Samples(tuple(groups), heated.rewards.select(kept))

    def own_state(self) -> dict[str, Any]:
        return {"entropy": self.entropy}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        self.entropy = float(state["entropy"])


def mean_entropy(attempts: Iterable[Trajectory], otherwise: float) -> float:
    """Mean entropy, in nats, of the action tokens of attempts that did not fail; ``otherwise`` where there is none."""
    turns = [turn for attempt in attempts if attempt.end != "error" for turn in attempt.turns]
    found = np.concatenate([np.zeros(0), *(turn.entropies[turn.action_mask] for turn in turns)])
    return float(found.mean()) if len(found) else otherwise


def replaced(fresh: Stream, heated: Stream, count: int) -> tuple[Stream, Stream]:
    """Both streams as one mean over tokens, without the first ``count`` attempts of the fresh one.

    Advantages of the others are still compared with those that are left out.
    """
    rows = torch.arange(len(fresh.batch))[fresh.batch.trajectory >= count]
    fresh = replace(fresh, batch=fresh.batch.select(rows))
    tokens = [stream.batch.num_action_tokens for stream in (fresh, heated)]
    whole = max(sum(tokens), 1)
    return replace(fresh, coef=fresh.coef * tokens[0] / whole), replace(heated, coef=tokens[1] / whole)


class Success(AdvantageEstimator):
    """The same advantage on every token: what one success, or one deviation, is worth."""

    def __init__(self, value: float, unit: Unit) -> None:
        self.value, self.unit = value, unit

    def estimate(self, stream: Stream) -> Tensor:
        return self.value * stream.batch.action_mask.float()
