"""Errors that several parts share, and how a wrong name is told of. A leaf: standard library only."""

from __future__ import annotations

import difflib
import os
import re
import traceback
from collections.abc import Iterable
from pathlib import Path

_PACKAGE = str(Path(__file__).parent)
_FRAME = re.compile(r'File "(.+?)", line (\d+)')


class AgentError(ValueError):
    """An agent cannot play at all. Unlike a fault of a world this ends everything: no episode is blamed for it."""


class StoppedRunError(RuntimeError):
    """A run ended before its last update, with everything up to its newest checkpoint on the disk."""

    exit_code = 2


class UnusedSettingError(ValueError):
    """A setting that has no effect with the other settings of its section. ``names`` are those to leave out."""

    def __init__(self, names: str | tuple[str, ...], message: str) -> None:
        super().__init__(message)
        self.names = (names,) if isinstance(names, str) else names


def unknown(kind: str, given: object, known: Iterable[str], where: str = "") -> ValueError:
    """``raise unknown("split", "tets", ["train", "test"])``: Unknown split 'tets'. Did you mean 'test'? ..."""
    names = list(known)
    near = difflib.get_close_matches(str(given), names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    place = f" in {where}" if where else ""
    return ValueError(f"Unknown {kind} {given!r}{place}.{hint} Expected one of: {', '.join(names)}.")


def with_place(error: BaseException) -> str:
    """An error in a user's code, with its place there: ``KeyError (lift.py, line 26): 'floor'``."""
    return f"{type(error).__name__}{place(error)}: {error}"


def place(error: BaseException) -> str:
    """The last line of a user's own code that an error came through, as `` (lift.py, line 26)``; "" for none.

    Own code is neither installed, nor Python's, nor of turnwise. For an error of another process its ``trace`` is read.
    """
    frames = _FRAME.findall(getattr(error, "trace", ""))
    frames += [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    own = [(file, line) for file, line in frames if _is_own(file)]
    return f" ({os.path.basename(own[-1][0])}, line {own[-1][1]})" if own else ""


def _is_own(file: str) -> bool:
    return not (file.startswith(("<", _PACKAGE)) or "site-packages" in file or "/lib/python" in file)
