"""The right answer of a task: who tells it, how the agent would write it, and that the agent never sees it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from tests.agents.test_templates import TEMPLATES, bytes_of, pieces
from tests.faults.runs import config, trainer
from tests.models import tokenizer
from turnwise.agents.chat import ChatFormat
from turnwise.agents.prompts import AgentConfig
from turnwise.assembly.run import Assembly
from turnwise.envs.interface import AnyText
from turnwise.envs.search.env import SearchEnv
from turnwise.learning.answers import beliefs
from turnwise.replay.store import TrajectoryReader
from turnwise.training.answers import ReferenceAnswers, answers_of, check_answers
from turnwise.trajectory import Task, Trajectory, group_by_task

SECRET = "zebra"


class Safe(gymnasium.Env[str, str]):
    """Three turns in front of a safe. Its word is told as the answer, and shown to nobody."""

    observation_space = action_space = AnyText()

    def __init__(self, told: Any = None) -> None:
        self.told = {"answer": SECRET} if told is None else told

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return f"a safe at cabinet {int(self.np_random.integers(1, 5))}", {"task": self.told}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return f"closed {self.steps}", float(len(action) % 3), self.steps == 3, False, {}


gymnasium.register("tests/Safe-v0", Safe, disable_env_checker=True)
SAFE = "env.id=tests.training.test_answers:tests/Safe-v0"


def episode(**told: Any) -> Trajectory:
    task = Task("test", "train", 0, "key")
    return Trajectory("e", task, 0, 0, (), "terminated", None, None, given=json.dumps(told))


def told_by(chat: ChatFormat, agent: AgentConfig, **told: Any) -> list[tuple[str, str]]:
    """Each target as text: what stands before the answer, and the answer."""
    found = ReferenceAnswers(chat, agent).targets(episode(**told))
    return [(chat.decode(t.ids[: t.start]), chat.decode(t.ids[t.start :])) for t in found]


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("make", [bytes_of, pieces], ids=["bytes", "pieces"])
@pytest.mark.parametrize("style", ["plain", "tags"])
def test_an_answer_is_spelled_as_a_reply_that_gives_it(make: Any, template: str, style: Any) -> None:
    """It begins as the demonstrated reply does, and the answer's own tokens are its text, and no more.

    The last ones may differ, where a template writes white space behind replies that joins them.
    """
    chat, agent = ChatFormat(make(template)), AgentConfig(action_format=style)
    (target,) = ReferenceAnswers(chat, agent).targets(episode(answer="red mug", answering="say: {}."))
    before = "<action>say: " if style == "tags" else "say: "
    assert chat.decode(target.ids) == f"{before}red mug"
    assert chat.decode(target.ids[: target.start]).strip() == before.strip()
    reply = chat.reply(f"{before}red mug")
    assert target.ids[: target.start + 1].tolist() == reply[: target.start + 1].tolist()


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_where_the_answer_is_the_whole_action_the_templates_white_space_is_no_part_of_it(template: str) -> None:
    """Llama 2's template and the spoken one have a space before a reply, which a model is sure of."""
    chat = ChatFormat(bytes_of(template))
    (target,) = ReferenceAnswers(chat, AgentConfig()).targets(episode(answer="red"))
    assert chat.tokenizer.decode(target.ids[target.start :]) == "red"


def test_the_action_that_answers_and_several_answers() -> None:
    chat = ChatFormat(tokenizer())
    assert told_by(chat, AgentConfig(), answer="red") == [("", "red")]
    several = told_by(chat, AgentConfig(), answer=["red", 7], answering="answer: {}")
    assert [before.strip() for before, _ in several] == ["answer:", "answer:"]
    assert [answer.strip() for _, answer in several] == ["red", "7"]


def test_a_thought_that_the_template_opens_is_closed() -> None:
    opened = TEMPLATES["chatml"].replace("assistant\\n'", "assistant\\n<think>\\n'")
    chat = ChatFormat(bytes_of(opened))
    assert chat.opens_thought
    ((before, answer),) = told_by(chat, AgentConfig(), answer="red")
    assert before.endswith("</think>\n\n")
    assert answer.endswith("red")


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({}, "it has nothing"),
        ({"question": "Who?"}, "it has question"),
        ({"answer": ""}, "'answer' is ''"),
        ({"answer": []}, r"'answer' is '\[\]'"),
        ({"answer": ["a", None]}, "'answer' is"),
        ({"answer": "a", "answering": "say it"}, r"\['answering'\] is 'say it'; expected the action"),
    ],
)
def test_what_is_no_answer_is_told_of(told: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"algorithm=igpo asks how probable .*{said}"):
        check_answers("igpo", told)


def test_a_task_without_an_answer_is_named() -> None:
    with pytest.raises(ValueError, match=r"task 0 of 'train' is to be learned .*no answer in info\['task'\]"):
        ReferenceAnswers(ChatFormat(tokenizer()), AgentConfig()).targets(episode(question="Who?"))


def test_a_world_without_answers_is_refused_before_anything_is_made(model: Path) -> None:
    quiet = config(model, "algorithm=igpo", "env.id=tests.worlds:tests/Echo-v0")
    with pytest.raises(ValueError, match=r"algorithm=igpo .*no answer in info\['task'\].*it has nothing"):
        _ = Assembly(quiet).panels
    spoken = config(model, "algorithm={type: epo, base: {type: igpo}}", SAFE, "env.kwargs.told={answer: ''}")
    with pytest.raises(ValueError, match=r"algorithm=epo .*'answer' is ''"):
        _ = Assembly(spoken).panels
    assert Assembly(config(model, "algorithm=igpo", SAFE)).panels.train


def test_searches_tell_their_answers_when_they_begin() -> None:
    env = SearchEnv()
    _, info = env.reset(options={"split": "train", "task": 3})
    question = env.rules.source.question("train", 3)
    assert info["task"] == {"answer": list(question.answers), "answering": "answer: {}"}
    answer = info["task"]["answering"].replace("{}", answers_of(info["task"])[0])
    assert "task" not in env.step("search: nothing")[-1]
    assert env.step(answer)[1] == 1.0
    _, info = SearchEnv(protocol="search_r1").reset(options={"split": "train", "task": 3})
    assert info["task"]["answering"] == "<answer> {} </answer>"


def test_the_policy_is_asked_and_the_agent_sees_nothing(model: Path, tmp_path: Path) -> None:
    """In a run: beliefs are the model's own log-probs behind each turn's context, and no token spells the answer."""
    made = trainer(config(model, "algorithm={type: igpo, kl_coef: 0.0}", SAFE), tmp_path / "run")
    side = made.sides[0]
    references = side.learner.references
    assert references is not None
    part = side.learner.recipe["fresh"].estimator
    assert part is not None
    expected: list[float] = []
    estimate = part.estimate

    @torch.no_grad()
    def spy(stream: Any) -> Any:
        network = side.policy.model.eval()
        for group in stream.samples.groups:
            for played in group.trajectories:
                (target,) = references.targets(played)
                for turn in range(len(played.turns)):
                    ids = torch.tensor([[*played.context(turn).tolist(), *target.ids.tolist()]])
                    said = network(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
                    expected.append(float(said[-(len(target.ids) - target.start) :].mean()))
        torch.testing.assert_close(
            stream.beliefs, torch.tensor(expected, dtype=torch.float64), rtol=1e-4, atol=1e-4, check_dtype=True
        )
        return estimate(stream)

    part.estimate = spy  # type: ignore[method-assign]
    made.step()
    assert len(expected) == 2 * 4 * 3
    line = made.run.metrics()[-1]
    assert 0 < line["mechanisms/GainCredit/mean_belief"] < 1
    assert line["advantage_std"] > 0.1
    stored = list(TrajectoryReader(made.run.trajectories_path))
    assert {t.given for t in stored} == {json.dumps({"answer": SECRET})}
    for turn in (turn for played in stored for turn in played.turns):
        shown = side.policy.tokenizer.decode(turn.prompt_ids)
        assert "closed" in shown or "a safe" in shown
        assert SECRET not in shown


def test_equal_beliefs_are_no_gains(model: Path, tmp_path: Path) -> None:
    """An answer that the context says nothing about is not told from another by rounding: episodes cut to one turn."""
    made = trainer(config(model, "algorithm={type: igpo, kl_coef: 0.0}", SAFE), tmp_path / "run")
    made.step()
    stored = list(TrajectoryReader(made.run.trajectories_path))
    learner = made.sides[0].learner
    assert learner.references is not None
    groups = group_by_task([replace(t, turns=t.turns[:1]) for t in stored])
    found = beliefs(groups, learner.references, lambda batch: learner._scored(batch)[0])
    for values in np.split(found.numpy(), len(groups)):
        assert np.ptp(values) < 1e-5, "attempts at one task begin alike"
