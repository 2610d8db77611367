"""The sampler: the learner's copy for generation, and how it follows the learner.

It shares the memory of every weight without an adapter. Layers with an adapter have weights of their own in it: merged
ones in float32, base and adapter apart in half precision (``merging.py``). Packed weights (``packed_weights.py``) are
copies, too.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from turnwise.models.kinds import is_fast
from turnwise.models.layers import switched_on
from turnwise.models.lora_layers import as_the_sampler, check_layer, check_reached, tell_left_out
from turnwise.models.merging import held, holds, own_layer, put, unadapted, unjoined
from turnwise.models.packed_weights import pack, packed_weight
from turnwise.models.settings import LoRAConfig


class SamplerCopy:
    """A copy ``model`` of the learner's model, which is yet without adapters. Without ``samples`` it is None.

    ``layers`` are the layers with adapters by name: the learner's, and the sampler's (None without ``samples``).
    """

    def __init__(self, learner: Any, *, samples: bool = True) -> None:
        self.model: Any = _sharing_copy(learner).eval() if samples else None
        self.layers: dict[str, tuple[Any, Any]] = {}
        self._digests: dict[str, Tensor] | None = None  # of what was copied, where the learner has no whole weights

    def adapt(self, learner: Any, lora: LoRAConfig | None) -> None:
        """Give the sampler layers of its own for the adapters that are on in the learner's plain model.

        Raises ValueError for an adapter that cannot be computed.
        """
        fast = is_fast(learner.config)
        for name, layer in learner.named_modules():
            if hasattr(layer, "lora_A"):
                check_layer(name, layer)
                if switched_on(layer):
                    if not fast:
                        as_the_sampler(layer)
                    self.layers[name] = layer, None if self.model is None else own_layer(self.model, name, layer)
        if not fast and self.model is not None:
            check_reached(learner, self._learners)
            if lora is not None and lora.target_modules == "all-linear":
                tell_left_out(self.model, self.layers)

    @property
    def _learners(self) -> dict[str, Any]:
        return {name: layer for name, (layer, _) in self.layers.items()}

    def follow(self, *, divided: bool, all_trained: bool) -> None:
        """Take the learner's present weights. ``divided`` says whether its frozen ones are divided among ranks, each
        of which must call it; ``all_trained``, whether none is frozen.
        """
        for layer, own in self.layers.values():
            if own is not None:
                put(own, held(layer))
            elif divided:
                held(layer)  # the rank that samples needs this one's part
        if self._digests is not None:
            self.keep_digests()
        if all_trained and self.model is not None:  # its weights are the learner's own; packed ones are copies
            for module in self.model.modules():
                if (packed := packed_weight(module)) and module.weight is not None:
                    packed.take(module.weight)

    def keep_digests(self) -> None:
        """Compare with what was copied from now on, and not with the learner's weights, which are divided."""
        if self.model is not None:
            self._digests = self._digested()

    @torch.no_grad()
    def _digested(self) -> dict[str, Tensor]:
        """A number for each weight of the sampler, which is another one when a bit of the weight changes."""
        packed = {f"{name}.packed": packed_weight(module) for name, module in self.model.named_modules()}
        weights = dict(self.model.named_parameters()) | {n: p.plain() for n, p in packed.items() if p is not None}
        return {name: torch.hash_tensor(weight) for name, weight in weights.items()}

    def unlike(self) -> str | None:
        """The name of the first layer whose weights differ from what ``follow`` would copy, or did; None: none."""
        if self._digests is not None:
            present = self._digested()
            return next((name for name, number in self._digests.items() if not number.equal(present[name])), None)
        for name, (layer, own) in self.layers.items():
            if not holds(own, held(layer)):
                return name
        modules: dict[str, Any] = dict(self.model.named_modules())
        for name, module in modules.items():
            if packed_weight(module) and name not in self.layers and not holds(module, {"weight": module.weight}):
                return name
        return None

    def pack(self) -> None:
        """Multiply with packed weights from now on."""
        for module in self.model.modules():
            pack(module)

    def merged(self) -> Any:
        """A plain model with merged weights. All others share memory with the sampler's."""
        plain = _sharing_copy(self.model)
        unjoined(plain, self._learners)
        return plain

    def unadapted(self) -> Any:
        """A plain model without the adapters. All weights share memory with the learner's."""
        plain = _sharing_copy(self.model)
        unadapted(plain, self._learners)
        return plain


def _sharing_copy(model: Any) -> Any:
    """A copy of the modules without gradients, whose weights are in the same memory as the model's."""
    shared: dict[int, Any] = {id(p): nn.Parameter(p.data, requires_grad=False) for p in model.parameters()}
    shared |= {id(buffer): buffer for buffer in model.buffers()}
    return copy.deepcopy(model, shared)
