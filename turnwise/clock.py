"""Where an update's time goes: seconds and tokens by stage, added up by whoever does the work."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

STAGES = ("environment", "grade", "prefill", "decode", "score", "train")
"""Stepping worlds; waiting for reward functions and judges; feeding observations; feeding sampled tokens and drawing
the next; log-probs that the credit needs before the update; forward, backward and optimizer."""


@dataclass(frozen=True, slots=True)
class Work:
    """What was done since the last ``take``: seconds and tokens (of the environment: steps) by stage."""

    seconds: Mapping[str, float]
    tokens: Mapping[str, int]


class Clock:
    """``now`` gives seconds: of the wall, or ``time.process_time``."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.now = now
        self._seconds: Counter[str] = Counter()
        self._tokens: Counter[str] = Counter()

    def add(self, stage: str, seconds: float, tokens: int) -> None:
        self._seconds[stage] += seconds  # type: ignore[assignment]  # typeshed counts in whole numbers
        self._tokens[stage] += tokens

    def split(self, seconds: float, **tokens: int) -> None:
        """Divide the time of work done together by the tokens of each stage."""
        total = sum(tokens.values())
        for stage, num in tokens.items():
            if num:
                self.add(stage, seconds * num / total, num)

    @contextmanager
    def stage(self, name: str, tokens: int) -> Iterator[None]:
        """Time a block. On a GPU a block that does not wait for its results is charged to the one that does."""
        began = self.now()
        try:
            yield
        finally:
            self.add(name, self.now() - began, tokens)

    def take(self) -> Work:
        """What was added since the last time."""
        work = Work(dict(self._seconds), dict(self._tokens))
        self._seconds.clear()
        self._tokens.clear()
        return work


def time_line(records: Sequence[Mapping[str, Any]]) -> str:
    """One line over the records of some updates: each stage's share of their time and its tokens/s, then what is left.

    Of updates that were played ahead it is the time of playing and of learning, which pass side by side. Empty where no
    record tells stages apart.
    """
    spent = [record["seconds"] for record in records if STAGES[-1] in record["seconds"]]
    total = sum(seconds.get("play", seconds["collect"]) + seconds["update"] for seconds in spent)
    if not total:
        return ""
    parts, rest = [], total
    for stage in STAGES:
        seconds = sum(found.get(stage, 0.0) for found in spent)
        tokens = sum(record.get("tokens", {}).get(stage, 0) for record in records)
        unit = "steps" if stage == "environment" else "tokens"
        if seconds:
            rate = "" if stage == "grade" else f" ({tokens / seconds:,.0f} {unit}/s)"
            parts.append(f"{stage} {100 * seconds / total:.0f} %{rate}")
            rest -= seconds
    return "  ".join([*parts, f"other {100 * max(rest, 0.0) / total:.0f} %"])
