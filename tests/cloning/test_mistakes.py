"""Experts that know mistakes worth showing: they are played in demonstrations, and not learned."""

from __future__ import annotations

from typing import Any

import pytest

from tests.levers import ACTIONS, Levers, Puller
from turnwise.cloning.demonstrations import demonstrate
from turnwise.cloning.settings import WarmstartConfig
from turnwise.envs.interface import Errs
from turnwise.envs.process import ProcessEnv
from turnwise.envs.tasks import expert_of
from turnwise.trajectory import Task

TASK = Task("test/Levers-v0", "train", 3, "3")


class Clumsy(Puller):
    """Would do otherwise at its second turn, and is told when it did."""

    told: Any = "wait"
    turn = 0

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.overruled: list[tuple[int, str]] = []

    def act(self, observation: str, info: dict[str, Any]) -> str:
        self.turn += 1
        return super().act(observation, info)

    def mistake(self) -> Any:
        return self.told if self.turn == 2 else ""

    def overrule(self, action: str) -> None:
        self.overruled.append((self.turn, action))


class Clumsiness(Levers):
    last: Clumsy

    def expert(self, kind: str = "searching", *, seed: int = 0) -> Clumsy:
        self.last = Clumsy(seed)
        return self.last


def test_a_mistake_is_played_and_not_learned() -> None:
    env = Clumsiness()
    (shown,) = demonstrate(env, TASK, WarmstartConfig(noise=0.0), seed=0)
    assert shown.actions[1] == "wait"
    assert shown.learn == tuple(n != 1 for n in range(len(shown.actions)))
    assert set(shown.actions) - {"wait"} <= set(ACTIONS)
    assert env.last.overruled == [(2, "wait")]


def test_where_noise_acts_there_is_no_mistake_beside_it() -> None:
    env = Clumsiness()
    (shown,) = demonstrate(env, TASK, WarmstartConfig(noise=1.0), seed=0)
    assert not any(shown.learn)
    assert env.last.overruled == list(enumerate(shown.actions, start=1))


def test_what_is_no_mistake_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Clumsy, "told", 3)
    with pytest.raises(ValueError, match=r"the expert's mistake is 3; expected an action, which is a string"):
        demonstrate(Clumsiness(), TASK, WarmstartConfig(noise=0.0), seed=0)


@pytest.mark.parametrize("source", ["turnwise/WebShop-v0", "turnwise/FrozenLake-v0"])
def test_an_expert_in_a_process_of_its_own_errs_as_it_does_here(source: str) -> None:
    env = ProcessEnv(source)
    observation, info = env.reset(seed=1)
    found = set()
    for seed in range(1, 30):
        expert = expert_of(env, "searching", seed)
        expert.begin(observation, info)
        own = expert.act(observation, info)
        assert isinstance(expert, Errs) == ("WebShop" in source)
        if isinstance(expert, Errs) and (mistake := expert.mistake()):
            assert mistake in info["admissible_actions"]
            assert mistake != own
            found.add(mistake)
    assert bool(found) == ("WebShop" in source)
    env.close()
