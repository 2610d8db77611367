"""Faster layers are the same layers."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models import tiny_model, tokenizer
from turnwise.models import layers
from turnwise.models.policy import Policy
from turnwise.models.settings import LoRAConfig

torch.set_num_threads(1)


def results(module: Any, forward: Any, states: Tensor) -> list[Tensor]:
    """Output, and the gradients of a nonlinear function of it by input and parameters."""
    states = states.clone().requires_grad_()
    out = forward(states)
    trained = [p for p in module.parameters() if p.requires_grad]
    return [out, *torch.autograd.grad(out.float().square().sum() + out.float().sum(), [states, *trained])]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("trained", [True, False])
def test_rms_norm_is_the_library_s(dtype: torch.dtype, tolerance: float, trained: bool) -> None:
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

    norm = Qwen3RMSNorm(12).to(dtype).requires_grad_(trained)
    torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    states = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0)).to(dtype)
    plain = results(norm, norm.forward, states)
    quick = results(norm, lambda x: layers.rms_norm(norm, x), states)
    assert len(plain) == 2 + trained
    for own, expected in zip(quick, plain, strict=True):
        assert own.dtype == expected.dtype
        assert float((own - expected).float().norm()) <= tolerance * float(expected.float().norm())


def test_rms_norm_s_gradient_in_double_precision() -> None:
    module = torch.nn.Module()
    module.weight, module.variance_epsilon = torch.nn.Parameter(torch.rand(5).double()), 1e-6  # type: ignore[assignment]
    states = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)

    def norm(x: Tensor, _: Tensor) -> Tensor:
        return layers.rms_norm(module, x)

    assert torch.autograd.gradcheck(norm, (states, module.weight))


@pytest.mark.parametrize("folded", [True, False])
def test_lora_is_peft_s(folded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from peft.tuners.lora import Linear

    monkeypatch.setattr(layers, "folds", lambda *_: folded)
    policy = Policy(tiny_model(), tokenizer(), lora=LoRAConfig(rank=3, alpha=5.0))
    found = [module for module in policy.model.modules() if isinstance(module, Linear)]
    assert len(found) == 14
    for layer in found:
        torch.nn.init.normal_(layer.lora_B["default"].weight, generator=torch.Generator().manual_seed(0))
        states = torch.randn(1, 9, layer.in_features, generator=torch.Generator().manual_seed(1))
        plain = results(layer, lambda x, layer=layer: Linear.forward(layer, x), states)
        for own, expected in zip(results(layer, partial(layers.projected, layer), states), plain, strict=True):
            assert float((own - expected).norm()) <= 1e-5 * float(expected.norm())


def test_narrow_layers_fold_their_adapters() -> None:
    assert layers.folds(128, 256, 16)
    assert not layers.folds(1024, 512, 16)
    assert layers.folds(1024, 512, 64)


def test_adapters_stay_in_float32_above_half_precision() -> None:
    from peft.tuners.lora import Linear

    policy = Policy(tiny_model().bfloat16(), tokenizer(), lora=LoRAConfig(rank=2))
    assert {p.dtype for p in policy.parameters()} == {torch.float32}
    layer = next(m for m in policy.model.modules() if isinstance(m, Linear))
    torch.nn.init.normal_(layer.lora_B["default"].weight, generator=torch.Generator().manual_seed(0))
    states = torch.randn(1, 64, layer.in_features, generator=torch.Generator().manual_seed(1)).bfloat16()
    plain = results(layer, lambda x: Linear.forward(layer, x), states)
    for own, expected in zip(results(layer, partial(layers.projected, layer), states), plain, strict=True):
        assert own.dtype == expected.dtype
        assert float((own - expected).float().norm()) <= 0.02 * float(expected.float().norm())
