"""Steering: a constant vector is added to a model's states after one layer (EAST, Rahn et al. 2024, arXiv 2406.00244).

    u = sum_x H(x) z(x) / sum_x H(x) - mean_x z(x)
    z <- z + strength * size * u / |u|                         strength > 0: less sure actions, < 0: surer ones

z(x) is the state after the layer at the last token of a context x, before its reply, H(x) the entropy of the action
there in nats, and size the mean of |z|. The vector is added at every token of a context: what a token's state is then
depends on the tokens before it alone, so that caches, forks and common beginnings stay what they were, and the learner
computes what the sampler did.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from turnwise.models.kinds import FAMILIES, is_fast

_FACTS = {"layer": int, "size": float, "contexts": int}


@dataclass(frozen=True, slots=True)
class Shift:
    """What is added to the states after layer number ``layer`` (from 0): ``vector`` [h]."""

    layer: int
    vector: Tensor

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What a hash of weights holds of it."""
        return {f"steering.{self.layer}": self.vector}


@dataclass(frozen=True, slots=True)
class Steering:
    """A direction u [h] float32 after a ``layer``, the mean norm of its states, and of how many ``contexts``."""

    layer: int
    direction: Tensor
    size: float
    contexts: int

    def shift(self, strength: float) -> Shift:
        """``strength`` is the length of what is added, as a share of the mean norm of the states."""
        return Shift(self.layer, strength * self.size * self.direction / self.direction.norm())

    def save(self, file: str | Path) -> None:
        """Write a safetensors file."""
        from safetensors.torch import save_file

        facts = {name: str(getattr(self, name)) for name in _FACTS}
        save_file({"direction": self.direction.contiguous()}, str(file), metadata=facts)

    @classmethod
    def read(cls, file: str | Path) -> Steering:
        """Inverse of ``save``; ``~`` is the home folder. Raises ValueError for another file, or without a direction."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(Path(file).expanduser()), "pt") as opened:
                facts = {name: kind((opened.metadata() or {})[name]) for name, kind in _FACTS.items()}
                found = cls(direction=opened.get_tensor("direction"), **facts)
            _check_direction(found.direction, found.size)
            return found
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise ValueError(
                f"{file} is no steering vector ({type(error).__name__}: {error}): `turnwise steering RUN --to FILE` "
                "makes one"
            ) from error


def _check_direction(direction: Tensor, size: float) -> None:
    """Raises ValueError for what cannot be scaled to a length."""
    if direction.ndim != 1 or not direction.is_floating_point():
        raise ValueError(f"its direction is {direction.dtype} of shape {list(direction.shape)}, not floats [h]")
    if not (0 < float(direction.double().norm()) < math.inf and 0 < size < math.inf):
        raise ValueError("its direction and its size have to be finite, and not 0")


def fitted(states: Tensor, entropies: Tensor, layer: int) -> Steering:
    """The direction of ``states`` [N, h] that goes with ``entropies`` [N] (>= 0, nats). Raises ValueError for none."""
    weights = entropies.double()
    if not len(weights) or not weights.max() > weights.min():
        raise ValueError(
            f"the actions of {len(weights)} contexts are equally uncertain: there is no direction of uncertainty in "
            "them; take more episodes, or such as were sampled at a temperature above 0"
        )
    exact = states.double()
    direction = (weights @ exact / weights.sum() - exact.mean(0)).float()
    if not 0 < float(direction.norm()) < math.inf:
        raise ValueError(
            f"the states of {len(weights)} contexts after layer {layer} do not go with the entropies of their actions: "
            "there is no direction in them; take more episodes, or another layer"
        )
    return Steering(layer, direction, float(exact.norm(dim=1).mean()), len(weights))


@torch.inference_mode()
def states_at(model: Any, ids: Tensor, places: list[int], layer: int) -> Tensor:
    """The states after a layer at some ``places`` of one context ``ids`` [T]: [len(places), h] float32."""
    found: Tensor = model.model(input_ids=ids[None], use_cache=False, output_hidden_states=True).hidden_states[
        layer + 1
    ]
    return found[0, places].float()


def check_layer(config: Any, layer: int) -> None:
    """Raises ValueError for a model or a layer that cannot be steered. The last layer is not: its states are read."""
    if not is_fast(config):
        raise ValueError(
            f"steering is for models that the decoder of this package computes ({', '.join(FAMILIES)}), and this one "
            f"is a {config.model_type}: leave agent.decoding.steering out"
        )
    if not 0 <= layer < config.num_hidden_layers - 1:
        raise ValueError(
            f"layer {layer} cannot be steered: this model has layers from 0 to {config.num_hidden_layers - 1}, and "
            "there has to be one after it"
        )


def put(model: Any, shift: Shift | None) -> None:
    """Have the decoder add ``shift`` in a model's forward pass; None: nothing. Saved models do not hold it.

    Raises ValueError for a model that it does not fit.
    """
    if shift is not None:
        check_layer(model.config, shift.layer)
        if len(shift.vector) != model.config.hidden_size:
            raise ValueError(
                f"the steering vector is {len(shift.vector)} wide, and the model's states are "
                f"{model.config.hidden_size}: fit one to this model (turnwise steering)"
            )
    elif not is_fast(model.config):
        return
    for number, layer in enumerate(model.model.layers):
        own = None
        if shift is not None and number == shift.layer:
            weight = next(layer.parameters())
            own = shift.vector.to(weight.device, weight.dtype)
        layer.register_buffer("shift", own, persistent=False)
