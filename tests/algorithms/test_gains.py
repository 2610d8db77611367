"""Credit from gains, by hand: two attempts at a task, beliefs of 1/8, 1/4, 1/2 and of 1/2, 1/4."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.golden.builders import credit_of, recipe_of, stream_of
from turnwise.algorithms.grpo import GRPOConfig
from turnwise.algorithms.igpo import IGPOConfig
from turnwise.algorithms.registry import build
from turnwise.learning.parts import Stream
from turnwise.learning.settings import RewardSettings, RunInfo

PLAIN: dict[str, Any] = {"normalize_std": False, "kl_coef": 0.0}
EIGHTH, QUARTER, HALF = -3 * math.log(2), -2 * math.log(2), -math.log(2)
HALF_LOG = math.log(2) / 2


def two_attempts(
    earned: tuple[float, ...] = (0, 0, 1, 0, 0), own: tuple[float, ...] = (0,) * 5, group: str = "aaaaa"
) -> Stream:
    """Three turns and two, of two tokens each."""
    mask = torch.ones((5, 2), dtype=torch.bool)
    stream = stream_of(mask, list(group), [1, 1, 1, 2, 2], earned=earned, own=own)
    return replace(stream, beliefs=torch.tensor([EIGHTH, QUARTER, HALF, HALF, QUARTER], dtype=torch.float64))


def credit(stream: Stream, rewards: RewardSettings | None = None, **settings: Any) -> list[float]:
    found: Tensor = credit_of(recipe_of(IGPOConfig(**{**PLAIN, **settings}), rewards=rewards), stream)
    assert (found[:, 0] == found[:, 1]).all(), "all tokens of a turn alike"
    return [round(value, 5) for value in found[:, 0].tolist()]


def test_gains_and_returns_apart() -> None:
    """Gains 1/8, 1/4 and -1/4 have the mean 1/24, returns of 1 and 0 the mean 1/2. All flow to the turns before."""
    first, second, third = 1 / 8 - 1 / 24, 1 / 4 - 1 / 24, -1 / 4 - 1 / 24
    expected = [first + second + 0.5, second + 0.5, 0.5, third - 0.5, -0.5]
    assert credit(two_attempts()) == pytest.approx(expected, abs=1e-5)
    discounted = [first + (second + 0.25) / 2, second + 0.25, 0.5, third - 0.25, -0.5]
    assert credit(two_attempts(), gamma=0.5) == pytest.approx(discounted, abs=1e-5)


def test_normalised_apart() -> None:
    """Each kind over its own deviation: of the three gains, and of the two returns."""
    gains = torch.tensor([1 / 8, 1 / 4, -1 / 4])
    z = ((gains - gains.mean()) / gains.std()).tolist()
    won = 0.5**0.5
    expected = [z[0] + z[1] + won, z[1] + won, won, z[2] - won, -won]
    assert credit(two_attempts(), normalize_std=True) == pytest.approx(expected, abs=1e-4)


def test_returns_to_go_of_the_same_turn() -> None:
    """1.375, 1.25, 1 against -.25, 0 and nothing: an attempt that is over counts 0."""
    assert credit(two_attempts(), baseline="turn") == pytest.approx([0.8125, 0.625, 0.5, -0.8125, -0.625], abs=1e-5)


def test_returns_to_go_against_whole_returns() -> None:
    """Against the mean .5625 of 1.375 and -.25."""
    expected = [0.8125, 0.6875, 0.4375, -0.8125, -0.5625]
    assert credit(two_attempts(), baseline="episode") == pytest.approx(expected, abs=1e-5)


def test_a_gain_of_one_is_worth_a_success_and_logs_are_of_nats() -> None:
    ten = RewardSettings(scale=10.0)
    tenfold = [10 * value for value in credit(two_attempts(), baseline="turn")]
    stream = two_attempts(earned=(0, 0, 10, 0, 0))
    assert credit(stream, ten, baseline="turn") == pytest.approx(tenfold, abs=1e-4)
    nats = credit(two_attempts(earned=(0,) * 5), baseline="turn", belief="log")
    assert nats == pytest.approx([1.5 * math.log(2), HALF_LOG, 0, -1.5 * math.log(2), -HALF_LOG], abs=1e-5)
    assert credit(two_attempts(), gain_coef=0.0) == pytest.approx([0.5, 0.5, 0.5, -0.5, -0.5])


@pytest.mark.parametrize("baseline", ["turn", "episode"])
def test_a_penalty_is_of_its_own_turn(baseline: str) -> None:
    found = credit(two_attempts(own=(0, -0.5, 0, 0, 0)), baseline=baseline)
    plain = credit(two_attempts(), baseline=baseline)
    changed = [round(a - b, 5) for a, b in zip(found, plain, strict=True)]
    assert changed == ([0, -0.25, 0, 0, 0.25] if baseline == "turn" else [0, -0.5, 0, 0, 0])


@pytest.mark.parametrize("baseline", ["apart", "turn", "episode"])
def test_attempts_alone_teach_nothing(baseline: str) -> None:
    """But with several gains, which are compared with each other, an attempt has some credit by itself."""
    found = credit(two_attempts(group="aaabb"), baseline=baseline)
    gains = [0.0, 0.0625, 0.0] if baseline == "apart" else [0.0] * 3
    assert found == pytest.approx([*gains, 0, 0], abs=1e-5)


def test_equal_returns_still_teach() -> None:
    """GRPO's credit is 0 there. Nothing is left out of the batch either."""
    lost = two_attempts(earned=(0,) * 5)
    assert not credit_of(recipe_of(GRPOConfig(drop_uniform_groups=False)), lost).any()
    assert credit(lost)[0] > 0.2 > 0 > credit(lost)[3]
    assert build(IGPOConfig(), RunInfo(10, 8)).composer.drop_uniform is False  # type: ignore[attr-defined]


def test_it_counts_beliefs_and_gains() -> None:
    part = recipe_of(IGPOConfig(**PLAIN)).estimator
    assert part is not None
    part.estimate(two_attempts())
    assert part.acted() == pytest.approx({"mean_belief": 1.625 / 5, "mean_gain": 1 / 24, "positive_share": 2 / 3})


def test_a_single_attempt_is_refused() -> None:
    with pytest.raises(ValueError, match="group_size of at least 2"):
        build(IGPOConfig(), RunInfo(10, 1))
    with pytest.raises(ValueError, match="std_eps has no effect"):
        IGPOConfig(normalize_std=False, std_eps=0.1)
