"""Fixed panels of generated tasks, and the proof that their splits are disjoint.

The *content* of a game decides its split: the first hexadecimal digit of its key, so a quarter of all games
belongs to each split, whoever generates them from whatever seed. No game of one split can turn up in another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from turnwise.envs.alfworld.game import Game
from turnwise.envs.alfworld.store import check_split
from turnwise.envs.household.draft import draft
from turnwise.envs.household.generator import build
from turnwise.envs.household.rooms import TASK_TYPES
from turnwise.envs.household.settings import PRESETS, Settings, settings_for
from turnwise.envs.interface import Panel
from turnwise.trajectory import Task

ENV_ID = "turnwise/Household-v0"
VERSION = 1
"""Raise whenever the same seed may give another game."""

SPLITS: dict[str, int] = {"train": 100_000, "demonstrations": 100_000, "validation": 256, "test": 512}
"""Split -> number of tasks."""
MAX_ATTEMPTS = 1000
LAZY = frozenset({"train", "demonstrations"})


def split_of(key: str) -> str:
    """The split that a game belongs to, by its content key."""
    return tuple(SPLITS)[int(key[0], 16) * len(SPLITS) // 16]


class GeneratedGames:
    """A ``GameSource`` of generated games; ``difficulty`` is "easy", "medium", "hard" or a ``Settings``."""

    splits: tuple[str, ...] = tuple(SPLITS)

    def __init__(self, difficulty: str | Settings = "easy") -> None:
        self.settings = settings_for(difficulty)
        preset = next((name for name, settings in PRESETS.items() if settings == self.settings), "custom")
        self.name = f"household-{preset}"

    def panel(self, split: str) -> Panel:
        """The tasks of a split, in order; task types take turns."""
        check_split(self, split)
        return _panel(self.settings, split)

    def game(self, split: str, index: int) -> Game:
        """The game of a task: generated when asked for, the same one every time."""
        check_split(self, split)
        if not 0 <= index < SPLITS[split]:
            raise ValueError(f"Task {index} is not in split {split!r}: it has 0 to {SPLITS[split] - 1}.")
        return _game(self.settings, split, int(index))


@lru_cache(maxsize=2048)
def _game(settings: Settings, split: str, index: int) -> Game:
    """The first of the index's own seeds whose content belongs to the split (four tries on average)."""
    for attempt in range(MAX_ATTEMPTS):
        made = draft(_seed(split, index, attempt), settings)
        if split_of(made.key()) == split:
            return build(made)
    raise ValueError(f"{settings} leaves too few different games to fill split {split!r}: allow more objects.")


def _seed(split: str, index: int, attempt: int) -> int:
    """Distinct for all triples, and of the task type ``index % 6`` in every attempt."""
    types = len(TASK_TYPES)
    block = (attempt * len(SPLITS) + tuple(SPLITS).index(split)) * 10**8 + index // types
    return block * types + index % types


@lru_cache(maxsize=16)
def _panel(settings: Settings, split: str) -> Panel:
    if split in LAZY:
        return GeneratedPanel(settings, split)
    return Panel(ENV_ID, split, tuple(_task(settings, split, index) for index in range(SPLITS[split])))


def _task(settings: Settings, split: str, index: int) -> Task:
    game = _game(settings, split, index)
    return Task(ENV_ID, split, index, game.key, game.goal.type)


class GeneratedPanel(Panel):
    """A long panel whose tasks are generated on access.

    Its ``hash`` is that of what defines it (generator version, settings, split, length), not of the contents:
    hashing those would mean generating them all.
    """

    def __init__(self, settings: Settings, split: str) -> None:
        # Panel is a frozen dataclass: its fields are set past the freeze, as its own __post_init__ does.
        definition = f"household {VERSION}|{settings}|{split}|{SPLITS[split]}"
        values = {
            "env": ENV_ID,
            "split": split,
            "settings": settings,
            "hash": hashlib.sha256(definition.encode()).hexdigest()[:16],
        }
        for attribute, value in values.items():
            object.__setattr__(self, attribute, value)

    settings: Settings

    @property
    def entries(self) -> tuple[Task, ...]:
        """All tasks: generates every one of them."""
        return tuple(self)

    def __len__(self) -> int:
        return SPLITS[self.split]

    def __iter__(self) -> Iterator[Task]:
        return (self._at(index) for index in range(len(self)))

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return tuple(self._at(each) for each in range(*index.indices(len(self))))
        position = int(index)
        if not -len(self) <= position < len(self):
            raise IndexError(f"Panel {self.split!r} has {len(self)} tasks, got index {index}.")
        return self._at(position % len(self))

    def _at(self, index: int) -> Task:
        return _task(self.settings, self.split, index)

    def may_contain(self, key: str) -> bool:
        """By the key alone: a split holds the games whose key falls to it, and no others."""
        return split_of(key) == self.split

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GeneratedPanel) and self.hash == other.hash

    def __hash__(self) -> int:
        return hash(self.hash)

    def __repr__(self) -> str:
        return f"GeneratedPanel(env={self.env!r}, split={self.split!r}, tasks={len(self)}, hash={self.hash!r})"
