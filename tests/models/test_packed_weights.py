"""Packed weights: the same bits in half precision, and no way for a stale copy to go unseen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from tests.models import tiny_model, tokenizer
from tests.models.test_merging import joints, made, replied
from tests.models.test_policy import moved
from turnwise.agents.prompts import AgentConfig
from turnwise.assembly.players import model_agent
from turnwise.models import packed_weights
from turnwise.models.packed_weights import PackedWeight, packed_weight, wanted, works
from turnwise.models.policy import Policy
from turnwise.models.settings import PackedWeights

torch.set_num_threads(1)
HALF = torch.bfloat16
needs_packing = pytest.mark.skipif(not works(HALF), reason="this torch or processor has no packed weights")
pytestmark = needs_packing


def full(dtype: torch.dtype) -> Policy:
    return Policy(tiny_model().to(dtype), tokenizer(), lora=None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_product_and_the_weight_itself(dtype: torch.dtype) -> None:
    weight, bias = torch.randn(70, 45).to(dtype), torch.randn(70).to(dtype)
    packed = PackedWeight(weight)
    assert torch.equal(packed.plain(), weight)
    for shape in ((45,), (1, 45), (16, 45), (2, 3, 45)):
        states = torch.randn(shape).to(dtype)
        plain = linear(states, weight, bias)
        tolerance = 0 if dtype == HALF else 1e-5
        torch.testing.assert_close(packed.product(states, bias), plain, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("lora", [True, False])
def test_half_precision_samples_the_same_bits(lora: bool) -> None:
    policy = moved(made(HALF)) if lora else full(HALF)
    ids, logprobs = replied(policy.sampler)
    policy.pack()
    packed = [module for module in policy.sampler.modules() if packed_weight(module)]
    assert len(packed) == 15, "every projection and the head"
    again, same = replied(policy.sampler)
    assert ids == again
    np.testing.assert_array_equal(logprobs, same)
    assert all(joint.weight is None for joint in joints(policy)), "one copy of an adapted weight, not two"
    plain = policy.merged()
    assert not joints(policy) or all(m.weight is not None for m in plain.modules() if isinstance(m, nn.Linear))
    assert {n for n, _ in plain.named_parameters()} == {n for n, _ in tiny_model().named_parameters()}


def test_float32_moves_by_rounding_alone() -> None:
    policy = moved(made(torch.float32))
    ids, logprobs = replied(policy.sampler)
    policy.pack()
    again, near = replied(policy.sampler)
    assert ids == again
    np.testing.assert_allclose(logprobs, near, atol=5e-5)
    moved(policy, 2)
    assert policy.unlike() is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("lora", [True, False])
def test_a_sync_reaches_the_packed_weights(dtype: torch.dtype, lora: bool) -> None:
    """As it reaches those of a policy that has none."""
    packed, plain = (made(dtype) if lora else full(dtype) for _ in range(2))
    packed.pack()
    before = replied(packed.sampler)[1].tolist()
    found = [replied(moved(policy, 1).sampler)[1] for policy in (packed, plain)]
    np.testing.assert_allclose(*found, atol=0 if dtype == HALF else 5e-5)
    assert found[0].tolist() != before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("lora", [True, False])
def test_a_copy_that_was_missed_is_named(dtype: torch.dtype, lora: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = made(dtype) if lora else full(dtype)
    policy.pack()
    assert policy.unlike() is None
    with monkeypatch.context() as patch:
        patch.setattr(PackedWeight, "take", lambda self, weight: None)
        moved(policy, 1)
    assert policy.unlike() is not None
    policy.sync(2)
    assert policy.unlike() is None


@pytest.mark.parametrize("name", ["lm_head", "model.layers.1.mlp.down_proj"])
def test_one_wrong_weight_is_named(name: str) -> None:
    policy = moved(made(HALF))
    policy.pack()
    packed = packed_weight(policy.sampler.get_submodule(name))
    assert packed is not None
    weight = packed.plain()
    weight[3, 5] *= 1.01
    packed.take(weight)
    assert policy.unlike() == name


def test_auto_is_half_precision_on_a_cpu_where_it_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    exact, half = torch.ones(1), torch.ones(1, dtype=HALF)
    assert [wanted(asked, half) for asked in ("auto", True, False)] == [True, True, False]  # type: ignore[arg-type]
    assert [wanted(asked, exact) for asked in ("auto", True, False)] == [False, True, False]  # type: ignore[arg-type]
    assert not wanted("auto", half.to("meta"))
    with pytest.raises(ValueError, match=r"rollout\.packed_weights=true: this torch .* on meta"):
        wanted(True, half.to("meta"))
    monkeypatch.setattr(packed_weights, "works", lambda dtype: False)
    assert not wanted("auto", half)
    with pytest.raises(ValueError, match="leave it at auto"):
        wanted(True, half)


def missing(self: PackedWeight, weight: Tensor) -> None:
    raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_reorder_linear_weight'")


def rounded_otherwise(self: PackedWeight, states: Tensor, bias: Tensor | None) -> Tensor:
    return linear(states, self.plain() * (1 + 2**-7), bias)


@pytest.mark.parametrize(("name", "broken"), [("take", missing), ("product", rounded_otherwise)])
def test_a_torch_without_it_or_with_other_results(name: str, broken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PackedWeight, name, broken)
    assert not works.__wrapped__(HALF)
    assert not works.__wrapped__(torch.float32)


@pytest.mark.parametrize(
    ("dtype", "asked", "packs"), [(HALF, "auto", 15), (HALF, False, 0), (torch.float32, "auto", 0)]
)
def test_an_agent_packs_as_it_is_told(dtype: torch.dtype, asked: PackedWeights, packs: int) -> None:
    policy = made(dtype)
    for _ in range(2):
        model_agent(policy, AgentConfig(max_context_tokens=64), num_slots=2, packed_weights=asked)
    assert sum(packed_weight(module) is not None for module in policy.sampler.modules()) == packs
    quiet = made(dtype)
    model_agent(quiet, AgentConfig(max_context_tokens=64), num_slots=2, packed_weights=asked, plays=False)
    assert not any(packed_weight(module) for module in quiet.sampler.modules()), "others play"
