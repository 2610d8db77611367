"""A world that tells of its tasks what the agent does not see; importing this module registers it."""

from __future__ import annotations

from typing import Any

import gymnasium

from tests.worlds import Echo


class Telling(Echo):
    """Echo, whose reset tells the word."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        observation, info = super().reset(seed=seed, options=options)
        return observation, {**info, "task": {"word": self.word, "of": ("a", "b")}}


if "tests/Telling-v0" not in gymnasium.registry:
    gymnasium.register("tests/Telling-v0", Telling, disable_env_checker=True)
