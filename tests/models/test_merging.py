"""Base and adapter beside each other: what merged weights compute, but for what half precision would lose of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.models import tiny_model, tokenizer
from tests.models.test_engine import full_logprobs, prompt
from tests.models.test_policy import batch, moved
from turnwise.models import merging
from turnwise.models.engine import Sampling, SlotEngine
from turnwise.models.layers import JointLinear, _Joint
from turnwise.models.merging import SurvivalMeter
from turnwise.models.policy import Policy
from turnwise.models.settings import LoRAConfig

torch.set_num_threads(1)
LORA = LoRAConfig(rank=4, alpha=8.0)


def made(dtype: torch.dtype, **lora: Any) -> Policy:
    return Policy(tiny_model().to(dtype), tokenizer(), lora=LORA.model_copy(update=lora))


def joints(policy: Policy) -> list[JointLinear]:
    return [module for module in policy.sampler.modules() if isinstance(module, JointLinear)]


def replied(model: Any) -> tuple[list[int], np.ndarray[Any, Any]]:
    """One reply's ids and log-probs, after a prompt and one token at a time."""
    engine = SlotEngine(model, num_slots=1, max_length=64, end_ids=frozenset())
    slot = engine.open()
    ids = prompt(np.random.default_rng(0), 9)
    engine.submit(slot, ids, fresh=True, key=1, sampling=Sampling(max_tokens=12))
    while not (found := engine.step()):
        pass
    return [*ids.tolist(), *found[0].ids.tolist()], found[0].logprobs


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "down_proj", "lm_head")])
def test_beside_each_other_they_are_the_merged_weights(
    targets: str | tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32, where both can be had: the engine's log-probs differ by rounding alone."""
    plain = moved(made(torch.float32, target_modules=targets))
    monkeypatch.setattr(merging, "is_half", lambda dtype: True)
    beside = moved(made(torch.float32, target_modules=targets))
    assert not joints(plain)
    assert len(joints(beside)) == (14 if targets == "all-linear" else 5)
    (ours, logprobs), (theirs, merged) = replied(beside.sampler), replied(plain.sampler)
    assert ours == theirs
    np.testing.assert_allclose(logprobs, merged, atol=2e-6)
    rows = batch()
    with torch.no_grad():
        torch.testing.assert_close(plain.score(rows).logprobs, beside.score(rows).logprobs, atol=2e-6, rtol=0)
        np.testing.assert_allclose(full_logprobs(beside.sampler, ours)[8:], logprobs, atol=2e-6)  # its own modules
    assert not np.allclose(logprobs, replied(made(torch.float32).sampler)[1], atol=1e-2), "the adapter does something"


def test_an_adapter_that_a_merge_would_lose_is_sampled_with() -> None:
    """Weights of .02 have steps of 6e-5 to 1.2e-4 in bfloat16; this adapter adds some 1e-5 to them."""
    policy = made(torch.bfloat16)
    before, still = replied(policy.sampler), replied(policy.merged())
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.add_(1e-5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)).sign())
    policy.sync(1)
    assert policy.survival is not None
    assert policy.survival.adapter == policy.survival.update
    assert policy.survival.adapter is not None
    assert 0 <= policy.survival.adapter < 0.15
    assert replied(policy.sampler)[1].tolist() != before[1].tolist()
    ids = replied(policy.sampler)[0]
    exact = Policy(tiny_model(), tokenizer(), lora=LORA)
    exact.load_trainable_state(policy.trainable_state())
    exact.sync(1)
    np.testing.assert_allclose(full_logprobs(exact.sampler, ids)[8:], replied(policy.sampler)[1], atol=0.02)
    pairs = zip(policy.merged().parameters(), made(torch.bfloat16).merged().parameters(), strict=True)
    moved_share = torch.cat([(a != b).flatten() for a, b in pairs]).float().mean()
    assert 0 < float(moved_share) < 0.1
    assert still[0] == before[0]


def test_the_joint_product_s_gradient_in_double_precision() -> None:
    def tensor(*shape: int, trained: bool = True) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.float64, requires_grad=trained)

    given = tensor(2, 3, 5), tensor(4, 5, trained=False), tensor(4, trained=False), tensor(2, 5), tensor(4, 2)
    assert torch.autograd.gradcheck(_Joint.apply, given)
    states, weight, bias, low, high = given
    expected = states @ weight.t() + (states @ low.t()) @ high.t() + bias
    torch.testing.assert_close(_Joint.apply(*given), expected)  # type: ignore[no-untyped-call]


class _Layer:
    """As much of peft's layer as the meter reads: W [1, 3], and s B A = 2 B A with A = [1, 1, 0]."""

    def __init__(self) -> None:
        self.base_layer = torch.nn.Linear(3, 1, bias=False).bfloat16()
        self.base_layer.weight.data = torch.tensor([[1.0, 0.5, 0.25]]).bfloat16()
        self.lora_A, self.lora_B = ({"default": torch.nn.Linear(1, 1)} for _ in range(2))
        self.lora_A["default"].weight.data = torch.tensor([[1.0, 1.0, 0.0]])
        self.scaling = {"default": 2.0}
        self.disable_adapters, self.active_adapters = False, ["default"]
        self.to(0.0)

    def to(self, b: float) -> None:
        self.lora_B["default"].weight.data = torch.tensor([[b]])


def test_the_share_that_survives() -> None:
    """Steps above 1 and .5 are 1/128 and 1/256, so that 2 B = 3/1024 is lost on 1 and rounded to 4/1024 on .5.

    That keeps (0 * 3 + 4 * 3) / (3 * 3 + 3 * 3) = 2/3. From there to 2 B = 8/1024 both move, by 8/1024 and 4/1024 where
    the change is 5/1024: (8 * 5 + 4 * 5) / (5 * 5 + 5 * 5) = 1.2 of it, and the whole adapter is there.
    """
    layer = _Layer()
    meter = SurvivalMeter([layer])
    assert meter.measure() == merging.Survival(None, None)
    layer.to(1.5 / 1024)
    first = meter.measure()
    assert first is not None
    assert first.update == first.adapter == pytest.approx(2 / 3)
    layer.to(4 / 1024)
    second = meter.measure()
    assert second is not None
    assert (second.update, second.adapter) == (pytest.approx(1.2), pytest.approx(1.0))
    assert SurvivalMeter([]).measure() is None


def test_a_merged_export_loads_as_a_plain_model_and_says_what_it_lost(tmp_path: Path) -> None:
    policy = moved(made(torch.bfloat16))
    policy.save_merged(tmp_path / "whole")  # an adapter as large as this one survives: no warning
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    weights = dict(plain.named_parameters())
    assert weights.keys() == dict(tiny_model().named_parameters()).keys()
    for name, (layer, _) in policy._copy.layers.items():
        assert torch.equal(weights[f"{name}.weight"], merging.merged(layer))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1e-3)
    policy.sync(2)
    with pytest.warns(UserWarning, match=r"weights merged in bfloat16 keep \d+ % of what the adapters add"):
        policy.save_merged(tmp_path / "lost")
    policy.save_adapter(tmp_path / "adapter")
    again = PeftModel.from_pretrained(tiny_model().bfloat16(), str(tmp_path / "adapter"))
    for name, tensor in policy.trainable_state().items():
        assert torch.equal(dict(again.named_parameters())[name], tensor)
