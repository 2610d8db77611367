"""Verdicts that were given, so that nothing is asked twice: in memory, and in a file that a resumed run reads.

A line of ``verdicts.jsonl`` is one verdict: who gave it, hashes of what was asked and shown, the choices with their
reasons, and the requests and tokens that it took. A line without choices tells of a judge that gave no verdict; it is
asked again. Several processes may add lines to one file.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from turnwise.agents.chat_client import Usage

FILE = "verdicts.jsonl"


@dataclass(frozen=True, slots=True)
class Choice:
    """The judge's answer to one criterion."""

    criterion: str
    choice: str
    reason: str


Verdict = tuple[Choice, ...]
"""The answers to a rubric, in its order."""


@dataclass(frozen=True, slots=True)
class Key:
    """What a verdict depends on: the model with the fields of its requests, the rubric and the record, by hash."""

    model: str
    rubric: str
    transcript: str

    @classmethod
    def of(cls, model: str, rubric: str, transcript: str) -> Key:
        return cls(model, _hash(rubric), _hash(transcript))


class Verdicts:
    """The verdicts of a file (None: of this process). Threads may share it. ``given`` counts those that were given
    here, ``found`` those that were there.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path, self.given, self.found = path, 0, 0
        self._lock = threading.Lock()
        self._known: dict[Key, Future[Verdict]] = {}
        self._torn = path is not None and path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
        for line in _lines(path) if path is not None else ():
            if line.get("verdict"):
                done: Future[Verdict] = Future()
                done.set_result(tuple(Choice(**choice) for choice in line["verdict"]))
                self._known[Key(line["model"], line["rubric"], line["transcript"])] = done

    def once(self, key: Key, episode: str, ask: Callable[[], tuple[Verdict, Usage]]) -> Verdict:
        """The verdict under ``key``; asked for where nobody has, or is about to. Raises what ``ask`` raises."""
        with self._lock:
            known = self._known.get(key)
            if known is None:
                mine = self._known[key] = Future[Verdict]()
            else:
                self.found += 1
        if known is not None:
            return known.result()
        try:
            verdict, usage = ask()
        except BaseException as error:
            with self._lock:
                del self._known[key]
            mine.set_exception(error)
            raise
        self.write(key, episode, usage, verdict=[asdict(choice) for choice in verdict])
        mine.set_result(verdict)
        return verdict

    def write(self, key: Key, episode: str, usage: Usage, **told: Any) -> None:
        """Add a line to the file, and count it where it has a verdict."""
        line = json.dumps({**asdict(key), "episode": episode, **told, "usage": asdict(usage)}) + "\n"
        with self._lock:
            self.given += bool(told.get("verdict"))
            if self.path is not None:
                with self.path.open("ab", buffering=0) as file:  # one call: lines of several processes do not mix
                    file.write(("\n" * self._torn + line).encode())
                self._torn = False


def spent_in(path: Path) -> Usage:
    """What all verdicts of a file took. Requests whose answer was lost in a crash are not in it."""
    return sum((Usage(**line["usage"]) for line in _lines(path)), Usage())


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a file. One that a crash has cut is left out: its question is asked again."""
    for raw in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            line = json.loads(raw)
            _ = [Choice(**choice) for choice in line.get("verdict") or ()], Usage(**line["usage"])
            _ = Key(line["model"], line["rubric"], line["transcript"])
        except (ValueError, LookupError, TypeError, AttributeError):
            continue
        yield line


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]
