"""The two losses of COPO: the base's with its share, and that of whole groups compared with each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from turnwise.algorithms.common import FreshGroups
from turnwise.learning.credit import group_advantages, group_statistics
from turnwise.learning.parts import (
    AdvantageModifier,
    ClipPolicy,
    Composer,
    Objective,
    Stream,
    TokenWeighter,
    UpdateContext,
    required,
)
from turnwise.learning.primitives import clipped_surrogate
from turnwise.trajectory import Group, Trajectory

Blend = Literal["soft", "soft_forced", "soft_zero", "forced", "zero", "global"]
AnswerKind = Literal["ending", "last", "actions"]


@dataclass(frozen=True, slots=True)
class LocalWeight:
    """w of every trajectory, [N], from its group's entropy (bits), and whether it has a base's advantage, and a reward.

    ``midpoint`` in bits, ``sharpness`` per bit.
    """

    blend: Blend
    midpoint: float
    sharpness: float

    def __call__(self, bits: Tensor, taught: Tensor, paid: Tensor) -> Tensor:
        if self.blend == "global":
            return torch.zeros_like(bits)
        soft = torch.sigmoid(self.sharpness * (bits - self.midpoint))
        if self.blend == "soft":
            return soft
        kept = taught if "forced" in self.blend else paid
        return torch.where(kept, soft if self.blend.startswith("soft") else torch.ones_like(soft), 0.0)


class LocalShare(AdvantageModifier):
    """Multiplies advantages by w, and keeps ``global_credit``: (1 - w) A_g of every trajectory of the stream, [N].

    ``divides``: whether A_g is in standard deviations. ``success`` is a success's worth, the unit of eps.
    """

    claims: frozenset[str] = frozenset({"weight of whole groups"})

    def __init__(self, weight: LocalWeight, answer: AnswerKind, by_type: bool, divides: bool, success: float) -> None:
        self.weight, self.answer, self.by_type = weight, answer, by_type
        self.divides, self.success = divides, success
        self.global_credit = torch.zeros(0)

    def modify(self, stream: Stream) -> Tensor:
        batch, rewards, groups = stream.batch, stream.samples.rewards, stream.samples.groups
        advantages = required(batch.advantages, "advantages")
        played = stream.samples.trajectories
        group, bits = group_entropy(groups, self.answer)
        totals = torch.tensor([rewards.total(n) for n in range(len(played))], dtype=torch.float64)
        types = [g.task.type if self.by_type else "" for g in groups]
        credit = self.compared(totals, bits, group, types)
        credited = torch.zeros(len(played)).index_add(0, batch.trajectory, (advantages != 0).sum(1).float())
        taught = credited > 0
        paid = torch.tensor([rewards.paid(n) != 0 for n in range(len(played))], dtype=torch.bool)
        local = self.weight(bits, taught, paid)
        self.global_credit = (1 - local) * credit
        self.occurred.count("global_weight", 1 - local, len(local))
        self.occurred.count("global_share", self.global_credit != 0, len(local))
        self.occurred.count("rescued_share", (self.global_credit != 0) & ~taught, ~taught)
        return (advantages * local[batch.trajectory].unsqueeze(1)).to(advantages.dtype)

    def compared(self, returns: Tensor, bits: Tensor, group: Tensor, types: Sequence[str]) -> Tensor:
        """A_g of every trajectory, [N]; ``types`` are the groups', among which each is compared."""
        mean, _, size = group_statistics(returns, group)
        lam = torch.where(size > 1, (1 - 1 / size.clamp(min=1)) / size.clamp(min=2).log2(), 0.0)
        rewards = torch.zeros(len(types), dtype=torch.float64).index_copy(0, group, mean * (1 - lam * bits))
        order = {name: n for n, name in enumerate(dict.fromkeys(types))}
        kinds = torch.tensor([order[name] for name in types], dtype=torch.int64)
        eps = 1e-6 * self.success
        return group_advantages(rewards, kinds, normalize_std=self.divides, eps=eps)[group]


class GroupSurrogate(Objective):
    """The base's surrogate with the advantage that ``local`` found for whole groups.

    ``clip`` and ``weighters`` are the base's, so that nothing may change these on top.
    """

    outermost = "copo"

    def __init__(self, local: LocalShare, clip: ClipPolicy, weighters: Sequence[TokenWeighter]) -> None:
        self.local, self.clip, self.weighters = local, clip, weighters

    def loss(self, ctx: UpdateContext) -> Tensor:
        credit = self.local.global_credit.to(ctx.logprobs)[ctx.batch.trajectory].unsqueeze(1) * ctx.mask
        whole = replace(ctx, batch=ctx.batch.with_columns(advantages=credit))
        surrogate, weight = self.clip.surrogate(whole), ctx.batch.weight.unsqueeze(1)
        for weighter in self.weighters:
            weight = weight * weighter.weight(ctx)
        values = clipped_surrogate(surrogate.ratio, credit, *surrogate[1:]).loss
        return ctx.mean(weight * values) / ctx.unit


def answer_of(trajectory: Trajectory, kind: AnswerKind) -> Hashable:
    """What an episode's group compares of it."""
    turns = trajectory.turns
    if kind == "actions":
        return tuple(turn.action for turn in turns)
    if kind == "last":
        return turns[-1].action if turns else ""
    return (turns[-1].anchor or turns[-1].observation, turns[-1].action) if turns else ()


def group_entropy(groups: Sequence[Group], kind: AnswerKind) -> tuple[Tensor, Tensor]:
    """The group of each trajectory, [N] int64, and the entropy of its answers, [N] float64, in bits."""
    group = torch.tensor([n for n, g in enumerate(groups) for _ in g.trajectories], dtype=torch.int64)
    return group, answer_entropy([answer_of(t, kind) for g in groups for t in g.trajectories], group)


def answer_entropy(answers: Sequence[Hashable], group: Tensor) -> Tensor:
    """Entropy of the answers of each one's group, [N] float64, in bits."""
    counts = Counter(zip(group.tolist(), answers, strict=True))
    sizes = Counter(group.tolist())
    bits = dict.fromkeys(sizes, 0.0)
    for (place, _), count in counts.items():
        share = torch.tensor(count / sizes[place], dtype=torch.float64)
        bits[place] -= float(share * share.log2())
    return torch.tensor([bits[place] for place in group.tolist()], dtype=torch.float64)


def keeps_uniform_groups(composer: Composer) -> bool:
    """Whether no layer of the composer leaves groups of equal returns out."""
    layer: object = composer
    while layer is not None:
        if isinstance(layer, FreshGroups) and layer.drop_uniform:
            return False
        layer = getattr(layer, "inner", None)
    return True
