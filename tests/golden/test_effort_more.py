"""ARES's windows and reward, and EMPO's votes, against numbers of the official implementations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from tests.golden.vectors import cases
from turnwise.algorithms.consistency import answer_entropy
from turnwise.algorithms.effort import released_term
from turnwise.algorithms.votes import votes
from turnwise.algorithms.windows import following_means, following_threshold


@pytest.mark.parametrize("case", cases("ares_entropy_reward"))
def test_ares_reward(case: dict[str, Any]) -> None:
    given, expected = case["inputs"], case["outputs"]
    won = given["accuracy"] == 1.0
    found = released_term(given["difficulty"], won, given["n_hwe"], given["target"], given["alpha"])
    assert found == pytest.approx(expected["entropy_score"], abs=1e-6)
    assert given["accuracy"] + found == pytest.approx(expected["overall"], abs=1e-6)


@pytest.mark.parametrize("case", cases("ares_window_entropy"))
def test_ares_windows(case: dict[str, Any]) -> None:
    """Which tokens are followed by a window at or above the threshold, by how much, and each attempt's percentile.

    The released code counts behind words of a list alone, and there it takes the probability that is missing as one
    more outcome.
    """
    given, expected = case["inputs"], case["outputs"]
    width, threshold = given["window"], given["threshold"]
    for row, reply in enumerate(given["topk_logprobs"]):
        logprobs = np.array([[value for _, value in token] for token in reply])
        entropies, missing = -(np.exp(logprobs) * logprobs).sum(1), 1 - np.exp(logprobs).sum(1)
        assert following_threshold([[entropies]], width, given["percentile"] / 100) == pytest.approx(
            expected["percentile_threshold"][row], abs=1e-5
        )
        tail = np.where(missing > 0, -missing * np.log(missing.clip(1e-12)), 0.0)
        means, whole = following_means(entropies + tail, width)
        words = [given["vocab"][str(max(token, key=lambda pair: pair[1])[0])] for token in reply]
        behind = np.array([word in given["trigger_set"] for word in words])[:whole]
        beyond = (means[:whole] - threshold)[behind]
        assert [(beyond >= 0).sum(), (beyond < 0).sum()] == [expected["valid"][row], expected["invalid"][row]]
        assert beyond.clip(0).sum() == pytest.approx(expected["soft_cost"][row], abs=1e-5)


@pytest.mark.parametrize("case", cases("empo_reward"))
def test_empo(case: dict[str, Any]) -> None:
    """Entropies of answers, and votes. Where all differ, the released comparison of floats misses it and pays alike."""
    answers, expected = case["inputs"]["answers"], case["outputs"]
    bits = answer_entropy(answers, torch.zeros(len(answers), dtype=torch.int64))
    assert float(bits[0]) * math.log(2) == pytest.approx(expected["semantic_entropy_nats"], abs=1e-6)
    if len(set(answers)) == len(answers):
        assert votes(answers, "share") == [0.0] * len(answers)
        assert len(set(expected["rewards"])) == 1
    else:
        assert votes(answers, "share") == pytest.approx(expected["rewards"])
