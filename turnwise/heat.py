"""A temperature that follows the entropy of each token's distribution (HAPO, Liu et al. 2025, arXiv 2509.16591).

    e = ln max(H, 1e-8)                                  H: entropy of the distribution at the temperature T0, in nats
    h = (e - pivot) / above where e > pivot, else (e - pivot) / below                                  cut to [-1, 1]
    T = T0 (1 + strength h)

Unsure tokens are drawn at a higher temperature, sure ones at a lower one. A leaf: the sampler and the algorithms both
import it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

LEAST = 1e-8
"""Nats. Smaller entropies count as this."""

LEAST_TEMPERATURE = 1e-3
"""The least temperature above 0 (greedy) that is taken: logits that are divided by less may be infinite."""

Sign = Literal["intended", "released"]


@dataclass(frozen=True, slots=True)
class Spread:
    """How unsure some tokens were, in log-entropies e.

    ``pivot`` divides sure from unsure tokens. The largest e is ``above`` it, the smallest ``below`` it; both >= 0.
    """

    pivot: float
    above: float
    below: float


@dataclass(frozen=True, slots=True)
class Heat:
    """Temperatures by entropy. ``strength`` in [0, 1) is how far one moves at |h| = 1, as a share of it.

    With ``sign`` released sure tokens have h > 0 too: HAPO's code divides their distance by a negative number.
    """

    spread: Spread
    strength: float
    sign: Sign = "intended"

    def factor(self, entropy: float) -> float:
        """T / T0 where the entropy at T0 is so many nats; within [1 - strength, 1 + strength]."""
        away = math.log(max(entropy, LEAST)) - self.spread.pivot
        scale = self.spread.above if away > 0 else self.spread.below
        h = away / scale if abs(away) < scale else math.copysign(1.0, away) if away else 0.0
        return 1.0 + self.strength * (abs(h) if self.sign == "released" else h)
