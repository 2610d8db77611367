"""Properties of the shared arithmetic (values are in tests/golden)."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from turnwise.learning import credit, schedules
from turnwise.learning.primitives import (
    Counts,
    aggregate,
    clipped_surrogate,
    denominator,
    masked_mean,
    masked_whiten,
    per_turn_mean,
    turn_mean,
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


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), std=st.booleans())
def test_group_advantages_follow_a_permutation(seed: int, std: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 3, (9,), generator=generator).float()
    group = torch.randint(0, 4, (9,), generator=generator)
    order = torch.randperm(9, generator=generator)
    found = credit.group_advantages(values, group, normalize_std=std)
    permuted = credit.group_advantages(values[order], group[order], normalize_std=std)
    torch.testing.assert_close(permuted, found[order])
    for number in set(group.tolist()):
        members = found[group == number]
        assert abs(float(members.sum())) < 1e-5
        if std and len(members) > 1 and members.any():
            assert float(members.std()) == pytest.approx(1.0, abs=1e-4)


def test_equal_rewards_and_groups_of_one() -> None:
    values, group = torch.tensor([0.1, 0.1, 0.1, 7.3]), torch.tensor([0, 0, 0, 1])
    assert credit.group_advantages(values, group).tolist() == [
        0.0,
        0.0,
        0.0,
        0.0,
    ]  # exactly, in spite of rounding
    released = credit.group_advantages(values, group, singleton="reward")
    assert released.tolist() == pytest.approx([0.0, 0.0, 0.0, 7.3])
    binary = credit.group_advantages(torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.zeros(4, dtype=torch.long))
    # mean 1/4, unbiased std 1/2: (3/4) / (1/2) and (-1/4) / (1/2)
    assert binary.tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5], abs=1e-5)
    loo = credit.leave_one_out_advantages(torch.tensor([3.0, 1.0, 2.0]), torch.zeros(3, dtype=torch.long))
    assert loo.tolist() == pytest.approx([1.5, -1.5, 0.0])


def test_schedules() -> None:
    assert schedules.epo_paper_weight(0, 150) == 2.0
    assert schedules.epo_paper_weight(75, 150) == pytest.approx(1 + math.exp(-3))
    assert schedules.epo_paper_weight(0, 1) == 2.0
    share = [schedules.learning_rate_share(u, 20, shape="cosine", warmup_share=0.1, floor=0.2) for u in range(20)]
    assert share[:3] == [0.5, 1.0, 1.0]
    assert share[2:] == sorted(share[2:], reverse=True)
    assert share[11] == pytest.approx(0.6)  # half of what follows the warm-up has passed: the middle of 1 and 0.2
    assert min(share) > 0.2
    assert schedules.learning_rate_share(15, 20, shape="linear") == 0.25
    assert schedules.learning_rate_share(15, 20) == 1.0
