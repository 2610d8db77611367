"""Schedules at their ends and on short runs."""

from __future__ import annotations

import math

import pytest

from turnwise.learning.schedules import epo_paper_weight, epo_released_weight, learning_rate_share


def test_weights_and_rates_along_a_run() -> None:
    assert epo_paper_weight(0, 150) == 2.0
    assert epo_paper_weight(75, 150) == pytest.approx(1 + math.exp(-3))
    assert epo_paper_weight(0, 1) == 2.0
    share = [learning_rate_share(u, 20, shape="cosine", warmup_share=0.1, floor=0.2) for u in range(20)]
    assert share[:3] == [0.5, 1.0, 1.0]
    assert share[2:] == sorted(share[2:], reverse=True)
    assert share[11] == pytest.approx(0.6)  # half of what follows the warm-up has passed: the middle of 1 and 0.2
    assert min(share) > 0.2
    assert learning_rate_share(15, 20, shape="linear") == 0.25
    assert learning_rate_share(15, 20) == 1.0


@pytest.mark.parametrize(
    ("update", "num", "expected"), [(1, 3, 1 - 0.2 * (1 - math.exp(-2))), (0, 1, 1.0), (7, 0, 1.0)]
)
def test_the_released_weight_of_short_runs(update: int, num: int, expected: float) -> None:
    assert epo_released_weight(update, num) == pytest.approx(expected)


@pytest.mark.parametrize("shape", ["constant", "cosine", "linear"])
def test_a_schedule_beyond_its_span_stays_at_its_end(shape: str) -> None:
    """Also where all of the span is warm-up."""
    for warmup in (0.9, 0.5, 0.0):
        end = learning_rate_share(1, 1, shape=shape, warmup_share=warmup, floor=0.25)
        assert end == learning_rate_share(50, 1, shape=shape, warmup_share=warmup, floor=0.25)
        assert end == (1.0 if shape == "constant" else 0.25)
