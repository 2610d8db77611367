"""Parts that many recipes share: fresh groups, group-relative credit, PPO's clip, KL to the reference."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from turnwise.algorithms.credit import Singleton, group_advantages
from turnwise.algorithms.parts import (
    AdvantageEstimator,
    ClipPolicy,
    Composer,
    Need,
    Regularizer,
    Samples,
    Stream,
    Streams,
    Surrogate,
    TokenWeighter,
    UpdateContext,
    required,
)
from turnwise.algorithms.primitives import KLEstimator, importance_ratio, kl_estimate
from turnwise.replay.batch import layout
from turnwise.replay.buffer import TrajectoryBuffer

GroupStats = Literal["trajectories", "rows"]


class FreshGroups(Composer):
    """One stream, ``fresh``: this update's groups without failed episodes.

    An episode that ended in an error of its environment is left out, and its group too if fewer than two
    members remain. ``drop_uniform`` leaves out groups whose shaped returns are all equal: they hold no
    information about which actions were better.
    """

    def __init__(self, drop_uniform: bool = False) -> None:
        self.drop_uniform = drop_uniform

    def compose(self, update: int, samples: Samples, buffer: TrajectoryBuffer) -> Streams:
        kept, places, place = [], [], 0
        for group in samples.groups:
            numbers = range(place, place + len(group.trajectories))
            place = numbers.stop
            sound = [n for n, t in zip(numbers, group.trajectories, strict=True) if t.end != "error"]
            shrunk = len(sound) < len(numbers)
            if not sound or (shrunk and len(sound) < 2):
                continue
            if self.drop_uniform and len({samples.rewards.total(n) for n in sound}) == 1:
                continue
            kept.append(replace(group, trajectories=tuple(group.trajectories[n - numbers.start] for n in sound)))
            places.extend(sound)
        fresh = Samples(tuple(kept), samples.rewards.select(places))
        stream = Stream(fresh, layout(fresh.groups, version=update))
        return Streams((stream,), dropped_groups=len(samples.groups) - len(kept))


class GroupAdvantage(AdvantageEstimator):
    """The return's distance from its group's mean (over its std), given to all action tokens alike.

    ``trajectories``: one return per trajectory. ``rows``: one per row, as verl-agent releases it: long
    trajectories weigh more where a row is a turn, and each row answers for its own turns' penalties only.
    """

    def __init__(self, stats: GroupStats, normalize_std: bool, eps: float, singleton: Singleton) -> None:
        self.stats, self.normalize_std, self.eps, self.singleton = stats, normalize_std, eps, singleton

    def estimate(self, stream: Stream) -> Tensor:
        batch = stream.batch
        if self.stats == "rows":
            per_row = self._advantages(row_returns(stream), batch.group)
        else:
            groups = stream.samples.groups
            members = [place for place, group in enumerate(groups) for _ in group.trajectories]
            totals = [stream.samples.rewards.total(n) for n in range(len(members))]
            per_trajectory = self._advantages(_doubles(totals), torch.tensor(members, dtype=torch.int64))
            per_row = per_trajectory[batch.trajectory]
        return per_row.float().unsqueeze(1) * batch.action_mask

    def _advantages(self, values: Tensor, group: Tensor) -> Tensor:
        return group_advantages(values, group, normalize_std=self.normalize_std, eps=self.eps, singleton=self.singleton)


def row_returns(stream: Stream) -> Tensor:
    """[B] float64: what the whole trajectory earned plus what the row's turns answer for alone."""
    rewards, batch = stream.samples.rewards, stream.batch
    rows = zip(batch.trajectory.tolist(), batch.first_turn.tolist(), batch.num_turns.tolist(), strict=True)
    return _doubles([math.fsum((*rewards.earned[i], *rewards.own[i][start : start + n])) for i, start, n in rows])


def _doubles(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


class PPOClip(ClipPolicy):
    """Ratio within [1 - low, 1 + high], and PPO's dual clip; token by token.

    The ratio's denominator is the behaviour log-prob, or with ``proximal`` the recomputed one of the policy
    at the start of the update.
    """

    def __init__(self, low: float, high: float, dual: float | None, proximal: bool = False) -> None:
        self.low, self.high, self.dual = low, high, dual
        self.needs = frozenset({"proximal"}) if proximal else frozenset()

    def surrogate(self, ctx: UpdateContext) -> Surrogate:
        ratio = importance_ratio(ctx.logprobs, ctx.old_logprobs)
        return Surrogate(ratio, 1.0 - self.low, 1.0 + self.high, self.dual)


class TruncatedImportance(TokenWeighter):
    """min(π_proximal / π_behaviour, cap): repairs an inexact sampler when the ratio starts from proximal."""

    needs: frozenset[Need] = frozenset({"proximal"})

    def __init__(self, cap: float) -> None:
        self.cap = cap

    def weight(self, ctx: UpdateContext) -> Tensor:
        proximal = required(ctx.batch.proximal_logprobs, "proximal_logprobs")
        return importance_ratio(proximal, ctx.batch.behaviour_logprobs).clamp(max=self.cap)


class ReferenceKL(Regularizer):
    """KL to the frozen reference policy on the sampled tokens, aggregated as the stream's own loss."""

    needs: frozenset[Need] = frozenset({"reference"})
    claims: frozenset[str] = frozenset({"distance to the reference"})

    def __init__(self, estimator: KLEstimator = "k3") -> None:
        self.estimator = estimator

    def term(self, ctx: UpdateContext) -> Tensor:
        reference = required(ctx.batch.reference_logprobs, "reference_logprobs")
        return ctx.aggregate(kl_estimate(ctx.logprobs, reference, self.estimator))
