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


class Short(Echo):
    """Echo that ends after one, two or three turns, by what is said."""

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        observation, reward, over, truncated, info = super().step(action)
        over = over or sum(map(ord, action)) % 3 == 0
        return observation, reward, over, truncated, info


class Copied(Telling):
    """Telling, whose episodes can be copied."""

    def snapshot(self) -> Any:
        return self.steps, self.word

    def restore(self, snapshot: Any) -> None:
        self.steps, self.word = snapshot


for _id, _entry in {"tests/Telling-v0": Telling, "tests/Copied-v0": Copied, "tests/Short-v0": Short}.items():
    if _id not in gymnasium.registry:
        gymnasium.register(_id, _entry, disable_env_checker=True, order_enforce=False)
