"""Advantages by comparison within groups (values of the references are in tests/golden)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from turnwise.learning import credit


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
