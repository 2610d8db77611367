"""The sampler's forward pass: what the layers of Qwen and Llama models compute, for a step of generation and no more.

The modules of transformers compute it too, at a fixed cost for each of some thirty small operations a layer, and for
every token. Here the query and key of all heads are turned together, and the last layer is computed only where a token
is drawn: of an observation it needs the keys and values alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from turnwise.agents.cache import StepPlan
from turnwise.agents.layers import normalised


class Decoder:
    """Reads the weights of a ``...ForCausalLM`` of qwen2, qwen3 or llama where they are: what changes them is seen."""

    def __init__(self, model: Any) -> None:
        self._inner, self._head = model.model, model.lm_head
        config = model.config
        self._head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads

    def logits(self, ids: Tensor, plan: StepPlan) -> Tensor:
        """ids [N] of a step's stream -> logits [R, V] float32 at each slot's last token; fills the cache."""
        inner = self._inner
        states = inner.embed_tokens(ids)
        turn = inner.rotary_emb(states[None], plan.positions[None])
        cosine, sine = (part[0].unsqueeze(1) for part in turn)
        *layers, final = inner.layers
        for layer in layers:
            states = self._layer(layer, states, cosine, sine, plan)
        states = self._final(final, states, cosine, sine, plan)
        logits: Tensor = self._head(_norm(inner.norm, states))
        return logits.float()

    def _layer(self, layer: Any, states: Tensor, cosine: Tensor, sine: Tensor, plan: StepPlan) -> Tensor:
        attention = layer.self_attn
        inputs = _norm(layer.input_layernorm, states)
        query = self._heads(attention.q_proj, inputs, getattr(attention, "q_norm", None))
        key = self._heads(attention.k_proj, inputs, getattr(attention, "k_norm", None))
        turned = _turned(torch.cat((query, key), 1), cosine, sine)
        query, key = torch.split(turned, [query.shape[1], key.shape[1]], dim=1)
        plan.write(attention.layer_idx, key, self._heads(attention.v_proj, inputs))
        found = plan.attend(attention.layer_idx, query, attention.scaling)
        return _mixed(layer, states, found)

    def _final(self, layer: Any, states: Tensor, cosine: Tensor, sine: Tensor, plan: StepPlan) -> Tensor:
        """[N, h] -> [R, h]"""
        attention = layer.self_attn
        inputs = _norm(layer.input_layernorm, states)
        key = self._heads(attention.k_proj, inputs, getattr(attention, "k_norm", None))
        plan.write(attention.layer_idx, _turned(key, cosine, sine), self._heads(attention.v_proj, inputs))
        if len(plan.last) < len(inputs):
            inputs, states, cosine, sine = (each[plan.last] for each in (inputs, states, cosine, sine))
        query = _turned(self._heads(attention.q_proj, inputs, getattr(attention, "q_norm", None)), cosine, sine)
        found = plan.attend_last(attention.layer_idx, query, attention.scaling)
        return _mixed(layer, states, found)

    def _heads(self, projection: Any, inputs: Tensor, norm: Any = None) -> Tensor:
        """[N, h] -> [N, heads, D]"""
        heads = linear(inputs, projection.weight, projection.bias).view(len(inputs), -1, self._head_dim)
        return heads if norm is None else _norm(norm, heads)


def _mixed(layer: Any, states: Tensor, found: Tensor) -> Tensor:
    """The rest of a layer after its attention found [N, H, D]: two residual additions, the MLP between."""
    states = states + layer.self_attn.o_proj(found.flatten(1))
    mlp = layer.mlp
    inputs = _norm(layer.post_attention_layernorm, states)
    gate = mlp.act_fn(linear(inputs, mlp.gate_proj.weight, mlp.gate_proj.bias))
    up = linear(inputs, mlp.up_proj.weight, mlp.up_proj.bias)
    return states.add_(linear(gate.mul_(up), mlp.down_proj.weight, mlp.down_proj.bias))


def _norm(module: Any, states: Tensor) -> Tensor:
    return normalised(states, module.weight, module.variance_epsilon)[0]


def _turned(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary positions, heads [N, H, D] by cosine and sine [N, 1, D] (Su et al. 2021; the halves as pairs)."""
    first, second = heads.chunk(2, -1)
    return torch.addcmul(heads * cosine, torch.cat((second.neg(), first), -1), sine)
