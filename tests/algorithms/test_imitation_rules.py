"""The borders of SPEAR's rules: exactly at P50, exactly as old as may be, exactly full."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.algorithms.fakes import BigramPolicy, groups, learner
from tests.algorithms.test_spear import PLAIN, group_of, won
from turnwise.algorithms.registry import build
from turnwise.algorithms.selfimitation import STREAM, SelfImitation
from turnwise.algorithms.spear import SPEARConfig
from turnwise.learning.parts import Samples
from turnwise.learning.rewards import raw_rewards
from turnwise.learning.settings import RunInfo
from turnwise.replay.buffer import TrajectoryBuffer
from turnwise.trajectory import Group

RUN = RunInfo(num_updates=20, group_size=4)
NONE = Samples((), raw_rewards([]))


def memory_of(**settings: Any) -> SelfImitation:
    composer = build(SPEARConfig(**{**PLAIN, "warmup_updates": 1, **settings}), RUN).composer
    assert isinstance(composer, SelfImitation)
    return composer


def holding(*rewards: float) -> TrajectoryBuffer:
    buffer = TrajectoryBuffer(10)
    for sample, reward in enumerate(rewards):
        made = won(reward, sample)
        buffer.keep(Group(made.task, (made,)), 0, STREAM, (((0.0, reward), (0.0, 0.0)),))
    return buffer


@pytest.mark.parametrize(("keep", "expected"), [("above", [3.0]), ("at_least", [2.0, 3.0])])
def test_a_return_of_exactly_p50_is_imitated_only_where_that_is_asked_for(keep: str, expected: list[float]) -> None:
    memory = memory_of(keep=keep)
    memory.returns.add([[1.0, 3.0], [2.0, 2.0], [0.0, 4.0]])  # means 2, 2, 2: P50 is 2
    streams = memory.compose(1, NONE, buffer := holding(1.0, 2.0, 3.0))
    assert memory.median is not None
    assert memory.median[0] == 2.0
    assert [unit.total for unit in memory.eligible(buffer)] == expected
    assert [stream.name for stream in streams] == ["fresh"]  # nothing is fresh: as many are drawn


def test_a_return_of_exactly_p50_does_not_fill_the_buffer() -> None:
    memory = memory_of(replay="when_full", buffer_size=2)
    memory.returns.add([[1.0, 3.0]])
    assert memory.num_above(holding(2.0, 2.0, 2.0, 2.0, 3.0)) == 1
    assert not memory.is_full(holding(3.0, 3.0, 3.0, 2.0))  # 3 = 1.5 * 2: not more
    assert memory.is_full(holding(3.0, 3.0, 3.0, 3.0))


def test_what_is_kept_has_an_advantage_above_zero() -> None:
    """A group without differences leaves nothing, and of the others the better part."""
    made = learner(build(SPEARConfig(**PLAIN), RUN), BigramPolicy(), lr=1e-9)
    buffer = TrajectoryBuffer(5)
    buffer.add([group_of(1.0, 1.0, index=0), group_of(0.0, 1.0, 2.0, index=1)], 0)  # the middle one has A = 0
    made.update(buffer, 0)
    assert [t.total_reward for e in buffer.entries(STREAM) for t in e.group.trajectories] == [2.0]


@pytest.mark.parametrize("tolerance", [1, 2, 3])
@pytest.mark.parametrize("roomy", [False, True])  # whether the buffer itself would keep more
def test_a_unit_is_kept_for_exactly_tolerance_updates(tolerance: int, roomy: bool) -> None:
    recipe = build(SPEARConfig(**PLAIN, tolerance=tolerance), RUN)
    made = learner(recipe, BigramPolicy(), RUN, lr=1e-9)
    buffer = TrajectoryBuffer(100 if roomy else recipe.keep_updates)
    for update in range(7):
        held = {update - entry.update for entry in buffer.entries(STREAM)}
        assert held == set(range(1, min(update, tolerance) + 1))  # ages that this update may imitate
        buffer.add([group_of(0.0, 1.0, version=update)], update)
        made.update(buffer, update)


def test_released_ages_count_from_the_newest_that_is_kept() -> None:
    """While nothing good comes nothing gets older; when it does, all at once."""
    recipe = build(SPEARConfig(**PLAIN, tolerance=2, age_from="newest"), RUN)
    made, buffer = learner(recipe, BigramPolicy(), RUN, lr=1e-9), TrajectoryBuffer(recipe.keep_updates)
    held = []
    for update in range(8):
        good = update in (0, 2, 6)
        buffer.add([group_of(0.0, 1.0, version=update) if good else group_of(1.0, 1.0, version=update)], update)
        made.update(buffer, update)
        held.append(sorted({entry.update for entry in buffer.entries(STREAM)}))
    # Before an update's own are added: from 2 to 0 it is 2 updates, from 6 to 2 it is 4.
    assert held == [[0], [0], [0, 2], [0, 2], [0, 2], [0, 2], [0, 2, 6], [6]]


def test_as_many_are_replayed_as_are_fresh() -> None:
    memory, buffer = memory_of(), holding(*[3.0] * 9)
    memory.returns.add([[1.0, 3.0]])
    for size in (2, 5):
        (fresh,) = groups(BigramPolicy(), num_groups=1, size=size)
        members = tuple(replace(t, end="terminated") for t in fresh.trajectories)
        streams = memory.compose(1, Samples((Group(fresh.task, members),), raw_rewards(members)), buffer)
        assert len(streams[STREAM].samples.trajectories) == size
