"""Where a turn's reward lands in the layout, and that none is lost beside another."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.algorithms.fakes import BigramPolicy, Sampler, task
from turnwise.replay.batch import layout
from turnwise.trajectory import Group, Trajectory


def rows(lengths: list[int], rewards: list[float], opens: tuple[int, ...] = (0,)) -> list[list[float]]:
    """The reward column on the action tokens of each row; a fresh context opens at the turns of ``opens``."""
    sampler = Sampler.of(BigramPolicy(), np.random.default_rng(0))
    turns = tuple(
        replace(sampler.turn(4, length, continues=n not in opens), reward=0.0) for n, length in enumerate(lengths)
    )
    made = Trajectory("one", task(), 0, 0, turns, "terminated", None, None)
    batch = layout((Group(task(), (made,)),), rewards=[rewards])
    assert batch.rewards is not None
    assert (batch.rewards[~batch.action_mask] == 0).all()
    return [batch.rewards[b][batch.action_mask[b]].tolist() for b in range(len(batch))]


@pytest.mark.parametrize(
    ("lengths", "rewards", "expected"),
    [
        ([2, 3], [1.0, 4.0], [0.0, 1.0, 0.0, 0.0, 4.0]),
        ([2, 0], [1.0, 0.5], [0.0, 1.5]),  # a turn without tokens: on the one before, beside what is there
        ([2, 0, 0, 1], [1.0, 0.5, 0.25, 8.0], [0.0, 1.75, 8.0]),
        ([0, 2], [1.0, 4.0], [0.0, 4.0]),  # there is no token before
        ([1, 1], [1.0, 4.0], [1.0, 4.0]),
    ],
)
def test_a_turns_reward_is_on_its_last_token(lengths: list[int], rewards: list[float], expected: list[float]) -> None:
    assert rows(lengths, rewards) == [expected]


def test_a_reward_stays_in_its_row() -> None:
    assert rows([2, 0, 1], [1.0, 0.5, 4.0], opens=(0, 1)) == [[0.0, 1.0], [4.0]]
