"""Worlds for the tests of shards; importing this module registers them."""

from __future__ import annotations

import os
from itertools import count
from typing import Any

import gymnasium

from tests.worlds import Echo
from turnwise import __version__
from turnwise.shards.messages import Described

_TIMES = count()


class Restless(Echo):
    """Shows how many steps were taken in this process, so that no episode is ever repeated."""

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        observation, *rest = super().step(action)
        return f"{observation} {next(_TIMES)}", *rest  # type: ignore[return-value]


class Deadly(Echo):
    """Ends its process in the second step of an episode that begins at one of the cabinets."""

    def __init__(self, cabinet: int) -> None:
        super().__init__()
        self.cabinet = cabinet

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if (self.word, self.steps) == (self.cabinet, 1):
            os._exit(3)
        return super().step(action)


class Idle:
    """A shard that plays nothing."""

    described = Described(__version__, {})

    def begin(self) -> None: ...

    def hold(self, *given: Any) -> None: ...

    def close(self) -> None: ...


if "tests/Restless-v0" not in gymnasium.registry:
    gymnasium.register("tests/Restless-v0", Restless, disable_env_checker=True)
    gymnasium.register("tests/Deadly-v0", Deadly, disable_env_checker=True)
