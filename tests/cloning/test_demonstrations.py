"""Demonstrations: noise and recoveries, the same seed twice, and a limited number of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.levers import Levers
from turnwise.cloning.demonstrations import check_stop_split, demonstrate, demonstrations
from turnwise.cloning.settings import WarmstartConfig
from turnwise.envs.tasks import make_env, panel


def test_success_is_not_measured_on_what_is_demonstrated() -> None:
    """Without a split of their own, experts are watched on train."""
    cue = make_env("tests.worlds:tests/Cue-v0")
    with pytest.raises(ValueError, match=r"no split 'demonstrations', so that 'train' is demonstrated"):
        check_stop_split(cue, WarmstartConfig(stop_split="train", stop_success=0.5))
    check_stop_split(cue, WarmstartConfig(stop_split="validation", stop_success=0.5))
    check_stop_split(make_env("turnwise/Search-v0"), WarmstartConfig(stop_split="train", stop_success=0.5))


def test_demonstrations_show_recoveries_and_are_reproducible() -> None:
    env = make_env("turnwise/Household-v0")
    config = WarmstartConfig(noise=0.4)
    tasks = panel(env, "demonstrations")
    shown = [each for i in range(40) for each in demonstrate(env, tasks[i], config, seed=i)]
    assert [each for i in range(40) for each in demonstrate(env, tasks[i], config, seed=i)] == shown
    noisy = [not learn for each in shown for learn in each.learn]
    assert 0.3 < np.mean(noisy) < 0.5
    assert not any(action == "help" for each in shown for action in each.actions)
    source = demonstrations(env, config, seed=0)
    assert all(next(source).success for _ in range(30))


def test_a_world_without_an_expert_says_so() -> None:
    with pytest.raises(ValueError, match=r"has no expert: demonstrations need an `expert\(kind, seed=\)` method"):
        next(
            demonstrations(make_env("tests.worlds:tests/Echo-v0"), WarmstartConfig(split="train", stop_split="test"), 0)
        )


class Broken:
    """Raises, or never wins."""

    def __init__(self, answer: str) -> None:
        self.answer = answer

    def begin(self, observation: str, info: dict[str, Any]) -> None: ...

    def act(self, observation: str, info: dict[str, Any]) -> str:
        return {"lose": "sit down"}[self.answer]


class Given(Levers):
    def __init__(self, answer: str) -> None:
        super().__init__()
        self.answer, self.num = answer, 0

    def expert(self, kind: str = "searching", *, seed: int = 0) -> Any:
        self.num += 1
        return Broken(self.answer)


def test_what_an_expert_raises_is_told_with_its_place() -> None:
    with pytest.raises(ValueError, match=r"cannot demonstrate task \d+ of 'train': KeyError \(test_dem.*line \d+\)"):
        next(demonstrations(Given("leave"), WarmstartConfig(split="train"), 0))


def test_an_expert_that_never_wins_is_given_up_soon() -> None:
    """The split has 10,000 tasks."""
    world = Given("lose")
    with pytest.raises(ValueError, match=r"won none of 1,000 of the 10,000 tasks of 'train': nothing to clone"):
        next(demonstrations(world, WarmstartConfig(split="train", noise=0.0), 0))
    assert world.num == 1000
    lost = next(demonstrations(world, WarmstartConfig(split="train", noise=0.0, only_successes=False), 0))
    assert not lost.success


def test_an_expert_that_does_not_end_its_episode_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("turnwise.cloning.demonstrations.ENDLESS", 50)
    world = Given("lose")
    world.step = lambda action: ("sit", 0.0, False, False, {"success": False})  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"did not end task \d+ of 'train' in 50 steps: limit the steps .*max_episode"):
        next(demonstrations(world, WarmstartConfig(split="train", noise=0.0), 0))


def test_few_demonstrations_are_seen_again() -> None:
    env = make_env("turnwise/Household-v0")
    source = demonstrations(env, WarmstartConfig(num_demonstrations=5), seed=0)
    shown = [next(source) for _ in range(20)]
    assert len({each.actions for each in shown[:5]}) > 1
    for start in range(0, 20, 5):
        assert sorted(each.actions for each in shown[start : start + 5]) == sorted(each.actions for each in shown[:5])
