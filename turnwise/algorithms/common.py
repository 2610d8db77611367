"""Parts that many recipes share: fresh groups, group-relative credit, PPO's clip, KL to the reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from turnwise.learning.credit import Singleton, group_advantages, token_weighted_advantages
from turnwise.learning.parts import (
    AdvantageEstimator,
    AdvantageModifier,
    ClipPolicy,
    Composer,
    Need,
    Regularizer,
    Samples,
    Stream,
    Streams,
    Surrogate,
    TokenWeighter,
    Unit,
    UpdateContext,
    required,
)
from turnwise.learning.primitives import KLEstimator, importance_ratio, kl_estimate, masked_whiten
from turnwise.learning.recipe import Recipe
from turnwise.replay.batch import layout
from turnwise.replay.buffer import TrajectoryBuffer
from turnwise.trajectory import Trajectory

GroupStats = Literal["trajectories", "rows"]

CLIP = frozenset({"clip"})
"""What a part claims that takes the place of PPO's clip."""


class FreshGroups(Composer):
    """One stream, ``fresh``: this update's groups without failed episodes.

    An episode that ended in an error of its environment is left out, and its group too if fewer than two
    members remain. ``drop_uniform`` leaves out groups whose shaped returns (with ``raw``, the environment's
    own) are all equal: they hold no information about which actions were better.
    """

    def __init__(self, drop_uniform: bool = False, raw: bool = False) -> None:
        self.drop_uniform, self.raw = drop_uniform, raw

    def compose(self, update: int, samples: Samples, buffer: TrajectoryBuffer) -> Streams:
        kept, places, place = [], [], 0
        for group in samples.groups:
            numbers = range(place, place + len(group.trajectories))
            place = numbers.stop
            sound = [n for n, t in zip(numbers, group.trajectories, strict=True) if t.end != "error"]
            shrunk = len(sound) < len(numbers)
            if not sound or (shrunk and len(sound) < 2):
                continue
            members = tuple(group.trajectories[n - numbers.start] for n in sound)
            shaped = {samples.rewards.total(n) for n in sound}
            if self.drop_uniform and (is_uniform(members) if self.raw else len(shaped) == 1):
                continue
            kept.append(replace(group, trajectories=members))
            places.extend(sound)
        fresh = Samples(tuple(kept), samples.rewards.select(places))
        rewards = [fresh.rewards.turns(n) for n in range(len(places))]
        stream = Stream(fresh, layout(fresh.groups, rewards=rewards, version=update))
        return Streams((stream,), dropped_groups=len(samples.groups) - len(kept))


def is_uniform(trajectories: Sequence[Trajectory]) -> bool:
    """Whether the environment rewarded all episodes alike (DAPO); fewer than two sound ones count as alike."""
    sound = [t for t in trajectories if t.end != "error"]
    return len(sound) < 2 or len({t.total_reward for t in sound}) == 1


def succeeded(trajectory: Trajectory, paid: float, success: float) -> bool:
    """Whether an episode succeeded: as its world says, else where it was ``paid`` as much as a ``success`` is worth."""
    return paid >= success * (1 - 1e-9) if trajectory.success is None else trajectory.success


class GroupCredit(AdvantageEstimator):
    """Credit by comparison within groups, given to all action tokens of a return alike.

    ``compare`` makes advantages [N] from returns, group numbers and lengths in action tokens, all [N]. Tokens that were
    no choice count in no length: they have no gradient.
    ``trajectories``: one return per trajectory. ``rows``: one per row, as verl-agent releases it: long
    trajectories weigh more where a row is a turn, and each row answers for its own turns' penalties only.
    """

    def __init__(self, stats: GroupStats, compare: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        self.stats, self.compare = stats, compare

    def estimate(self, stream: Stream) -> Tensor:
        batch = stream.batch
        if self.stats == "rows":
            per_row = self._compared(row_returns(stream), batch.group, batch.action_mask.sum(1))
        else:
            members = [(place, t) for place, group in enumerate(stream.samples.groups) for t in group.trajectories]
            totals = _doubles([stream.samples.rewards.total(n) for n in range(len(members))])
            group = torch.tensor([place for place, _ in members], dtype=torch.int64)
            lengths = torch.zeros(len(members), dtype=torch.int64)
            lengths = lengths.index_add(0, batch.trajectory, batch.action_mask.sum(1))
            per_row = self._compared(totals, group, lengths)[batch.trajectory]
        return per_row.float().unsqueeze(1) * batch.action_mask

    def _compared(self, returns: Tensor, group: Tensor, lengths: Tensor) -> Tensor:
        """Raises ValueError for advantages of another shape, which would be given to the wrong tokens."""
        found = self.compare(returns, group, lengths)
        if found.shape != returns.shape:
            raise ValueError(
                f"{self.compare} made advantages of shape {list(found.shape)} from {len(returns)} returns: expected "
                "one for each"
            )
        return found


class GroupAdvantage(GroupCredit):
    """The return's distance from its group's mean, over its std with ``normalize_std``."""

    def __init__(self, stats: GroupStats, normalize_std: bool, eps: float, singleton: Singleton) -> None:
        compare = partial(group_advantages, normalize_std=normalize_std, eps=eps, singleton=singleton)
        super().__init__(stats, lambda returns, group, lengths: compare(returns, group))
        self.unit = "deviation" if normalize_std else "reward"


class TokenWeightedAdvantage(GroupCredit):
    """The return's distance from the mean over the group's tokens, over their std with ``normalize_std`` (HAPO)."""

    def __init__(self, stats: GroupStats, normalize_std: bool, eps: float, singleton: Singleton) -> None:
        super().__init__(
            stats, partial(token_weighted_advantages, normalize_std=normalize_std, eps=eps, singleton=singleton)
        )
        self.unit = "deviation" if normalize_std else "reward"


class Whiten(AdvantageModifier):
    """Advantages with mean 0 and variance 1 over all action tokens of the stream."""

    unit: Unit | None = "deviation"

    def modify(self, stream: Stream) -> Tensor:
        advantages, mask = required(stream.batch.advantages, "advantages"), stream.batch.action_mask
        return masked_whiten(advantages, mask) * mask


class ComparedUnits(NamedTuple):
    """What a group compares, U trajectories or rows: what the world paid, what the unit alone answers for, its group.

    ``of_row`` [B] is the unit of each training row. Reward units, float64.
    """

    earned: Tensor  # [U]
    penalties: Tensor  # [U], with what is added to the whole episode's return
    group: Tensor  # [U]
    of_row: Tensor  # [B]


def compared_units(stream: Stream, stats: GroupStats) -> ComparedUnits:
    """The units of ``stats`` (as of ``GroupCredit``), with the two kinds of their returns apart."""
    rewards, batch = stream.samples.rewards, stream.batch
    if stats == "rows":
        spans = zip(batch.trajectory.tolist(), batch.first_turn.tolist(), batch.num_turns.tolist(), strict=True)
        units, group, of_row = list(spans), batch.group, torch.arange(len(batch))
    else:
        played = stream.samples.trajectories
        units = [(n, 0, len(t.turns)) for n, t in enumerate(played)]
        sizes = torch.tensor([len(g.trajectories) for g in stream.samples.groups], dtype=torch.int64)
        group, of_row = torch.arange(len(sizes)).repeat_interleave(sizes), batch.trajectory
    earned = _doubles([rewards.paid(i) for i, _, _ in units])
    own = _doubles([math.fsum((*rewards.own[i][at : at + n], rewards.extra(i))) for i, at, n in units])
    return ComparedUnits(earned, own, group, of_row)


def row_returns(stream: Stream) -> Tensor:
    """[B] float64: what the whole trajectory earned plus what the row's turns answer for alone."""
    rewards, batch = stream.samples.rewards, stream.batch
    rows = zip(batch.trajectory.tolist(), batch.first_turn.tolist(), batch.num_turns.tolist(), strict=True)
    whole = [(*rewards.along(i), *rewards.own[i][start : start + n]) for i, start, n in rows]
    return _doubles([math.fsum(parts) for parts in whole])


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


def replaced_clip(base: Recipe) -> PPOClip:
    """The clip of a base that an algorithm takes the place of; ValueError unless it is PPO's."""
    clip = base["fresh"].clip
    if not isinstance(clip, PPOClip):
        raise ValueError(f"{base.name} takes the place of PPO's clip; its base has {type(clip).__name__}")
    return clip


class TruncatedImportance(TokenWeighter):
    """min(π_proximal / π_behaviour, cap): repairs an inexact or older sampler when the ratio starts from proximal.

    With ``drop`` a token above the cap has the weight 0. Without a cap every token has its own weight.
    """

    needs: frozenset[Need] = frozenset({"proximal"})

    def __init__(self, cap: float | None, *, drop: bool = False) -> None:
        self.cap, self.drop = cap, drop

    def weight(self, ctx: UpdateContext) -> Tensor:
        proximal = required(ctx.batch.proximal_logprobs, "proximal_logprobs")
        ratio = importance_ratio(proximal, ctx.batch.behaviour_logprobs)
        if self.cap is None:
            return ratio
        above = ratio > self.cap
        self.occurred.count("dropped_share" if self.drop else "capped_share", above & ctx.mask, ctx.mask)
        return ratio.masked_fill(above, 0.0) if self.drop else ratio.clamp(max=self.cap)


class ReferenceKL(Regularizer):
    """KL to the frozen reference policy on the sampled tokens, nats; tokens weigh as in the surrogate."""

    needs: frozenset[Need] = frozenset({"reference"})
    claims: frozenset[str] = frozenset({"distance to the reference"})

    def __init__(self, estimator: KLEstimator = "k3") -> None:
        self.estimator = estimator

    def term(self, ctx: UpdateContext) -> Tensor:
        reference = required(ctx.batch.reference_logprobs, "reference_logprobs")
        return ctx.mean(kl_estimate(ctx.logprobs, reference, self.estimator))
