"""The forward pass of Qwen and Llama models on a flat stream of tokens, for the learner and for the sampler.

The modules of transformers compute the same, but more slowly: they run some thirty small operations in each layer, and
compute the last layer for every token. Here the last layer is computed only where its states are wanted: before an
action token when learning, and where a token is sampled. Of all other tokens it computes keys and values only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from turnwise.models.attention import AttentionPlan
from turnwise.models.freed import give_back
from turnwise.models.layers import projected, rms_norm, turned


class Decoder:
    """The forward pass of ``model``, a ``...ForCausalLM`` of the type qwen2, qwen3 or llama.

    It uses the model's own weights without a copy, so that later changes of them take effect. Under grad mode it is
    differentiable, by LoRA adapters as well. With ``checkpointing`` each layer is computed again in the backward pass,
    which takes less memory and more time.
    """

    linear_head = True

    def __init__(self, model: Any, *, checkpointing: bool = False) -> None:
        self._model, self._inner, self._checkpointing = model, model.model, checkpointing
        config = model.config
        self._head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads

    def states(self, ids: Tensor, plan: AttentionPlan) -> Tensor:
        """Token ids [N] of the plan's stream -> the final normalised states [R, h] at ``plan.last``.

        The output head multiplies these states, h wide, to get logits.
        """
        inner = self._inner
        states = inner.embed_tokens(ids)
        turn = inner.rotary_emb(states[None], plan.positions[None])
        cosine, sine = (part[0].unsqueeze(1) for part in turn)
        *layers, final = inner.layers
        for layer in layers:
            states = self._computed(self._layer, layer, states, cosine, sine, plan)
        return rms_norm(inner.norm, self._computed(self._final, final, states, cosine, sine, plan))

    def logits(self, states: Tensor) -> Tensor:
        """The output head: states [R, h] -> logits [R, V]."""
        return projected(self._model.lm_head, states)

    def _computed(self, compute: Callable[..., Tensor], *given: Any) -> Tensor:
        if not (self._checkpointing and torch.is_grad_enabled()):
            return compute(*given)

        def trimmed(layer: Any, states: Tensor, *more: Any) -> Tensor:
            if states.device.type == "cpu":  # what the layer before let go of has other sizes than this one needs
                give_back()
            return compute(layer, states, *more)

        again: Tensor = checkpoint(trimmed, *given, use_reentrant=False, preserve_rng_state=False)
        return again

    def _layer(self, layer: Any, states: Tensor, cosine: Tensor, sine: Tensor, plan: AttentionPlan) -> Tensor:
        attention = layer.self_attn
        inputs = rms_norm(layer.input_layernorm, states)
        query = self._heads(attention.q_proj, inputs, getattr(attention, "q_norm", None))
        key = self._heads(attention.k_proj, inputs, getattr(attention, "k_norm", None))
        both = turned(torch.cat((query, key), 1), cosine, sine)
        query, key = torch.split(both, [query.shape[1], key.shape[1]], dim=1)
        value = self._heads(attention.v_proj, inputs)
        return _mixed(layer, states, plan.attend(attention.layer_idx, query, key, value, attention.scaling))

    def _final(self, layer: Any, states: Tensor, cosine: Tensor, sine: Tensor, plan: AttentionPlan) -> Tensor:
        """The last layer: states [N, h] -> states [R, h] at ``plan.last``."""
        attention = layer.self_attn
        inputs = rms_norm(layer.input_layernorm, states)
        key = turned(self._heads(attention.k_proj, inputs, getattr(attention, "k_norm", None)), cosine, sine)
        value = self._heads(attention.v_proj, inputs)
        if len(plan.last) < len(inputs):
            inputs, states, cosine, sine = (each.index_select(0, plan.last) for each in (inputs, states, cosine, sine))
        query = turned(self._heads(attention.q_proj, inputs, getattr(attention, "q_norm", None)), cosine, sine)
        return _mixed(layer, states, plan.attend_last(attention.layer_idx, query, key, value, attention.scaling))

    def _heads(self, projection: Any, inputs: Tensor, norm: Any = None) -> Tensor:
        """A projection, split into heads and normalised where the model does that: [N, h] -> [N, heads, D]."""
        flat = projected(projection, inputs)
        heads = flat.view(len(flat), flat.shape[1] // self._head_dim, self._head_dim)
        return heads if norm is None else rms_norm(norm, heads)


def _mixed(layer: Any, states: Tensor, found: Tensor) -> Tensor:
    """The rest of a layer after its attention: states [N, h] and attention's result ``found`` [N, H, D] -> [N, h]."""
    states = states + projected(layer.self_attn.o_proj, found.flatten(1))
    mlp = layer.mlp
    inputs = rms_norm(layer.post_attention_layernorm, states)
    gate = mlp.act_fn(projected(mlp.gate_proj, inputs))
    made = states + projected(mlp.down_proj, gate * projected(mlp.up_proj, inputs))
    shift: Tensor | None = layer._buffers.get("shift")  # steering.py
    return made if shift is None else made + shift
