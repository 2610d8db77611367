"""Common prefixes of token sequences.

The attempts of a group begin with the same prompt, and branches of a tree begin with the turns of their parent. Such a
prefix has to be computed only once. The functions here find common prefixes by comparing the tokens, so that no record
of which sequences belong together is needed.
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
    """Sort rows so that common prefixes are adjacent. Returns the order and the lengths of the prefixes, [B] each.

    ``rows`` are B arrays of token ids, [L] each. ``order`` holds row numbers. ``shared[i]`` is the number of leading
    tokens that row ``order[i]`` has in common with row ``order[i - 1]`` (0 for i = 0); no earlier row has more in
    common with it. For example, the rows [1, 2, 3], [5], [1, 2, 4, 4] may come in the order 0, 2, 1 with shared
    0, 2, 0. The distinct tokens number ``sum(L) - sum(shared)``, here 6.
    """
    keys = [np.ascontiguousarray(row, dtype=np.int64).tobytes() for row in rows]
    order = sorted(range(len(rows)), key=keys.__getitem__)
    shared = [common_prefix(rows[a], rows[b]) for a, b in pairwise(order)]
    return np.array(order, np.int64), np.array([0, *shared][: len(order)], np.int64)


def common_prefix(left: Tokens, right: Tokens) -> int:
    """The number of leading tokens that two sequences [L] have in common."""
    size = min(len(left), len(right))
    different = np.flatnonzero(left[:size] != right[:size])
    return int(different[0]) if len(different) else size


@dataclass(frozen=True, slots=True)
class Loan:
    """The first ``length`` tokens of a row can be copied from row number ``lender``; 0 where there is none."""

    lender: int = -1
    length: int = 0


def loans(held: Sequence[Tokens], asked: Sequence[Tokens], least: int) -> list[Loan | None]:
    """What each of the rows ``asked`` can copy from the rows ``held``, so that no common prefix is computed twice.

    Rows are token ids, [L] each. ``held`` rows are computed already, ``asked`` rows are to be computed now. Returns one
    entry for each asked row: a ``Loan`` that says how many tokens to copy and from where, or None: wait.

    For example, two asked rows begin with the same 100 tokens and no held row does. The first of them (in the order of
    their tokens) gets ``Loan()`` and is computed. The other one gets None: it should be asked for again once the first
    is held, and then copies 100 tokens.

    A row waits where waiting saves at least ``least`` tokens. Prefixes shorter than ``least`` are not copied. The last
    token of a row is never copied, because its logits are needed.
    """
    num = len(held)
    order, shared = prefix_order([*held, *(row[:-1] for row in asked)])
    best = [Loan() for _ in asked]
    # In sorted order, the held row with the longest common prefix is the nearest one on the left or on the right.
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
    near = 0  # tokens in common with the last row that does not wait
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
