"""The record of an update: which episodes its means are over, and what was played for it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.algorithms.fakes import BigramPolicy, groups
from turnwise.monitoring.record import episode_numbers, grading_numbers
from turnwise.monitoring.watchdog import signs
from turnwise.trajectory import Fork, Grade, Grading, Group, Trajectory, counted, group_by_task


def whole() -> Trajectory:
    (group,) = groups(BigramPolicy(), num_groups=1, num_turns=3)
    return group.trajectories[0]


def paid(trajectory: Trajectory, *rewards: float) -> Trajectory:
    return replace(
        trajectory, turns=tuple(replace(t, reward=r) for t, r in zip(trajectory.turns, rewards, strict=True))
    )


def test_means_are_over_sound_episodes_from_the_start_of_their_task() -> None:
    first = whole()
    stored = replace(first, fork=Fork("an earlier one", 2, stored=True), sample=9)
    made = [first, replace(first, end="error"), replace(first, sample=-1), stored]
    assert counted(made) == [0]
    assert counted(made[1:]) == [2], "there is no other"
    assert counted(made[1:3]) == []


def test_success_is_not_the_rate_of_the_finished_episodes_alone() -> None:
    """A world that says it at the end: two of four were cut short before, one won, one lost."""
    first = whole()
    made = [replace(first, success=told, end=end) for told, end in ((True, "terminated"), (False, "terminated"))]
    made += [replace(first, success=None, end="truncated")] * 2
    assert episode_numbers([Group(first.task, tuple(made))])["success"] == 0.25
    assert episode_numbers([Group(first.task, tuple(made[2:]))])["success"] is None, "its world never says it"


def test_of_no_episode_there_is_no_mean() -> None:
    """A run that learns from stored episodes plays none: 0 would look like what it was paid."""
    numbers = episode_numbers([])
    means = {"success": None, "reward": None, "turns": None, "invalid_share": None}
    assert numbers == {**means, "episodes": 0, "errors": 0, "played_turns": 0, "sampled_tokens": 0}
    assert set(signs([], 9).values()) == {None}


def test_of_groups_of_one_nothing_is_said_to_be_uniform() -> None:
    found = signs([Group(whole().task, (whole(),))], 9)
    assert found["uniform_share"] is None
    assert found["context_share"] == 0.0


def test_turns_that_copies_share_were_played_once() -> None:
    first = whole()
    copy = replace(first, fork=Fork(first.episode, 2), sample=7)
    within = replace(first, fork=Fork(first.episode, 1, tokens=1), sample=8)
    failed = replace(first, end="error", sample=9)
    numbers = episode_numbers(group_by_task([first, copy, within, failed]))
    assert numbers["played_turns"] == 3 + 1 + 2 + 3
    assert numbers["turns"] == 3.0, "an episode is as long as it is"


def test_the_worlds_part_of_the_reward_is_of_the_same_episodes() -> None:
    first = whole()

    def graded(trajectory: Trajectory, world: float) -> Trajectory:
        grading = Grading((0.0, 0.0, world), None, (Grade("tidy", 1.0, 1.0),))
        return replace(paid(trajectory, 0.0, 0.0, world + 1.0), grading=grading)

    stored = replace(first, fork=Fork("an earlier one", 2, stored=True), sample=9)
    made = group_by_task([graded(first, 0.5), graded(stored, 3.0)])
    reward, told = episode_numbers(made)["reward"], grading_numbers(made, {})
    assert reward == pytest.approx(told["world_reward"] + told["grades"]["tidy"]) == pytest.approx(1.5)


def test_signs_leave_out_what_others_played() -> None:
    first = whole()
    long = tuple(replace(turn, action_ids=turn.action_ids.repeat(5)) for turn in first.turns)
    stored = replace(first, turns=long, fork=Fork("an earlier one", 2, stored=True), sample=9)
    usual = signs(group_by_task([first]), 9)
    assert signs(group_by_task([first, stored]), 9)["reply_tokens"] == usual["reply_tokens"]
