"""A world that pays for what its keyword says, so that a run in it goes wrong in a known way."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from turnwise.envs.interface import AnyText

ACTIONS = ["pull red", "pull blue", "pull green", "wait"]
NUM_TURNS = 3


class Levers(gymnasium.Env[str, str]):
    """Three turns of pulling levers. ``pays``: red, invalid (for nonsense), long (for many words), or nothing.

    Success is that every action was one of the world's, whatever is paid for.
    """

    observation_space = action_space = AnyText()

    def __init__(self, pays: str = "red") -> None:
        self.pays = pays

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.turn, self.sound = 0, True
        told = {"answer": "red", "answering": "pull {}"}
        return f"room {int(self.np_random.integers(100))}: three levers.", {**self.info(True), "task": told}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.turn += 1
        valid = action in ACTIONS
        self.sound = self.sound and valid
        paid = {"red": action == "pull red", "invalid": not valid, "long": len(action) / 40, "nothing": 0}[self.pays]
        over = self.turn == NUM_TURNS
        return f"turn {self.turn}.", float(paid) / NUM_TURNS, over, False, self.info(valid)

    def info(self, valid: bool) -> dict[str, Any]:
        return {"admissible_actions": list(ACTIONS), "valid": valid, "success": self.turn == NUM_TURNS and self.sound}

    def expert(self, kind: str = "searching", *, seed: int = 0) -> Puller:
        return Puller(seed)


class Puller:
    """Pulls at random."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def begin(self, observation: str, info: dict[str, Any]) -> None: ...

    def act(self, observation: str, info: dict[str, Any]) -> str:
        return str(self.rng.choice(ACTIONS))


gymnasium.register("test/Levers-v0", Levers, disable_env_checker=True)
