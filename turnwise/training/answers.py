"""The right answers of a run's tasks, spelled as its agent would give them.

A world tells them in ``info["task"]`` of a reset, which the agent does not see and which is stored with the episode:

    answer      the answer: a text or a number, or a list of those that are right
    answering   the action that gives an answer, which stands in the place of {}. Without it the answer is the action
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from itertools import takewhile
from typing import Any

import numpy as np

from turnwise.agents.actions import written
from turnwise.agents.chat import ChatFormat
from turnwise.agents.prompts import AgentConfig
from turnwise.learning.answers import Target
from turnwise.trajectory import Trajectory

_PLACE = "{}"


class ReferenceAnswers:
    """Spells a task's answers as replies of an agent, without a thought, up to the end of the answer."""

    def __init__(self, chat: ChatFormat, config: AgentConfig) -> None:
        self._chat, self._config = chat, config
        self._target = lru_cache(maxsize=4096)(self._spelled)

    def targets(self, episode: Trajectory) -> list[Target]:
        """As of ``References``."""
        told, task = episode.told(), episode.task
        try:
            return [self._target(answer, answering_of(told)) for answer in answers_of(told)]
        except ValueError as error:
            raise ValueError(f"task {task.index} of {task.split!r} is to be learned from its answer: {error}") from None

    def _spelled(self, answer: str, answering: str) -> Target:
        """The answer's own tokens are those after what it has in common with the reply that stops before it."""
        reply = written(answering, self._config.action_format, self._chat.dialect).partition(_PLACE)[0]
        before = ("</think>\n\n" if self._chat.opens_thought else "") + reply
        ids, ahead = self._chat.start(before + answer), self._chat.start(before)
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids, ahead, strict=False)))
        return Target(np.asarray(ids, np.int32), common)


def check_answers(algorithm: str, told: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the algorithm, where what a world tells of a task holds no right answer."""
    try:
        answers_of(told)
        answering_of(told)
    except ValueError as error:
        raise ValueError(f"algorithm={algorithm} asks how probable right answers are: {error}") from None


def answers_of(told: Mapping[str, Any]) -> list[str]:
    """The right answers among what a world tells of a task, at least one. Raises ValueError where it tells none."""
    given = told.get("answer")
    listed = given if isinstance(given, list) else [given]
    found = [str(each).strip() for each in listed if isinstance(each, str | int | float)]
    if found and len(found) == len(listed) and all(found):
        return found
    there = f"'answer' is {str(given)[:60]!r}" if "answer" in told else f"it has {', '.join(told) or 'nothing'}"
    raise ValueError(
        f"no answer in info['task'] of the world's reset ({there}); expected {{'answer': 'Paris'}}, or a list of "
        "texts and numbers. In a file of tasks it is the column answer, or another one with "
        "env.kwargs.fields={answer: COLUMN}; without answers take another algorithm"
    )


def answering_of(told: Mapping[str, Any]) -> str:
    """The action that gives an answer, with {} in its place. Raises ValueError where it has no place."""
    found = told.get("answering", _PLACE)
    if isinstance(found, str) and _PLACE in found:
        return found
    raise ValueError(
        f"info['task']['answering'] is {str(found)[:60]!r}; expected the action that gives an answer, such as "
        f"'answer: {_PLACE}'"
    )
