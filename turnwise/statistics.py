"""Rates, means and differences that come with their uncertainty. Numpy and the standard library only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value, its confidence interval, and the number of independent observations (episodes or tasks)."""

    value: float
    low: float
    high: float
    num: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] (n={self.num})"


def wilson(successes: int, num: int, confidence: float = 0.95) -> Estimate:
    """Success rate with the Wilson score interval (Wilson 1927), which stays inside [0, 1] and holds for
    rates near 0 and 1. Without any observation: nan in [0, 1]. Raises ValueError unless 0 <= successes <=
    num.
    """
    if not 0 <= successes <= num:
        raise ValueError(f"Expected 0 <= successes <= num; got {successes} of {num}")
    if num == 0:
        return Estimate(math.nan, 0.0, 1.0, 0)
    z = NormalDist().inv_cdf(0.5 + _checked(confidence) / 2)
    rate, share = successes / num, z * z / num
    center = (rate + share / 2) / (1 + share)
    half = z * math.sqrt(rate * (1 - rate) / num + share / (4 * num)) / (1 + share)
    # The interval's ends are exactly 0 and 1 at those rates; rounding would miss them by an ulp.
    low = 0.0 if successes == 0 else center - half
    high = 1.0 if successes == num else center + half
    return Estimate(rate, low, high, num)


def pass_at_k(num: int, successes: int, k: int) -> float:
    """Unbiased chance that k of a task's attempts hold a success, 1 - C(n-c, k) / C(n, k) (Chen et al. 2021).

    Raises ValueError unless 1 <= k <= num and 0 <= successes <= num.
    """
    if not (1 <= k <= num and 0 <= successes <= num):
        raise ValueError(f"Expected 1 <= k <= num and 0 <= successes <= num; got {k=}, {num=}, {successes=}")
    return 1.0 - math.comb(num - successes, k) / math.comb(num, k)


def bootstrap_mean(
    values: Sequence[float], confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Estimate:
    """Mean with a percentile bootstrap interval over independent values; equal seeds give equal intervals.

    A single value has no spread to resample: its interval is its own value. No value: nan everywhere.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    low, high = _percentiles(data, _checked(confidence), resamples, seed)
    return Estimate(float(data.mean()), low, high, int(data.size))


def paired_difference(
    first: Sequence[Sequence[float]],
    second: Sequence[Sequence[float]],
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Estimate:
    """Mean of second minus first over the same tasks, ``[task][sample]`` successes or scores, in their units.

    Tasks weigh the same; the numbers of samples may differ. The interval is a bootstrap over tasks: attempts
    at one task are not independent, and an exact paired test (McNemar) would need a single attempt on each
    side. Where all tasks differ by the same amount the bootstrap has nothing to vary and its interval is a
    point. Raises ValueError unless both sides hold the same tasks with at least one sample each.
    """
    if len(first) != len(second):
        raise ValueError(f"Paired by task: both sides need the same tasks; got {len(first)} and {len(second)}")
    if not all(len(samples) for samples in (*first, *second)):
        raise ValueError("Paired by task: every task needs at least one sample on each side")
    gaps = [float(np.mean(b) - np.mean(a)) for a, b in zip(first, second, strict=True)]
    return bootstrap_mean(gaps, confidence, resamples, seed)


def crossed_bootstrap(
    cells: Sequence[Sequence[float]], confidence: float = 0.95, resamples: int = 4_000, seed: int = 0
) -> Estimate:
    """Mean of ``[seed][task]`` values with a percentile bootstrap interval over seeds and tasks; nan: not observed.

    Every seed has played the same tasks, so that neither is nested in the other: a resample draws seeds and,
    independently, tasks, each with replacement (Owen 2007, "The pigeonhole bootstrap"), and averages the cells that
    they have in common. Of S > 1 seeds it draws S - 1, which makes the variance between few of them unbiased (Rao and
    Wu 1988). The noise of single cells is counted more than once, so the interval errs on the wide side: 93 to 100 %
    coverage, simulated for 1 to 10 seeds. One seed leaves the tasks alone to vary, one task the seeds alone.
    ``num`` counts the observed cells. Raises ValueError for rows of unequal length or without any observation.
    """
    if not cells or len({len(row) for row in cells}) != 1:
        raise ValueError(f"Expected rows of equal length, one per seed; got lengths {[len(row) for row in cells]}")
    data = np.asarray(cells, dtype=np.float64)
    seen = np.isfinite(data)
    if not seen.any():
        raise ValueError("Nothing was observed: every cell is nan")
    values, (num_seeds, num_tasks) = np.where(seen, data, 0.0), data.shape
    rng, chunk = np.random.default_rng(seed), max(1, 1_000_000 // num_tasks)
    means = []
    for done in range(0, resamples, chunk):
        size = min(chunk, resamples - done)
        rows = rng.multinomial(max(num_seeds - 1, 1), np.full(num_seeds, 1 / num_seeds), size)  # [R, S] times drawn
        columns = rng.multinomial(num_tasks, np.full(num_tasks, 1 / num_tasks), size)  # [R, T]
        total, weight = (((rows @ part) * columns).sum(axis=1) for part in (values, seen))
        means.append(total[weight > 0] / weight[weight > 0])
    low, high = np.quantile(np.concatenate(means), [(1 - _checked(confidence)) / 2, (1 + confidence) / 2])
    return Estimate(float(values.sum() / seen.sum()), float(low), float(high), int(seen.sum()))


def detectable(difference: Estimate, power: float = 0.8, confidence: float = 0.95) -> float:
    """The smallest true difference that a comparison of this precision finds with probability ``power``.

    (z_{1-alpha/2} + z_power) * SE, with SE the half width of the interval of ``confidence`` = 1 - alpha over
    z_{1-alpha/2}; for 80 % and 5 %, 2.80 SE or 1.43 half widths. nan of an interval that is a point: it knows no SE.
    """
    if difference.high == difference.low:
        return math.nan
    to_reject = NormalDist().inv_cdf(0.5 + _checked(confidence) / 2)
    return (difference.high - difference.low) / 2 * (1 + NormalDist().inv_cdf(power) / to_reject)


def more_to_resolve(difference: Estimate, num: int, power: float = 0.8, confidence: float = 0.95) -> int | None:
    """About how many observations beyond ``num`` would find a true difference of the observed size.

    num * ((detectable / |difference|)^2 - 1): the variance falls as 1 / num, which it does where seeds and tasks are
    added in proportion. 0 where the interval leaves 0 out already, None where the difference is exactly 0, and where
    the interval is a point: it knows no variance.
    """
    if difference.high == difference.low:
        return None
    if difference.low > 0 or difference.high < 0:
        return 0
    if difference.value == 0:
        return None
    return math.ceil(num * max((detectable(difference, power, confidence) / difference.value) ** 2 - 1, 0))


def _percentiles(data: NDArray[np.float64], confidence: float, resamples: int, seed: int) -> tuple[float, float]:
    rng = np.random.default_rng(seed)
    chunk = max(1, 1_000_000 // data.size)  # resamples drawn at once: bounded memory
    means = [
        data[rng.integers(data.size, size=(min(chunk, resamples - done), data.size))].mean(axis=1)
        for done in range(0, resamples, chunk)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _checked(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is a share between 0 and 1, such as 0.95; got {confidence}")
    return confidence


UNKNOWN = "–"
"""Where nothing was counted."""


def estimate_text(estimate: Estimate) -> str:
    """``73.8 % [68.1, 78.8]``."""
    if not estimate.num:
        return UNKNOWN
    return f"{100 * estimate.value:.1f} % [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def number_text(value: float, digits: int = 3) -> str:
    """``0.738``; a dash for nan, where nothing was counted."""
    return f"{value:.{digits}f}" if math.isfinite(value) else UNKNOWN


def share_text(value: float) -> str:
    """``73.8 %``; a dash likewise."""
    return f"{100 * value:.1f} %" if math.isfinite(value) else UNKNOWN


def score_text(estimate: Estimate) -> str:
    """``0.738 [0.681, 0.788]``."""
    if not estimate.num:
        return UNKNOWN
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
