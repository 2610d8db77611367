"""Small gymnasium worlds for tests; importing this module registers them, as a third party's module would."""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.spaces import Text


class Echo(gymnasium.Env[str, str]):
    """Three turns; rewards 1 on the last for any reply. Only gymnasium: no panels, no success, no expert."""

    observation_space = Text(100)
    action_space = Text(100)

    def __init__(self, fail_at: int = -1, fail_times: int = 0) -> None:
        self.fail_at, self.fail_times = fail_at, fail_times

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        self.word = int(self.np_random.integers(1, 5))
        return f"You arrive at cabinet {self.word}.", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self.steps == self.fail_at and Faults.left > 0:
            Faults.left -= 1
            raise RuntimeError("the simulator died")
        self.steps += 1
        over = self.steps == 3
        return f"cabinet {self.word} {self.steps}", float(over), over, False, {}


class Faults:
    """How many failures are still to come, over all instances."""

    left = 0


class Drifting(Echo):
    """Never repeats itself: a fork cannot be replayed in it."""

    count = 0

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        Drifting.count += 1
        observation, *rest = super().step(action)
        return f"{observation} {Drifting.count}", *rest  # type: ignore[return-value]


for _id, _entry in {"tests/Echo-v0": Echo, "tests/Drifting-v0": Drifting}.items():
    if _id not in gymnasium.registry:
        gymnasium.register(_id, _entry, disable_env_checker=True)
