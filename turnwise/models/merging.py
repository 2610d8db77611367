"""What the sampler holds of adapted layers, and how much of the adapters a merged weight would hold.

In float32 the sampler's layer is the merged weight W + s B A. In half precision W's last digit is mostly larger than
what adapters add to it (a weight of .05 in bfloat16 has steps of 2.4e-4), so W + s B A, rounded, is often W: what was
learned would not be sampled with. There the sampler holds W | s B and A side by side (``layers.JointLinear``), as the
learner multiplies them, and nothing is lost. ADR 17 says why it never merges there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from turnwise.models.layers import JointLinear, adapter, is_half

_ROWS = 64  # of each weight, evenly spaced, on which ``Survival`` is measured (to 127): enough for three digits


def own_layer(model: Any, name: str, layer: Any) -> Any:
    """Give ``model`` a layer of its own in the place of ``name``, which has the adapted ``layer``; returns it."""
    parent, _, last = name.rpartition(".")
    holder = model.get_submodule(parent)
    plain = getattr(holder, last)
    if _is_joint(layer):
        joint = JointLinear(**held(layer), bias=plain.bias)
        setattr(holder, last, joint)
        return joint
    plain.weight = nn.Parameter(plain.weight.detach().clone(), requires_grad=False)
    return plain


def _is_joint(layer: Any) -> bool:
    base = layer.base_layer
    return type(base) is nn.Linear and is_half(base.weight.dtype)


@torch.no_grad()
def held(layer: Any) -> dict[str, Tensor]:
    """By name, what the sampler's own layer holds of an adapted layer; the same every time, to the bit."""
    weight = layer.base_layer.weight
    if not _is_joint(layer):
        return {"weight": merged(layer)}
    low, high = adapter(layer, weight.dtype)
    return {"weight": torch.cat((weight, high), 1), "low": low}


@torch.no_grad()
def merged(layer: Any) -> Tensor:
    """W + s B A, rounded to W's type; adapters of a half-precision model are float32."""
    base: Tensor = layer.base_layer.weight
    delta: Tensor = layer.get_delta_weight("default")
    return (base + delta).to(base.dtype)


def unjoined(model: Any, layers: dict[str, Any]) -> None:
    """Put plain layers with merged weights in the place of a model's joint ones, by the adapted layer's name."""
    for name, layer in layers.items():
        parent, _, last = name.rpartition(".")
        joint = model.get_submodule(name)
        if isinstance(joint, JointLinear):
            plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
            plain.weight = nn.Parameter(merged(layer), requires_grad=False)
            plain.register_parameter("bias", joint.bias)
            setattr(model.get_submodule(parent), last, plain)


def join(model: Any, shapes: dict[str, tuple[int, ...]]) -> None:
    """Give a plain model on the meta device the joint layers that weights of these names and shapes belong to."""
    for name in [name.removesuffix(".low") for name in shapes if name.endswith(".low")]:
        parent, _, last = name.rpartition(".")
        weight, low = (torch.empty(shapes[f"{name}.{part}"], device="meta") for part in ("weight", "low"))
        setattr(model.get_submodule(parent), last, JointLinear(weight, low, model.get_submodule(name).bias))


@dataclass(frozen=True, slots=True)
class Survival:
    """How much of a change D of the weights W + s B A is left where they are rounded to W's type, in [0, 1] or so.

    <D rounded, D> / <D, D>: 0 where no weight moves, 1 where rounding cancels out on the whole. ``update`` is of the
    last update, ``adapter`` of all that the adapters add to W; None where that is nothing.
    """

    update: float | None = None
    adapter: float | None = None


class SurvivalMeter:
    """Measures layers in half precision; what it saw last is what an update is measured against."""

    def __init__(self, layers: list[Any]) -> None:
        self._layers = [layer for layer in layers if _is_joint(layer)]
        self._before = [torch.zeros_like(_added(layer)) for layer in self._layers]

    @torch.no_grad()
    def measure(self) -> Survival | None:
        """None where nothing is in half precision."""
        if not self._layers:
            return None
        update, adapter = _Share(), _Share()
        for place, layer in enumerate(self._layers):
            weight, old, new = _some_rows(layer.base_layer.weight), self._before[place], _added(layer)
            before, after = ((weight.float() + added).to(weight.dtype).float() for added in (old, new))
            update.add(after - before, new - old)
            adapter.add(after - weight.float(), new)
            self._before[place] = new
        return Survival(update.value, adapter.value)


class _Share:
    """<D rounded, D> / <D, D> over many layers."""

    def __init__(self) -> None:
        self._kept = self._whole = 0.0

    def add(self, rounded: Tensor, exact: Tensor) -> None:
        self._kept += float((rounded * exact).sum(dtype=torch.float64))
        self._whole += float(exact.square().sum(dtype=torch.float64))

    @property
    def value(self) -> float | None:
        return self._kept / self._whole if self._whole else None


def _added(layer: Any) -> Tensor:
    """Some rows of s B A, float32."""
    low, high = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
    return layer.scaling["default"] * (_some_rows(high).float() @ low.float())  # type: ignore[no-any-return]


def _some_rows(weight: Tensor) -> Tensor:
    return weight[:: max(1, len(weight) // _ROWS)]
