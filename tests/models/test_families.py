"""Every architecture is held against one forward pass of transformers: sampler, learner, adapters, both precisions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.models.families import FAMILIES, conversations, deviations, family_model, family_policy, whole_forward
from turnwise.models.allowed import Drawn, scored, scored_logits
from turnwise.models.engine import SlotEngine
from turnwise.models.general_contexts import GeneralContexts
from turnwise.models.kinds import is_fast
from turnwise.models.policy import Policy
from turnwise.models.settings import LoRAConfig

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:LoRA trains")

FAST = {"qwen2", "qwen3", "llama", "llama, biases"}
RECURRENT = {"falcon_h1", "qwen3_next", "lfm2", "mamba", "mamba2", "jamba"}
HALVES_REFUSED = {"gpt2", "falcon"}
SOME = ["llama, biases", "qwen2, sliding window", "gemma2", "gemma3_text", "mistral", "mixtral", "gpt2", "cohere"]
SOME += ["granite", "lfm2", "mamba", "smollm3", "gpt_neox", "phi3"]
OFTEN = [pytest.param(name, marks=() if name in SOME else pytest.mark.slow) for name in FAMILIES]


def engine(policy: Policy) -> SlotEngine:
    return SlotEngine(policy.sampler, num_slots=4, max_length=128, end_ids=frozenset())


@pytest.mark.parametrize("family", OFTEN)
def test_sampler_and_learner_are_transformers(family: str) -> None:
    policy = family_policy(family)
    made = engine(policy)
    found = deviations(policy, conversations(made))
    assert found.num_tokens > 60
    assert max(found.sampler, found.learner, found.proof) < 2e-5
    assert is_fast(policy.sampler.config) == (family in FAST)
    assert bool(made.counts.reused_tokens) == (family not in RECURRENT)  # states cannot be cut
    if isinstance(made.contexts, GeneralContexts):
        assert made.contexts._ways.joins == (family not in RECURRENT)


@pytest.mark.parametrize("family", [p for p in OFTEN if p.values[0] not in HALVES_REFUSED])
def test_half_precision_deviates_by_its_rounding(family: str) -> None:
    policy = family_policy(family, torch.bfloat16)
    found = deviations(policy, conversations(engine(policy)))
    assert max(found.sampler, found.learner, found.proof) < 0.06


@pytest.mark.parametrize("family", ["gemma2", "mistral", "mamba"])
def test_forgetting_a_context_would_be_seen(family: str) -> None:
    policy = family_policy(family)
    batch = conversations(engine(policy))
    whole = whole_forward(policy.sampler, batch)[0]
    batch.tokens[:, 0] = 5
    assert float((whole - whole_forward(policy.sampler, batch)[0]).abs().max()) > 1e-3


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "qwen3_moe"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_transformers(family: str, checkpointing: bool) -> None:
    lora = LoRAConfig(rank=4, target_modules=("q_proj", "o_proj"))
    policy = Policy(
        family_model(family), family_policy(family).tokenizer, lora=lora, gradient_checkpointing=checkpointing
    )
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1)
    policy.sync(1)
    batch = conversations(engine(policy))
    scores = policy.score(batch, entropy=True)
    assert scores.entropies is not None
    (scores.logprobs.sum() + scores.entropies.sum()).backward()  # type: ignore[no-untyped-call]
    ours = [parameter.grad.clone() for parameter in policy.parameters() if parameter.grad is not None]
    policy.model.zero_grad()
    logprobs, entropies = whole_forward(policy._base, batch)
    (logprobs.sum() + entropies.sum()).backward()
    theirs = [parameter.grad for parameter in policy.parameters()]
    assert len(ours) == len(theirs)
    for own, right in zip(ours, theirs, strict=True):
        assert float((own - right).norm()) <= 1e-4 * float(right.norm())


@pytest.mark.parametrize("family", ["gemma3_text", "gpt2", "mixtral", "falcon_h1"])
def test_exports_load_elsewhere(family: str, tmp_path: Path) -> None:
    policy = family_policy(family)
    batch = conversations(engine(policy))
    policy.save_merged(tmp_path / "merged")
    policy.save_adapter(tmp_path / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    adapted = PeftModel.from_pretrained(family_model(family), str(tmp_path / "adapter"))
    for model in (merged, adapted):
        gap = whole_forward(model.eval(), batch)[0] - batch.behaviour_logprobs
        assert float(gap.abs().max()) < 2e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["gemma3_text", "cohere"])  # their heads are the embeddings; one scales logits
def test_a_tied_head_may_have_an_adapter(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    policy = family_policy(family, dtype, target_modules=("q_proj", "lm_head"))
    sampler, learner = (model.get_input_embeddings().weight for model in (policy.sampler, policy._base))
    assert sampler.data_ptr() == learner.data_ptr()
    batch = conversations(engine(policy))
    found, limit = deviations(policy, batch), 2e-5 if dtype == torch.float32 else 0.06
    assert max(found.sampler, found.learner, found.proof) < limit
    policy.save_merged(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    gap = whole_forward(again, batch)[0] - whole_forward(policy.merged(), batch)[0]
    assert not gap.any()


def test_all_weights_of_another_family_are_trained() -> None:
    model = family_model("gemma2")
    policy = Policy(model, family_policy("gemma2").tokenizer, lora=None)
    batch = conversations(engine(policy))
    policy.score(batch).logprobs.sum().backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None for parameter in policy.parameters())
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.1)
    policy.sync(1)
    found = deviations(policy, conversations(engine(policy)))
    assert max(found.sampler, found.learner, found.proof) < 2e-5


@pytest.mark.parametrize(
    ("family", "targets", "told"),
    [
        ("gemma3_text", ("q_proj", "embed_tokens"), r"reaches model\.embed_tokens .*no linear layer"),
        ("mixtral", ("q_proj", "w1", "w2", "w3"), r"reaches .*experts.*no linear layer"),
        ("jamba", ("q_proj", "dt_proj"), r"names .*dt_proj, whose adapter this jamba would pass by: leave it out"),
    ],
)
def test_layers_that_no_adapter_reaches_are_refused(family: str, targets: tuple[str, ...], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        family_policy(family, target_modules=targets)


@pytest.mark.parametrize("family", sorted(HALVES_REFUSED))
def test_layers_whose_adapter_half_precision_would_lose_are_refused(family: str) -> None:
    with pytest.raises(ValueError, match=r"in half precision, in which its adapter would be lost.*dtype=float32"):
        family_policy(family, torch.bfloat16)


@pytest.mark.filterwarnings("default:LoRA trains")
def test_it_is_said_what_is_not_trained() -> None:
    with pytest.warns(UserWarning, match=r"LoRA trains k_proj, o_proj, q_proj, v_proj .*not its experts"):
        policy = family_policy("qwen3_moe")
    assert all("self_attn" in name for name in policy.trainable_state())


def tokens_of(batch: Any) -> list[list[int]]:
    return [row[:length].tolist() for row, length in zip(batch.tokens, batch.lengths.tolist(), strict=True)]


def test_a_reply_does_not_depend_on_the_batch_that_computes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Single tokens are computed in one batch, with caches that are padded to the longest; or each alone."""
    policy = family_policy("gemma3_text")
    together, alone = engine(policy), engine(policy)
    alone.contexts._ways = type(alone.contexts._ways)(extends=True, cuts=True, joins=False)  # type: ignore[attr-defined]
    assert tokens_of(conversations(together)) == tokens_of(conversations(alone))


def test_every_family_has_a_configuration_of_transformers() -> None:
    assert len(FAMILIES) > 30
    assert all(hasattr(transformers, f"{kind}Config") for kind, _ in FAMILIES.values())


@pytest.mark.parametrize("entropy", [False, True])
def test_whole_logits_are_scored_as_the_head_s_product_is(entropy: bool) -> None:
    """Under the same sets of allowed tokens and temperatures: what heads take that do more than multiply."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(rows, 6, generator=generator) for rows in (5, 40))
    targets = torch.tensor([3, 7, 9, 30, 11])
    sets = torch.tensor([3, 4, 5, 9, 11, 12, 13, 14])  # {3, 4, 5}, {9, 11, 12, 13, 14}
    which, heat = torch.tensor([0, -1, 1, -1, 1]), torch.tensor([0.0, 0.0, 0.5, 2.0, 0.0])
    but = torch.zeros(2, dtype=torch.bool)
    for drawn in (None, Drawn(which, torch.tensor([0, 3, 8]), sets, but, heat)):
        ours = scored_logits(hidden @ weight.t(), targets, drawn, temperature=0.7, entropy=entropy)
        theirs = scored(hidden, weight, None, targets, drawn, temperature=0.7, entropy=entropy)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
