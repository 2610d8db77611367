"""A decoder whose frozen weights are divided among processes: FSDP2, for a base model that does not fit into each.

Every layer is a unit of FSDP2 (Zhao et al. 2023, arXiv 2304.11277; ``torch.distributed.fsdp.fully_shard``). A rank
keeps 1 / world of each of its weights. It has a layer whole only while it computes it: all ranks gather it for the
forward pass, and again for the backward pass. So all ranks compute the same number of passes.

Adapters are not divided. They are small, every rank has all of them as ordinary tensors, and their gradients are summed
as without FSDP2 (``learning/ranks.py``). What is hashed, saved, synchronised or optimized is therefore never a DTensor.
Embeddings, the last norm and the output head are whole on each rank: they would be whole through the update anyway.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from turnwise.models.attention import AttentionPlan
from turnwise.models.decoder import Decoder

NOT_DIVIDED = (
    "learner.parallel=fsdp2 is for models that the decoder of this package computes (qwen2, qwen3, llama), and this "
    "one is computed by transformers: use learner.parallel=ddp"
)


class DividedDecoder(Decoder):
    """The forward pass of ``model``, whose layers' weights it divides among the ranks of ``mesh`` (one-dimensional).

    What is outside of the layers, and the adapters in them, moves to the mesh's device. Results are those of
    ``Decoder``, to the bit.
    """

    def __init__(self, model: Any, mesh: Any, *, checkpointing: bool = False) -> None:
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        super().__init__(model, checkpointing=checkpointing)
        *layers, final = self._inner.layers
        device = mesh.device_type
        for layer in (*layers, final):
            adapters = {p for name, p in layer.named_parameters() if ".lora_" in name}
            for parameter in adapters:
                parameter.data = parameter.data.to(device)
            layer.computed = partial(super()._final if layer is final else super()._layer, layer)
            fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=adapters)
            register_fsdp_forward_method(layer, "computed")
        for module in (model, self._inner):
            for name, child in module.named_children():
                if name not in ("model", "layers"):
                    child.to(device)
        # The root, with no weights of its own, lets the gathering of a layer overlap with computing the one before.
        self._inner.all_states = super().states
        fully_shard(self._inner, mesh=mesh, ignored_params=set(self._inner.parameters()))
        register_fsdp_forward_method(self._inner, "all_states")

    def states(self, ids: Tensor, plan: AttentionPlan) -> Tensor:
        found: Tensor = self._inner.all_states(ids, plan)
        return found

    def _layer(self, layer: Any, *given: Any) -> Tensor:
        found: Tensor = layer.computed(*given)
        return found

    def _final(self, layer: Any, *given: Any) -> Tensor:
        return self._layer(layer, *given)


def whole(weight: Tensor) -> Tensor:
    """A weight that may be divided, as a whole tensor. For a divided one all ranks must ask."""
    gather = getattr(weight, "full_tensor", None)
    return weight if gather is None else gather()


def is_divided(weight: Tensor) -> bool:
    """Whether a rank holds only its part of a weight."""
    return hasattr(weight, "full_tensor")
