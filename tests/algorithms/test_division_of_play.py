"""How much is played: AEPO's division of its budget, and dynamic sampling's further waves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import pytest

from tests.algorithms.fakes import task as fake_task
from tests.algorithms.test_branching import CONFIGS, level, of_task
from tests.algorithms.test_dapo import played
from tests.algorithms.trees import ScriptedRollouts, task
from turnwise.algorithms.aepo import AEPOConfig
from turnwise.algorithms.registry import build
from turnwise.algorithms.tree import MONITOR
from turnwise.learning.settings import RunInfo
from turnwise.trajectory import RolloutFinished, TurnFinished


def planted(levels: Sequence[float], budget: int = 20) -> int:
    """Attempts that start from the root at once when the attempt that is looked at has ended."""
    running: list[int] = []

    def pick(among: list[int]) -> int:
        running.append(len(among))
        return min(among)

    planner = build(AEPOConfig(log_vocabulary=1.0), RunInfo(10, budget)).planner
    assert planner is not None
    planner.plan([task()], ScriptedRollouts(partial(level, levels), lengths=(len(levels),), pick=pick))
    assert running[: len(levels)] == [1] * len(levels)
    return running[len(levels)]


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ((8.0, 0.0), 18),  # H_root 8, H_tool (8 + 0) / 2: floor(20 sigmoid(2)) + 1; without the first reply 20
        ((0.0, 2.0, 4.0), 6),  # 0 against 2: floor(20 sigmoid(-1)) + 1; without the first reply 4
        ((3.0, 3.0, 3.0), 11),
    ],
)
def test_the_entropy_of_the_tools_includes_the_first_reply(levels: tuple[float, ...], expected: int) -> None:
    assert planted(levels) == expected


def test_a_further_wave_plays_the_missing_tasks_and_no_more() -> None:
    spare = [fake_task(index) for index in range(3, 20)]
    assert played({0, 1, 3}, spare)[0] == [0, 1, 2, 3]
    assert played({0, 4}, spare, max_tries=2)[0] == [0, 1, 2, 3, 4]
    assert played({2}, spare, max_tries=3)[0] == [0, 1, 2, 3, 4, 5, 6]


class Stillborn(ScriptedRollouts):
    """Every third rollout ends before its first turn: its world fails, or its context is full at once."""

    def events(self) -> Iterator[TurnFinished | RolloutFinished]:
        for event in super().events():
            if event.rollout % 3 != 1:
                yield event
            elif isinstance(event, RolloutFinished):
                yield replace(event, trajectory=replace(event.trajectory, turns=(), end="error"))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("lengths", [(1,), (3,), (4, 1, 2)])
def test_attempts_that_end_without_a_turn_use_their_budget_and_hold_nobody_up(
    name: str, lengths: tuple[int, ...]
) -> None:
    rollouts = Stillborn(lengths=lengths)
    found = of_task(CONFIGS[name]).plan([task(0), task(1)], rollouts)
    assert Counter(t.task.index for t in found if t.sample != MONITOR) == {0: 6, 1: 6}
    assert len(found) == len(rollouts.played)
    assert sum(t.end == "error" for t in found) == sum(n % 3 == 1 for n in range(len(found)))
