"""Examples: short, varied, won, the same for the same settings, and on by default only where they can be made."""

from __future__ import annotations

import numpy as np
import pytest

from tests.models import tokenizer
from turnwise.agents.chat import ChatFormat
from turnwise.agents.prompts import USUAL_EXAMPLES, AgentConfig
from turnwise.cloning.demonstrations import Demonstration
from turnwise.cloning.examples import examples_for
from turnwise.cloning.rows import rows_of
from turnwise.envs.tasks import make_env, panel

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
