"""The sampler's copy of layers with LoRA adapters, and a measure of what merging would lose.

In float32 the sampler holds the merged weight W + s B A. In half precision that would lose most of a small adapter: a
weight of .05 in bfloat16 has steps of 2.4e-4, adapters often add less, and W + s B A is rounded back to W. The sampler
would then not use what was learned. So in half precision it holds [W | s B] and A apart (``layers.JointLinear``) and
multiplies them as the learner does. Nothing is lost (docs/adr/017-half-precision-never-merges.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from turnwise.models.layers import JointLinear, adapter, added, is_half, switched_on
from turnwise.models.packed_weights import packed_weight
from turnwise.models.sharding import whole

MERGED_SHARE = 0.9
"""Where merged weights keep less than this share of what adapters add, there is a warning."""

_ROWS = 64  # ``Survival`` is measured on 64 to 127 evenly spaced rows of each weight: enough for three digits


def own_layer(model: Any, name: str, layer: Any) -> Any:
    """Replace ``model``'s layer ``name`` by one with weights of its own, and return it.

    ``layer`` is the learner's layer with the adapter, whose form (merged or joint) the new layer gets.
    """
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
    """The tensors, by name, that the sampler's layer holds for an adapted layer. Equal weights give equal bits.

    Of a layer whose weights are divided among ranks (sharding.py), all ranks must ask.
    """
    if not _is_joint(layer):
        return {"weight": merged(layer)}
    weight = whole(layer.base_layer.weight)
    low, high = adapter(layer, weight.dtype)
    return {"weight": torch.cat((weight, high), 1), "low": low}


@torch.no_grad()
def put(target: Any, tensors: dict[str, Tensor]) -> None:
    """Copy what ``held`` returned into the sampler's layer, packed too where it is."""
    for name, tensor in tensors.items():
        if (own := getattr(target, name)) is not None:
            own.copy_(tensor)
    if (packed := packed_weight(target)) is not None:
        packed.take(tensors["weight"])


@torch.no_grad()
def holds(target: Any, tensors: dict[str, Tensor]) -> bool:
    """Whether the sampler's layer multiplies with these tensors, to the bit."""
    own, packed = dict(target.named_parameters()), packed_weight(target)
    if packed is not None and not _is_same(packed.plain(), tensors["weight"]):
        return False
    return all(_is_same(own[name], tensor) for name, tensor in tensors.items() if name in own or packed is None)


def _is_same(own: Tensor, expected: Tensor) -> bool:
    return own.dtype == expected.dtype and torch.equal(own, expected)


@torch.no_grad()
def merged(layer: Any) -> Tensor:
    """W + s B A [out, in], rounded to W's type. (Adapters of a model in half precision are float32.)"""
    base = whole(layer.base_layer.weight)
    return (base + added(layer)).to(base.dtype)


def unjoined(model: Any, layers: dict[str, Any]) -> None:
    """Replace the joint layers of a model by plain ones with merged weights.

    ``layers`` are the learner's adapted layers by name.
    """
    for name, layer in layers.items():
        if isinstance(model.get_submodule(name), JointLinear):
            _put_plain(model, name, layer, merged(layer))


def unadapted(model: Any, layers: dict[str, Any]) -> None:
    """Give the adapted layers of a model the base's weights, which are in the memory of the learner's."""
    for name, layer in layers.items():
        weight, own = layer.base_layer.weight.detach(), model.get_submodule(name)
        if isinstance(own, JointLinear):
            _put_plain(model, name, layer, weight)
        else:
            own.weight = nn.Parameter(weight, requires_grad=False)


def _put_plain(model: Any, name: str, layer: Any, weight: Tensor) -> None:
    """A plain layer with ``weight`` in the place of a joint one."""
    parent, _, last = name.rpartition(".")
    plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    plain.weight = nn.Parameter(weight, requires_grad=False)
    plain.register_parameter("bias", model.get_submodule(name).bias)
    setattr(model.get_submodule(parent), last, plain)


@dataclass(frozen=True, slots=True)
class Survival:
    """The share of a change D of the weights that is left after W + s B A is rounded to W's type.

    It is <D rounded, D> / <D, D>: 0 where no weight changes, 1 where rounding errors cancel out on average. Values are
    about 0 to 1. For ``update`` D is the change by the last update, for ``adapter`` it is all that the adapters add to
    W. Both are None where D is 0.
    """

    update: float | None = None
    adapter: float | None = None


class SurvivalMeter:
    """Measures ``Survival`` for the layers in half precision.

    An update is the change since ``measure`` was last called.
    """

    def __init__(self, layers: list[Any]) -> None:
        self._layers = [layer for layer in layers if _is_joint(layer)]
        self._rows: list[Tensor] | None = None  # those that are measured; None: the layers have them
        self._before = [torch.zeros_like(_added_rows(layer)) for layer in self._layers]

    @torch.no_grad()
    def keep_rows(self) -> None:
        """Keep a copy of the rows that are measured: the layers' weights are about to be divided among ranks."""
        self._rows = [_some_rows(layer.base_layer.weight).clone() for layer in self._layers]

    @torch.no_grad()
    def measure(self) -> Survival | None:
        """The present ``Survival``; None where no layer is in half precision."""
        if not self._layers:
            return None
        update, adapter = Share(), Share()
        for place, layer in enumerate(self._layers):
            weight = _some_rows(layer.base_layer.weight) if self._rows is None else self._rows[place]
            old, new = self._before[place], _added_rows(layer)
            before, after = ((weight.float() + change).to(weight.dtype).float() for change in (old, new))
            update.add(after - before, new - old)
            adapter.add(after - weight.float(), new)
            self._before[place] = new
        return Survival(update.value, adapter.value)


class Share:
    """<D rounded, D> / <D, D>, summed over many layers."""

    def __init__(self) -> None:
        self._kept = self._whole = 0.0

    def add(self, rounded: Tensor, exact: Tensor) -> None:
        self._kept += float((rounded * exact).sum(dtype=torch.float64))
        self._whole += float(exact.square().sum(dtype=torch.float64))

    @property
    def value(self) -> float | None:
        return self._kept / self._whole if self._whole else None


def _added_rows(layer: Any) -> Tensor:
    """The sum of s B A for the measured rows, [rows, in] float32."""
    parts = [(layer.lora_A[n].weight.detach(), layer.lora_B[n].weight.detach()) for n in switched_on(layer)]
    scales = [layer.scaling[n] for n in switched_on(layer)]
    sums = [s * (_some_rows(high).float() @ low.float()) for s, (low, high) in zip(scales, parts, strict=True)]
    return sum(sums[1:], start=sums[0])  # type: ignore[no-any-return]


def num_measured(rows: int) -> int:
    """How many of a weight's rows ``Survival`` is measured on."""
    return len(range(0, rows, _stride(rows)))


def _stride(rows: int) -> int:
    return max(1, rows // _ROWS)


def _some_rows(weight: Tensor) -> Tensor:
    return weight[:: _stride(len(weight))]
