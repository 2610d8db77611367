"""What is read of the distributions over the vocabulary that tokens were drawn from, without all logits in memory.

A *reading* is a function that gives one number for each of some tokens:

    reading(logits [R, V], targets [R], states [R, h]) -> [R]

Log-prob and entropy need sums over the vocabulary alone and go by tiles of columns (``head.py``). A nucleus or a share
of the largest probability needs the whole row. So these logits are computed for a few tokens at a time, and the
backward pass computes them again.

The logits are those of the distribution that a token was drawn from: divided by its temperature, and ``NEVER`` outside
its allowed tokens. They are finite, so that a probability of 0 times its logarithm is 0, as is its gradient. The states
are over the temperature as well: the product of the head's weight and such a state is such a logit, so that gradients
by the head's weight, which a reading may compute from both, are right at every temperature.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from turnwise.models.allowed import Drawn, heat_of, restricted
from turnwise.models.head import TILE, exactly, spans

Reading = Callable[[Tensor, Tensor, Tensor], Tensor]

LEAST_ROWS = 64
"""Tokens whose logits are held at once, at least: with fewer, a product mostly reads the head's weights."""


def read(
    states: Tensor,
    targets: Tensor,
    drawn: Drawn | None,
    logits_of: Callable[[slice], Tensor],
    readings: Sequence[Reading],
    *,
    vocabulary: int,
    temperature: float,
) -> tuple[Tensor, ...]:
    """Each reading of M tokens, [M] float32 or better. Differentiable under grad mode.

    ``states`` [M, h] predict the ``targets`` [M]; ``logits_of`` computes the logits of some of them, before
    temperature. ``drawn`` as for ``scored``.
    """
    again, order = torch.is_grad_enabled(), torch.arange(len(targets), device=targets.device)
    parts: list[tuple[Tensor, ...]] = []
    for rows in spans(len(targets), rows_at_once(vocabulary, states.device.type)):
        own = None if drawn is None else drawn.at(order[rows])

        def part(rows: slice = rows, own: Drawn | None = own) -> tuple[Tensor, ...]:
            logits = restricted(logits_of(rows), own, temperature)
            own_states = exactly(states[rows]) / heat_of(own, temperature)
            return tuple(reading(logits, targets[rows], own_states) for reading in readings)

        parts.append(checkpoint(part, use_reentrant=False) if again else part())
    if not parts:
        return tuple(exactly(states).sum(1) for _ in readings)  # of no token
    return tuple(torch.cat(each) for each in zip(*parts, strict=True))


def rows_at_once(vocabulary: int, device: str) -> int:
    """Tokens whose logits over a vocabulary are in memory at once."""
    return max(TILE.get(device, TILE["cpu"]) // vocabulary, LEAST_ROWS)


def by_head(states: Tensor, weight: Tensor, bias: Tensor | None) -> Callable[[slice], Tensor]:
    """Logits of some tokens, as the product of the head's weight and these states."""
    return lambda rows: linear(states[rows], weight, bias)
