"""The arithmetic of bounds: which ones BAPO tries, and how much of the update is the positive tokens' under them; how
sure or unsure HAPO finds each token, and what its temperature needs of an update's tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from turnwise.heat import LEAST, Sign, Spread
from turnwise.learning.primitives import clipped_surrogate

Bounds = tuple[float, float]


def tried_bounds(low: Bounds, high: Bounds, steps: Bounds, *, high_first: bool) -> list[Bounds]:
    """Pairs (low, high) in the order in which they are tried; ``low`` and ``high`` are (start, maximum) each."""
    lows, highs = rising(*low, steps[0]), rising(*high, steps[1])
    if high_first:
        return [(lows[0], each) for each in highs] + [(each, highs[-1]) for each in lows[1:]]
    return [(each, highs[0]) for each in lows] + [(lows[-1], each) for each in highs[1:]]


def rising(first: float, last: float, step: float) -> list[float]:
    """From ``first`` up to ``last``, which ends it whatever the step."""
    values = [first]
    while values[-1] < last:
        values.append(min(values[-1] + step, last))
    return values


def contributions(
    ratio: Tensor, advantages: Tensor, mask: Tensor, weight: Tensor | float, low: float, high: float
) -> tuple[float, float]:
    """(P, N): sums of weight |A| r over the masked tokens with A > 0 and A < 0, their ratios bounded; [b, T]."""
    bounded = torch.where(advantages < 0, ratio.clamp(min=low), ratio.clamp(max=high))
    terms = (weight * advantages * bounded)[mask].double()
    return float(terms.clamp(min=0).sum()), float(-terms.clamp(max=0).sum())


def with_gradient(
    ratio: Tensor, advantages: Tensor, mask: Tensor, low: float, high: float, dual: float | None
) -> Tensor:
    """The masked tokens whose surrogate has a gradient under the bounds, [b, T] bool."""
    made = clipped_surrogate(ratio, advantages, low, high, dual)
    return mask & ~made.clipped & ~made.dual_clipped


def share(positive: float, negative: float) -> float:
    """P / (P + N); infinite where there is neither, so that it needs no balancing."""
    return positive / (positive + negative) if positive + negative else math.inf


def odds(positive: float, negative: float) -> float:
    """P / N; infinite without N."""
    return positive / (negative + 1e-8) if negative else math.inf


def spread_of(entropies: Tensor, pivot: float) -> Spread:
    """Where tokens of these entropies [n] (nats, n >= 1) are divided, at the ``pivot`` quantile by nearest rank."""
    ordered = entropies.clamp(min=LEAST).log().sort().values
    at = ordered[max(-int(-pivot * len(ordered) // 1), 1) - 1]
    return Spread(float(at), float(ordered[-1] - at), float(at - ordered[0]))


def heterogeneity(entropies: Tensor, mask: Tensor, pivot: float, sign: Sign) -> Tensor:
    """h of each action token, [B, T]; 0 off the mask."""
    e = entropies.clamp(min=LEAST).log()
    if not mask.any():
        return torch.zeros_like(e)
    spread, tiny = spread_of(entropies[mask], pivot), torch.finfo(e.dtype).tiny
    away = (e - spread.pivot).masked_fill(~mask, 0.0)
    below = away / max(spread.below, tiny)
    return torch.where(away > 0, away / max(spread.above, tiny), below if sign == "intended" else -below)
