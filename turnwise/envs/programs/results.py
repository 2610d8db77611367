"""What a program returned, or how it failed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from turnwise.errors import with_place

_RETURNS = "return the reward: a number, or {'reward': number, 'success': True or False, 'score': number in [0, 1]}"


class ProgramError(RuntimeError):
    """A program failed: it raised, took too long, or returned something that is no reward."""


@dataclass(frozen=True, slots=True)
class Result:
    """What an episode earned."""

    reward: float
    success: bool | None = None
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended: its result, or what went wrong."""

    result: Result | None = None
    error: str = ""


def outcome_of(name: str, value: Any) -> Outcome:
    """What a program returned, as an outcome: an error where it is no result."""
    given = value if isinstance(value, dict) else {"reward": value}
    known = {"reward": is_number, "success": _flag, "score": _share}
    if value is None:
        return Outcome(error=f"{name} returned None: {_RETURNS}")
    if unknown := [key for key in given if key not in known]:
        return Outcome(error=f"{name} returned the key {unknown[0]!r}: {_RETURNS}")
    if "reward" not in given or not all(known[key](found) for key, found in given.items()):
        return Outcome(error=f"{name} returned {value!r}"[:120] + f": {_RETURNS}")
    success, score = given.get("success"), given.get("score")
    return Outcome(
        Result(
            float(given["reward"]), None if success is None else bool(success), None if score is None else float(score)
        )
    )


def is_number(found: Any) -> bool:
    """Whether it is a finite number that fits into a float."""
    try:
        return not isinstance(found, str | bytes) and math.isfinite(float(found))
    except (TypeError, ValueError, OverflowError):
        return False


def _flag(found: Any) -> bool:
    return found is None or (is_number(found) and float(found) in (0, 1))


def _share(found: Any) -> bool:
    return found is None or (is_number(found) and 0 <= float(found) <= 1)


def raised(name: str, error: BaseException) -> str:
    """Which error ended the program, and where in its own code."""
    return f"{name} raised {with_place(error)}"
