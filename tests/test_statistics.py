"""Intervals and rates against published or hand-computed values."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from turnwise.statistics import bootstrap_mean, paired_difference, pass_at_k, wilson


@pytest.mark.parametrize(
    ("successes", "num", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_matches_newcombe(successes: int, num: int, low: float, high: float) -> None:
    found = wilson(successes, num)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)
    assert found.value == pytest.approx(successes / num)


def test_wilson_is_symmetric_and_stays_in_the_unit_interval() -> None:
    for successes in range(11):
        found, mirrored = wilson(successes, 10), wilson(10 - successes, 10)
        assert 0.0 <= found.low <= found.value <= found.high <= 1.0
        assert found.low == pytest.approx(1 - mirrored.high)
    assert (wilson(10, 10).high, wilson(0, 10).low) == (1.0, 0.0)


def test_wilson_covers_a_known_rate_about_as_often_as_it_says() -> None:
    counts = np.random.default_rng(0).binomial(40, 0.3, size=4000)
    inside = [wilson(int(c), 40).low <= 0.3 <= wilson(int(c), 40).high for c in counts]
    assert 0.93 < np.mean(inside) < 0.97


def test_nothing_observed_is_not_a_rate_of_zero() -> None:
    empty = wilson(0, 0)
    assert math.isnan(empty.value)
    assert (empty.low, empty.high, empty.num) == (0.0, 1.0, 0)
    assert math.isnan(bootstrap_mean([]).value)
    with pytest.raises(ValueError, match="5 of 4"):
        wilson(5, 4)
    with pytest.raises(ValueError, match="confidence"):
        wilson(1, 4, confidence=95)


@pytest.mark.parametrize(("num", "successes", "k"), [(5, 2, 1), (5, 2, 3), (6, 0, 2), (4, 4, 2), (7, 3, 5)])
def test_pass_at_k_is_the_share_of_subsets_that_hold_a_success(num: int, successes: int, k: int) -> None:
    attempts = [True] * successes + [False] * (num - successes)
    subsets = list(itertools.combinations(attempts, k))
    assert pass_at_k(num, successes, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_rejects_more_draws_than_attempts() -> None:
    with pytest.raises(ValueError, match="k=3"):
        pass_at_k(2, 1, 3)


def test_bootstrap_interval_is_close_to_the_normal_one_and_repeats() -> None:
    values = np.random.default_rng(1).normal(2.0, 3.0, size=400).tolist()
    found = bootstrap_mean(values)
    half = 1.96 * float(np.std(values)) / 20
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.05)
    assert found == bootstrap_mean(values)
    assert found != bootstrap_mean(values, seed=1)


def test_paired_difference_pairs_by_task() -> None:
    first = [[0, 0, 1, 0], [1], [0, 1], [1, 1]] * 8
    same = paired_difference(first, first)
    assert (same.value, same.low, same.high, same.num) == (0.0, 0.0, 0.0, 32)
    second = [[1, 0, 1, 0], [1], [1, 1], [1, 0]] * 8  # gaps 1/4, 0, 1/2, -1/2
    found = paired_difference(first, second)
    assert found.value == pytest.approx(0.0625)
    assert found.low < 0 < found.high
    flipped = paired_difference(second, first)
    assert flipped.value == pytest.approx(-found.value)
    # Pairing is what makes a small steady gain visible between tasks of very different difficulty.
    hard_and_easy = [[0.0]] * 20 + [[1.0]] * 20
    steady = [[x[0] * 0.9 + 0.1] for x in hard_and_easy]
    assert paired_difference(hard_and_easy, steady).low > 0


def test_paired_difference_needs_the_same_tasks() -> None:
    with pytest.raises(ValueError, match="same tasks"):
        paired_difference([[1]], [[1], [0]])
    with pytest.raises(ValueError, match="at least one sample"):
        paired_difference([[1]], [[]])
