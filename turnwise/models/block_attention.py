"""Attention within one sequence in half precision on a CPU, computed in float32, a block of queries at a time.

    out = softmax(scale q k^T + mask) v

torch's fused kernel rounds the softmax weights, and in the backward pass their gradients, to half precision before it
multiplies with them. Here queries, keys and values are converted once, and nothing is rounded until the end: gradients
are three times as near to the truth. Rows of some hundred tokens take three quarters of the time, since float32
products run at twice the rate that the kernel reaches with narrow heads; from 1200 tokens on it is as fast.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor

from turnwise.models.layers import is_half

BLOCK = 64  # queries: the scores of a block, for a thousand keys, fit into the second cache of a core
LONGEST = 1024  # keys up to which it is faster than the fused kernel
LEAST = 16  # queries from which a sequence by itself costs less than the padding of several


def in_blocks(query: Tensor, keys: int) -> bool:
    """Whether this attention over so many keys is for ``block_attention`` and not for torch's kernels."""
    return query.device.type == "cpu" and is_half(query.dtype) and keys <= LONGEST


def block_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """query [n, H, D], key and value [m, K, D] -> [n, H, D]. Differentiable.

    The queries are the last n of m tokens, and each sees the tokens up to its own. H / K query heads share a key head.
    """
    made: Tensor = _Blocks.apply(query, key, value, scale)  # type: ignore[no-untyped-call]
    return made


def attend_into(out: Tensor, query: Tensor, key: Tensor, value: Tensor, scale: float) -> None:
    """``block_attention`` written into ``out`` [n, H, D], without gradients: which saves calls."""
    q, k, v = _folded(query, key).mul_(scale), _exact(key), _exact(value)
    for part, (_, seen, weights) in zip(torch.split(out, BLOCK), _weights(q, k, len(query)), strict=True):
        _put(torch.bmm(weights, v[:, :seen]), part)


class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.scale = scale
        out = query.new_empty(query.shape)
        attend_into(out, query, key, value, scale)
        return out

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        q, k, v, up = _folded(query, key).mul_(ctx.scale), _exact(key), _exact(value), _folded(upstream[0], key)
        by_q, by_k, by_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for rows, seen, weights in _weights(q, k, len(query)):
            by_v[:, :seen].baddbmm_(weights.transpose(1, 2), up[:, rows])
            by_weights = torch.bmm(up[:, rows], v[:, :seen].transpose(1, 2))
            # weights * (by_weights - sum(weights * by_weights)), in one pass
            by_scores = torch._softmax_backward_data(by_weights, weights, -1, weights.dtype)
            by_q[:, rows] = torch.bmm(by_scores, k[:, :seen])
            by_k[:, :seen].baddbmm_(by_scores.transpose(1, 2), q[:, rows])
        by_key, by_value = (by.transpose(0, 1).to(key.dtype) for by in (by_k, by_v))
        by_query = query.new_empty(query.shape)
        _put(by_q.mul_(ctx.scale), by_query)
        return by_query, by_key, by_value, None


def _weights(query: Tensor, key: Tensor, num: int) -> Iterator[tuple[slice, int, Tensor]]:
    """Of each block: its rows of ``query`` [K, num * shared, D], how many keys they see, weights [K, rows, seen]."""
    shared, before = query.shape[1] // num, key.shape[1] - num
    for start in range(0, num, BLOCK):
        end = min(start + BLOCK, num)
        rows, seen = slice(start * shared, end * shared), before + end
        scores = torch.bmm(query[:, rows], key[:, :seen].transpose(1, 2))
        scores[:, :, before + start :].add_(_mask(end - start, shared, scores.dtype))
        yield rows, seen, torch.softmax(scores, -1)


@cache
def _mask(size: int, shared: int, dtype: torch.dtype) -> Tensor:
    """[size * shared, size]: -inf where a key of the block comes after the query, else 0."""
    later = torch.ones(size, size, dtype=torch.bool).triu_(1)
    return torch.zeros(size, size, dtype=dtype).masked_fill_(later, -torch.inf).repeat_interleave(shared, 0)


def _exact(heads: Tensor) -> Tensor:
    """[n, K, D] -> a copy [K, n, D], in float32 or better. One operation: each costs as much as its arithmetic."""
    dtype = torch.promote_types(heads.dtype, torch.float32)
    return heads.transpose(0, 1).to(dtype, copy=True, memory_format=torch.contiguous_format)


def _folded(query: Tensor, key: Tensor) -> Tensor:
    """[n, H, D] -> a copy [K, n * shared, D]: heads that share a key head become queries of it; as ``_exact``."""
    num, heads, dim = query.shape
    kv_heads = key.shape[1]
    return _exact(query.reshape(num, kv_heads, heads // kv_heads * dim)).view(kv_heads, -1, dim)


def _put(folded: Tensor, target: Tensor) -> None:
    """The way back from ``_folded`` into ``target`` [n, H, D], in its type."""
    kv_heads, num = len(folded), len(target)
    target.view(num, kv_heads, -1).copy_(folded.view(kv_heads, num, -1).transpose(0, 1))
