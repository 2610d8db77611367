"""Properties of the shared arithmetic (values are in tests/golden)."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.golden.builders import batch_of
from turnwise.learning.primitives import (
    Counts,
    aggregate,
    clipped_surrogate,
    denominator,
    importance_ratio,
    masked_mean,
    masked_whiten,
    per_turn_mean,
    per_turn_sum,
    turn_lengths,
    turn_mean,
    turn_starts,
)

MODES = ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")


def case(seed: int, rows: int = 5, width: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """Random values, mask (with an empty row) and ascending turn numbers."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    mask = torch.rand(rows, width, generator=generator) < 0.6
    mask[-1] = False
    turns = (torch.rand(rows, width, generator=generator) < 0.3).long().cumsum(1)
    return values, mask, torch.where(mask, turns, -1)


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_microbatches_add_up_and_padding_changes_nothing(mode: str, seed: int) -> None:
    values, mask, turns = case(seed)
    counts = Counts.of(mask, turns)
    z = denominator(counts, mode, 11.0 if mode.endswith("norm") else None)  # type: ignore[arg-type]
    whole = aggregate(values, mask, mode, z)  # type: ignore[arg-type]
    parts = [aggregate(values[r], mask[r], mode, z) for r in ([3], [0, 4], [1, 2])]  # type: ignore[arg-type]
    torch.testing.assert_close(sum(parts), whole)
    padded = [
        torch.cat([x, torch.full((5, 3), fill)], 1) for x, fill in ((values, math.nan), (mask, False), (turns, -1))
    ]
    assert Counts.of(padded[1], padded[2]) == Counts(counts.rows, counts.turns, counts.action_tokens, 10)
    torch.testing.assert_close(aggregate(padded[0], padded[1].bool(), mode, z), whole)  # type: ignore[arg-type]
    torch.testing.assert_close(
        turn_mean(padded[0], padded[1].bool(), padded[2], counts.turns),
        turn_mean(values, mask, turns, counts.turns),
    )


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_turn_mean_weighs_every_turn_the_same(seed: int) -> None:
    values, mask, turns = case(seed)
    means = [values[b][turns[b] == n].mean() for b in range(len(values)) for n in sorted(set(turns[b].tolist()) - {-1})]
    counts = Counts.of(mask, turns)
    assert (counts.turns, counts.rows) == (len(means), int(mask.any(1).sum()))
    expected = torch.stack(means).mean() if means else torch.tensor(0.0, dtype=torch.float64)
    torch.testing.assert_close(turn_mean(values, mask, turns, counts.turns), expected)
    spread = per_turn_mean(values, mask, turns)
    torch.testing.assert_close(turn_mean(spread, mask, turns, counts.turns), expected)
    assert (spread[~mask] == 0).all()


def test_nothing_to_average_is_zero() -> None:
    nothing = torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.bool), torch.zeros(2, 0, dtype=torch.long)
    counts = Counts.of(*nothing[1:])
    assert counts == Counts(0, 0, 0, 0)
    for mode in MODES:
        assert aggregate(nothing[0], nothing[1], mode, denominator(counts, mode)) == 0.0  # type: ignore[arg-type]
    assert turn_mean(*nothing, 0) == 0.0
    assert masked_mean(torch.ones(3), torch.zeros(3, dtype=torch.bool)) == 0.0
    assert torch.isfinite(masked_whiten(torch.ones(3), torch.tensor([True, False, False]))).all()
    equal = masked_whiten(torch.full((3, 7), 0.3), torch.ones(3, 7, dtype=torch.bool))
    assert equal.abs().max() < 1e-9, "not the rounding of a mean over sqrt(eps)"


def test_surrogate_by_hand() -> None:
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5, 5.0, 1.0])
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, -1.0, 2.0])
    found = clipped_surrogate(ratio, advantages, 0.8, 1.2, 3.0)
    torch.testing.assert_close(found.loss, torch.tensor([-1.2, 1.5, -0.5, 0.8, 3.0, -2.0]))
    assert found.clipped.tolist() == [True, False, False, True, False, False]
    assert found.dual_clipped.tolist() == [False, False, False, False, True, False]
    free = clipped_surrogate(ratio, advantages, 0.8, 1.2, None)
    assert free.loss[4] == 5.0
    # Bounds per token, with gradient of their own (as an entropy-balanced clip has).
    high = torch.full((6,), 1.2, requires_grad=True)
    clipped_surrogate(ratio, advantages, 0.8, high, 3.0).loss.sum().backward()
    assert high.grad is not None
    assert high.grad.tolist() == [-1.0, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_ratios_are_bounded_at_twenty_nats() -> None:
    found = importance_ratio(torch.tensor([25.0, -25.0, 3.0]), torch.zeros(3))
    torch.testing.assert_close(found.log(), torch.tensor([20.0, -20.0, 3.0]))


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


def test_a_row_without_tokens_is_no_row() -> None:
    batch = batch_of(torch.tensor([[True, True], [False, False]]))
    assert Counts.of(batch.action_mask, batch.turn_index).rows == 1
