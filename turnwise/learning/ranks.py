"""Several processes as one learner: each computes some of a minibatch's microbatches, and all take the same step.

The processes are *ranks*. Every rank has the same weights, the same optimizer and the same rows, and computes every
``world``-th microbatch. Denominators are counted over the whole minibatch, so gradients and the sums of the metrics are
shares that add up. They are added in the order of the ranks. So all ranks hold the same bits after every step: those of
one process that adds the same shares in that order.

``Ranks`` is all that a learner knows of other processes. ``Alone`` is one process; ``turnwise.training.ranks`` joins
several.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from turnwise.replay.batch import PaddedRows, microbatches


class Ranks(Protocol):
    """This process among those that learn together. What is called here must be called by every rank.

    ``lockstep``: no rank can compute a forward pass without the others, because they hold the weights together.
    """

    @property
    def rank(self) -> int: ...

    @property
    def world(self) -> int: ...

    @property
    def lockstep(self) -> bool: ...

    def add_up(self, values: Tensor) -> None:
        """Replace ``values`` [n] by the sum over the ranks, added in their order."""
        ...

    def gather(self, own: Any) -> list[Any]:
        """What each rank gave, in their order. It must be JSON-able."""
        ...


class Alone:
    """One process that learns by itself."""

    rank, world, lockstep = 0, 1, False

    def add_up(self, values: Tensor) -> None:
        """Nothing: there is nobody to add."""

    def gather(self, own: Any) -> list[Any]:
        return [own]


def deal(parts: Sequence[Tensor], ranks: Ranks) -> Iterator[tuple[Tensor, bool]]:
    """This rank's parts, every ``world``-th of them, and whether each counts.

    In lockstep every rank computes as many. Where a rank has one less than the first, it computes the smallest part
    again, and its result does not count.
    """
    own = parts[ranks.rank :: ranks.world]
    yield from ((part, True) for part in own)
    if ranks.lockstep and len(own) < len(parts[:: ranks.world]):
        yield min(parts, key=len), False


def divided(batch: PaddedRows, max_tokens: int, ranks: Ranks) -> list[Tensor]:
    """``microbatches`` of at most ``max_tokens``: at least one for each rank, where there are as many rows."""
    limit = min(max_tokens, int(batch.lengths.sum()))
    parts = microbatches(batch, max_tokens)
    while len(parts) < min(ranks.world, len(batch.lengths)):
        limit //= 2
        parts = microbatches(batch, limit)
    return parts


def sum_gradients(ranks: Ranks, parameters: Sequence[Tensor]) -> None:
    """Give every parameter its gradient summed over the ranks: one flat sum of them all.

    A parameter without a gradient on any rank still has none afterwards, so that the optimizer leaves it alone.
    """
    if ranks.world == 1:
        return
    given = [parameter.grad for parameter in parameters]
    present = torch.tensor([float(grad is not None) for grad in given], device=parameters[0].device)
    found = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, given, strict=True)]
    flat = torch.cat([present, *(grad.detach().flatten() for grad in found)])
    ranks.add_up(flat)
    sums = torch.split(flat[len(given) :], [grad.numel() for grad in found])
    for parameter, wanted, total in zip(parameters, flat[: len(given)].tolist(), sums, strict=True):
        parameter.grad = total.view_as(parameter).to(parameter.dtype) if wanted else None


def together(ranks: Ranks, own: Sequence[Tensor]) -> Tensor:
    """The values [n] of all ranks, in their order, on the CPU."""
    mine = torch.cat([values.cpu() for values in own]) if own else torch.empty(0)
    sizes = ranks.gather(len(mine))
    if len(sizes) == 1:
        return mine
    before = sum(sizes[: ranks.rank])
    joined = torch.zeros(sum(sizes), dtype=mine.dtype)
    joined[before : before + len(mine)] = mine
    ranks.add_up(joined)
    return joined


def summed(shares: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The sums by name of what each rank counted, added in their order."""
    total: dict[str, float] = {}
    for share in shares:
        for name, value in share.items():
            total[name] = total[name] + value if name in total else value
    return total
