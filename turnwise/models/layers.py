"""The small layers of a model with fewer passes over memory: the same formulas, exact up to rounding.

On a CPU the layers of a small model wait for memory, not for arithmetic. So RMSNorm and the rotary positions have
gradients of their own (of few passes over the states), and LoRA's scaled product is added in place or, in
narrow layers, folded into the weight first: W + s B A is what the sampler holds, and by the chain rule the gradients
of A and B come from that of the sum.

In half precision either would lose a small adapter: rounded to W's last digit in the sum of weights, to that of W x in
the sum of outputs, and a LoRA update at a usual rate is far below both. So base and adapter are one product there,
[W | s B] [x ; A x], summed in float32 and rounded once, on both sides: ``JointLinear`` is the sampler's layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


def projected(module: Any, states: Tensor) -> Tensor:
    """A linear layer's output, with its adapter where it has one that is on. Other kinds of layers are called."""
    if type(module) is nn.Linear:
        return linear(states, module.weight, module.bias)
    if type(module) is JointLinear:
        return module.forward(states)
    if hasattr(module, "lora_A") and type(module.base_layer) is nn.Linear:
        return lora_linear(module, states)
    called: Tensor = module(states)
    return called


def rms_norm(module: Any, states: Tensor) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * w over the last dimension, the quotient in float32."""
    if not torch.is_grad_enabled():
        unit: Tensor = torch.rms_norm(states, (states.shape[-1],), None, module.variance_epsilon)
        return module.weight * unit  # type: ignore[no-any-return]
    made: Tensor = _RMSNorm.apply(states, module.weight, module.variance_epsilon)  # type: ignore[no-untyped-call]
    return made


def normalised(states: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """RMSNorm without a gradient of its own, and 1 / sqrt(mean(x^2) + eps) [..., 1]."""
    exact = states.to(torch.promote_types(states.dtype, torch.float32))
    inverse = exact.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
    return weight * (exact * inverse).to(states.dtype), inverse


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, eps: float) -> Tensor:
        out, inverse = normalised(states, weight, eps)
        ctx.save_for_backward(states, weight, inverse)
        return out

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, inverse = ctx.saved_tensors
        (up,) = upstream
        unit = states * inverse  # in the precision of ``inverse``
        by_weight = (up * unit).flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, by_weight, None
        by_unit = (up * weight).to(unit.dtype)
        along = torch.linalg.vecdot(by_unit, unit).unsqueeze(-1).div_(unit.shape[-1])
        return by_unit.addcmul_(unit, along, value=-1).mul_(inverse).to(states.dtype), by_weight, None


def turned(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary positions, heads [N, H, D] by cosine and sine [N, 1, D], whose halves are equal (Su et al. 2021)."""
    if not torch.is_grad_enabled():
        return _turn(heads, cosine, sine)
    made: Tensor = _Turn.apply(heads, cosine, sine)  # type: ignore[no-untyped-call]
    return made


def _turn(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = heads.chunk(2, -1)
    return torch.addcmul(heads * cosine, torch.cat((second.neg(), first), -1), sine)


class _Turn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        return _turn(heads, cosine, sine)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        cosine, sine = ctx.saved_tensors
        return _turn(upstream[0], cosine, -sine), None, None


class JointLinear(nn.Module):
    """A frozen linear layer with an adapter beside it: weight [out, in + r] is W | s B, low [r, in] is A."""

    def __init__(self, weight: Tensor, low: Tensor, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.low = nn.Parameter(low, requires_grad=False)
        self.bias = bias

    def forward(self, states: Tensor) -> Tensor:
        """[..., in] -> [..., out]"""
        return linear(beside(states, self.low), self.weight, self.bias)


def beside(states: Tensor, low: Tensor) -> Tensor:
    """[..., in] -> [..., in + r]: x, and A x after it."""
    return torch.cat((states, linear(states, low)), -1)


class _Joint(torch.autograd.Function):
    """The same product with gradients for states, A and s B; that of the whole [W | s B] is never made."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, low: Tensor, high: Tensor) -> Tensor:
        both = beside(states, low)
        ctx.save_for_backward(states, both[..., states.shape[-1] :].contiguous(), weight, low, high)
        return linear(both, torch.cat((weight, high), 1), bias)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        states, thin, weight, low, high = ctx.saved_tensors
        (up,) = upstream
        flat = up.flatten(0, -2)
        by_thin = flat @ high
        by_states = None
        if ctx.needs_input_grad[0]:
            by_states = torch.addmm(flat @ weight, by_thin, low).view_as(states)
        by_low, by_high = by_thin.t() @ states.flatten(0, -2), flat.t() @ thin.flatten(0, -2)
        return by_states, None, None, by_low, by_high


def adapter(layer: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A [r, in] and s B [out, r] of peft's layer, each rounded to ``dtype`` once; differentiable."""
    low, high = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    return low.to(dtype), (layer.scaling["default"] * high).to(dtype)


def is_half(dtype: torch.dtype) -> bool:
    """Whether numbers of this type have so few digits that a small adapter is lost in a sum."""
    return dtype.itemsize < 4


def lora_linear(layer: Any, states: Tensor) -> Tensor:
    """W x + s B A x + bias, as peft's layer has it: one adapter ``default``, no dropout.

    Adapters kept in float32 above a model in half precision are rounded to it for the products only.
    """
    base = layer.base_layer
    if layer.disable_adapters:
        return linear(states, base.weight, base.bias)
    if is_half(base.weight.dtype):
        parts = base.weight, base.bias, *adapter(layer, states.dtype)
        joint: Tensor = _Joint.apply(states, *parts)  # type: ignore[no-untyped-call]
        return joint
    a, b = (part["default"].weight.to(states.dtype) for part in (layer.lora_A, layer.lora_B))
    scale = layer.scaling["default"]
    if folds(base.out_features, base.in_features, len(a)):
        return linear(states, torch.addmm(base.weight, b, a, alpha=scale), base.bias)
    out = linear(states, base.weight, base.bias)
    low = linear(states, a).flatten(0, -2)
    return out.flatten(0, -2).addmm_(low, b.t(), alpha=scale).view_as(out)


def folds(num_out: int, num_in: int, rank: int) -> bool:
    """Whether one more product with the whole weight, for its gradient, is faster than six thin ones with A and B.

    2 n_out n_in FLOPs a token against 6 r (n_out + n_in), which run at some 3/8 of the rate.
    Half precision never folds.
    """
    return num_out * num_in <= 8 * rank * (num_out + num_in)
