"""Which tokens of a stream see which: the learner's attention.

A model computes a *flat* stream of tokens, [N] without padding (decoder.py). What the attention of its layers reads is
the business of a plan: ``SequencesPlan`` keeps sequences apart that may share their beginnings, the sampler's
``StepPlan`` (cache.py) reads what earlier steps have left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

Ints = NDArray[np.int64]

# Pairs of tokens for each query that the causal kernel computes beyond the visible half (it skips whole blocks only).
_UNCUT = 128
# Masks of the last layer's few queries are made up to this size, 64 MiB in float32.
_MOST_PAIRS = 1 << 24


class AttentionPlan(Protocol):
    """``positions`` [N] of the stream's tokens in their sequences; ``last`` [R]: the places where states are wanted."""

    positions: Tensor
    last: Tensor

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """query [N, H, D], key and value [N, K, D] of the stream -> [N, H, D]."""
        ...

    def attend_last(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """The same for the queries [R, H, D] of ``last`` alone -> [R, H, D]."""
        ...


@dataclass(frozen=True, slots=True)
class _Queries:
    """Those of each sequence in turn: ``sizes`` of them, of which the last ``kept`` are answered."""

    places: Tensor | None  # among the queries given; None: all of them, in their order
    sizes: list[int]
    kept: list[int]
    positions: list[Ints | None]  # [size] in the sequence; None: of all its tokens
    masks: dict[int, Tensor] = field(default_factory=dict)

    def mask(self, sequence: int, keys: int, like: Tensor) -> Tensor | None:
        """[size, keys], added to scores: a query sees what does not come after it. None: the causal kernel does it."""
        own = self.positions[sequence]
        if own is None:
            return None
        if sequence not in self.masks:
            hidden = torch.from_numpy(np.arange(keys) > own[:, None]).to(like.device)
            self.masks[sequence] = like.new_zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
        return self.masks[sequence]


class SequencesPlan:
    """Causal attention within each of several sequences, whose equal beginnings may stand in the stream once.

    ``paths[i]`` are the places [L] of sequence i's tokens; the last ``own[i]`` of them are its own, and the stream
    holds the own tokens of one sequence after the other. ``last`` [R], ascending: where states are wanted.
    """

    def __init__(self, paths: Sequence[Ints], own: Sequence[int], last: Ints, device: torch.device) -> None:
        kept = [(path, size) for path, size in zip(paths, own, strict=True) if size]
        own_positions = [np.arange(len(path) - size, len(path)) for path, size in kept]
        self.positions, self.last = (torch.from_numpy(v).to(device) for v in (np.concatenate(own_positions), last))
        self._lengths = [len(path) for path, _ in kept]
        self._keys = _places([path for path, _ in kept], len(self.positions), device)
        self._every = _every(kept, own_positions, device)
        few = _few(kept, own_positions, last)
        pairs = sum(size * length for size, length in zip(few.sizes, self._lengths, strict=True))
        self._few = few if 2 * len(last) < len(self.positions) and pairs <= _MOST_PAIRS else None

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        return self._answered(self._every, query, key, value, scale)

    def attend_last(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        if self._few is not None:
            return self._answered(self._few, query, key, value, scale)
        # Most are wanted, or rows are very long: with zeros for the others the causal kernel can do it.
        every = query.new_zeros(len(key), *query.shape[1:]).index_copy(0, self.last, query)
        return self.attend(layer, every, key, value, scale).index_select(0, self.last)

    def _answered(self, asked: _Queries, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        if asked.places is not None:
            query = query.index_select(0, asked.places)
        if self._keys is not None:
            key, value = key.index_select(0, self._keys), value.index_select(0, self._keys)
        queries = torch.split(query, asked.sizes)
        keys, values = torch.split(key, self._lengths), torch.split(value, self._lengths)
        found = [
            _causal(q, k, v, asked.mask(i, len(k), q), scale)[-kept:]
            for i, (q, k, v, kept) in enumerate(zip(queries, keys, values, asked.kept, strict=True))
            if kept
        ]
        return torch.cat(found) if found else query


def packed_plan(lengths: Sequence[int], last: Ints, device: torch.device) -> SequencesPlan:
    """Sequences of these lengths laid end to end, nothing shared."""
    return SequencesPlan(np.split(np.arange(sum(lengths)), np.cumsum(lengths[:-1])), lengths, last, device)


def _places(parts: Sequence[Ints], num: int, device: torch.device) -> Tensor | None:
    """Of a stream of ``num`` tokens; None where they are all of them, in order."""
    places = np.concatenate(parts)
    return None if np.array_equal(places, np.arange(num)) else torch.from_numpy(places).to(device)


def _every(kept: Sequence[tuple[Ints, int]], positions: Sequence[Ints], device: torch.device) -> _Queries:
    """Of all own tokens. A sequence that is long and mostly its own is computed whole, its shared queries over again:
    the causal kernel leaves out the blocks that are hidden, the masked one does not.
    """
    whole = [len(path) == size or 2 * size > len(path) + 2 * _UNCUT for path, size in kept]
    asked = [path if entire else path[-size:] for entire, (path, size) in zip(whole, kept, strict=True)]
    return _Queries(
        places=_places(asked, sum(size for _, size in kept), device),
        sizes=[len(places) for places in asked],
        kept=[size for _, size in kept],
        positions=[None if entire else own for entire, own in zip(whole, positions, strict=True)],
    )


def _few(kept: Sequence[tuple[Ints, int]], positions: Sequence[Ints], last: Ints) -> _Queries:
    """Of the places ``last`` alone, always masked."""
    ends = np.cumsum([size for _, size in kept])
    wanted = np.split(last, np.searchsorted(last, ends[:-1]))
    found = [own[places - end] for own, places, end in zip(positions, wanted, ends, strict=True)]
    sizes = [len(places) for places in wanted]
    return _Queries(places=None, sizes=sizes, kept=sizes, positions=list(found))


def _causal(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """query [n, H, D], key and value [m, K, D] -> [n, H, D]; without a mask n is m."""
    query, key, value = (each.transpose(0, 1)[None] for each in (query, key, value))
    grouped = query.shape[1] != key.shape[1]
    found = scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=grouped
    )
    return found[0].transpose(0, 1)
