"""Tells where attempts at one task began differently: their returns are compared as if they had not."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from turnwise.trajectory import Group

_MAX_CHARS = 80  # of a quoted observation


class Beginnings:
    """Looks at every update's groups, and warns once where two attempts show different first observations.

    A game's groups are left out: what a player sees first depends on what others did before.
    """

    def __init__(self) -> None:
        self._told = False

    def add(self, groups: Iterable[Group]) -> None:
        """The groups of an update."""
        for group in groups:
            if self._told:
                return
            seen = dict.fromkeys(t.turns[0].observation for t in group.trajectories if t.turns and not t.player)
            if len(seen) > 1:
                self._tell(group, list(seen))

    def _tell(self, group: Group, seen: list[str]) -> None:
        self._told = True
        first, second = (repr(text if len(text) <= _MAX_CHARS else f"{text[:_MAX_CHARS]}...") for text in seen[:2])
        warnings.warn(
            f"attempts at task {group.task.index} of {group.task.split!r} began differently: with {first}, and with "
            f"{second}. Attempts are compared as if they had begun alike, so that luck in the start is learned from. "
            "Let reset(seed=...) alone decide how an episode begins (super().reset(seed=seed), self.np_random); "
            "`turnwise check-env` finds such faults",
            stacklevel=3,
        )
