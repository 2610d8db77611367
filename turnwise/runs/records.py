"""metrics.jsonl, read: the records of a run's updates, and what is missing of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Records:
    """The complete lines of a file, and for each the position of the byte after it.

    ``torn_bytes`` is the size of an incomplete line at the end (0: none).
    """

    path: Path
    lines: tuple[dict[str, Any], ...]
    ends: tuple[int, ...]
    torn_bytes: int

    def end_of(self, finished: int) -> int:
        """Where the records of ``finished`` updates end."""
        return max(
            (end for line, end in zip(self.lines, self.ends, strict=True) if line["update"] < finished), default=0
        )

    def lacks(self, finished: int) -> str:
        """What is missing of ``finished`` updates, or before the last record, as one clause; "" for nothing."""
        there = {line["update"] for line in self.lines}
        every = range(max(finished, *(update + 1 for update in there), 0))
        missing = [update for update in every if update not in there]
        found = [f"holds {len(there)} of {len(every)} updates, and not {_spans(missing)}"] if missing else []
        if self.torn_bytes:
            found.append(f"ends in {self.torn_bytes:,} bytes of no whole line (cut short, or still being written)")
        return f"{self.path} {'; it '.join(found)}" if found else ""


def read_records(path: Path) -> Records:
    """The records of a run; none without a file. Raises ValueError, which names the line, where one is damaged."""
    lines, ends, end = list[dict[str, Any]](), list[int](), 0
    raws = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    for number, raw in enumerate(raws, start=1):
        if not raw.endswith(b"\n"):
            return Records(path, tuple(lines), tuple(ends), len(raw))
        end += len(raw)
        lines.append(_record(path, number, raw))
        ends.append(end)
    return Records(path, tuple(lines), tuple(ends), 0)


def _record(path: Path, number: int, raw: bytes) -> dict[str, Any]:
    try:
        line = json.loads(raw)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: line {number} is not JSON: {error}") from None
    if not isinstance(line, dict) or not isinstance(line.get("update"), int):
        raise ValueError(f"{path} is damaged: line {number} is no record of an update")
    return line


def _spans(numbers: Iterable[int]) -> str:
    """``3 to 5, 9``."""
    runs = [[n for _, n in same] for _, same in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
