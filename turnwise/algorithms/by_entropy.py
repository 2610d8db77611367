"""HAPO's parts: the clip, the weight and the temperature of a token, by its entropy (equations: hapo.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from turnwise.algorithms.balancing import heterogeneity, spread_of
from turnwise.algorithms.common import CLIP, PPOClip
from turnwise.heat import Heat, Sign, Spread
from turnwise.learning.parts import ClipPolicy, Heating, MinibatchView, Streams, Surrogate, TokenWeighter, UpdateContext


class EntropyBounds(ClipPolicy):
    """PPO's clip whose bounds widen with |h|: the lower one for sure tokens, the upper one for unsure ones."""

    claims: frozenset[str] = CLIP

    def __init__(self, clip: PPOClip, alpha: float, pivot: float, sign: Sign) -> None:
        self.clip, self.alpha, self.pivot, self.sign = clip, alpha, pivot, sign
        self.needs, self.h = clip.needs, torch.zeros(0, 0)

    def prepare(self, view: MinibatchView) -> None:
        mask = view.batch.action_mask
        self.h = heterogeneity(view.batch.behaviour_entropies, mask, self.pivot, self.sign)
        self.occurred.count("mean_widening", self.alpha * self.h.abs(), mask)

    def surrogate(self, ctx: UpdateContext) -> Surrogate:
        ratio, low, high, dual = self.clip.surrogate(ctx)
        h, alpha = ctx.own(self.h), self.alpha
        low, high = 1 - (1 - low) * (1 + alpha * (-h).clamp(min=0)), 1 + (high - 1) * (1 + alpha * h.clamp(min=0))
        return Surrogate(ratio, low, high, dual)


class EntropyWeight(TokenWeighter):
    """w, between 0 and 2, of the tokens whose bounds ``clip`` has."""

    claims: frozenset[str] = frozenset({"weight by entropy"})

    def __init__(self, clip: EntropyBounds, beta: float) -> None:
        self.clip, self.beta = clip, beta

    def weight(self, ctx: UpdateContext) -> Tensor:
        ratio, low, high, _ = self.clip.surrogate(ctx)
        ratio, h = ratio.detach(), ctx.own(self.clip.h)
        calm = (ratio > 1 - (1 - low) / 2) & (ratio < 1 + (high - 1) / 2)
        weight = torch.where(calm == (h <= 0), 1 + self.beta * h, 1.0)
        self.occurred.count("mean_change", (weight - 1).abs() * ctx.mask, ctx.mask)
        return weight


class EntropyHeat(Heating):
    """The temperature of ``turnwise.heat``, of the last update that had a token to learn from; none before the first.

    Its numbers are of the chosen tokens of all streams, as they were sampled. It reports them as means over updates.
    """

    def __init__(self, strength: float, pivot: float, sign: Sign) -> None:
        self.strength, self.pivot, self.sign = strength, pivot, sign
        self.spread: Spread | None = None

    def heat(self) -> Heat | None:
        return None if self.spread is None else Heat(self.spread, self.strength, self.sign)

    def before_update(self, update: int, streams: Streams) -> None:
        found = [stream.batch.behaviour_entropies[stream.batch.action_mask] for stream in streams]
        entropies = torch.cat(found) if found else torch.zeros(0)
        if len(entropies):
            self.spread = spread_of(entropies, self.pivot)
            for name, value in asdict(self.spread).items():
                self.occurred.count(name, value)

    def state_dict(self) -> dict[str, Any]:
        return {"spread": None if self.spread is None else asdict(self.spread)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.spread = None if state["spread"] is None else Spread(**state["spread"])
