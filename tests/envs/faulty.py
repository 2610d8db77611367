"""Worlds that go wrong, for the tests of processes; importing this module registers them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import Any

import gymnasium

from turnwise.envs.interface import AnyText, Info


class Faulty(gymnasium.Env[str, str]):
    """Does to itself what the action says. Every ``info`` has the process id; nothing else is offered."""

    observation_space = AnyText()
    action_space = AnyText()

    def __init__(self, close_s: float = 0.0) -> None:
        self.close_s = close_s

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, Info]:
        super().reset(seed=seed)
        time.sleep((options or {}).get("sleep", 0.0))
        self.steps = 0
        return "ready", {"pid": os.getpid(), "variable": os.environ.get("TURNWISE_TEST", "")}

    def step(self, action: str) -> tuple[str, float, bool, bool, Info]:
        self.steps += 1
        info: Info = {"pid": os.getpid(), "admissible_actions": ("wait", "raise")}
        match action:
            case "sleep":
                time.sleep(1000)
            case "exit":
                os._exit(3)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "raise":
                raise LookupError("no such door")
            case "word":
                return "ok", "1.0", False, False, info  # type: ignore[return-value]
            case "lock":
                info["lock"] = lambda: None
            case "start":
                info["started"] = subprocess.Popen(["sleep", "1000"]).pid
        return f"step {self.steps}", 0.0, False, False, info

    def close(self) -> None:
        time.sleep(self.close_s)


class Stubborn:
    """An expert that repeats what it was told to do instead."""

    def __init__(self) -> None:
        self.action = "wait"

    def begin(self, observation: str, info: Info) -> None: ...

    def act(self, observation: str, info: Info) -> str:
        if observation == "sleep":
            time.sleep(1000)
        return self.action

    def overrule(self, action: str) -> None:
        self.action = action


class Helped(Faulty):
    """Has an expert that can be overruled, and two players."""

    players = ("north", "south")

    def role(self, player: str) -> str:
        return player[0]

    def expert(self, kind: str = "searching", *, seed: int = 0) -> Stubborn:
        return Stubborn()


for _id, _class in {"tests/Faulty-v0": "Faulty", "tests/Helped-v0": "Helped"}.items():
    if _id not in gymnasium.registry:
        gymnasium.register(_id, f"{__name__}:{_class}", disable_env_checker=True, order_enforce=False)
