"""Which rows lend their beginnings to which."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from turnwise.prefixes import Loan, common_prefix, loans

ROWS = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=8).map(np.array), max_size=8)


@given(held=ROWS, asked=ROWS, least=st.integers(1, 4))
def test_no_beginning_is_computed_twice(held: list[np.ndarray], asked: list[np.ndarray], least: int) -> None:
    """Asked for until none waits: each gets the most that anyone held has, and lends in turn."""
    held, waiting, rounds = list(held), list(range(len(asked))), 0
    while waiting:
        found = loans(held, [asked[i] for i in waiting], least)
        later, begun = [], []
        for i, loan in zip(waiting, found, strict=True):
            row = asked[i]
            most = max((common_prefix(row[:-1], other) for other in held), default=0)
            if loan is None:
                later.append(i)
                continue
            begun.append(row)
            assert loan.length == (most if most >= least else 0)
            if loan.length:
                assert common_prefix(row[:-1], held[loan.lender]) >= loan.length
            others = [common_prefix(row[:-1], other[:-1]) for other in begun[:-1]]
            assert max(others, default=0) < max(loan.length, most) + least, "it should have waited"
        assert begun, "somebody always begins"
        held, waiting, rounds = held + begun, later, rounds + 1
    assert rounds <= len(asked)


def test_members_of_groups_take_three_rounds() -> None:
    """Instructions that all share, then a group's own task: the first of all, the first of each group, the others."""
    asked = [np.array([*range(20), 100 + group, *range(30), 7]) for group in range(5) for _ in range(4)]
    first = loans([], asked, 16)
    assert first.count(Loan()) == 1
    second = loans([asked[0]], asked[1:], 16)
    assert second == [Loan(0, 51)] * 3 + [Loan(0, 20), None, None, None] * 4
