"""The household with a pause in every step, as a simulator that is slow or far away; importing this registers it."""

from __future__ import annotations

import time
from typing import Any

import gymnasium

from turnwise.envs.household.env import HouseholdEnv


class SlowHousehold(HouseholdEnv):
    """``pause_s`` is slept in every step."""

    def __init__(self, pause_s: float = 0.0, **settings: Any) -> None:
        super().__init__(**settings)
        self._pause_s = pause_s

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        time.sleep(self._pause_s)
        return super().step(action)


if "benchmarks/SlowHousehold-v0" not in gymnasium.registry:
    gymnasium.register("benchmarks/SlowHousehold-v0", SlowHousehold, disable_env_checker=True)
