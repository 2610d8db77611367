"""Panels of generated tasks whose splits have no task in common.

A task's content decides its split. Its key is a hash of the content, and the first hexadecimal digit of the key gives
the split. With four splits, for example, "train" has the tasks whose keys begin with 0 to 3. So a task belongs to the
same split whatever seed generates it, and it cannot be in two splits. Each split has an equal share of all possible
tasks.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from turnwise.envs.interface import Panel
from turnwise.errors import unknown
from turnwise.trajectory import Task

Content = TypeVar("Content")

SIZES: Mapping[str, int] = MappingProxyType(
    {"train": 100_000, "demonstrations": 100_000, "validation": 256, "test": 512}
)
"""The default number of tasks of each split."""
MAX_ATTEMPTS = 1000
"""Seeds that are tried to find one task of a split, before an error says that there are too few different tasks."""
_LAZY_FROM = 5_000
"""Tasks. In panels at least this long each task is generated when it is first used."""


def content_key(text: str) -> str:
    """A hash of a task's content: 16 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def mixed(types: Sequence[str]) -> list[int]:
    """An order of tasks that mixes their types evenly. Returns task numbers.

    For any N, the first N tasks hold about the same share of each type as all tasks do. Within a type the order stays.
    """
    sizes, seen, shares = Counter(types), Counter[str](), list[float]()
    for type_ in types:
        shares.append((seen[type_] + 0.5) / sizes[type_])
        seen[type_] += 1
    return sorted(range(len(types)), key=shares.__getitem__)


@dataclass(frozen=True)
class GeneratedTasks(Generic[Content]):
    """Panels of tasks that are generated from seeds.

    ``make(seed)`` returns a task's content. It must be a pure function. ``key(content)`` is a hash of the content in
    hexadecimal digits (``content_key``), ``type(content)`` its type for tables. With ``num_types`` types of task,
    ``make`` must use type ``seed % num_types``; the types then alternate in a panel. ``definition`` names everything
    that decides what is generated, such as version and settings. The hash of a long panel is computed from it.
    ``cache_size`` is the number of contents that are kept in memory.
    """

    env: str
    definition: str
    make: Callable[[int], Content]
    key: Callable[[Content], str]
    type: Callable[[Content], str] = lambda content: ""
    num_types: int = 1
    sizes: Mapping[str, int] = field(default_factory=lambda: SIZES)
    cache_size: int = 2048

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.sizes)

    def split_of(self, key: str) -> str:
        """The split of the task with this content key."""
        return self.splits[int(key[0], 16) * len(self.sizes) // 16]

    def panel(self, split: str) -> Panel:
        """The tasks of a split, in order. Raises ValueError for an unknown split."""
        self._check(split)
        if split not in self._panels:
            self._panels[split] = LazyPanel(self, split) if self._is_lazy(split) else self._whole(split)
        return self._panels[split]

    def content(self, split: str, index: int) -> Content:
        """The content of a task, the same every time. Raises ValueError for an unknown split or index."""
        self._check(split)
        if not 0 <= index < self.sizes[split]:
            raise ValueError(f"Task {index} is not in split {split!r}: it has 0 to {self.sizes[split] - 1}.")
        return self._content(split, int(index))

    def task(self, split: str, index: int) -> Task:
        content = self.content(split, index)
        return Task(self.env, split, index, self.key(content), self.type(content))

    def _check(self, split: str) -> None:
        if split not in self.sizes:
            raise unknown("split", split, self.sizes, self.env)

    def _is_lazy(self, split: str) -> bool:
        return self.sizes[split] >= _LAZY_FROM

    @cached_property
    def _panels(self) -> dict[str, Panel]:
        return {}

    @cached_property
    def _seeds(self) -> dict[str, list[int]]:
        return {}

    @cached_property
    def _content(self) -> Callable[[str, int], Content]:
        return lru_cache(maxsize=self.cache_size)(self._generate)

    def _generate(self, split: str, index: int) -> Content:
        if self._is_lazy(split):
            return next(self._candidates(split, index))[1]
        return self.make(self._seeds_of(split)[index])

    def _whole(self, split: str) -> Panel:
        return Panel(self.env, split, tuple(self.task(split, index) for index in range(self.sizes[split])))

    def _seeds_of(self, split: str) -> list[int]:
        """The seed of every task of a short panel. No two tasks have the same content."""
        if split not in self._seeds:
            seen: set[str] = set()
            seeds = []
            for index in range(self.sizes[split]):
                fresh = (c for c in self._candidates(split, index) if self.key(c[1]) not in seen)
                seed, content = next(fresh)
                seen.add(self.key(content))
                seeds.append(seed)
            self._seeds[split] = seeds
        return self._seeds[split]

    def _candidates(self, split: str, index: int) -> Iterator[tuple[int, Content]]:
        """(seed, content) for those seeds of a task's index whose content belongs to the split.

        Raises ValueError after ``MAX_ATTEMPTS`` seeds.
        """
        for attempt in range(MAX_ATTEMPTS):
            seed = self._seed(split, index, attempt)
            made = self.make(seed)
            if self.split_of(self.key(made)) == split:
                yield seed, made
        raise ValueError(
            f"{self.env} ({self.definition}): too few different tasks to fill split {split!r}; allow more variety, "
            "or smaller panels"
        )

    def _seed(self, split: str, index: int, attempt: int) -> int:
        """A seed that no other (split, index, attempt) has. Its type is ``index % num_types`` in every attempt."""
        block = (attempt * len(self.sizes) + self.splits.index(split)) * 10**8 + index // self.num_types
        return block * self.num_types + index % self.num_types


class LazyPanel(Panel):
    """A long panel, whose tasks are generated on access.

    Its ``hash`` is computed from its definition, split and length. A hash of the contents would need all tasks to be
    generated.
    """

    def __init__(self, source: GeneratedTasks[Any], split: str) -> None:
        # Panel is a frozen dataclass: its fields are set past the freeze, as its own __post_init__ does.
        definition = f"{source.definition}|{split}|{source.sizes[split]}"
        values = {
            "env": source.env,
            "split": split,
            "source": source,
            "hash": hashlib.sha256(definition.encode()).hexdigest()[:16],
        }
        for attribute, value in values.items():
            object.__setattr__(self, attribute, value)

    source: GeneratedTasks[Any]

    @property
    def entries(self) -> tuple[Task, ...]:
        """All tasks. This generates every one of them."""
        return tuple(self)

    def __len__(self) -> int:
        return self.source.sizes[self.split]

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
        return self.source.task(self.split, index)

    def may_contain(self, key: str) -> bool:
        """Whether a task with this content key belongs to the split. The key alone decides."""
        return self.source.split_of(key) == self.split

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LazyPanel) and self.hash == other.hash

    def __hash__(self) -> int:
        return hash(self.hash)

    def __repr__(self) -> str:
        return f"LazyPanel(env={self.env!r}, split={self.split!r}, tasks={len(self)}, hash={self.hash!r})"
