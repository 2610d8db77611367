"""Rows of tokens as one stream for the model: without padding, and equal beginnings once where that pays.

Exact: what a token's state is depends on the tokens before it alone, so one state serves every row that begins alike,
and its gradient is the sum of theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from turnwise.models.attention import Ints, SequencesPlan
from turnwise.prefixes import prefix_order

Sharing = Literal["auto", "always", "never"]

# A shorter beginning is not worth gathering keys for, nor is a stream that shrinks by a smaller share.
MIN_SHARED = 8
MIN_SAVED_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Packing:
    """N tokens of a stream, and where in it stands what predicts the rows' M action tokens, D of them distinct."""

    ids: Tensor  # [N] int64
    plan: SequencesPlan
    before: Tensor  # [D] which of the plan's last states predicts each action token
    targets: Tensor  # [D] ids of these tokens
    spread: Tensor | None  # [M] the number, in D, of each row's action tokens in turn; None: they are all distinct

    def to_rows(self, values: Tensor) -> Tensor:
        """[D, ...] -> [M, ...]"""
        return values if self.spread is None else values.index_select(0, self.spread)


def pack(tokens: Tensor, lengths: Sequence[int], mask: Tensor, device: torch.device, sharing: Sharing) -> Packing:
    """Right-padded ``tokens`` [B, T] with an action ``mask`` [B, T], which no row opens with."""
    table, chosen = tokens.cpu().numpy(), mask.cpu().numpy()
    rows = [table[b, :length] for b, length in enumerate(lengths)]
    order, shared = _layout(rows, sharing)
    paths, own, num = _paths(order, shared, lengths)
    ids = np.empty(num, np.int64)
    for row, path in zip(rows, paths, strict=True):
        ids[path] = row
    places = np.concatenate([path[chosen[b, : len(path)]] for b, path in enumerate(paths)] or [ids])
    before = np.concatenate([path[:-1][chosen[b, 1 : len(path)]] for b, path in enumerate(paths)] or [ids])

    distinct, first, spread = np.unique(places, return_index=True, return_inverse=True)
    last, which = np.unique(before[first], return_inverse=True)  # one state predicts several where rows part

    def put(values: Ints) -> Tensor:
        return torch.from_numpy(values.reshape(-1)).to(device)

    return Packing(
        put(ids),
        SequencesPlan([paths[b] for b in order], own, last, device),
        put(which),
        put(ids[distinct]),
        put(spread) if shared.any() else None,
    )


def _layout(rows: Sequence[Ints], sharing: Sharing) -> tuple[Ints, Ints]:
    """The order of rows in the stream, and how much of each (in that order) is not laid down again."""
    plain = np.arange(len(rows)), np.zeros(len(rows), np.int64)
    if sharing == "never" or len(rows) < 2:
        return plain
    order, shared = prefix_order(rows)
    if sharing == "auto":
        shared = np.where(shared >= MIN_SHARED, shared, 0)
        if shared.sum() < MIN_SAVED_SHARE * sum(map(len, rows)):
            return plain
    return order, shared


def _paths(order: Ints, shared: Ints, lengths: Sequence[int]) -> tuple[list[Ints], list[int], int]:
    """Places of each row's tokens (rows as they came), own tokens of each (in the stream's order), and their sum."""
    paths: list[Ints] = [np.empty(0, np.int64)] * len(order)
    path, num, own = np.empty(0, np.int64), 0, []
    for row, kept in zip(order.tolist(), shared.tolist(), strict=True):
        fresh = lengths[row] - kept
        path = np.concatenate([path[:kept], np.arange(num, num + fresh)])
        paths[row], num = path, num + fresh
        own.append(fresh)
    return paths, own, num
