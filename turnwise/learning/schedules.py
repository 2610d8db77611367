"""Schedules: pure functions of the update number k (0-based) and the number of updates of the run."""

from __future__ import annotations

import math


def constant_weight(update: int) -> float:
    """1 at every update."""
    return 1.0


def epo_paper_weight(update: int, num_updates: int, gamma: float = 3.0) -> float:
    """β_k = 1 + exp(-γ k / k_mid), k_mid = ⌊K/2⌋: from 2 down to nearly 1 (EPO, arXiv 2509.22576)."""
    return 1.0 + math.exp(-gamma * update / max(num_updates // 2, 1))


def epo_released_weight(update: int, num_updates: int) -> float:
    """w(k) of EPO's released code (WujiangXu/EPO 5b6fa98e); 1 for a run of no epochs.

    1 - 0.2 (1 - e^(-2x)) up to the middle of the run, then 0.8 e^(-3x), x the share of that half that has
    passed; it jumps from 0.827 to below 0.8 in between.
    """
    if num_updates <= 0:
        return 1.0
    middle = num_updates // 2
    if update <= middle:
        return 1.0 - 0.2 * (1.0 - math.exp(-2.0 * update / max(middle, 1)))
    share = min((update - middle) / max(num_updates - middle, 1), 1.0)
    return 0.8 * math.exp(-3.0 * share)


def cosine_fall(step: float, span: float) -> float:
    """From 1 at step 0 down to 0 at ``span``, half a cosine; 0 beyond (SPEAR, arXiv 2509.22601)."""
    return 0.5 * (1.0 + math.cos(math.pi * step / span)) if step <= span else 0.0


def cosine_rise(step: float, span: float) -> float:
    """From 0 at step 0 up to 1 at ``span``, half a cosine; 1 beyond."""
    return 0.5 * (1.0 - math.cos(math.pi * step / span)) if step <= span else 1.0


def learning_rate_share(
    update: int, num_updates: int, *, shape: str = "constant", warmup_share: float = 0.0, floor: float = 0.0
) -> float:
    """Factor on the learning rate: linear warm-up to 1, then constant, or a cosine or line to ``floor``."""
    warmup = round(warmup_share * num_updates)
    if update < warmup:
        return (update + 1) / warmup
    if shape == "constant":
        return 1.0
    passed = (update - warmup) / (num_updates - warmup) if update < num_updates else 1.0
    remaining = 0.5 * (1.0 + math.cos(math.pi * passed)) if shape == "cosine" else 1.0 - passed
    return floor + (1.0 - floor) * remaining
