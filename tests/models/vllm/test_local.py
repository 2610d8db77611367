"""vLLM itself, in this process: replies, adapters, episodes. scripts/vllm_env.py makes an environment for it."""

from __future__ import annotations

import gc
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed here: scripts/vllm_env.py makes an environment for it")

from tests.agents.test_collector import same, tasks
from tests.agents.test_forms import OPENED, TOOLS, Answer, Place, check_schema, made, turns
from tests.agents.test_forms import played as played_in_form
from tests.agents.test_templates import bytes_of
from tests.models import tiny_model, tokenizer
from tests.models.test_processing import CHOICES, Scripted, replies
from tests.models.vllm import END, LORA, check_alike, learn, policy, talk
from turnwise.agents.chat import ChatFormat
from turnwise.agents.collector import Collector
from turnwise.agents.jobs import jobs_for
from turnwise.agents.prompts import AgentConfig
from turnwise.agents.seating import ModelAgent
from turnwise.envs.forms import Form
from turnwise.envs.tasks import maker
from turnwise.models.adapters import write_adapter
from turnwise.models.drawing import LogitsError, Sampling
from turnwise.models.engine import Engine, Reply, SlotEngine, torch_threads
from turnwise.models.policy import Policy
from turnwise.models.vllm.engine import VllmEngine
from turnwise.models.vllm.local import Local, local_engine
from turnwise.models.vllm.settings import VllmConfig
from turnwise.replay.batch import layout
from turnwise.trajectory import group_by_task

pytestmark = pytest.mark.slow

LENGTH = 2048
PROMPT = np.arange(10, 90, dtype=np.int32)
Pair = tuple[Policy, SlotEngine, VllmEngine]


def pair(made: Policy) -> Pair:
    limits: dict[str, Any] = {"num_slots": 6, "max_length": LENGTH, "end_ids": END, "threads": 1}
    theirs = local_engine(made, settings=VllmConfig(cache_gib=0.25), **limits)
    return made, SlotEngine(made.sampler, **limits), theirs


@pytest.fixture(scope="module")
def adapted() -> Pair:
    return pair(policy(LORA))


@pytest.fixture(scope="module")
def whole() -> Pair:
    return pair(policy(None))


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"forks": True},
        {"window": True},
        {"sampling": {"temperature": 0.7}},
        {"sampling": {"temperature": 0.0}},
        {"sampling": {"top_p": 0.8, "top_k": 30}},
    ],
    ids=str,
)
def test_every_reply_is_that_of_the_own_engine(kind: dict[str, Any], adapted: Pair) -> None:
    _, ours, theirs = adapted
    found = talk(ours, 1, num=12, turns=4, **kind)
    assert len(found) >= 48
    check_alike(found, talk(theirs, 1, num=12, turns=4, **kind), within=2e-5)


def test_an_end_token_ends_a_reply(adapted: Pair) -> None:
    _, ours, theirs = adapted
    found = talk(ours, 3, num=12, sampling={"max_tokens": 60})
    assert sum(reply.ended for reply in found) > 5
    check_alike(found, talk(theirs, 3, num=12, sampling={"max_tokens": 60}))


@pytest.mark.parametrize("which", ["adapted", "whole"])
def test_new_weights_reach_replies_and_their_caches(which: str, request: pytest.FixtureRequest) -> None:
    """The same prompts under each of several weights: a key of older weights would show."""
    made, ours, theirs = request.getfixturevalue(which)
    seen = []
    for seed in range(3):
        learn(made, seed)
        theirs.hold(made)
        found = talk(ours, 7, num=6)
        check_alike(found, talk(theirs, 7, num=6), within=1e-4)
        assert theirs.weights == made.adapter_hash
        seen.append([reply.ids.tolist() for reply in found])
    assert seen[0] != seen[1] != seen[2]
    assert theirs.counts.reused_tokens > 0


@pytest.mark.parametrize("needs", [False, True])
def test_processors_work_inside(needs: bool, adapted: Pair) -> None:
    _, ours, theirs = adapted

    def scripts() -> list[Any]:
        return [Scripted(CHOICES, {1: 1.7, 5: 0.6}, {3: 12}, needs, without={6: [1, 2]}) for _ in range(8)]

    check_alike(replies(ours, scripts()), replies(theirs, scripts()))


def test_a_reply_that_is_abandoned_disturbs_no_other(adapted: Pair) -> None:
    _, ours, theirs = adapted
    slots = [theirs.open() for _ in range(4)]
    for slot in slots:
        theirs.submit(slot, PROMPT, fresh=True, key=slot, sampling=Sampling(max_tokens=50))
    theirs.step()
    for slot in slots[:2]:
        theirs.close(slot)
    check_alike(talk(ours, 9, num=2), talk_beside(theirs, slots[2:], 9))


def talk_beside(engine: VllmEngine, others: list[int], seed: int) -> list[Any]:
    """A conversation while other slots are still at their replies."""
    step = engine.step
    engine.step = lambda: [reply for reply in step() if reply.slot not in others]  # type: ignore[method-assign]
    try:
        return talk(engine, seed, num=2)
    finally:
        del engine.step  # type: ignore[attr-defined]
        for slot in others:
            engine.close(slot)


# --- what goes wrong with an adapter whose name is used again, and that it cannot happen ---


def finished(engine: Engine) -> list[Reply]:
    while not (found := engine.step()):
        pass
    return found


def first_logprob(engine: Engine) -> float:
    slot = engine.open()
    engine.submit(slot, PROMPT, fresh=True, key=1, sampling=Sampling(temperature=0.0, max_tokens=6))
    found = finished(engine)
    engine.close(slot)
    return float(found[0].logprobs[0])


def test_the_same_name_again_is_refused(adapted: Pair, tmp_path: Path) -> None:
    made, _, theirs = adapted
    core, name = theirs.core, theirs.core.weights
    before = first_logprob(theirs)
    learn(made, 11)
    write_adapter(tmp_path, made.model)
    with pytest.raises(ValueError, match=f"adapter '{name}' was loaded before"):
        core.adapt(name, tmp_path)
    assert abs(first_logprob(theirs) - before) < 1e-5
    theirs.hold(made)
    assert abs(first_logprob(theirs) - before) > 0.01


def test_without_the_refusal_vllm_plays_the_old_adapter(adapted: Pair, tmp_path: Path) -> None:
    """vLLM finds an adapter by its number and keys by its name: new files under both are silently ignored."""
    made, ours, theirs = adapted
    core = theirs.core
    assert isinstance(core, Local)
    before = first_logprob(theirs)
    name = core.weights
    learn(made, 12)
    write_adapter(tmp_path, made.model)
    from vllm.lora.request import LoRARequest

    fresh = core._adapter
    core._adapter = LoRARequest(name, fresh.lora_int_id, str(tmp_path))
    stale = first_logprob(theirs)
    core._adapter = fresh
    assert abs(stale - before) < 1e-5
    theirs.hold(made)
    assert abs(first_logprob(theirs) - first_logprob(ours)) < 1e-4
    assert abs(stale - first_logprob(ours)) > 0.01


def test_without_emptying_the_cache_old_keys_are_played(whole: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    made, _, theirs = whole
    core = theirs.core
    assert isinstance(core, Local)
    first_logprob(theirs)
    learn(made, 21)
    with monkeypatch.context() as patch:
        patch.setattr(core._llm, "reset_prefix_cache", lambda: True)
        theirs.hold(made)
        stale = first_logprob(theirs)
    core._llm.reset_prefix_cache()
    assert abs(stale - first_logprob(theirs)) > 0.01


def test_logits_that_are_not_finite_end_it() -> None:
    made, _, theirs = pair(policy(None))
    with torch.no_grad():
        made.sampler.get_input_embeddings().weight[PROMPT[3]] = torch.nan
    made.sync(1)
    theirs.hold(made)
    slot = theirs.open()
    theirs.submit(slot, PROMPT, fresh=True, key=1, sampling=Sampling(max_tokens=5))
    with pytest.raises(LogitsError, match="nan or infinite at token 1"):
        finished(theirs)


def test_what_vllm_cannot_compute_is_refused() -> None:
    limits: dict[str, Any] = {"num_slots": 2, "end_ids": END, "threads": 1, "settings": VllmConfig()}
    narrow = Policy(tiny_model(), tokenizer(), lora=None)
    with pytest.raises(ValueError, match=r"computes heads of 32, 64, .* and this model's are 8 wide"):
        local_engine(narrow, max_length=256, **limits)
    with pytest.raises(ValueError, match=r"keeps to the 2048 tokens .* contexts may have 4096"):
        local_engine(policy(), max_length=4096, **limits)


def test_the_process_works_as_before(adapted: Pair) -> None:
    """Torch's threads can be set, and old objects are garbage-collected."""
    assert adapted
    before = torch.get_num_threads()
    with torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert gc.get_freeze_count() == 0


# --- episodes ---

DATA = Path(os.environ.get("TURNWISE_DATA") or Path(__file__).resolve().parents[4] / "shared/data")
WORLDS = [
    ("turnwise/Household-v0", "train", True),
    ("turnwise/ALFWorld-v0", "train", (DATA / "alfworld").is_dir()),
    ("turnwise/WebShop-v0", "train", True),
]


@pytest.mark.parametrize("context", ["full", "window"])
@pytest.mark.parametrize("constrained", [False, True], ids=["free", "constrained"])
@pytest.mark.parametrize(("env_id", "split", "there"), WORLDS, ids=[world for world, _, _ in WORLDS])
def test_every_episode_is_the_same(
    env_id: str,
    split: str,
    there: bool,
    constrained: bool,
    context: str,
    adapted: Pair,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not there:
        pytest.skip(f"no data of {env_id} in {DATA} (TURNWISE_DATA)")
    _, ours, theirs = adapted
    chat = ChatFormat(tokenizer())
    monkeypatch.setattr(ours, "end_ids", chat.end_ids)
    monkeypatch.setattr(theirs, "end_ids", chat.end_ids)
    given: dict[str, Any] = {"context": context, **({"window": 2} if context == "window" else {})}
    config = AgentConfig(max_reply_tokens=80, max_context_tokens=LENGTH, max_turns=6, constrained=constrained, **given)
    jobs = jobs_for(tasks(3, env_id, split), 2, 5)
    played = []
    for engine in (ours, theirs):
        collector = Collector(maker(env_id), ModelAgent(engine, chat, config))
        played.append(collector.collect(jobs, Sampling(max_tokens=80)))
        collector.close()
    assert same(*played)
    turns = [(a, b) for one, other in zip(*played, strict=True) for a, b in zip(one.turns, other.turns, strict=True)]
    assert len(turns) > 6
    for first, second in turns:
        np.testing.assert_allclose(first.logprobs, second.logprobs, atol=1e-4)
        np.testing.assert_allclose(first.entropies, second.entropies, atol=1e-4)


# --- replies in a form ---


def test_replies_in_a_form_are_those_of_the_own_engine() -> None:
    """JSON by a schema, calls that are forced, either, and JSON behind a thought; some ids are no token's."""
    usual = made(size={"head_dim": 32})
    thinking = made(own=bytes_of(OPENED), size={"head_dim": 32}, thought_tokens=7)
    answer, place = Form(Answer.model_json_schema()), Form(Place.model_json_schema())
    either = replace(place, calls=("put", "tell"))
    check_forms(usual, [(answer, ()), (Form(None, ("put",), True), TOOLS), (either, TOOLS)])
    check_forms(thinking, [(place, ())])


def check_forms(of: tuple[Any, ChatFormat, AgentConfig], cases: list[tuple[Form, Any]]) -> None:
    """The same replies under the same sets of tokens, which the learner scores alike."""
    model, chat, _ = of
    adapted = Policy(model, chat.tokenizer, lora=LORA)
    learn(adapted, 3)
    limits: dict[str, Any] = {"num_slots": 3, "max_length": LENGTH, "end_ids": chat.end_ids, "threads": 1}
    own = SlotEngine(adapted.sampler, **limits)
    vllm = local_engine(adapted, settings=VllmConfig(cache_gib=0.25), **limits)
    for form, tools in cases:
        ours, theirs = (played_in_form(of, form, tools, num=3, engine=engine) for engine in (own, vllm))
        assert same(ours, theirs)
        for first, second in zip(turns(ours), turns(theirs), strict=True):
            assert first.processing.counts.any()
            np.testing.assert_array_equal(first.processing.counts, second.processing.counts)
            np.testing.assert_allclose(first.logprobs, second.logprobs, atol=1e-4)
        batch = layout(group_by_task(theirs))
        with torch.no_grad():
            scores = adapted.score(batch).logprobs
        mask = batch.action_mask
        torch.testing.assert_close(scores[mask], batch.behaviour_logprobs[mask], atol=1e-4, rtol=0)
        if not tools:
            check_schema(theirs, Place if chat.opens_thought else Answer)
