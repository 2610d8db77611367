"""A policy whose frozen weights are divided, here among one rank: the same scores, sampler and hashes; its proof."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from tests.models import tiny_model, tokenizer
from tests.models.families import family_policy
from tests.models.test_policy import batch, moved
from turnwise.models.policy import Policy
from turnwise.models.settings import LoRAConfig
from turnwise.models.sharding import is_divided
from turnwise.training.ranks import ProcessRanks

LORA = LoRAConfig(rank=4, alpha=8.0, target_modules=("q_proj", "v_proj", "down_proj"))


@pytest.fixture(scope="module")
def mesh() -> Iterator[Any]:
    store = TCPStore("127.0.0.1", 0, 1, is_master=True, wait_for_workers=False)
    ranks = ProcessRanks(store, 0, 1, lockstep=True)
    yield ranks.mesh
    ranks.close()


def policy(dtype: torch.dtype = torch.float32, **more: Any) -> Policy:
    return Policy(tiny_model().to(dtype), tokenizer(), lora=LORA, **more)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_gradients_and_sampler_are_those_of_whole_weights(mesh: Any, dtype: torch.dtype) -> None:
    whole, divided = policy(dtype), policy(dtype, gradient_checkpointing=True)
    divided.divide(mesh)
    for each in (whole, divided):
        moved(each)
        scores = each.score(batch(), entropy=True, hidden=True)
        (scores.logprobs.sum() + scores.entropies.sum()).backward()
    with torch.no_grad():
        for asked in ({"reference": True}, {"entropy": True, "best": True}):
            ours, theirs = (each.score(batch(), **asked) for each in (divided, whole))
            assert torch.equal(ours.logprobs, theirs.logprobs)
    pairs = zip(divided.parameters(), whole.parameters(), strict=True)
    assert all(torch.equal(ours.grad, theirs.grad) for ours, theirs in pairs)
    assert divided.adapter_hash == whole.adapter_hash
    assert divided.survival == whole.survival
    assert (divided.survival is None) == (dtype == torch.float32)
    both = zip(divided.sampler.parameters(), whole.sampler.parameters(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in both)


def test_only_the_frozen_weights_of_layers_are_divided(mesh: Any) -> None:
    made = policy()
    made.divide(mesh)
    divided = {name for name, weight in made.model.named_parameters() if is_divided(weight)}
    assert divided == {n for n, _ in made.model.named_parameters() if ".layers." in n and ".lora_" not in n}
    assert not any(map(is_divided, made.trainable_state().values()))
    assert not any(map(is_divided, made.sampler.parameters()))


@pytest.mark.parametrize("name", ["q_proj.weight", "gate_proj.weight", "embed_tokens.weight"])
def test_a_weight_of_the_sampler_that_changed_is_named(mesh: Any, name: str) -> None:
    """Under an adapter, beside adapters, and outside of the layers."""
    made = policy()
    made.divide(mesh)
    moved(made)
    assert made.unlike() is None
    (changed, weight), *_ = ((n, w) for n, w in made.sampler.named_parameters() if n.endswith(name))
    weight.view(-1)[7] = torch.nextafter(weight.view(-1)[7], torch.tensor(9.0))
    assert made.unlike() == changed


def test_what_cannot_be_divided_is_refused() -> None:
    with pytest.raises(ValueError, match="trains all of them: use ddp"):
        Policy(tiny_model(), tokenizer(), lora=None).divide(None)
    with pytest.raises(ValueError, match="qwen2, qwen3, llama"):
        family_policy("olmo2").divide(None)


def test_a_policy_that_only_learns_has_no_sampler() -> None:
    plays, learns = moved(policy()), moved(policy(samples=False))
    assert learns.sampler is None
    assert learns.adapter_hash == plays.adapter_hash
    assert torch.equal(learns.score(batch()).logprobs, plays.score(batch()).logprobs)
