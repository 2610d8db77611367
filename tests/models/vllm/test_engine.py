"""``VllmEngine`` keeps its slots as our own engine does, whatever runs behind it: here a model without any cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.agents.test_wishes import played
from tests.models.test_processing import CHOICES, Scripted, replies
from tests.models.vllm import END, LORA, check_alike, learn, policy, talk
from turnwise.models.adapters import read_adapter
from turnwise.models.drawing import LogitsError, Sampling
from turnwise.models.engine import SlotEngine
from turnwise.models.loading import load_model
from turnwise.models.policy import Policy
from turnwise.models.vllm.drawn import NUM_TOLD, Drawing, tell
from turnwise.models.vllm.engine import Finished, VllmEngine


@dataclass
class _Request:
    ids: list[int]
    drawing: Drawing
    end_ids: frozenset[int]
    reply: list[int] = field(default_factory=list)
    told: list[dict[int, float]] = field(default_factory=list)


class Recomputing:
    """A ``Core`` that computes every context from its beginning, as transformers does, with weights of its own."""

    processes = True

    def __init__(self, made: Policy) -> None:
        self.model, self.weights = made.unadapted(), ""
        self.played: str | None = None  # what it says of its replies, where that is wrong
        self.base: dict[str, Any] = {}
        self.requests: dict[str, _Request] = {}
        self.loaded: list[str] = []

    def ask(self, request: str, ids: list[int], drawing: Drawing, end_ids: frozenset[int]) -> None:
        assert request not in self.requests
        self.requests[request] = _Request(list(ids), drawing, end_ids)

    def drop(self, request: str) -> None:
        del self.requests[request]

    def step(self) -> list[Finished]:
        for each in self.requests.values():
            with torch.no_grad():
                logits = self.model(torch.tensor([each.ids + each.reply])).logits[0, -1:].float()
            tell(logits, [0], [each.drawing], [len(each.reply)])
            values, ids = logits[0].topk(NUM_TOLD)
            each.told.append(dict(zip(ids.tolist(), values.tolist(), strict=True)))
            each.reply.append(int(ids[0]))
        over = {
            name: each
            for name, each in self.requests.items()
            if each.reply[-1] in each.end_ids or len(each.reply) == each.drawing.sampling.max_tokens
        }
        for name in over:
            del self.requests[name]
        played = self.played or self.weights
        return [Finished(n, each.reply, each.told, played, len(each.ids), 0) for n, each in over.items()]

    def adapt(self, name: str, folder: Path) -> None:
        assert name not in self.loaded
        self.loaded.append(name)
        self.weights = name
        fresh, modules = read_adapter(folder), dict(self.model.named_modules())
        for layer, adapted in fresh.layers.items():
            base = self.base[layer] = self.base.get(layer, modules[layer].weight.detach().clone())
            change = adapted.scale * adapted.high @ adapted.low
            modules[layer].weight = torch.nn.Parameter(base + change, requires_grad=False)

    def reload(self, name: str, folder: Path) -> None:
        self.loaded.append(name)
        self.weights = name
        self.model, _ = load_model(folder)


def engines(made: Policy, slots: int = 5) -> tuple[SlotEngine, VllmEngine, Recomputing]:
    core = Recomputing(made)
    limits: dict[str, Any] = {"num_slots": slots, "max_length": 512, "end_ids": END}
    theirs = VllmEngine(core, threads=1, **limits)
    theirs.hold(made)
    return SlotEngine(made.sampler, **limits), theirs, core


@pytest.mark.parametrize(
    "kind", [{}, {"forks": True}, {"window": True}, {"sampling": {"temperature": 0.7, "top_k": 9}}]
)
def test_the_same_conversations_on_both(kind: dict[str, Any]) -> None:
    ours, theirs, _ = engines(policy())
    check_alike(talk(ours, 1, **kind), talk(theirs, 1, **kind))
    assert theirs.num_free == theirs.num_slots == 5
    assert theirs.counts.sampled_tokens == ours.counts.sampled_tokens
    work = theirs.clock.take()
    assert work.tokens["decode"] == ours.counts.sampled_tokens
    assert work.tokens["prefill"] > 0


@pytest.mark.parametrize("lora", [LORA, None], ids=["adapters", "all weights"])
def test_new_weights_are_played_under_a_name_of_their_own(lora: Any) -> None:
    made = policy(lora)
    ours, theirs, core = engines(made)
    for seed in range(2):
        learn(made, seed)
        theirs.hold(made)
        assert theirs.weights == made.adapter_hash == ours.weights
        check_alike(talk(ours, seed, num=3), talk(theirs, seed, num=3))
    held = list(core.loaded)
    theirs.hold(made)
    assert core.loaded == held, "nothing new, nothing loaded"
    assert len(set(held)) == len(held) == 3
    before = {n: p.clone() for n, p in made.trainable_state().items()}
    learn(made, 5)
    theirs.hold(made)
    made.load_trainable_state(before)
    made.sync(9)
    theirs.hold(made)
    assert theirs.weights == made.adapter_hash
    assert len(set(core.loaded)) == 5, "weights that come back come under another name"


def test_weights_do_not_change_below_a_reply() -> None:
    made = policy()
    _, theirs, core = engines(made)
    slot = theirs.open()
    theirs.submit(slot, np.arange(5, 9, dtype=np.int32), fresh=True, key=1, sampling=Sampling(max_tokens=3))
    learn(made, 1)
    with pytest.raises(RuntimeError, match="cannot change while it samples"):
        theirs.hold(made)
    core.played = "other"
    with pytest.raises(RuntimeError, match="vLLM played weights other while"):
        run(theirs)


def test_a_slot_that_is_closed_takes_its_reply_along() -> None:
    _, theirs, core = engines(policy(), slots=2)
    ids = np.arange(5, 30, dtype=np.int32)
    first, second = theirs.open(), theirs.open()
    for slot in (first, second):
        theirs.submit(slot, ids, fresh=True, key=slot, sampling=Sampling(max_tokens=4))
    with pytest.raises(RuntimeError, match="all 2 slots"):
        theirs.open()
    theirs.close(first)
    assert len(core.requests) == theirs.num_free == 1
    found = []
    while not found:
        found = theirs.step()
    assert [reply.slot for reply in found] == [second]
    assert theirs.length(second) == 25 + len(found[0].ids)
    assert theirs.step() == []


@pytest.mark.parametrize("needs", [False, True])
def test_processors_choose_the_same_and_leave_the_same_record(needs: bool) -> None:
    ours, theirs, core = engines(policy())

    def scripts() -> list[Any]:
        return [Scripted(CHOICES, {1: 1.7, 5: 0.6}, {3: 12}, needs, without={6: [1, 2]}) for _ in range(4)]

    check_alike(replies(ours, scripts()), replies(theirs, scripts()))
    core.processes = False
    with pytest.raises(ValueError, match="a vLLM server runs no processors"):
        replies(theirs, scripts())


def test_what_does_not_fit_or_is_not_finite_is_an_error() -> None:
    _, theirs, core = engines(policy())
    slot = theirs.open()
    long = np.full(510, 6, np.int32)
    with pytest.raises(ValueError, match="context of 514 tokens exceeds the engine's max_length 512"):
        theirs.submit(slot, long, fresh=True, key=1, sampling=Sampling(max_tokens=4))
    with torch.no_grad():
        core.model.get_input_embeddings().weight[6] = torch.nan
    theirs.submit(slot, long[:3], fresh=True, key=1, sampling=Sampling(max_tokens=2))
    with pytest.raises(LogitsError, match="nan or infinite") as error:
        run(theirs)
    assert error.value.slot == slot


def run(engine: VllmEngine) -> Sequence[Any]:
    while not (found := engine.step()):
        pass
    return found


def test_a_request_of_its_own_temperature_works_where_no_processor_does() -> None:
    ours, theirs, core = engines(policy())
    core.processes = False
    first, second = (played({"temperature": 0.5, "max_tokens": 4}, engine=engine) for engine in (ours, theirs))
    for one, other in zip(first, second, strict=True):
        for here, there in zip(one.turns, other.turns, strict=True):
            assert here.action_ids.tolist() == there.action_ids.tolist()
            assert there.processing is not None
            assert there.processing.temperatures.tolist() == [0.5] * len(there.action_ids)
            np.testing.assert_allclose(here.logprobs, there.logprobs, atol=1e-4)
