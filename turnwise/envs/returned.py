"""Checks of what a world returned, so that a mistake in it gives an error and not a wrong number in training.

Every function raises ValueError, which says what the world returned and what was expected. ``players`` are the names of
a game's players. In a world of one player they are (), and the keys of ``info`` about players are not checked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from turnwise.envs.forms import is_form
from turnwise.envs.interface import Info, Panel, TextEnv, sampling_of, world_name
from turnwise.heat import LEAST_TEMPERATURE
from turnwise.trajectory import Task

_FLAGS = (bool, np.bool_, int)
_NUMBERS = (int, float, np.number)  # a bool is an int
_LARGEST = 1e100  # of a reward: a variance of larger ones is infinite, and every advantage then 0
_REWARD = "a finite number of at most 1e100"
_KEY = "a string, or a tuple of whole numbers and such tuples"
_ROUNDING = 1e-6  # by which a sum of shares may miss 0 and 1
_ROLES = ("system", "user", "assistant", "tool")
_CALL = {"id": str, "name": str, "arguments": Mapping}

_PARTS = {
    "reset": ("observation", "info"),
    "step": ("observation", "reward", "terminated", "truncated", "info"),
}


def unfitting(env: TextEnv, call: str, why: str) -> ValueError:
    """Of something that could not even be looked at, because a wrapper failed on it: ``why``."""
    parts = ", ".join(_PARTS[call])
    return ValueError(f"{world_name(env)} returned from {call} something else than a tuple ({parts}): {why}")


def check_parts(env: TextEnv, call: str, returned: object) -> tuple[Any, ...]:
    """What ``reset`` or ``step`` (``call``) returned, which must be a tuple of the length that gymnasium defines."""
    if not isinstance(returned, tuple) or len(returned) != len(_PARTS[call]):
        raise _wrong(env, f"from {call}", returned, f"a tuple ({', '.join(_PARTS[call])})")
    return returned


def check_seen(env: TextEnv, observation: object, info: object, players: Collection[str] = ()) -> None:
    """Check observation and ``info``, which both ``reset`` and ``step`` return."""
    if not isinstance(observation, str):
        raise _wrong(env, "the observation", observation, "a string")
    if not isinstance(info, dict):
        raise _wrong(env, "info", info, "a dictionary")
    _check_info(env, info)
    if players:
        _check_told(env, info, players)


def check_step(
    env: TextEnv, reward: object, terminated: object, truncated: object, info: Info, players: Collection[str] = ()
) -> None:
    """Check reward and flags of a ``step``. A game must give all rewards, and at its end all successes."""
    if not _is_reward(reward):
        raise _wrong(env, "the reward", reward, _REWARD)
    for name, flag in (("terminated", terminated), ("truncated", truncated)):
        if not isinstance(flag, _FLAGS):
            raise _wrong(env, name, flag, "True or False")
    if players and "rewards" not in info:
        raise _missing(env, "rewards", players, "of this step")
    if players and terminated and set(info.get("successes") or ()) != set(players):
        raise _missing(env, "successes", players, "after the end")


def check_turn(env: TextEnv, info: Info, players: Collection[str]) -> None:
    """Check that a game which has not ended says whose turn it is."""
    if players and info.get("player") not in players:
        raise _wrong(env, "info['player']", info.get("player"), f"whose turn it is, one of {', '.join(players)}")


def check_key(env: TextEnv, info: Info) -> None:
    """Check the key of a state, of one for each episode: a text within a tuple has another hash in every process."""
    if isinstance(found := info.get("state_key"), tuple) and not _is_key(found):
        raise _wrong(env, "info['state_key']", found, _KEY)


def _is_key(found: object) -> bool:
    return all(map(_is_key, found)) if isinstance(found, tuple) else isinstance(found, int)


def check_tasks(env: TextEnv, split: str, found: Any) -> None:
    """Check what ``tasks(split)`` returned: tasks, and at least one."""
    listed = isinstance(found, Sequence) and not isinstance(found, str)
    if not isinstance(found, Panel) and not (listed and all(isinstance(task, Task) for task in found)):
        raise _wrong(
            env,
            f"for tasks({split!r})",
            found,
            "a turnwise.envs.interface.Panel of tasks (give the method another name if it is something else)",
        )
    if not len(found):
        raise ValueError(f"{world_name(env)} has no tasks in split {split!r}")


def _check_info(env: TextEnv, info: Info) -> None:
    if info.get("success") is not None and not _is_flag(info["success"]):
        raise _wrong(env, "info['success']", info["success"], "True or False")
    if info.get("score") is not None and not _is_share(info["score"]):
        raise _wrong(env, "info['score']", info["score"], "a number in [0, 1]")
    if info.get("valid") is not None and not _is_flag(info["valid"]):
        raise _wrong(env, "info['valid']", info["valid"], "True or False")
    for name in ("task_type", "anchor"):
        if not isinstance(info.get(name, ""), str | None):
            raise _wrong(env, f"info[{name!r}]", info[name], "a string")
    if not isinstance(info.get("state_key", ""), str | tuple | None):
        raise _wrong(env, "info['state_key']", info["state_key"], _KEY)
    if info.get("messages") is not None:
        _check_asked(env, info)
    _check_wishes(env, sampling_of(info))
    for name in ("admissible_actions", "listed_actions"):
        actions = info.get(name)
        if actions is None:
            continue
        if isinstance(actions, str) or not isinstance(actions, Sequence):
            raise _wrong(env, f"info[{name!r}]", actions, "a list of strings")
        for action in actions:
            if not isinstance(action, str):
                raise _wrong(env, f"in info[{name!r}]", action, "a string")


def _check_asked(env: TextEnv, info: Info) -> None:
    """Check what a world asks in roles: messages, the turn that they follow, and tools."""
    for message in _list_of(env, "messages", info):
        calls = message.get("tool_calls") if isinstance(message, Mapping) else None
        if not isinstance(message, Mapping) or message.get("role") not in _ROLES:
            raise _wrong(env, "in info['messages']", message, f"a message with a role, one of {', '.join(_ROLES)}")
        if not isinstance(message.get("content"), str):
            raise _wrong(env, "in info['messages']", message, "a message with text as its content")
        if message["role"] == "tool" and not isinstance(message.get("tool_call_id"), str):
            raise _wrong(env, "in info['messages']", message, "the tool_call_id of the call that this answers")
        for call in calls or ():
            if not isinstance(call, Mapping) or not all(isinstance(call.get(k), kind) for k, kind in _CALL.items()):
                raise _wrong(env, "in tool_calls", call, "a call with id, name and arguments (a dictionary)")
    for tool in _list_of(env, "tools", info):
        about = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(about, Mapping) or not isinstance(about.get("name"), str):
            raise _wrong(env, "in info['tools']", tool, "a schema as {'type': 'function', 'function': {'name', ...}}")
        if not isinstance(about.get("parameters") or {}, Mapping):
            raise _wrong(env, "in info['tools'] the parameters", about["parameters"], "a dictionary (a JSON schema)")
    if info.get("after") is not None and not isinstance(info["after"], (int, np.integer)):
        raise _wrong(env, "info['after']", info["after"], "the number of a turn")


def _check_wishes(env: TextEnv, wishes: Mapping[str, Any]) -> None:
    """Check what a world wishes of the next reply (``info["sampling"]``)."""
    for name, (fits, kind) in _WISHES.items():
        if wishes.get(name) is not None and not fits(wishes[name]):
            raise _wrong(env, f"info['sampling'][{name!r}]", wishes[name], kind)


def _list_of(env: TextEnv, name: str, info: Info) -> Sequence[Any]:
    found = info.get(name)
    if found is not None and (isinstance(found, str) or not isinstance(found, Sequence)):
        raise _wrong(env, f"info[{name!r}]", found, "a list of dictionaries")
    return found or ()


def _check_told(env: TextEnv, info: Info, players: Collection[str]) -> None:
    """Check the keys of a game's ``info`` that hold a value for each player."""
    kinds = {"rewards": (_is_reward, _REWARD), "successes": (_is_flag, "True or False")}
    for name, (fits, kind) in {**kinds, "scores": (_is_share, "a number in [0, 1]")}.items():
        of_players = info.get(name)
        if of_players is None and name not in info:
            continue
        if not isinstance(of_players, Mapping) or not all(map(fits, of_players.values())):
            raise _wrong(env, f"info[{name!r}]", of_players, f"{kind} for each player")
        if strange := [player for player in of_players if player not in players]:
            raise _wrong(env, f"info[{name!r}] of", strange[0], f"the names of its players, {', '.join(players)}")


def _is_number(found: object) -> bool:
    try:
        return isinstance(found, (*_NUMBERS, np.bool_)) and math.isfinite(found)
    except OverflowError:  # an int that is too large for a float
        return False


def _is_reward(found: Any) -> bool:
    return _is_number(found) and abs(float(found)) <= _LARGEST


def _is_flag(found: Any) -> bool:
    """True, False, 0 or 1. Any other number is refused, because it would count as a success."""
    return _is_number(found) and float(found) in (0.0, 1.0)


def _is_share(found: Any) -> bool:
    return _is_number(found) and -_ROUNDING <= float(found) <= 1 + _ROUNDING


_WISHES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "temperature": (
        lambda found: _is_number(found) and (float(found) == 0 or float(found) >= LEAST_TEMPERATURE),
        f"0 (greedy) or a number of at least {LEAST_TEMPERATURE}",
    ),
    "max_tokens": (lambda found: isinstance(found, int | np.integer) and int(found) > 0, "a number of tokens above 0"),
    "stop": (lambda found: isinstance(found, list | tuple) and all(map(_is_text, found)), "a list of texts"),
    "form": (
        is_form,
        "a dictionary with a schema, a list of calls, or both, as turnwise.envs.forms.Form.plain gives it",
    ),
}


def _is_text(found: object) -> bool:
    return isinstance(found, str) and bool(found)


def _missing(env: TextEnv, name: str, players: Collection[str], when: str) -> ValueError:
    return ValueError(
        f"{world_name(env)} is a game and its info lacks {name!r} {when}: expected those of {', '.join(players)}"
    )


def _wrong(env: TextEnv, what: str, found: Any, expected: str) -> ValueError:
    return ValueError(f"{world_name(env)} returned {what} {found!r}"[:150] + f"; expected {expected}")
