"""A world that returns what it should not: texts, rewards, flags and infos of every shape, in the middle of a game."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from tests.fuzz.harness import clear
from tests.fuzz.texts import changed, text, value
from tests.models import tiny_model, tokenizer
from turnwise.agents.actions import parse_action
from turnwise.agents.chat import ChatFormat
from turnwise.agents.collector import Collector
from turnwise.agents.episode import SuccessRule
from turnwise.agents.jobs import jobs_for
from turnwise.agents.prompts import AgentConfig
from turnwise.agents.roles import Roles
from turnwise.agents.seating import ModelAgent
from turnwise.envs.interface import AnyText
from turnwise.errors import AgentError
from turnwise.models.engine import Sampling, SlotEngine
from turnwise.replay.codec import from_record, to_record
from turnwise.runs.exporting import trajectory_row
from turnwise.runs.trajectories import Stored
from turnwise.trajectory import IntArray, Task, Trajectory, Turn

_TOOL = {"type": "function", "function": {"name": "look", "description": "Look.", "parameters": {"type": "object"}}}
_CALLED = {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "name": "look", "arguments": {"at": "mug"}}]}

SOUND: dict[str, Any] = {
    "admissible_actions": ["look", "wait"],
    "listed_actions": ["look"],
    "success": False,
    "score": 0.5,
    "valid": True,
    "anchor": "here",
    "state_key": "1",
    "task_type": "find",
    "answer": "42",
    "task": {"answer": ["42", 42], "answering": "<action>say {}</action>", "place": {"room": 3}},
    "messages": [
        {"role": "user", "content": "Where is it?"},
        _CALLED,
        {"role": "tool", "content": "", "tool_call_id": "1", "name": "look"},
    ],
    "after": 0,
    "tools": [_TOOL],
    "sampling": {
        "temperature": 0.5,
        "max_tokens": 3,
        "stop": ["e", "look"],
        "form": {
            "schema": {"type": "object", "properties": {"at": {"type": "string"}}},
            "one_call": True,
            "must": True,
        },
    },
    "ignored": ["top_p"],
}
"""A sound value for every key of ``info`` that is read in a world of one player."""

_OF_GAMES = ["player", "rewards", "successes", "scores"]
KEYS = [*SOUND, *_OF_GAMES, "x"]


class Strange(gymnasium.Env[str, str]):
    """Three turns. With ``oddity`` the chance of each value to be something else."""

    observation_space = AnyText()
    action_space = AnyText()

    def __init__(self, rng: random.Random, oddity: float) -> None:
        self.rng, self.oddity, self.turns = rng, oddity, 0
        self.instructions = self._odd(text(rng))

    def _odd(self, sound: Any) -> Any:
        if self.rng.random() >= self.oddity:
            return sound
        found = self.rng.choice([value(self.rng), text(self.rng), self._numpy(), b"bytes", ("a", 1), object])
        return found

    def _numpy(self) -> Any:
        kinds: list[Any] = [
            np.float32(0.5),
            np.float64("nan"),
            np.int64(1),
            np.bool_(True),
            np.array([1.0]),
            np.array([]),
        ]
        return self.rng.choice(kinds)

    def _info(self) -> Any:
        sound: dict[str, Any] = {name: SOUND[name] for name in ("success", "score", "valid", "admissible_actions")}
        for key in self.rng.choices(KEYS, k=3):
            if self.rng.random() < self.oddity:
                sound[key] = self._odd(changed(self.rng, SOUND.get(key)))
            elif key in ("task", "sampling", "ignored"):
                sound[key] = SOUND[key]
        return sound if self.rng.random() >= self.oddity / 4 else value(self.rng)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.turns = 0
        return self._odd(text(self.rng)), self._info()

    def step(self, action: str) -> Any:
        self.turns += 1
        odd = self._odd
        whole = odd(text(self.rng)), odd(float(self.turns == 3)), odd(self.turns == 3), odd(False), self._info()
        return whole if self.rng.random() >= self.oddity / 10 else value(self.rng)


class StrangeGame(Strange):
    """The same for two players in turn."""

    players = ("a", "b")

    def role(self, player: str) -> str:
        return player

    def _info(self) -> Any:
        found = super()._info()
        if isinstance(found, dict):
            sound: dict[str, Any] = {"player": self.players[self.turns % 2], "rewards": {"a": 0.0, "b": 1.0}}
            if self.turns == 3:
                sound |= {"successes": {"a": False, "b": True}, "scores": {"a": 0.0, "b": 1.0}}
            found = {**sound, **found} if self.rng.random() < 0.5 else {**found, **sound}
        return found


class StrangeChat(Strange):
    """The same in a chat with roles: requests go on from any turn before, or begin afresh."""

    def _info(self) -> Any:
        found = super()._info()
        if not isinstance(found, dict):
            return found
        after = self.rng.randrange(self.turns) if self.turns and self.rng.random() < 0.8 else None
        sound = {"messages": SOUND["messages"][:1] if after is None else SOUND["messages"][2:], "tools": SOUND["tools"]}
        return {**sound, **({} if after is None else {"after": after}), **found}


def world(rng: random.Random, folder: Path) -> str:
    """Two attempts by a real model in any context, in a game against itself: each ends in a sound trajectory that can
    be stored, or as a fault of the world.
    """
    kind = rng.choice([Strange, Strange, StrangeGame, StrangeChat])
    chats = kind is StrangeChat
    constrained = not chats and rng.random() < 0.2
    config = AgentConfig(
        context="roles" if chats else rng.choice(["full", "window"]),
        action_format="calls" if chats else rng.choice(["plain", "tags", "whole"]),
        tools_in="system",
        constrained=constrained,
        instructions=rng.random() < 0.5,
        show_admissible=rng.random() < 0.5,
        on_overflow=rng.choice(["end", "restart"]),
        max_context_tokens=768 if chats else 256,
        max_reply_tokens=8 if constrained else 4,
        max_turns=6,
    )
    made = random.Random(rng.random())
    oddity = rng.choice([0.0, 0.1, 0.3])
    agent = ModelAgent(_engine(), ChatFormat.of(tokenizer(), config) if chats else _chat(), config)
    rule = SuccessRule(rng.choice([None, 1.0]))
    collector = Collector(lambda: kind(made, oddity), agent, success=rule)
    task = Task("strange", "train", 0, "strange:0")
    try:
        played = collector.collect(jobs_for([task], 2, 0), Sampling(max_tokens=config.max_reply_tokens), None)
    except AgentError as error:  # what the world asks for cannot be done with these settings
        return clear(str(error))
    assert 2 <= len(played) <= (4 if kind is StrangeGame else 2)
    assert _engine().num_free == _engine().num_slots, "a slot was not given back"
    for trajectory in played:
        _check(trajectory, config)
    return " and ".join(sorted({t.end for t in played}))


def _check(trajectory: Trajectory, config: AgentConfig) -> None:
    assert trajectory.success in (True, False, None)
    assert trajectory.score is None or math.isfinite(trajectory.score)
    for turn in trajectory.turns:
        assert type(turn.observation) is str
        assert type(turn.reward) is float
        assert math.isfinite(turn.reward)
        assert type(turn.valid) is bool
        assert _controls(turn.prompt_ids) in _expected(turn, config), "a control token came from the world"
        if config.action_format != "calls":
            assert turn.action == parse_action(_chat().decode(turn.action_ids), config.action_format).text
    again = from_record(to_record(trajectory))
    assert again.episode == trajectory.episode
    assert trajectory_row(Stored(0, again))["turns"] == trajectory_row(Stored(0, trajectory))["turns"]
    if trajectory.end == "error":
        assert trajectory.end_reason.startswith("ValueError: "), trajectory.end_reason  # said by turnwise, on purpose


def _controls(ids: IntArray) -> int:
    return int(np.isin(ids, tokenizer().all_special_ids).sum())


def _expected(turn: Turn, config: AgentConfig) -> Collection[int]:
    """How many control tokens the prompt of a turn may have: as many as without the messages' texts."""
    if config.action_format != "calls":
        own = _controls(_chat().open(""))
        return (own, own + 1) if turn.continues else (own,)
    asked = json.loads(turn.request)
    if "after" in asked:  # what goes before it is in other turns
        return range(len(turn.prompt_ids))
    plain = [{**message, "content": "x"} for message in asked["messages"]]
    contexts = [Roles(ChatFormat.of(tokenizer(), config), config, instructions) for instructions in ("", "x")]
    return [_controls(context.begin("", {**asked, "messages": plain})) for context in contexts]


@cache
def _chat() -> ChatFormat:
    return ChatFormat(tokenizer())


@cache
def _engine() -> SlotEngine:
    return SlotEngine(tiny_model(), num_slots=2, max_length=768, end_ids=_chat().end_ids, threads=1)
