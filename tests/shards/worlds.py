"""Worlds for the tests of shards; importing this module registers them."""

from __future__ import annotations

from itertools import count
from typing import Any

import gymnasium

from tests.worlds import Echo

_TIMES = count()


class Restless(Echo):
    """Shows how many steps were taken in this process, so that no episode is ever repeated."""

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        observation, *rest = super().step(action)
        return f"{observation} {next(_TIMES)}", *rest  # type: ignore[return-value]


if "tests/Restless-v0" not in gymnasium.registry:
    gymnasium.register("tests/Restless-v0", Restless, disable_env_checker=True)
