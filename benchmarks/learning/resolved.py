"""The settings that recorded runs were trained with: runs of two commits are put together only where they agree.

A file says the settings that all of its methods share, and beside them those of each method. They are the resolved
ones, defaults included, without seed, paths and what changes no number: a default that changes between two commits is
a difference too. A setting that came later is none, since one of the two commits does not know it; it is named.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_OWN = ("algorithm.",)
"""In what methods may differ without a word in their command."""


@dataclass
class Resolved:
    """The settings by method, each by dotted name, and the words of the command that set some of them.

    ``later`` are settings that not all runs know, with their values.
    """

    of: dict[str, dict[str, Any]] = field(default_factory=dict)
    given: dict[str, set[str]] = field(default_factory=dict)
    later: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Resolved:
        """Those of a file; none where there is no file, or an older one."""
        found = json.loads(path.read_text()) if path.exists() else {}
        shared, own = found.get("settings", {}), found.get("settings_of", {})
        words = {row["algorithm"]: _words(row["command"]) for row in found.get("runs", [])}
        return cls({name: {**shared, **settings} for name, settings in own.items()}, words)

    def add(self, name: str, settings: Mapping[str, Any], command: str) -> str:
        """Take in a run's settings, and return their hash.

        Raises ValueError where they are not those of the method's other runs, or, outside of the algorithm and of what
        the commands say, those of other methods.
        """
        plain: dict[str, Any] = json.loads(json.dumps(dict(settings)))
        self.given[name] = self.given.get(name, set()) | _words(command)
        for other, known in self.of.items():
            compared = self._compared(name, other, {**known, **plain})
            if differing := sorted(key for key in compared & known.keys() & plain.keys() if known[key] != plain[key]):
                shown = ", ".join(f"{key} ({known[key]!r}, here {plain[key]!r})" for key in differing)
                raise ValueError(
                    f"{name} was trained with other settings here than {other} in the file: {shown}. Runs that differ "
                    "in them cannot be put together: name another file with --to, or run the older ones again"
                )
            self.later |= {key: {**known, **plain}[key] for key in compared & (known.keys() ^ plain.keys())}
        self.of[name] = plain
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]

    def _compared(self, name: str, other: str, settings: Iterable[str]) -> set[str]:
        """The settings in which two methods, or two runs of one, must agree."""
        if other == name:
            return set(settings)
        free = self.given[name] | self.given.get(other, set())
        return {key for key in settings if key not in free and not key.startswith(_OWN)}

    def plain(self) -> dict[str, Any]:
        """What a file keeps: ``settings`` that all share, ``settings_of`` each method; {} of none."""
        if not self.of:
            return {}
        first, *others = self.of.values()
        shared = {key: value for key, value in first.items() if all(key in o and o[key] == value for o in others)}
        own = {name: {k: v for k, v in found.items() if k not in shared} for name, found in self.of.items()}
        return {"settings": shared, "settings_of": own}


def _words(command: str) -> set[str]:
    """The names of the settings that a command gives."""
    return {word.partition("=")[0] for word in shlex.split(command) if "=" in word}
