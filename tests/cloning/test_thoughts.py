"""Experts that think aloud: the thought stands before the action in a reply, and the world gets the action alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.cloning.test_takeovers import agent, config, played, taken
from tests.levers import ACTIONS, Levers, Puller
from tests.models import tokenizer
from turnwise.agents.actions import parse_action, written
from turnwise.agents.chat import ChatFormat
from turnwise.agents.jobs import Job
from turnwise.agents.prompts import AgentConfig
from turnwise.cloning.demonstrations import demonstrate, shown_texts
from turnwise.cloning.rows import rows_of, takeover_rows
from turnwise.cloning.settings import WarmstartConfig
from turnwise.envs.interface import Thinks
from turnwise.envs.process import ProcessEnv
from turnwise.envs.tasks import expert_of
from turnwise.trajectory import Task

TASK = Task("test/Levers-v0", "train", 3, "3")


class Thinker(Puller):
    """Says which turn it is, and thinks nothing at the second."""

    told: Any = None
    turn = 0

    def act(self, observation: str, info: dict[str, Any]) -> str:
        self.turn += 1
        return super().act(observation, info)

    def thought(self) -> Any:
        return self.told if self.told is not None else f" this is turn {self.turn}\n" if self.turn != 2 else ""


class Thoughtful(Levers):
    def expert(self, kind: str = "searching", *, seed: int = 0) -> Thinker:
        return Thinker(seed)


def test_a_demonstration_has_the_thought_and_the_world_the_action() -> None:
    (shown,) = demonstrate(Thoughtful(), TASK, WarmstartConfig(noise=0.0), seed=0)
    assert shown.thoughts == ("this is turn 1", "", "this is turn 3")
    assert shown.success
    assert set(shown.actions) <= set(ACTIONS)
    turns = zip(shown.thoughts, shown.actions, strict=True)
    replies = [f"<think>\n{thought}\n</think>\n\n{action}" for thought, action in turns]
    replies[1] = shown.actions[1]
    assert shown_texts(shown, AgentConfig())[-3:] == replies
    assert [parse_action(reply, "plain").text for reply in replies] == list(shown.actions)
    (row,) = rows_of(shown, ChatFormat(tokenizer()), AgentConfig(max_context_tokens=4096), "", 0.0)
    learned = tokenizer().decode(row.ids[row.weights == 1.0])
    assert learned == "".join(f"{reply}<|end|>" for reply in replies)


def test_another_action_has_no_thought() -> None:
    (shown,) = demonstrate(Thoughtful(), TASK, WarmstartConfig(noise=1.0), seed=0)
    assert shown.thoughts == ("", "", "")


def test_an_expert_that_takes_over_thinks_too() -> None:
    env, who = Thoughtful(), agent()
    plays = played(env, Job(TASK), who, lambda *_: "wait", until=2)
    (made,) = taken(env, Job(TASK), plays, who, of=config(share=1.0))
    assert made.fork is not None
    turn = made.turns[made.fork.turn]
    said = ["this is turn 1", "", "this is turn 3"][made.fork.turn]
    assert turn.reply == written(turn.action, "plain", thought=said)
    assert turn.action in ACTIONS
    (row,) = takeover_rows(made, who.chat, who.config, "", 0.0)
    learned = tokenizer().decode(row.ids[row.weights == 1.0])
    assert learned == "".join(f"{each.reply}<|end|>" for each in made.turns[made.fork.turn :])


@pytest.mark.parametrize("told", [3, "so <think>"])
def test_what_is_no_thought_is_refused(told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Thinker, "told", told)
    with pytest.raises(ValueError, match=r"the expert's thought is .*; expected a string without <think> tags"):
        demonstrate(Thoughtful(), TASK, WarmstartConfig(), seed=0)


@pytest.mark.parametrize("source", ["turnwise/WebShop-v0", "turnwise/FrozenLake-v0"])
def test_an_expert_in_a_process_of_its_own_thinks_as_it_does_here(source: str) -> None:
    env = ProcessEnv(source)
    observation, info = env.reset(seed=1)
    kind = "thinking" if "WebShop" in source else "searching"
    expert = expert_of(env, kind, 0)
    expert.begin(observation, info)
    expert.act(observation, info)
    assert isinstance(expert, Thinks) == ("WebShop" in source)
    if isinstance(expert, Thinks):
        assert expert.thought() == "left 15"
    env.close()


def test_a_header_that_opens_a_thought_is_not_followed_by_another() -> None:
    from tests.agents.test_templates import _CHATML, _roles, bytes_of

    chat = ChatFormat(bytes_of(_roles(_CHATML, _CHATML, "'<|im_start|>assistant\\n<think>\\n'")))
    thought = chat.reply(written("south", "plain", thought="north?"))
    assert np.array_equal(thought[:-1], chat._spelled("north?\n</think>\n\nsouth"))
    assert np.array_equal(chat.reply("south")[:-1], chat._spelled("</think>\n\nsouth"))
