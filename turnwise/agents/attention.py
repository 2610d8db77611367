"""The learner's attention, inside the modules of transformers.

Models run on a *flat* stream of tokens [1, N] without padding; which tokens see which is the business of an
``AttentionPlan`` handed through the model's keyword arguments: ``PackedPlan`` keeps sequences apart, ``PrefixPlan`` has
their equal beginnings in the stream once. Without a plan the function is transformers' own sdpa, so a model stays an
ordinary Hugging Face model. (The sampler's attention reads its cache: cache.py and decoder.py.)
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

ATTENTION = "turnwise"


class AttentionPlan(Protocol):
    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """query [H, N, D], key and value [K, N, D] of the flat stream -> output [N, H, D]."""
        ...


def plan_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    plan: AttentionPlan | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The function registered with transformers: shapes [1, heads, N, D] in, [1, N, H, D] out."""
    if plan is None:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        return output, None
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    return plan.attend(layer, query[0], key[0], value[0], scale).unsqueeze(0), None


AttentionInterface.register(ATTENTION, plan_attention)


class PackedPlan:
    """Causal attention within each of several sequences laid end to end. ``lengths`` sum to N."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = lengths

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        grouped = query.shape[0] != key.shape[0]
        outputs = [
            scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True, scale=scale, enable_gqa=grouped)[0]
            for q, k, v in zip(
                torch.split(query, self.lengths, dim=1),
                torch.split(key, self.lengths, dim=1),
                torch.split(value, self.lengths, dim=1),
                strict=True,
            )
        ]
        return torch.cat(outputs, dim=1).transpose(0, 1)


class PrefixPlan:
    """Causal attention of sequences whose equal beginnings stand in the stream once.

    ``paths[i]`` are the places [L] of sequence i's tokens; the last ``own[i]`` of them are its own, and the stream
    holds the own tokens of one sequence after the other. A sequence that is mostly its own is computed whole, its
    shared queries over again: the causal kernel leaves out half of the pairs, the masked one does not.
    """

    def __init__(self, paths: list[Tensor], own: list[int]) -> None:
        kept = [(path, size) for path, size in zip(paths, own, strict=True) if size]
        self._own = [size for _, size in kept]
        self._lengths = [len(path) for path, _ in kept]
        self._asked = [n if 2 * size > n else size for n, size in zip(self._lengths, self._own, strict=True)]
        self._keys = torch.cat([path for path, _ in kept])
        self._queries = torch.cat([path[-n:] for (path, _), n in zip(kept, self._asked, strict=True)])
        self._masks: dict[tuple[int, int], Tensor] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        grouped = query.shape[0] != key.shape[0]
        outputs = [
            scaled_dot_product_attention(
                q[None],
                k[None],
                v[None],
                attn_mask=self._mask(q.shape[1], k.shape[1], q),
                is_causal=q.shape[1] == k.shape[1],
                scale=scale,
                enable_gqa=grouped,
            )[0, :, -own:]
            for q, k, v, own in zip(
                torch.split(query.index_select(1, self._queries), self._asked, dim=1),
                torch.split(key.index_select(1, self._keys), self._lengths, dim=1),
                torch.split(value.index_select(1, self._keys), self._lengths, dim=1),
                self._own,
                strict=True,
            )
        ]
        return torch.cat(outputs, dim=1).transpose(0, 1)

    def _mask(self, queries: int, keys: int, like: Tensor) -> Tensor | None:
        """[queries, keys], added to scores: the last query sees every key, each one before it one less."""
        if queries == keys:
            return None
        if (queries, keys) not in self._masks:
            unseen = torch.ones(queries, keys, dtype=torch.bool, device=like.device).triu(keys - queries + 1)
            self._masks[queries, keys] = like.new_zeros(queries, keys).masked_fill_(unseen, -torch.inf)
        return self._masks[queries, keys]


def packed_positions(lengths: list[int], device: torch.device) -> Tensor:
    """Positions 0..n-1 of each sequence, end to end, [1, N]."""
    return torch.cat([torch.arange(n, device=device) for n in lengths]).unsqueeze(0)
