"""Examples: short, varied, won, the same for the same settings, and on by default only where they can be made."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.agents.test_rendering import HERMES
from tests.agents.test_templates import bytes_of
from tests.models import tokenizer
from turnwise.agents.chat import ChatFormat
from turnwise.agents.opening import Example, check_room, new_context, read_examples, write_examples
from turnwise.agents.prompts import USUAL_EXAMPLES, AgentConfig
from turnwise.cloning.demonstrations import Demonstration, demonstrations
from turnwise.cloning.examples import examples_for
from turnwise.cloning.rows import rows_of
from turnwise.cloning.settings import WarmstartConfig
from turnwise.envs.said import heard
from turnwise.envs.tasks import make_env, panel

SQL = "turnwise/SQL-v0"
SEARCH, ECHO, NIM = "turnwise/Search-v0", "tests.worlds:tests/Echo-v0", "tests.worlds:tests/Nim-v0"


def test_examples_are_short_and_of_different_types() -> None:
    env = make_env(SEARCH)
    made = examples_for(env, AgentConfig(examples=3), usual=False)
    assert made == examples_for(env, AgentConfig(examples=3), usual=True)
    assert made != examples_for(env, AgentConfig(examples=3, examples_seed=1), usual=True)
    by_key = {task.key: task for task in panel(env, "demonstrations")[:100_000:1] if task.key in {e.task for e in made}}
    assert sorted(by_key[each.task].type for each in made) == ["1-hop", "2-hop", "comparison"]
    lengths = [sum(map(len, each.observations)) for each in made]
    assert lengths == sorted(lengths)
    for each in made:
        assert each.actions[0].startswith("search: ")
        assert each.actions[-1].startswith("answer: ")
        assert len(each.observations) == len(each.admissible) == len(each.actions) > 1


def test_usual_examples_are_left_out_where_none_can_be_made() -> None:
    assert len(examples_for(make_env(SEARCH), AgentConfig(), usual=True)) == USUAL_EXAMPLES
    assert examples_for(make_env(SEARCH), AgentConfig(), usual=False) == ()
    assert examples_for(make_env(SEARCH), AgentConfig(examples=0), usual=True) == ()
    for world, why in ((ECHO, "has no expert"), (NIM, "this is a game")):
        assert examples_for(make_env(world), AgentConfig(), usual=True) == ()
        with pytest.raises(ValueError, match=rf"agent.examples=1: .*{why}.*agent.examples=0"):
            examples_for(make_env(world), AgentConfig(examples=1), usual=True)
    with pytest.raises(ValueError, match=r"agent.examples=1: Unknown split 'demos'.*agent.examples_split"):
        examples_for(make_env(SEARCH), AgentConfig(examples=1, examples_split="demos"), usual=True)


def test_a_world_without_a_split_for_experts_shows_tasks_of_train() -> None:
    env = make_env("tests.worlds:tests/Cue-v0")
    assert examples_for(env, AgentConfig(), usual=True) == ()
    made = examples_for(env, AgentConfig(examples=USUAL_EXAMPLES), usual=True)
    assert {each.task for each in made} <= {task.key for task in panel(env, "train")}
    assert made == examples_for(env, AgentConfig(examples=USUAL_EXAMPLES, examples_split="train"), usual=True)
    with pytest.raises(ValueError, match="unknown split 'demos'"):
        examples_for(env, AgentConfig(examples=1, examples_split="demos"), usual=True)


def test_the_tokens_of_examples_are_not_cloned() -> None:
    env, chat = make_env(SEARCH), ChatFormat(tokenizer())
    shown = Demonstration(("question", "found"), ({}, {}), ("search: it", "answer: it"), (True, True), True)
    for context, num in (("full", 1), ("window", 2)):
        agent = AgentConfig(context=context, examples=1, max_context_tokens=4096)
        examples = examples_for(env, agent, usual=True)
        with_, without = (rows_of(shown, chat, agent, "", 0.1, some) for some in (examples, ()))
        assert len(with_) == len(without) == num
        for row, plain in zip(with_, without, strict=True):
            assert len(row.ids) > len(plain.ids)
            assert row.weights.sum() == pytest.approx(plain.weights.sum(), abs=0.11)  # the first token has other ids
            ahead = int(np.flatnonzero(row.weights)[0])
            assert ahead >= len(row.ids) - len(plain.ids) - 1


ROLES = {"context": "roles", "action_format": "calls", "max_context_tokens": 30_000}


def test_in_roles_examples_are_calls_and_their_results() -> None:
    """They stand behind the system message, as the chat template shows any turn; by default there are none."""
    env, agent = make_env(SQL), AgentConfig(**ROLES, examples=2, system="Be brief.")
    assert examples_for(env, AgentConfig(**ROLES), usual=True) == ()
    examples = examples_for(env, agent, usual=True)
    chat = ChatFormat.of(bytes_of(HERMES), agent)
    _, info = env.reset(options={"split": "train", "task": 0})
    text = chat.tokenizer.decode(new_context(chat, agent, "", examples).begin("", info))
    own = info["messages"][-1]["content"]
    questions = [json.loads(each.requests[0])["messages"][-1]["content"] for each in examples]
    places = [text.index(part) for part in ("Be brief.", *questions, own)]
    assert places == sorted(places)
    assert text.startswith("<|im_start|>system")
    assert text.count("<|im_start|>system") == 1
    calls = [call for each in examples for action in each.actions for call in heard(action).calls]
    assert text.count("<tool_call>") == len(calls) == text.count("<tool_response>") > 2
    assert text.count("<|im_start|>assistant") == sum(len(each.actions) for each in examples) + 1
    without = chat.tokenizer.decode(new_context(chat, agent, "").begin("", info))
    assert text.endswith(without[without.rindex("<|im_start|>user") :])


def test_in_roles_examples_stay_in_every_context() -> None:
    env, agent = make_env(SQL), AgentConfig(**ROLES, examples=1)
    examples = examples_for(env, agent, usual=True)
    chat = ChatFormat.of(bytes_of(HERMES), agent)
    context = new_context(chat, agent, "", examples)
    _, info = env.reset(options={"split": "train", "task": 0})
    context.begin("", info)
    reply = chat.reply("Let me see.")
    question = json.loads(examples[0].requests[0])["messages"][-1]["content"]
    later = {"messages": [{"role": "user", "content": "Go on."}], "after": 0}
    added, continues = context.fork().extend(reply, "Let me see.", "", later)
    assert continues
    assert question not in chat.tokenizer.decode(added)
    context.extend(reply, "Let me see.", "", later)
    assert chat.tokenizer.decode(context.restart()).count(question) == 1
    fresh = {"messages": [{"role": "user", "content": "Anew."}]}
    assert chat.tokenizer.decode(context.extend(reply, "x", "", fresh)[0]).count(question) == 1


def test_in_roles_the_tokens_of_examples_are_not_cloned() -> None:
    env, agent = make_env(SQL), AgentConfig(**ROLES, examples=2, system="Be brief.")
    chat, examples = ChatFormat.of(bytes_of(HERMES), agent), examples_for(env, agent, usual=True)
    shown = next(demonstrations(env, WarmstartConfig(noise=0.0), 0))
    (row,), (plain,) = (rows_of(shown, chat, agent, "", 0.1, some) for some in (examples, ()))
    learned = int((plain.weights == 1.0).sum())
    assert int((row.weights == 1.0).sum()) == learned > 10
    ahead = int(np.flatnonzero(row.weights)[0])
    behind = chat.tokenizer.decode(row.ids[ahead:])
    assert behind.lstrip("\n").startswith("<|im_start|>user")
    assert shown.infos[0]["messages"][-1]["content"] in behind


def test_in_roles_examples_that_leave_no_room_are_named() -> None:
    env, agent = make_env(SQL), AgentConfig(**ROLES, examples=1)
    chat, examples = ChatFormat.of(bytes_of(HERMES), agent), examples_for(env, agent, usual=True)
    check_room(chat, agent, "", examples)
    small = agent.model_copy(update={"max_context_tokens": 200})
    with pytest.raises(ValueError, match=r"agent\.examples=1: the examples take \d+ tokens"):
        check_room(chat, small, "", examples)
    flat = (Example(("You see.",), (None,), ("go",)),)
    with pytest.raises(ValueError, match="speaks in observations"):
        new_context(chat, agent, "", flat)


def test_what_was_asked_is_stored_with_an_example(tmp_path: Path) -> None:
    examples = examples_for(make_env(SQL), AgentConfig(**ROLES, examples=1), usual=True)
    write_examples(tmp_path, examples)
    assert read_examples(tmp_path) == examples
