"""The record of an update: one line of metrics.jsonl, one frame of the display."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from turnwise.grading.agreement import graded
from turnwise.trajectory import Group, counted, successes

_TOKENS = "decoding/tokens"


def episode_numbers(groups: Sequence[Group]) -> dict[str, Any]:
    """Means and counts over an update's episodes. ``success`` is None in worlds that do not say what success is.

    Where a world says it at the end of an episode alone, one that was cut short is none.
    The means leave out episodes that start in stored states, as far as there are others. Copies of an update's own
    attempts count. Of no episode there is no mean: an update that learns from stored episodes has None.
    ``played_turns`` and ``sampled_tokens`` count what was played for the update, in failed episodes too: what copies
    share counts once.
    """
    played = [t for group in groups for t in group.trajectories]
    episodes = [played[n] for n in counted(played)]
    turns = [turn for t in episodes for turn in t.turns]
    known = [told for told in successes(episodes) if told is not None]
    return {
        "success": mean_of(known),
        "reward": mean_of([t.total_reward for t in episodes]),
        "turns": mean_of([len(t.turns) for t in episodes]),
        "invalid_share": mean_of([not turn.valid for turn in turns]),
        "episodes": sum(t.end != "error" and not t.only_looked_at for t in played),
        "errors": sum(t.end == "error" for t in played),
        "played_turns": sum(t.num_played_turns for t in played),
        "sampled_tokens": sum(t.num_sampled_tokens for t in played),
    }


def mean_of(values: Sequence[float]) -> float | None:
    """The mean; None of no values, since 0 would look like a result."""
    return float(np.mean(values)) if values else None


def grading_numbers(groups: Sequence[Group], spent: Mapping[str, float]) -> dict[str, Any]:
    """What graders gave an update's episodes, and what the judge took (``spent``); {} where the world alone pays.

    ``reward`` is then what is paid in all, and ``world_reward`` the world's part, of the same episodes.
    """
    played = [t for group in groups for t in group.trajectories]
    found = graded(played[n] for n in counted(played))
    if found is None:
        return {}
    made: dict[str, Any] = {"world_reward": found.world_return, "grades": found.means}
    if found.judge:
        agreement = None if found.agreement is None else found.agreement.value
        made |= {"verdict": found.verdict, "judge_agreement": agreement, "judge": dict(spent)}
    return made


def per_token(numbers: Mapping[str, float]) -> dict[str, float]:
    """Numbers in which the sums of decoding are means over its tokens; how many these are stays ``decoding/tokens``."""
    tokens = numbers.get(_TOKENS, 0)
    return {
        name: value / tokens if name.startswith("decoding/") and name != _TOKENS else value
        for name, value in numbers.items()
    }


def joined(sides: Mapping[str, Mapping[str, float | None]]) -> dict[str, float | None]:
    """The numbers of all sides together.

    A single side's numbers stay as they are. Of several sides there is the mean of each known number, and each side's
    own number as ``SIDE/NAME``.
    """
    if len(sides) == 1:
        return dict(next(iter(sides.values())))
    known: dict[str, list[float]] = {}
    for name, value in ((name, value) for numbers in sides.values() for name, value in numbers.items()):
        known.setdefault(name, []).extend([] if value is None else [value])
    means = {name: float(np.mean(values)) if values else None for name, values in known.items()}
    return {**means, **{f"{side}/{name}": value for side, found in sides.items() for name, value in found.items()}}


def finite(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with None in place of nan and infinity, which JSON does not have."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
