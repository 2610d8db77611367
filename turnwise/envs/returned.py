"""What a world returned, checked: a third party's slip is named here, before it becomes a wrong number in training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from turnwise.envs.interface import Info

_FLAGS = (bool, np.bool_, int)
_NUMBERS = (int, float, np.number)  # a bool is an int


def check_seen(observation: object, info: object) -> None:
    """What ``reset`` and ``step`` share. Raises ValueError that says what was returned and what was expected."""
    if not isinstance(observation, str):
        raise _wrong("the observation", observation, "a string")
    if not isinstance(info, dict):
        raise _wrong("info", info, "a dictionary")
    _check_info(info)


def check_step(reward: object, terminated: object, truncated: object) -> None:
    """Raises ValueError likewise."""
    if not _is_number(reward):
        raise _wrong("the reward", reward, "a finite number")
    for name, flag in (("terminated", terminated), ("truncated", truncated)):
        if not isinstance(flag, _FLAGS):
            raise _wrong(name, flag, "True or False")


def _check_info(info: Info) -> None:
    for name in ("success", "score"):
        if info.get(name) is not None and not _is_number(info[name]):
            raise _wrong(f"info[{name!r}]", info[name], "a finite number, True or False")
    if not isinstance(info.get("valid", True), _FLAGS):
        raise _wrong("info['valid']", info["valid"], "True or False")
    actions = info.get("admissible_actions")
    if actions is not None and (isinstance(actions, str) or not isinstance(actions, Sequence)):
        raise _wrong("info['admissible_actions']", actions, "a list of strings")
    for name in ("rewards", "scores", "successes"):
        of_players = info.get(name)
        if of_players is None and name not in info:
            continue
        if not isinstance(of_players, Mapping) or not all(map(_is_number, of_players.values())):
            raise _wrong(f"info[{name!r}]", of_players, "a finite number for each player")


def _is_number(found: object) -> bool:
    return isinstance(found, (*_NUMBERS, np.bool_)) and math.isfinite(found)


def _wrong(what: str, found: Any, expected: str) -> ValueError:
    return ValueError(f"the world returned {what} {found!r}"[:150] + f"; expected {expected}")
