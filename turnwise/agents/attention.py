"""Which tokens of a stream see which: the learner's attention.

A model computes a *flat* stream of tokens, [N] without padding (decoder.py). What the attention of its layers reads is
the business of a plan: ``PackedPlan`` keeps sequences apart, ``PrefixPlan`` has their equal beginnings in the stream
once; the sampler's ``StepPlan`` (cache.py) reads what earlier steps have left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


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


class _Sequences:
    """Causal attention that is computed for one sequence after the other."""

    def __init__(self, positions: Tensor, last: Tensor) -> None:
        self.positions, self.last = positions, last

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        raise NotImplementedError

    def attend_last(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        # Zeros for the others: the causal kernel of all queries is no slower than a masked one of some.
        every = query.new_zeros(len(key), *query.shape[1:]).index_copy(0, self.last, query)
        return self.attend(layer, every, key, value, scale).index_select(0, self.last)


class PackedPlan(_Sequences):
    """Causal attention within each of several sequences laid end to end. ``lengths`` sum to N."""

    def __init__(self, lengths: Sequence[int], last: Tensor) -> None:
        super().__init__(torch.cat([torch.arange(n, device=last.device) for n in lengths]), last)
        self._lengths = list(lengths)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        parts = (torch.split(each, self._lengths) for each in (query, key, value))
        return torch.cat([_causal(q, k, v, None, scale) for q, k, v in zip(*parts, strict=True)])


class PrefixPlan(_Sequences):
    """Causal attention of sequences whose equal beginnings stand in the stream once.

    ``paths[i]`` are the places [L] of sequence i's tokens; the last ``own[i]`` of them are its own, and the stream
    holds the own tokens of one sequence after the other. A sequence that is mostly its own is computed whole, its
    shared queries over again: the causal kernel leaves out half of the pairs, the masked one does not.
    """

    def __init__(self, paths: list[Tensor], own: list[int], positions: Tensor, last: Tensor) -> None:
        super().__init__(positions, last)
        kept = [(path, size) for path, size in zip(paths, own, strict=True) if size]
        self._own = [size for _, size in kept]
        self._lengths = [len(path) for path, _ in kept]
        self._asked = [n if 2 * size > n else size for n, size in zip(self._lengths, self._own, strict=True)]
        self._keys = torch.cat([path for path, _ in kept])
        self._queries = torch.cat([path[-n:] for (path, _), n in zip(kept, self._asked, strict=True)])
        self._masks: dict[tuple[int, int], Tensor] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        queries = torch.split(query.index_select(0, self._queries), self._asked)
        keys, values = (torch.split(each.index_select(0, self._keys), self._lengths) for each in (key, value))
        outputs = [
            _causal(q, k, v, self._mask(len(q), len(k), q), scale)[-own:]
            for q, k, v, own in zip(queries, keys, values, self._own, strict=True)
        ]
        return torch.cat(outputs)

    def _mask(self, queries: int, keys: int, like: Tensor) -> Tensor | None:
        """[queries, keys], added to scores: the last query sees every key, each one before it one less."""
        if queries == keys:
            return None
        if (queries, keys) not in self._masks:
            unseen = torch.ones(queries, keys, dtype=torch.bool, device=like.device).triu(keys - queries + 1)
            self._masks[queries, keys] = like.new_zeros(queries, keys).masked_fill_(unseen, -torch.inf)
        return self._masks[queries, keys]


def _causal(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """query [n, H, D], key and value [m, K, D] -> [n, H, D]; without a mask n is m."""
    query, key, value = (each.transpose(0, 1)[None] for each in (query, key, value))
    grouped = query.shape[1] != key.shape[1]
    found = scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=grouped
    )
    return found[0].transpose(0, 1)
