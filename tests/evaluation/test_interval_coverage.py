"""What the intervals promise, held against simulation and against all that can happen."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from turnwise.evaluation.pooling import panels_differ, pool
from turnwise.evaluation.report import Report, summarize
from turnwise.statistics import crossed_bootstrap, paired_difference, pass_at_k, wilson
from turnwise.trajectory import Task, Trajectory


def test_wilson_covers_close_to_95_percent_for_every_rate() -> None:
    """Exactly, by the binomial distribution: 93 to 97 % averaged over rates, never under 88 % from rate .05 on."""
    for num in (32, 128, 256):
        intervals = [wilson(k, num) for k in range(num + 1)]
        covered = []
        for rate in np.linspace(0.05, 0.95, 37):
            chance = [math.comb(num, k) * rate**k * (1 - rate) ** (num - k) for k in range(num + 1)]
            covered.append(
                sum(p for p, found in zip(chance, intervals, strict=True) if found.low <= rate <= found.high)
            )
        assert 0.93 <= np.mean(covered) <= 0.97
        assert min(covered) >= 0.88


@pytest.mark.parametrize("rate", [0.2, 0.7])
@pytest.mark.parametrize(("num", "k"), [(4, 2), (6, 1), (6, 4)])
def test_pass_at_k_is_unbiased(num: int, k: int, rate: float) -> None:
    """Its mean over all 2^n outcomes of n attempts is the chance that k fresh attempts hold a success."""
    mean = sum(
        rate ** sum(attempts) * (1 - rate) ** (num - sum(attempts)) * pass_at_k(num, sum(attempts), k)
        for attempts in itertools.product((0, 1), repeat=num)
    )
    assert mean == pytest.approx(1 - (1 - rate) ** k)
    naive = sum(
        rate ** sum(attempts) * (1 - rate) ** (num - sum(attempts)) * (1 - (1 - sum(attempts) / num) ** k)
        for attempts in itertools.product((0, 1), repeat=num)
    )
    assert k == 1 or naive < mean - 0.003, "the plug-in estimate is what it is better than"


@pytest.mark.parametrize(("num_seeds", "seed_sd"), [(3, 0.05), (5, 0.05), (10, 0.1)])
def test_the_interval_of_pooled_seeds_covers_93_to_100_percent(num_seeds: int, seed_sd: float) -> None:
    """Seeds of different strength, tasks of different difficulty. An interval that takes their episodes for
    independent is too narrow.
    """
    rng, num, crossed, naive = np.random.default_rng(1), 150, 0, 0
    for trial in range(num):
        rates = 0.5 + rng.normal(0, seed_sd, (num_seeds, 1)) + rng.normal(0, 0.15, (1, 64))
        wins = (rng.random(rates.shape) < rates).astype(float)
        found = crossed_bootstrap(wins.tolist(), resamples=300, seed=trial)
        crossed += found.low <= 0.5 <= found.high
        alone = wilson(int(wins.sum()), wins.size)
        naive += alone.low <= 0.5 <= alone.high
    assert 0.93 <= crossed / num <= 1.0
    assert naive / num < 0.9


def _episodes(rng: np.random.Generator, rates: np.ndarray, samples: int) -> list[list[float]]:
    return [(rng.random(samples) < rate).astype(float).tolist() for rate in rates]


@pytest.mark.parametrize(("num_tasks", "samples", "gain"), [(48, 1, 0.0), (128, 1, 0.1), (64, 4, 0.05)])
def test_the_paired_difference_covers_92_to_98_percent(num_tasks: int, samples: int, gain: float) -> None:
    rng, num, covered = np.random.default_rng(2), 300, 0
    for trial in range(num):
        rates = rng.uniform(0.1, 0.8, num_tasks)
        found = paired_difference(
            _episodes(rng, rates, samples), _episodes(rng, rates + gain, samples), resamples=300, seed=trial
        )
        covered += found.low <= gain <= found.high
    assert 0.92 <= covered / num <= 0.98


def test_pairing_by_task_narrows_the_interval() -> None:
    """Tasks are hard or easy for both: of the unpaired width, pairing leaves about a half."""
    rng, paired, unpaired = np.random.default_rng(3), [], []
    for trial in range(40):
        rates = rng.choice([0.05, 0.85], 128)
        a, b = _episodes(rng, rates, 4), _episodes(rng, rates + 0.1, 4)
        found = paired_difference(a, b, resamples=300, seed=trial)
        shuffled = paired_difference(a, [b[i] for i in rng.permutation(128)], resamples=300, seed=trial)
        paired.append(found.high - found.low)
        unpaired.append(shuffled.high - shuffled.low)
    assert np.mean(paired) < 0.6 * np.mean(unpaired)


# --- pooling reports ---

TASKS = [Task("env", "test", i, f"key{i}", "clean" if i % 2 else "heat") for i in range(6)]


def report(name: str, outcomes: list[int], tasks: list[Task] | None = None, score: bool = True) -> Report:
    episodes = [
        Trajectory(f"{task.index}", task, 0, 0, (), "terminated", bool(won), 0.5 * won if score else None)
        for task, won in zip(tasks or TASKS, outcomes, strict=True)
    ]
    return summarize(name, tasks or TASKS, episodes, samples=1, temperature=1.0)


def test_seeds_are_pooled_with_an_interval_over_seeds_and_tasks() -> None:
    rows = [[1, 1, 0, 0, 1, 1], [1, 0, 0, 0, 1, 0], [1, 1, 1, 0, 1, 1]]
    found = pool([report(f"s{i}", row) for i, row in enumerate(rows)])
    assert found.success == crossed_bootstrap([[float(x) for x in row] for row in rows])
    assert found.success is not None
    assert found.success.value == pytest.approx(11 / 18)
    assert found.per_type["heat"].value == pytest.approx(7 / 9)  # the even tasks
    assert found.score is not None
    assert found.score.value == pytest.approx(11 / 36)
    assert (found.num_seeds, found.episodes, found.pass_at) == (3, 18, {1: pytest.approx(11 / 18)})
    everything = pool([report("a", [1] * 6), report("b", [1] * 6)])
    assert everything.success == wilson(6, 6), "equal outcomes still have an interval"


def test_different_panels_are_told_apart_by_their_content() -> None:
    whole, part = report("whole", [1] * 6), report("part", [1] * 4, TASKS[:4])
    assert panels_differ(whole, whole) == ""
    assert "the shorter is the beginning of the other; measure both with --tasks 4" in panels_differ(whole, part)
    assert "the same tasks in another order" in panels_differ(whole, report("turned", [1] * 6, TASKS[::-1]))
    assert "3 tasks in common" in panels_differ(part, report("other", [1] * 5, [*TASKS[1:4], *TASKS[4:]]))
    strange = [Task("env", "test", i, f"other{i}") for i in range(4)]
    assert "no task in common" in panels_differ(whole, report("strange", [1] * 4, strange))
    with pytest.raises(ValueError, match="whole and part cannot be pooled: they have different test panels"):
        pool([whole, part])
