"""A chat with roles: the context goes on where the world says it does, with the exact tokens that were sampled."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from tests.agents.test_rendering import HERMES, LLAMA, TOOLS, called, result
from tests.agents.test_templates import bytes_of
from tests.models import TEXTS, TINY
from turnwise.agents.acting import Acting
from turnwise.agents.chat import ChatFormat
from turnwise.agents.collector import Collector
from turnwise.agents.jobs import jobs_for
from turnwise.agents.opening import new_context
from turnwise.agents.prompts import AgentConfig
from turnwise.agents.roles import Roles
from turnwise.agents.seating import ModelAgent, Seat
from turnwise.envs.interface import AnyText
from turnwise.envs.said import heard
from turnwise.envs.tasks import make_env, panel, start
from turnwise.models.engine import Sampling, SlotEngine
from turnwise.models.scratch import new_model, train_tokenizer
from turnwise.replay.batch import layout
from turnwise.trajectory import IntArray, group_by_task

USER = {"role": "user", "content": "Where is the mug?"}
CONFIG = {"context": "roles", "action_format": "calls"}


class Told(gymnasium.Env[str, str]):
    """Six requests, whatever is said: results, an earlier turn again, a helper's fresh context, and the first's again.

    After turn n comes the request ``PLAN[n]``: (the turn that it goes on from, the role of what is new).
    """

    PLAN = ((0, "tool"), (1, "user"), (0, "tool"), (None, "user"), (3, "tool"))
    observation_space = action_space = AnyText()

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.turn = 0
        return "Where?", {"messages": [{"role": "system", "content": "Be brief."}, USER], "tools": TOOLS}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.turn += 1
        if self.turn > len(self.PLAN):
            return "", 1.0, True, False, {"success": True}
        after, role = self.PLAN[self.turn - 1]
        text = f"answer {self.turn}"
        message = result(text) if role == "tool" else {"role": role, "content": text}
        asked = {"messages": [message], **({} if after is None else {"after": after})}
        return text, 0.0, False, False, {**asked, **({"tools": TOOLS} if after is None else {})}


gymnasium.register("tests/Told-v0", Told, disable_env_checker=True)


def chat_of(own: Any = None, **settings: Any) -> tuple[ChatFormat, AgentConfig]:
    config = AgentConfig(**{**CONFIG, **settings})
    return ChatFormat.of(own or bytes_of(HERMES), config), config


def spelled(chat: ChatFormat, ids: IntArray) -> str:
    return str(chat.tokenizer.decode(ids))


def agent(**settings: Any) -> ModelAgent:
    tokenizer = train_tokenizer(TEXTS, TINY.vocab_size, tools=True)
    chat, config = chat_of(tokenizer, **{"max_reply_tokens": 6, "max_context_tokens": 512, **settings})
    model = new_model(TINY.model_copy(update={"tools": True}), tokenizer, seed=0)
    engine = SlotEngine(model, num_slots=4, max_length=config.max_context_tokens, end_ids=chat.end_ids)
    return ModelAgent(engine, chat, config)


def played(num: int = 2, **settings: Any) -> tuple[ModelAgent, list[Any]]:
    made = agent(**settings)
    tasks = panel(make_env("tests/Told-v0"), "train")
    jobs = jobs_for([tasks[n] for n in range(num)], 2, 0)
    return made, Collector(lambda: make_env("tests/Told-v0"), made).collect(jobs, Sampling(max_tokens=6))


def test_each_request_goes_on_where_it_says() -> None:
    made, episodes = played()
    for episode in episodes:
        assert episode.end == "terminated"
        turns = episode.turns
        assert [turn.continues for turn in turns] == [False, True, True, False, False, False]
        again = np.concatenate([turns[0].prompt_ids, turns[0].action_ids])
        assert turns[3].prompt_ids[: len(again)].tolist() == again.tolist()
        added = spelled(made.chat, turns[3].prompt_ids[len(again) :])
        assert added.endswith("<|tool|>answer 3<|end|><|assistant|>")
        assert spelled(made.chat, turns[4].prompt_ids).count("answer") == 1
        # The last one goes on from turn 3, whose context is not the present one.
        third = np.concatenate([turns[3].prompt_ids, turns[3].action_ids])
        assert turns[5].prompt_ids[: len(third)].tolist() == third.tolist()
        assert spelled(made.chat, turns[5].prompt_ids).count("answer") == 2
        assert all(turn.request for turn in turns)


def test_recorded_tokens_give_the_recorded_logprobs() -> None:
    made, episodes = played()
    batch, model = layout(group_by_task(episodes)), made.engine.model  # type: ignore[attr-defined]
    compared = 0
    with torch.no_grad():
        for row, length in enumerate(batch.lengths.tolist()):
            ids = batch.tokens[row, :length]
            full = torch.log_softmax(model(ids[None]).logits[0], -1)[:-1].gather(-1, ids[1:, None])[:, 0]
            mask = batch.action_mask[row, 1:length]
            torch.testing.assert_close(full[mask], batch.behaviour_logprobs[row, 1:length][mask], atol=1e-4, rtol=0)
            compared += int(mask.sum())
    assert compared == sum(len(turn.action_ids) for episode in episodes for turn in episode.turns)


def test_a_full_context_opens_a_fresh_one_with_the_last_reply() -> None:
    _, whole = played(1)
    turns = whole[0].turns
    room = sum(len(turn.prompt_ids) for turn in turns[:3]) + sum(len(turn.action_ids) for turn in turns[:2]) + 6
    _, cut = played(1, max_context_tokens=room - 1)
    assert (cut[0].end, cut[0].end_reason) == ("truncated", "context")
    made, restarted = played(1, max_context_tokens=room - 1, on_overflow="restart")
    assert [turn.continues for turn in restarted[0].turns[:3]] == [False, True, False]
    text = spelled(made.chat, restarted[0].turns[2].prompt_ids)
    assert "Where is the mug?<|end|><|assistant|>" in text
    assert text.endswith("<|end|><|user|>answer 2<|end|><|assistant|>")
    assert "answer 1" not in text


@pytest.mark.parametrize("family", [HERMES, LLAMA])
def test_parallel_calls_and_broken_ones_are_answered_in_order(family: str) -> None:
    chat, config = chat_of(bytes_of(family))
    context = new_context(chat, config, "")
    context.begin("", {"messages": [USER], "tools": TOOLS})
    text = {
        HERMES: '<tool_call>{"name": "find", "arguments": {"query": "mug"}}</tool_call><tool_call>{"name"</tool_call>',
        LLAMA: '{"name": "find", "parameters": {"query": "mug"}}; {"name": "find", "parameters": {}}',
    }[family]
    seat = Seat(model=agent(), context=context)
    seat.model.chat = chat  # type: ignore[union-attr]
    action = seat.read(text)
    assert not action.valid
    assert [call.arguments for call in heard(action.text).calls] == [{"query": "mug"}]
    assert heard(action.text).fault
    answers = {"messages": [result("one"), result("what was wrong", 1)], "after": 0}
    added, continues = context.extend(chat.reply(text), action.text, "", answers)
    assert continues
    assert spelled(chat, added).index("one") < spelled(chat, added).index("what was wrong")


def test_a_call_where_no_tools_were_offered_is_text() -> None:
    text = '<tool_call>{"name": "find", "arguments": {}}</tool_call>'
    for tools, calls in ((TOOLS, 1), ((), 0)):
        context = new_context(*chat_of(), "")
        context.begin("", {"messages": [USER], "tools": tools})
        assert len(heard(Seat(model=agent(), context=context).read(text).text).calls) == calls


def test_system_messages_are_joined() -> None:
    chat, config = chat_of(system="You are an agent.", instructions=True)
    ids = new_context(chat, config, "Call tools.").begin("", {"messages": [USER]})
    assert "system\nYou are an agent.\n\nCall tools.<|im_end|>" in spelled(chat, ids)
    both = [{"role": "system", "content": "Be brief."}, USER]
    ids = new_context(chat, config, "Call tools.").begin("", {"messages": both})
    assert "You are an agent.\n\nCall tools.\n\nBe brief.<|im_end|>" in spelled(chat, ids)
    told = [{"role": "system", "content": "You are an agent.\n\nCall tools.\n\nBe brief."}, USER]
    assert ids.tolist() == new_context(chat, config, "Call tools.").begin("", {"messages": told}).tolist()


def test_a_fork_goes_its_own_way() -> None:
    chat, config = chat_of()
    context = Roles(chat, config)
    context.begin("", {"messages": [USER]})
    copy, reply = context.fork(), chat.reply("a")
    context.extend(reply, "a", "", {"messages": [{"role": "user", "content": "left"}], "after": 0})
    ids, _ = copy.extend(reply, "a", "", {"messages": [{"role": "user", "content": "right"}], "after": 0})
    assert "right" in spelled(chat, ids)
    assert "left" not in spelled(chat, copy.restart())


def test_what_does_not_fit_is_refused() -> None:
    chat, config = chat_of()
    with pytest.raises(ValueError, match=r"gives no info\['messages'\]"):
        new_context(chat, config, "").begin("You see a mug.", {})
    context = new_context(chat, config, "")
    context.begin("", {"messages": [USER]})
    with pytest.raises(ValueError, match=r"goes on from turn 1 .*one of the 1 turns before"):
        context.extend(chat.reply("a"), "a", "", {"messages": [USER], "after": 1})
    with pytest.raises(ValueError, match=r"needs agent\.action_format=calls"):
        Roles(ChatFormat(bytes_of(HERMES)), AgentConfig())
    plain = agent()
    plain.config = AgentConfig()
    with pytest.raises(ValueError, match=r"set agent\.context=roles agent\.action_format=calls"):
        Seat(model=plain).observe("", {"messages": [USER]}, "")


@pytest.mark.parametrize(
    ("info", "told"),
    [
        ({"messages": "x"}, "a list of dictionaries"),
        ({"messages": [{"role": "robot", "content": ""}]}, "a message with a role"),
        ({"messages": [{"role": "user", "content": None}]}, "text as its content"),
        ({"messages": [{"role": "tool", "content": ""}]}, "the tool_call_id"),
        ({"messages": [{**called("x"), "tool_calls": [{"name": "x"}]}]}, "a call with id, name and arguments"),
        ({"messages": [USER], "tools": [{"name": "f"}]}, "a schema as"),
        ({"messages": [USER], "after": "1"}, "the number of a turn"),
    ],
)
def test_a_world_that_asks_wrongly_is_told(info: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    env = make_env("tests/Told-v0")
    monkeypatch.setattr(Told, "reset", lambda self, **_: ("", info))
    with pytest.raises(ValueError, match=told):
        start(env, panel(env, "train")[0], 0)


def test_an_agent_acts_in_a_loop_of_yours() -> None:
    player, env = Acting(agent(), Sampling(max_tokens=6)), make_env("tests/Told-v0")
    observation, info = env.reset(seed=0)
    player.reset(seed=0)
    for _ in range(3):
        observation, _, _, _, info = env.step(player.act(observation, info))
    assert [turn.continues for turn in player._seat.turns] == [False, True, True]
    player.close()
