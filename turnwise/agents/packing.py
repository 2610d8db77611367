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
from numpy.typing import NDArray
from torch import Tensor

from turnwise.agents.attention import AttentionPlan, PackedPlan, PrefixPlan
from turnwise.prefixes import prefix_order

Sharing = Literal["auto", "always", "never"]

# A shorter beginning is not worth gathering keys for, nor is a stream that shrinks by a smaller share.
MIN_SHARED = 8
MIN_SAVED_SHARE = 0.05

_Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Packing:
    """N tokens of a stream, and where in it stands what predicts the rows' M action tokens, D of them distinct."""

    ids: Tensor  # [N] int64
    plan: AttentionPlan
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
    ids, positions = np.empty(num, np.int64), np.empty(num, np.int64)
    for row, path in zip(rows, paths, strict=True):
        ids[path], positions[path] = row, np.arange(len(row))
    places = np.concatenate([path[chosen[b, : len(path)]] for b, path in enumerate(paths)] or [ids])
    before = np.concatenate([path[:-1][chosen[b, 1 : len(path)]] for b, path in enumerate(paths)] or [ids])

    def put(values: _Ints) -> Tensor:
        return torch.from_numpy(values.reshape(-1)).to(device)

    if not shared.any():
        plan = PackedPlan(lengths, put(before))
        return Packing(put(ids), plan, put(np.arange(len(before))), put(ids[places]), None)
    distinct, first, spread = np.unique(places, return_index=True, return_inverse=True)
    last, which = np.unique(before[first], return_inverse=True)  # one state predicts several where rows part
    prefixes = PrefixPlan([put(paths[b]) for b in order], own, put(positions), put(last))
    return Packing(put(ids), prefixes, put(which), put(ids[distinct]), put(spread))


def _layout(rows: Sequence[_Ints], sharing: Sharing) -> tuple[_Ints, _Ints]:
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


def _paths(order: _Ints, shared: _Ints, lengths: Sequence[int]) -> tuple[list[_Ints], list[int], int]:
    """Places of each row's tokens (rows as they came), own tokens of each (in the stream's order), and their sum."""
    paths: list[_Ints] = [np.empty(0, np.int64)] * len(order)
    path, num, own = np.empty(0, np.int64), 0, []
    for row, kept in zip(order.tolist(), shared.tolist(), strict=True):
        fresh = lengths[row] - kept
        path = np.concatenate([path[:kept], np.arange(num, num + fresh)])
        paths[row], num = path, num + fresh
        own.append(fresh)
    return paths, own, num
