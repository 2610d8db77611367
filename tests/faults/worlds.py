"""Worlds for the fault suite; importing this module registers them."""

from __future__ import annotations

import random
import zlib
from typing import Any

import gymnasium
import numpy as np

from tests.worlds import Echo, Moody


class Lottery(Echo):
    """Pays by what a reply's text hashes to, so that an untrained model earns all sorts of returns.

    It tells the number of the cabinet as the answer.
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        observation, info = super().reset(seed=seed, options=options)
        return observation, {**info, "task": {"answer": self.word}}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        observation, _, terminated, truncated, info = super().step(action)
        return observation, (zlib.crc32(action.encode()) % 7) / 21, terminated, truncated, info


class Careless(Echo):
    """Draws from the process's global generators, as no world should."""

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        observation, _, terminated, truncated, info = super().step(action)
        draw = random.random() + np.random.random()  # noqa: NPY002
        return f"{observation} {int(9 * draw)}", draw / 6, terminated, truncated, info


class Unready(Moody):
    """Moody when an episode begins."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self.steps = 1
        self.step("")
        return super().reset(seed=seed, options=options)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return Echo.step(self, action) if self.steps != 1 or action else super().step(action)


for _id, _entry in {
    "tests/Lottery-v0": Lottery,
    "tests/Careless-v0": Careless,
    "tests/Unready-v0": Unready,
}.items():
    if _id not in gymnasium.registry:
        gymnasium.register(_id, _entry, disable_env_checker=True)
