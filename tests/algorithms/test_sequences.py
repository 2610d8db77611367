"""Credit along time, of no rows and across tokens of the world."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.golden.builders import stream_of
from turnwise.algorithms.sequences import GeneralizedAdvantage, ReturnsToGo
from turnwise.learning.parts import Samples, Stream
from turnwise.learning.rewards import raw_rewards
from turnwise.replay.batch import layout


@pytest.mark.parametrize("level", ["token", "turn"])
def test_credit_of_no_rows_has_their_shape(level: str) -> None:
    nothing = layout((), rewards=())
    stream = Stream(Samples((), raw_rewards([])), nothing.with_columns(values=torch.zeros(0, 0)))
    for part in (GeneralizedAdvantage(0.9, 0.9, level), ReturnsToGo(0.9)):  # type: ignore[arg-type]
        assert part.estimate(stream).shape == (0, 0)


def along(gamma: float, rewards: Tensor, mask: Tensor) -> list[list[float]]:
    stream = stream_of(mask, ["g"] * len(mask), earned=[0.0] * len(mask), rewards=rewards)
    return ReturnsToGo(gamma).estimate(stream).tolist()


def test_returns_jump_over_what_is_not_said() -> None:
    mask = torch.tensor([[True, False, True, True], [False, True, False, False], [False] * 4])
    rewards = torch.tensor([[0.0, 0.0, 1.0, 8.0], [0.0, 2.0, 0.0, 0.0], [0.0] * 4])
    assert along(0.5, rewards, mask) == [[2.5, 0.0, 5.0, 8.0], [0.0, 2.0, 0.0, 0.0], [0.0] * 4]
