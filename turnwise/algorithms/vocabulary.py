"""What recipes read of the distributions over the vocabulary, token by token (``Reading``).

``p`` is the distribution that a token was drawn from, ``y`` the token, ``x`` the state that predicts it, over its
temperature.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FILTERED = -1e4
"""Logit of a token that a filter leaves out, as Lp-Reg has it."""
ROUNDING = 1e-5
"""Nats by which two log-probs of one distribution may differ."""


@dataclass(frozen=True)
class ProxyLogprob:
    """ln q(y) in nats, where q is p without tokens of less than ``min_p`` times the largest probability.

    Near ``FILTERED`` where y itself is left out.
    """

    min_p: float

    def __call__(self, logits: Tensor, targets: Tensor, states: Tensor) -> Tensor:
        p = logits.softmax(-1)
        noise = p < self.min_p * p.amax(-1, keepdim=True)
        return logits.masked_fill(noise, FILTERED).log_softmax(-1).gather(-1, targets[:, None])[:, 0]


@dataclass(frozen=True)
class NucleusEntropy:
    """Entropy in nats of p within its nucleus, renormalised; 0 where that has no token or one.

    The token of rank j among the ``top_k`` largest is in it where p_1 + .. + p_j < ``top_p``: the one that crosses the
    bound is not. Differentiable, with the nucleus as it is.
    """

    top_p: float
    top_k: int

    def __call__(self, logits: Tensor, targets: Tensor, states: Tensor) -> Tensor:
        top = logits.log_softmax(-1).topk(min(self.top_k, logits.shape[-1])).values
        inside = top.exp().cumsum(-1) < self.top_p
        nucleus = top.masked_fill(~inside, FILTERED).log_softmax(-1)
        return -(nucleus.exp() * nucleus).sum(-1) * inside.any(-1)


@dataclass(frozen=True)
class StepNorm:
    """|v|^2 |x|^2 with v = e_y - p: the squared norm of ln p(y)'s gradient by the head's weight."""

    def __call__(self, logits: Tensor, targets: Tensor, states: Tensor) -> Tensor:
        _, v = _residual(logits, targets)
        return v.square().sum(-1) * states.float().square().sum(-1)


@dataclass(frozen=True)
class StepCurvature:
    """|x|^4 (|v|^4 - Var v), the variance under p: the second-order part of a step along that gradient."""

    def __call__(self, logits: Tensor, targets: Tensor, states: Tensor) -> Tensor:
        p, v = _residual(logits, targets)
        spread = (p * v.square()).sum(-1) - (p * v).sum(-1).square()
        return states.float().square().sum(-1).square() * (v.square().sum(-1).square() - spread)


def _residual(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """p and e_y - p, [R, V] each."""
    p = logits.softmax(-1)
    return p, (-p).scatter_add(-1, targets[:, None], torch.ones_like(p[:, :1]))


def above_quantile(values: Tensor, owner: Tensor, quantile: float) -> Tensor:
    """The tokens above the linear quantile of their row's tokens of the same ``owner``, [B, T] bool; -1: nobody's."""
    found = torch.zeros_like(values, dtype=torch.bool)
    for row, own in enumerate(owner):
        for number in own[own >= 0].unique():
            places = own == number
            found[row, places] = values[row, places] > values[row, places].quantile(quantile)
    return found
