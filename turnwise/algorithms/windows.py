"""Windows of entropy: stretches of a reply that are uncertain throughout. ARES counts them.

The entropy of a single token is noisy: a name may be drawn from many, and nothing depends on it. A window's is the mean
over some tokens in a row. ``entropies`` [A] are those of one reply's tokens, in nats.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from turnwise.trajectory import BoolArray, FloatArray

Means = NDArray[np.float64]


def window_means(entropies: FloatArray, width: int) -> Means:
    """Mean of every ``width`` tokens in a row, [A - width + 1] nats. A shorter reply is one window, an empty one 0."""
    if not len(entropies):
        return np.zeros(0)
    means: Means = sliding_window_view(entropies.astype(np.float64), min(width, len(entropies))).mean(-1)
    return means


def within_windows(entropies: FloatArray, width: int, threshold: float) -> BoolArray:
    """The tokens that lie in a window of at least ``threshold`` nats, [A]."""
    found = np.zeros(len(entropies), np.bool_)
    for start in np.flatnonzero(window_means(entropies, width) >= threshold):
        found[start : start + width] = True
    return found


def beginnings(entropies: FloatArray, width: int, threshold: float) -> list[int]:
    """The first token of each stretch of windows of at least ``threshold`` nats that begin one after the other."""
    high = window_means(entropies, width) >= threshold
    return [int(n) for n in np.flatnonzero(high) if n == 0 or not high[n - 1]]


def following_means(entropies: FloatArray, width: int) -> tuple[Means, int]:
    """Mean of the ``width`` tokens after each token, [A] nats, and how many of these are whole: the first ones.

    As released, a token with fewer after it has the mean of the values before its own, or its own entropy.
    """
    whole = max(len(entropies) - width, 0)
    found = window_means(entropies[1:], width)[:whole].tolist()
    for entropy in entropies[whole:].tolist():
        found.append(float(np.mean(found)) if found else entropy)
    return np.array(found), whole


def mean_threshold(attempts: Sequence[Sequence[FloatArray]], width: int, quantile: float) -> float:
    """Mean over attempts, each with its replies, of the quantile of ``window_means``, nats; width 1: of tokens."""
    means = [np.concatenate([window_means(reply, width) for reply in replies]) for replies in attempts]
    return float(np.mean([np.quantile(values, quantile) for values in means]))


def following_threshold(attempts: Sequence[Sequence[FloatArray]], width: int, quantile: float) -> float:
    """Median over attempts of the quantile of ``following_means``, nats (ARES, released)."""
    means = [np.concatenate([following_means(reply, width)[0] for reply in replies]) for replies in attempts]
    return float(np.median([np.quantile(values, quantile) for values in means]))
