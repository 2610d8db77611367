"""Episodes without a model, and judges that answer as told."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tests.chat_server import Response, completion
from turnwise.trajectory import Task, Trajectory, Turn

NONE = (np.zeros(0, np.int32), np.zeros(0, np.float32))


def turn(observation: str, reply: str, reward: float = 0.0) -> Turn:
    return Turn(observation, NONE[0], False, NONE[0], NONE[1], NONE[1], reply, reply, True, reward)


def episode(*said: str, given: Mapping[str, Any] | None = None, success: bool | None = None, **more: Any) -> Trajectory:
    turns = tuple(turn(f"observation {n}", reply, float(n)) for n, reply in enumerate(said))
    task = Task("tests/None-v0", "train", 0, "key")
    made = Trajectory("train-0-0-0", task, 0, 0, turns, "terminated", success, None)
    return replace(made, given=json.dumps(given) if given else "", **more)


def verdict(**choices: str) -> str:
    """An answer with these choices."""
    return json.dumps({"verdict": [{"criterion": n, "reason": f"of {n}", "choice": c} for n, c in choices.items()]})


def shown(body: Mapping[str, Any]) -> str:
    """The record that a request quotes, between the marks."""
    text = body["messages"][1]["content"]
    line = next(line for line in text.splitlines() if line.startswith("====="))
    before, record, _ = text.split(f"\n{line}\n")
    assert line.split()[1] in before
    return str(record)


def judging(worth: Callable[[Sequence[dict[str, str]]], Mapping[str, str]]) -> Callable[[dict[str, Any]], Response]:
    """A server whose choices depend on the record, as lines; those of criteria that are not asked are left out."""

    def answer(body: dict[str, Any]) -> Response:
        chosen = worth([json.loads(line) for line in shown(body).splitlines()])
        asked = body["messages"][1]["content"].partition("=====")[0]
        return completion(verdict(**{n: c for n, c in chosen.items() if f'- "{n}": ' in asked}), 100, 20)

    return answer
