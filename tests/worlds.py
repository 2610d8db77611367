"""Small gymnasium worlds for tests; importing this module registers them, as a third party's module would."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
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


class Moody(Echo):
    """Fails at its second step the first ``times`` times over all processes, in a given ``way``."""

    def __init__(self, way: str, marks: str, times: int) -> None:
        super().__init__()
        self.way, self.marks, self.times = way, Path(marks), times

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        done = len(list(self.marks.iterdir()))
        if self.steps == 1 and done < self.times:
            (self.marks / str(done)).touch()
            if self.way == "hang":
                time.sleep(3600)
            if self.way == "die":
                os._exit(3)
            raise RuntimeError("the simulator is unwell")
        return super().step(action)


class Leaving(Echo):
    """A library below it calls ``sys.exit`` in its second step."""

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self.steps == 1:
            sys.exit(3)
        return super().step(action)


class Typed(Echo):
    """Tells with the first observation which type its task is of; success is for words above 2."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        observation, _ = super().reset(seed=seed)
        return observation, {"task_type": "high" if self.word > 2 else "low"}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        *rest, over, truncated, _ = super().step(action)
        return *rest, over, truncated, {"success": self.word > 2}  # type: ignore[return-value]


class Drifting(Echo):
    """Never repeats itself: a fork cannot be replayed in it."""

    count = 0

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        Drifting.count += 1
        observation, *rest = super().step(action)
        return f"{observation} {Drifting.count}", *rest  # type: ignore[return-value]


class Cue(gymnasium.Env[str, str]):
    """Three turns; each shows a cabinet's number, and the drawer of the same number is the right answer.

    Rewards 1/3 for each right answer; success is all three. Its expert guesses every second time: a perfect clone is
    right in 5 of 8 turns and succeeds in a quarter of its episodes. Everything above that is learned from reward.
    """

    observation_space = Text(100)
    action_space = Text(100)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.right: list[bool] = []
        return self._show()

    def _show(self) -> tuple[str, dict[str, Any]]:
        self.number = int(self.np_random.integers(1, 5))
        return f"You arrive at cabinet {self.number}.", self._info()

    def _info(self) -> dict[str, Any]:
        return {
            "admissible_actions": [f"go to drawer {i}" for i in range(1, 5)],
            "success": len(self.right) == 3 and all(self.right),
        }

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.right.append(action == f"go to drawer {self.number}")
        over = len(self.right) == 3
        observation = "" if over else self._show()[0]
        return observation, self.right[-1] / 3, over, False, self._info()

    def expert(self, kind: str = "searching", *, seed: int = 0) -> Any:
        return _HalfGuess(seed)


class _HalfGuess:
    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def begin(self, observation: str, info: dict[str, Any]) -> None:
        pass

    def act(self, observation: str, info: dict[str, Any]) -> str:
        if self.rng.random() < 0.5:
            return f"go to drawer {observation[-2]}"
        return str(self.rng.choice(info["admissible_actions"]))


class Nim(gymnasium.Env[str, str]):
    """Two players take one or two of some stones in turn; who takes the last one wins. The seed says how many."""

    observation_space = Text(100)
    action_space = Text(100)
    players = ("first", "second")

    def role(self, player: str) -> str:
        return player

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.stones, self.mover = int(self.np_random.integers(4, 8)), 0
        return self._show({"first": 0.0, "second": 0.0})

    def _show(self, rewards: dict[str, float], over: bool = False, valid: bool = True) -> tuple[str, dict[str, Any]]:
        info: dict[str, Any] = {"player": self.players[self.mover], "rewards": rewards, "valid": valid}
        info["admissible_actions"] = ["take 1", "take 2"]
        if over:
            info["successes"] = {player: earned > 0 for player, earned in rewards.items()}
            info["scores"] = {player: float(earned > 0) for player, earned in rewards.items()}
        return f"{self.stones} stones", info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        valid = action in ("take 1", "take 2")
        self.stones = max(0, self.stones - (2 if action == "take 2" else 1))
        mover, self.mover = self.players[self.mover], 1 - self.mover
        over = self.stones == 0
        rewards = {player: (1.0 if player == mover else -1.0) if over else 0.0 for player in self.players}
        observation, info = self._show(rewards, over, valid)
        return observation, rewards[mover], over, False, info

    def expert(self, kind: str = "searching", *, seed: int = 0) -> Any:
        return _NimExpert()


class _NimExpert:
    def begin(self, observation: str, info: dict[str, Any]) -> None:
        pass

    def act(self, observation: str, info: dict[str, Any]) -> str:
        return "take 2" if int(observation.split()[0]) % 3 == 2 else "take 1"


for _id, _entry in {
    "tests/Echo-v0": Echo,
    "tests/Drifting-v0": Drifting,
    "tests/Cue-v0": Cue,
    "tests/Nim-v0": Nim,
    "tests/Moody-v0": Moody,
    "tests/Leaving-v0": Leaving,
    "tests/Typed-v0": Typed,
}.items():
    if _id not in gymnasium.registry:
        gymnasium.register(_id, _entry, disable_env_checker=True)
