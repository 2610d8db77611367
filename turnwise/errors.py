"""Errors that several parts share, and how a wrong name is told of. A leaf: standard library only."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AgentError(ValueError):
    """An agent cannot play at all. Unlike a fault of a world this ends everything: no episode is blamed for it."""


class StoppedRunError(RuntimeError):
    """A run ended before its last update, with everything up to its newest checkpoint on the disk."""

    exit_code = 2


def unknown(kind: str, given: object, known: Iterable[str], where: str = "") -> ValueError:
    """``raise unknown("split", "tets", ["train", "test"])``: Unknown split 'tets'. Did you mean 'test'? ..."""
    names = list(known)
    near = difflib.get_close_matches(str(given), names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    place = f" in {where}" if where else ""
    return ValueError(f"Unknown {kind} {given!r}{place}.{hint} Expected one of: {', '.join(names)}.")
