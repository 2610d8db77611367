"""Bad input on purpose: a kind makes a case from a random generator, tries it, and says how it ended.

A case ends in an ordinary way or in one clear sentence. Anything else (another exception, a broken promise) is a fault.
Cases are numbered: ``attempt(kind, number, seed)`` repeats one alone.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

Try = Callable[[random.Random, Path], str]
"""Makes and tries a case in an empty folder; how it ended, in a word or two."""

LIMIT_S = 30.0
"""Processor seconds that one case may take."""


@dataclass(frozen=True, slots=True)
class Kind:
    """``tried`` says in a line what is varied; ``share`` is its part of all cases."""

    name: str
    tried: str
    run: Try
    share: float


@dataclass(frozen=True, slots=True)
class Fault:
    number: int
    text: str


@dataclass(slots=True)
class Tally:
    kind: Kind
    endings: Counter[str] = field(default_factory=Counter)
    faults: list[Fault] = field(default_factory=list)

    @property
    def num(self) -> int:
        return sum(self.endings.values()) + len(self.faults)


def attempt(kind: Kind, number: int, seed: int = 0) -> str | Fault:
    """One case, in a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz"))
    began = time.process_time()
    try:
        ending = kind.run(random.Random(f"{seed}/{kind.name}/{number}"), folder)
        seconds = time.process_time() - began
        return ending if seconds < LIMIT_S else Fault(number, f"it took {seconds:.0f} s")
    except Exception:
        return Fault(number, traceback.format_exc())
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def attempts(kind: Kind, num: int, seed: int = 0) -> Tally:
    """Cases 0 to ``num`` - 1."""
    tally = Tally(kind)
    for number in range(num):
        ended = attempt(kind, number, seed)
        if isinstance(ended, Fault):
            tally.faults.append(ended)
        else:
            tally.endings[ended] += 1
    return tally


def clear(message: str) -> str:
    """The ending of a case that was refused; AssertionError where its message is none for a person."""
    assert 10 <= len(message) <= 6000, f"{len(message)} characters: {message[:300]!r}"
    for noise in ("Traceback", "errors.pydantic.dev", "validation error", "<class '", "object at 0x"):
        assert noise not in message, message[:1000]
    return "clear error"
