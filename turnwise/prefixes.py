"""Sequences that begin alike, each beginning once: members of a group share the prompt, branches their trunk.

Found by comparing tokens, which needs no record of who shares what, and misses nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Tokens = NDArray[np.integer[Any]]


def prefix_order(rows: Sequence[Tokens]) -> tuple[Ints, Ints]:
    """Row numbers in an order that brings equal beginnings together, and what each shares with the one before it.

    ``rows`` are token ids [L]; of a row's tokens the first ``shared`` stand in the row before, and no earlier row has
    more of them. So the distinct prefixes have ``sum(L) - sum(shared)`` tokens.
    """
    keys = [np.ascontiguousarray(row, dtype=np.int64).tobytes() for row in rows]
    order = sorted(range(len(rows)), key=keys.__getitem__)
    shared = [common_prefix(rows[a], rows[b]) for a, b in pairwise(order)]
    return np.array(order, np.int64), np.array([0, *shared][: len(order)], np.int64)


def common_prefix(left: Tokens, right: Tokens) -> int:
    """How many leading tokens two sequences share."""
    size = min(len(left), len(right))
    different = np.flatnonzero(left[:size] != right[:size])
    return int(different[0]) if len(different) else size


@dataclass(frozen=True, slots=True)
class Loan:
    """``length`` tokens that a row need not compute: row number ``lender`` of those held has them."""

    lender: int = -1
    length: int = 0


def loans(held: Sequence[Tokens], asked: Sequence[Tokens], least: int) -> list[Loan | None]:
    """What each of the rows ``asked`` for can take from those ``held``, so that no beginning is computed twice.

    Rows are token ids [L]. None: the row shares more (by ``least`` tokens or more) with another one that is asked for
    now, and should be asked for again when that is held. Of rows that begin alike the first, in the order of their
    tokens, does not wait. A row's last token is always its own to compute (its logits are wanted), and beginnings
    shorter than ``least`` are not lent.
    """
    num = len(held)
    order, shared = prefix_order([*held, *(row[:-1] for row in asked)])
    best = [Loan() for _ in asked]
    # In this order the held row that shares most with another is the nearest one on its left or on its right.
    leftwards = zip(order[::-1], [0, *shared[:0:-1]], strict=True)
    for neighbours in (zip(order, shared, strict=True), leftwards):
        loan = Loan()
        for row, common in ((int(row), int(common)) for row, common in neighbours):
            loan = Loan(loan.lender, min(loan.length, common))
            if row < num:
                loan = Loan(row, len(held[row]))
            elif loan.length > best[row - num].length:
                best[row - num] = loan
    found: list[Loan | None] = [loan if loan.length >= least else Loan() for loan in best]
    near = 0  # shared with the last row that does not wait
    for place, row in enumerate(order.tolist()):
        near = min(near, int(shared[place]))
        if row < num:
            continue
        loan = best[row - num]
        if near >= loan.length + least:
            found[row - num] = None
        else:
            near = len(asked[row - num]) - 1
    return found
