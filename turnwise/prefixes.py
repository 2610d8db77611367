"""Sequences that begin alike, each beginning once: members of a group share the prompt, branches their trunk.

Found by comparing tokens, which needs no record of who shares what, and misses nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def prefix_order(rows: Sequence[Ints]) -> tuple[Ints, Ints]:
    """Row numbers in an order that brings equal beginnings together, and what each shares with the one before it.

    ``rows`` are token ids [L]; of a row's tokens the first ``shared`` stand in the row before, and no earlier row has
    more of them. So the distinct prefixes have ``sum(L) - sum(shared)`` tokens.
    """
    keys = [np.ascontiguousarray(row, dtype=np.int64).tobytes() for row in rows]
    order = sorted(range(len(rows)), key=keys.__getitem__)
    shared = [common_prefix(rows[a], rows[b]) for a, b in pairwise(order)]
    return np.array(order, np.int64), np.array([0, *shared][: len(order)], np.int64)


def common_prefix(left: NDArray[np.integer[Any]], right: NDArray[np.integer[Any]]) -> int:
    """How many leading tokens two sequences share."""
    size = min(len(left), len(right))
    different = np.flatnonzero(left[:size] != right[:size])
    return int(different[0]) if len(different) else size
