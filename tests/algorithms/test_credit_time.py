"""Credit and counting where there is nothing, or next to nothing: no rows, one token, rows without any."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.algorithms.fakes import BigramPolicy, learner
from tests.algorithms.variants import VARIANTS
from tests.golden.builders import batch_of, stream_of
from turnwise.algorithms.registry import build
from turnwise.algorithms.sequences import GeneralizedAdvantage, ReturnsToGo
from turnwise.learning.metrics import Agreement, Occurrences, Tally
from turnwise.learning.parts import Samples, Stream
from turnwise.learning.primitives import Counts, per_turn_mean, per_turn_sum, turn_lengths, turn_starts
from turnwise.learning.rewards import raw_rewards
from turnwise.learning.settings import RunInfo, Settings
from turnwise.replay.batch import layout
from turnwise.replay.buffer import TrajectoryBuffer

RUN = RunInfo(num_updates=10, group_size=4)


@pytest.mark.parametrize("config", VARIANTS)
def test_an_update_of_nothing(config: Settings) -> None:
    policy = BigramPolicy()
    before = policy.table.detach().clone()
    metrics = learner(build(config, RUN), policy).update(TrajectoryBuffer(), 0)
    assert all(math.isfinite(value) for value in metrics.as_dict().values())
    assert (metrics.optimizer_steps, metrics.num_rows, metrics.num_trajectories) == (0, 0, 0)
    assert torch.equal(policy.table.detach(), before)


@pytest.mark.parametrize("level", ["token", "turn"])
def test_credit_of_no_rows_has_their_shape(level: str) -> None:
    nothing = layout((), rewards=())
    stream = Stream(Samples((), raw_rewards([])), nothing.with_columns(values=torch.zeros(0, 0)))
    for part in (GeneralizedAdvantage(0.9, 0.9, level), ReturnsToGo(0.9)):  # type: ignore[arg-type]
        assert part.estimate(stream).shape == (0, 0)


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (2, 0)])
def test_turns_of_nothing(shape: tuple[int, int]) -> None:
    mask, turns = torch.zeros(shape, dtype=torch.bool), torch.full(shape, -1)
    for found in (
        turn_starts(mask, turns), turn_lengths(mask, turns), per_turn_sum(torch.zeros(shape), mask, turns),
        per_turn_mean(torch.zeros(shape), mask, turns),
    ):  # fmt: skip
        assert found.shape == shape
    assert Counts.of(mask, turns) == Counts(rows=0, turns=0, action_tokens=0, width=shape[1])


def test_turns_are_told_apart_within_a_row() -> None:
    """Three turns, the second of one token, the third interrupted by a token of the world; a row without any."""
    turns = torch.tensor([[0, 0, -1, 1, 3, -1, 3], [-1, -1, -1, -1, -1, -1, -1]])
    mask = turns >= 0
    values = torch.tensor([[1.0, 2.0, 99.0, 4.0, 8.0, 99.0, 16.0], [99.0] * 7])
    assert turn_starts(mask, turns)[0].tolist() == [True, False, False, True, True, False, False]
    assert turn_lengths(mask, turns).tolist() == [[2, 2, 1, 1, 2, 1, 2], [1] * 7]
    assert per_turn_sum(values, mask, turns).tolist() == [[3.0, 3.0, 0.0, 4.0, 24.0, 0.0, 24.0], [0.0] * 7]
    assert per_turn_mean(values, mask, turns).tolist() == [[1.5, 1.5, 0.0, 4.0, 12.0, 0.0, 12.0], [0.0] * 7]
    assert Counts.of(mask, turns) == Counts(rows=1, turns=3, action_tokens=5, width=7)


def along(gamma: float, rewards: Tensor, mask: Tensor) -> list[list[float]]:
    stream = stream_of(mask, ["g"] * len(mask), earned=[0.0] * len(mask), rewards=rewards)
    return ReturnsToGo(gamma).estimate(stream).tolist()


def test_returns_jump_over_what_is_not_said() -> None:
    mask = torch.tensor([[True, False, True, True], [False, True, False, False], [False] * 4])
    rewards = torch.tensor([[0.0, 0.0, 1.0, 8.0], [0.0, 2.0, 0.0, 0.0], [0.0] * 4])
    assert along(0.5, rewards, mask) == [[2.5, 0.0, 5.0, 8.0], [0.0, 2.0, 0.0, 0.0], [0.0] * 4]


def test_agreement_of_few_tokens() -> None:
    assert Agreement.of(torch.zeros(0)) == Agreement(0.0, 0.0, 0.0, 0)
    assert Agreement.of(torch.tensor([0.5])) == Agreement(0.5, 0.5, 0.5, 1)
    hundred = torch.arange(1.0, 101.0)
    assert Agreement.of(hundred.flip(0)) == Agreement(100.0, 50.5, 99.0, 100)  # 99 of 100 do not exceed 99
    assert Agreement.of(torch.arange(1.0, 102.0)).p99 == 100.0
    assert Agreement.of(torch.arange(1.0, 51.0)).p99 == 50.0


def test_a_tally_means_over_steps_and_tokens() -> None:
    tally = Tally()
    assert (tally.per_token("ratio"), tally.per_step("loss")) == (None, 0.0)
    tally.add(ratio=6.0, tokens=4.0)
    tally.add(ratio=2.0, tokens=0.0, loss=3.0)
    assert (tally.per_token("ratio"), tally.per_step("loss")) == (2.0, 3.0)
    for norm in (1.0, math.inf, math.nan, 2.0):
        tally.count_step(norm)
    assert (tally.steps, tally.skipped) == (2, 2)
    assert tally.per_step("loss") == 0.75
    empty = Tally()
    empty.add(ratio=0.0, tokens=0.0)
    assert empty.per_token("ratio") == 0.0


def test_occurrences_begin_anew_and_divide_by_their_opportunities() -> None:
    counter = Occurrences()
    counter.count("share", 1.0)
    counter.count("share", torch.tensor([True, True, False]), 3)
    counter.count("none", 5.0, 0.0)
    assert counter.take() == {"share": 0.75, "none": 0.0}
    assert counter.take() == {}


def test_a_row_without_tokens_is_no_row() -> None:
    batch = batch_of(torch.tensor([[True, True], [False, False]]))
    assert Counts.of(batch.action_mask, batch.turn_index).rows == 1
