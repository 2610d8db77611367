"""DAPO: dynamic sampling plays more tasks where groups tell nothing; the length penalty; planners inside planners."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from tests.algorithms.fakes import BigramPolicy, Sampler, buffer_of, episode, learner, task
from turnwise.algorithms.common import FreshGroups, is_uniform
from turnwise.algorithms.dapo import DAPOConfig, OverlongPenalty, OverlongSettings, overlong_penalty
from turnwise.algorithms.dynamic_sampling import DynamicSampling
from turnwise.algorithms.epo import EPOConfig
from turnwise.algorithms.gigpo import GiGPOConfig
from turnwise.algorithms.grpo import GRPOConfig
from turnwise.algorithms.registry import build
from turnwise.learning.planning import GroupPlanner, Planner, Rollouts
from turnwise.learning.rewards import RewardTable, raw_rewards
from turnwise.learning.settings import RunInfo
from turnwise.trajectory import Group, RolloutFinished, Task, Trajectory, TurnFinished, group_by_task

RUN = RunInfo(num_updates=10, group_size=2)
SAMPLER = Sampler.of(BigramPolicy(), np.random.default_rng(0))


def attempt(which: Task, sample: int, reward: float) -> Trajectory:
    made = episode(SAMPLER, sample=sample, num_turns=1)
    return replace(made, task=which, turns=(replace(made.turns[0], reward=reward),))


@dataclass
class Scripted:
    """Rollouts whose attempts differ in reward only at the ``telling`` tasks."""

    telling: set[int]
    started: list[tuple[Task, int]] = field(default_factory=list)
    heard: int = 0

    def start(self, task: Task, sample: int, temperature: float | None = None) -> int:
        self.started.append((task, sample))
        return len(self.started) - 1

    def fork(self, rollout: int, turn: int) -> int:
        raise AssertionError("nobody forks here")

    def resume(self, stored: Trajectory, turn: int, beyond: int = 0) -> int:
        raise AssertionError("nobody starts from stored states here")

    def stop(self, rollout: int) -> None:
        raise AssertionError("nobody stops here")

    def events(self) -> Iterator[TurnFinished | RolloutFinished]:
        for number in range(self.heard, len(self.started)):
            which, sample = self.started[number]
            yield RolloutFinished(number, attempt(which, sample, float(which.index in self.telling and sample == 0)))
        self.heard = len(self.started)


def played(telling: set[int], spare: Sequence[Task], max_tries: int = 10) -> tuple[list[int], list[Trajectory]]:
    """Indices of the tasks in the order of their first attempts, and what the planner returned for tasks 0, 1, 2."""
    rollouts = Scripted(telling)
    as_protocol: Rollouts = rollouts
    found = DynamicSampling(GroupPlanner(2), max_tries).plan([task(0), task(1), task(2)], as_protocol, spare)
    return [which.index for which, sample in rollouts.started if sample == 0], found


def test_it_plays_as_many_tasks_more_as_are_missing() -> None:
    spare = [task(index) for index in range(3, 20)]
    order, found = played({0, 4, 5, 6}, spare)
    # One of three tells something: two more, of which one does; one more, which does: three telling groups.
    assert order == [0, 1, 2, 3, 4, 5]
    assert len(found) == 12  # what is left out was played, and is stored and counted
    kept = FreshGroups(drop_uniform=True, raw=True)
    assert isinstance(kept, FreshGroups)
    assert played({0, 1, 2}, spare)[0] == [0, 1, 2]
    assert played(set(), spare, max_tries=3)[0] == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert played(set(), spare, max_tries=1)[0] == [0, 1, 2]
    assert played(set(), spare[:2])[0] == [0, 1, 2, 3, 4]
    assert played({1}, ())[0] == [0, 1, 2]


def test_an_update_trains_on_the_telling_groups_only() -> None:
    _, found = played({0, 4, 5, 6}, [task(index) for index in range(3, 20)])
    groups = group_by_task(found)
    metrics = learner(build(DAPOConfig(), RUN), BigramPolicy()).update(buffer_of(groups), 0)
    assert (metrics.dropped_groups, metrics.num_rows, metrics.num_trajectories) == (3, 6, 12)


def test_uniform_means_equal_raw_rewards_of_sound_episodes() -> None:
    won, lost = attempt(task(), 0, 1.0), attempt(task(), 1, 0.0)
    assert not is_uniform([won, lost])
    assert is_uniform([won, won])
    assert is_uniform([won])
    assert is_uniform([won, replace(lost, end="error")])
    # A penalty makes shaped returns differ, which is enough for GRPO's filter and not for DAPO's.
    invalid = replace(lost, turns=(replace(lost.turns[0], valid=False),))
    valid = replace(lost, turns=(replace(lost.turns[0], valid=True),))
    group = [Group(task(), (valid, invalid))]
    for config, dropped in ((GRPOConfig(), 0), (DAPOConfig(), 1)):
        metrics = learner(build(config, RUN), BigramPolicy()).update(buffer_of(group), 0)
        assert metrics.dropped_groups == dropped


def test_the_planner_is_there_where_it_has_something_to_do() -> None:
    assert build(DAPOConfig(), RUN).planner == DynamicSampling(GroupPlanner(2), 10)
    for config in (DAPOConfig(max_tries=1), DAPOConfig(drop_uniform_groups=False)):
        assert build(config, RUN).planner is None
    assert build(DAPOConfig(singleton="reward"), RunInfo(10, 1)).planner is None


def test_other_group_methods_may_replace_uniform_groups_too() -> None:
    config = GiGPOConfig(drop_uniform_groups=True, max_tries=4)
    made = build(EPOConfig(base=config), RUN)
    assert made.planner == DynamicSampling(GroupPlanner(2), 4)
    # What counts as telling is the same for the planner and for the composer: raw returns.
    won = attempt(task(), 0, 1.0)
    invalid = replace(won, sample=1, turns=(replace(won.turns[0], valid=False),))
    alike = [Group(task(), (replace(won, turns=(replace(won.turns[0], valid=True),)), invalid))]
    assert learner(made, BigramPolicy()).update(buffer_of(alike), 0).dropped_groups == 1
    assert build(GiGPOConfig(), RUN).planner is None
    with pytest.raises(ValueError, match="max_tries replaces uniform groups"):
        GiGPOConfig(max_tries=4)


@dataclass(frozen=True)
class Backwards:
    """Another way to play: the last task first."""

    def plan(self, tasks: Sequence[Task], rollouts: Rollouts, spare: Iterable[Task] = ()) -> list[Trajectory]:
        return GroupPlanner(2).plan(tasks[::-1], rollouts)


def test_another_way_to_play_goes_inside_of_dynamic_sampling() -> None:
    backwards: Planner = Backwards()
    made = build(DAPOConfig(), RUN).with_planner(backwards)
    assert made.planner == DynamicSampling(backwards, 10)
    assert build(GRPOConfig(), RUN).with_planner(backwards).planner is backwards
    assert made.planner is not None
    rollouts = Scripted({0, 1})
    made.planner.plan([task(0), task(1)], rollouts, ())
    assert [which.index for which, _ in rollouts.started] == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("length", "expected"), [(0, 0.0), (60, 0.0), (70, -0.5), (80, -1.0), (100, -2.0), (130, -2.0)]
)
def test_the_length_penalty_grows_over_the_buffer_and_stops(length: int, expected: float) -> None:
    assert overlong_penalty(length, max_tokens=100, buffer_tokens=40, factor=2.0) == pytest.approx(expected)


def test_the_length_penalty_is_the_episodes_or_each_turns() -> None:
    made = episode(SAMPLER, num_turns=3)  # two action tokens a turn
    rewards = raw_rewards([made])
    limits = OverlongSettings(max_tokens=6, buffer_tokens=4)
    whole = OverlongPenalty(limits).shape([made], rewards, BigramPolicy())
    assert whole.own == rewards.own
    assert whole.total(0) == pytest.approx(rewards.total(0) - 1.0)
    assert whole.earned[0][:2] == rewards.earned[0][:2]
    each = OverlongPenalty(OverlongSettings(max_tokens=3, buffer_tokens=2, penalty=0.4, scope="turn"))
    assert each.shape([made], rewards, BigramPolicy()).own == ((-0.2, -0.2, -0.2),)
    empty = replace(made, turns=())
    assert OverlongPenalty(limits).shape([empty], RewardTable(((),), ((),)), BigramPolicy()).earned == ((),)


def test_two_tries_are_tries() -> None:
    with pytest.raises(ValueError, match="max_tries replaces uniform groups"):
        GRPOConfig(drop_uniform_groups=False, max_tries=2)
