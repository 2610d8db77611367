"""What a request wishes of its reply is kept exactly, and learner and sampler agree on every token that was kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.models import tiny_model, tokenizer
from tests.models.test_processing import Scripted, replies
from tests.worlds import Echo
from turnwise.agents.chat import ChatFormat
from turnwise.agents.collector import Collector
from turnwise.agents.jobs import Job
from turnwise.agents.prompts import AgentConfig
from turnwise.agents.seating import ModelAgent
from turnwise.agents.wishes import Wishes
from turnwise.models.engine import Engine, Reply, Sampling, SlotEngine
from turnwise.replay.batch import layout
from turnwise.trajectory import Task, Trajectory, group_by_task


class Wishing(Echo):
    """Echo, whose requests have wishes of their own."""

    def __init__(self, wishes: dict[str, Any]) -> None:
        super().__init__()
        self.wishes = wishes

    def reset(self, **more: Any) -> Any:
        observation, info = super().reset(**more)
        return observation, {**info, "sampling": self.wishes}

    def step(self, action: str) -> Any:
        *rest, info = super().step(action)
        return (*rest, {**info, "sampling": self.wishes})


def played(
    wishes: dict[str, Any], temperature: float = 1.0, num: int = 4, engine: Engine | None = None
) -> list[Trajectory]:
    chat = ChatFormat(tokenizer())
    config = AgentConfig(max_reply_tokens=12, max_context_tokens=512)
    engine = engine or SlotEngine(tiny_model(), num_slots=3, max_length=512, end_ids=chat.end_ids)
    jobs = [Job(Task("Echo", "train", n, str(n)), 0, 0, n) for n in range(num)]
    collector = Collector(lambda: Wishing(wishes), ModelAgent(engine, chat, config))
    return collector.collect(jobs, Sampling(temperature, max_tokens=12))


def check_logprobs(trajectories: list[Trajectory], temperature: float) -> None:
    batch, model = layout(group_by_task(trajectories)), tiny_model()
    for row, length in enumerate(batch.lengths.tolist()):
        ids = batch.tokens[row, :length]
        with torch.no_grad():
            full = torch.log_softmax(model(ids[None]).logits[0] / temperature, -1)[:-1].gather(-1, ids[1:, None])[:, 0]
        mask = batch.action_mask[row, 1:length]
        assert mask.any()
        torch.testing.assert_close(full[mask], batch.behaviour_logprobs[row, 1:length][mask], atol=1e-4, rtol=0)


def test_a_temperature_of_its_own_is_recorded_with_each_token() -> None:
    found = played({"temperature": 0.5})
    for turn in (turn for each in found for turn in each.turns):
        assert turn.processing is not None
        assert turn.processing.temperatures.tolist() == [0.5] * len(turn.action_ids)
    check_logprobs(found, 0.5)
    usual = played({})
    assert all(turn.processing is None for each in usual for turn in each.turns)
    assert [t.reply for e in usual for t in e.turns] != [t.reply for e in found for t in e.turns]
    same = played({"temperature": 0.5}, temperature=0.5)
    assert all(turn.processing is None for each in same for turn in each.turns)
    assert [t.reply for e in same for t in e.turns] == [t.reply for e in found for t in e.turns]


def test_a_temperature_of_0_is_greedy() -> None:
    first, second = (played({"temperature": 0.0}, num=1)[0], played({}, temperature=0.0, num=1)[0])
    assert [t.action_ids.tolist() for t in first.turns] == [t.action_ids.tolist() for t in second.turns]


def test_fewer_tokens_are_a_smaller_limit_and_more_are_not() -> None:
    found, usual = played({"max_tokens": 3}), played({"max_tokens": 1000})
    assert max(len(turn.action_ids) for each in found for turn in each.turns) == 3
    assert max(len(turn.action_ids) for each in usual for turn in each.turns) == 12
    assert [each.turns[0].action_ids[:3].tolist() for each in usual] == [
        each.turns[0].action_ids.tolist() for each in found
    ]


@pytest.mark.parametrize("wishes", [{}, {"temperature": 0.7}])
def test_a_text_that_ends_a_reply_cuts_it_there(wishes: dict[str, Any]) -> None:
    """The first turn draws the same tokens, up to the one that completes the text; the context goes on from these."""
    usual = played(wishes)
    stop = usual[0].turns[0].reply[2:4]
    found = played({**wishes, "stop": ["never said", stop]})
    cut = 0
    for each, whole in zip(found, usual, strict=True):
        assert [turn.continues for turn in each.turns] == [False, True, True]
        assert stop not in "".join(turn.reply for turn in each.turns)
        kept, drawn = each.turns[0], whole.turns[0]
        size = len(kept.action_ids)
        assert kept.action_ids.tolist() == drawn.action_ids[:size].tolist()
        np.testing.assert_array_equal(kept.logprobs, drawn.logprobs[:size])
        assert kept.processing is None or len(kept.processing.temperatures) == len(kept.processing.counts) == size
        if stop in drawn.reply:
            cut += 1
            assert kept.reply == drawn.reply.partition(stop)[0]
            text = ChatFormat(tokenizer()).decode
            assert stop in text(kept.action_ids)
            assert stop not in text(kept.action_ids[:-1])
    assert cut
    check_logprobs(found, wishes.get("temperature", 1.0))


def test_a_greedy_run_stays_greedy() -> None:
    found, usual = (played(wishes, temperature=0.0, num=1)[0] for wishes in ({"temperature": 0.5}, {}))
    assert [t.action_ids.tolist() for t in found.turns] == [t.action_ids.tolist() for t in usual.turns]
    assert all(turn.processing is None for turn in found.turns)


def test_of_two_texts_the_one_that_is_complete_first_counts() -> None:
    """With "bc" the reply ends after "abc", though "abcd" begins earlier in the text as a whole. Halving finds it."""
    letters, asked = np.arange(26, dtype=np.int32), list[int]()

    def decode(ids: Any) -> str:
        asked.append(len(ids))
        return "".join(chr(97 + i) for i in ids)

    reply = Reply(0, np.tile(letters, 40), np.zeros(1040, np.float32), np.zeros(1040, np.float32), True)
    kept, text = Wishes(stop=("abcd", "bc")).cut(reply, decode)
    assert (kept.ids.tolist(), text) == ([0, 1, 2], "a")
    assert len(asked) < 15
    assert Wishes(stop=("zaz",)).cut(reply, decode)[0] is reply
    assert len(Wishes(stop=("a",)).cut(reply, decode)[0].ids) == 1


def test_a_processor_within_keeps_its_say() -> None:
    """A temperature of a processor's own comes before the wish, and the sets that it allows are recorded with it."""
    wishes, usual = Wishes(temperature=0.5), Sampling(max_tokens=3)
    scripts = [Scripted([list(range(3, 40))] * 3, hot) for hot in ({}, {1: 2.0})]
    engine = SlotEngine(tiny_model(), num_slots=2, max_length=512, end_ids=frozenset())
    found = []
    for reply in replies(engine, scripts, wishes.sampling(usual)):
        made = wishes.recorded(reply, usual).processing
        assert made is not None
        assert made.counts.tolist() == [37] * 3
        found.append(made.temperatures.tolist())
    assert found == [[0.5, 0.5, 0.5], [0.5, 2.0, 0.5]]


def test_a_wish_for_what_is_usual_changes_nothing() -> None:
    usual = Sampling(0.7, max_tokens=12)
    assert Wishes().sampling(usual) == usual
    (reply,) = replies(SlotEngine(tiny_model(), num_slots=1, max_length=512, end_ids=frozenset()), [None], usual)
    for same in (Wishes(), Wishes(temperature=0.7), Wishes(temperature=0.0)):
        assert same.recorded(reply, usual) is reply
