"""The record of an update: one line of metrics.jsonl, one frame of the display."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from turnwise.trajectory import Group


def episode_numbers(groups: Sequence[Group]) -> dict[str, Any]:
    """What an update's episodes were like. Success is None where no world says what that is."""
    played = [t for group in groups for t in group.trajectories]
    episodes = [t for t in played if t.end != "error" and t.sample >= 0]  # a negative one was only looked at
    turns = [turn for t in episodes for turn in t.turns]
    known = [t.success for t in episodes if t.success is not None]
    return {
        "success": float(np.mean(known)) if known else None,
        "reward": float(np.mean([t.total_reward for t in episodes])) if episodes else 0.0,
        "turns": float(np.mean([len(t.turns) for t in episodes])) if episodes else 0.0,
        "invalid_share": float(np.mean([not turn.valid for turn in turns])) if turns else 0.0,
        "episodes": len(episodes),
        "errors": sum(t.end == "error" for t in played),
        "sampled_tokens": sum(t.num_sampled_tokens for t in played),
    }


def joined(sides: Mapping[str, Mapping[str, float | None]]) -> dict[str, float | None]:
    """One side's numbers as they are; of several the means of what is known, and each side's own under its name."""
    if len(sides) == 1:
        return dict(next(iter(sides.values())))
    known: dict[str, list[float]] = {}
    for name, value in ((name, value) for numbers in sides.values() for name, value in numbers.items()):
        known.setdefault(name, []).extend([] if value is None else [value])
    means = {name: float(np.mean(values)) if values else None for name, values in known.items()}
    return {**means, **{f"{side}/{name}": value for side, found in sides.items() for name, value in found.items()}}


def finite(record: Mapping[str, Any]) -> dict[str, Any]:
    """None in the place of nan and infinity, which JSON does not have."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
