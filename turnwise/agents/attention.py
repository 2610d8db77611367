"""One attention function for sampling and for training.

Models run on a *flat* stream of tokens [1, N] without padding; which tokens see which is the business of an
``AttentionPlan`` handed through the model's keyword arguments. ``PackedPlan`` (here) keeps sequences apart for
training, ``StepPlan`` (cache.py) reads and writes the slot cache for sampling. Without a plan the function is
transformers' own sdpa, so a model stays an ordinary Hugging Face model.
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


def packed_positions(lengths: list[int], device: torch.device) -> Tensor:
    """Positions 0..n-1 of each sequence, end to end, [1, N]."""
    return torch.cat([torch.arange(n, device=device) for n in lengths]).unsqueeze(0)
