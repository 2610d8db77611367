"""What an episode was paid in all, and the threshold of success."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.worlds import Echo
from turnwise.agents.episode import SuccessRule, check_threshold
from turnwise.agents.jobs import Job
from turnwise.agents.scripted import play_episode
from turnwise.agents.seating import Scripted, Seating
from turnwise.envs.tasks import make_env, panel
from turnwise.trajectory import Grading, Task, Trajectory


class Tenths(Echo):
    """Ten turns, each of which pays a tenth."""

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return f"{self.steps}", 0.1, self.steps == 10, False, {}


class Waiting:
    def begin(self, observation: str, info: dict[str, Any]) -> None: ...

    def act(self, observation: str, info: dict[str, Any]) -> str:
        return "wait"


def played(threshold: float) -> Trajectory:
    seating = Seating({"": Scripted("waiting", lambda env, seed: Waiting())})
    (found,) = play_episode(Tenths(), seating, Job(Task("tenths", "train", 0, "0")), success=SuccessRule(threshold))
    return found


@pytest.mark.parametrize(("threshold", "success"), [(1.0, True), (1.0 + 1e-9, False)])
def test_a_threshold_is_reached_by_rewards_that_add_up_to_it(threshold: float, success: bool) -> None:
    """In floating point ten tenths, added one after another, are less than 1."""
    found = played(threshold)
    assert sum(found.rewards) < 1.0
    assert (found.total_reward, found.success) == (1.0, success)


class Telling(Tenths):
    """Says what success is."""

    def reset(self, **given: Any) -> tuple[str, dict[str, Any]]:
        observation, _ = super().reset(**given)
        return observation, {"success": False}


def test_a_threshold_in_a_world_that_says_what_success_is_is_refused() -> None:
    """Its own word counts, so that another threshold would be taken and do nothing."""
    task, name = Task("tenths", "train", 0, "0"), "env.success_threshold"
    with pytest.raises(ValueError, match=r"env\.success_threshold=0\.5 would have no effect: Telling says by itself"):
        check_threshold(Telling(), task, name, 0.5)
    check_threshold(Tenths(), task, name, 0.5)
    game = make_env("turnwise/TicTacToe-v0")
    with pytest.raises(ValueError, match="turnwise/TicTacToe-v0 says by itself"):
        check_threshold(game, panel(game, "train")[0], name, 0.5)


def test_the_order_of_rewards_is_no_matter() -> None:
    found = played(1.0)
    for paid in ((0.1, 0.2, 0.3), (0.3, 0.2, 0.1)):
        turns = tuple(replace(turn, reward=reward) for turn, reward in zip(found.turns, paid, strict=False))
        made = replace(found, turns=turns)
        assert made.total_reward == 0.6
        assert replace(made, grading=Grading(paid, None, ())).world_reward == 0.6
