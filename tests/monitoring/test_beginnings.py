"""Attempts at one task that begin differently are told of once: their returns are compared as if they had not."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from tests.faults.runs import config
from tests.worlds import Echo
from turnwise.jobs import train
from turnwise.monitoring.beginnings import Beginnings
from turnwise.trajectory import Group, Task, Trajectory, Turn

NO_IDS, NO_NUMBERS = np.zeros(0, np.int32), np.zeros(0, np.float32)
TASK = Task("w", "train", 3, "k")


def group(*observations: str, player: str = "") -> Group:
    """Attempts that begin with these; "" for one without a turn."""
    turns = [
        (Turn(seen, NO_IDS, False, NO_IDS, NO_NUMBERS, NO_NUMBERS, "", "", True, 0.0),) if seen else ()
        for seen in observations
    ]
    return Group(TASK, tuple(Trajectory("e", TASK, 0, 0, t, "truncated", None, 0.0, player=player) for t in turns))


def test_it_is_said_once() -> None:
    beginnings = Beginnings()
    said = r"attempts at task 3 of 'train' began differently: with 'a', and with 'b{80}\.\.\.'"
    with pytest.warns(UserWarning, match=said):
        beginnings.add([group("x", "x"), group("a", "a", "b" * 100)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        beginnings.add([group("a", "b")])


def test_equal_beginnings_games_and_empty_attempts_are_no_fault() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Beginnings().add([group("a", "a"), group("a", ""), group("a", "b", player="left")])


class Unseeded(Echo):
    """Every episode has another number, whatever its seed."""

    numbers = itertools.count()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        observation, info = super().reset(seed=seed, options=options)
        return f"{next(self.numbers)} {observation}", info


gymnasium.register("beginnings/Unseeded-v0", Unseeded, disable_env_checker=True)


def test_training_says_it(model: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="began differently") as caught:
        train(config(model, f"env.id={__name__}:beginnings/Unseeded-v0", "num_updates=2"), tmp_path / "run")
    assert sum("began differently" in str(each.message) for each in caught) == 1
