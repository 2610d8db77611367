"""What the toy worlds share: a difficulty by its name, tasks from a source, and a state that is its own snapshot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, Protocol, TypeVar

from gymnasium.error import ResetNeeded

from turnwise.envs.interface import Info, Panel
from turnwise.envs.world import SnapshotEnv
from turnwise.errors import unknown

State = TypeVar("State")
Start = TypeVar("Start", covariant=True)
Level = TypeVar("Level")
EXPERTS = ("searching", "knowing")


class TaskSource(Protocol[Start]):
    """Panels by split, and the state in which a task starts: ``GeneratedTasks`` is one."""

    @property
    def splits(self) -> tuple[str, ...]: ...
    def panel(self, split: str) -> Panel: ...
    def content(self, split: str, index: int) -> Start: ...


class ToyEnv(SnapshotEnv, Generic[State]):
    """A world whose state is one immutable value, complete in itself: ``begin`` sets it, ``act`` replaces it."""

    def __init__(self, source: TaskSource[State], split: str, step_limit: int) -> None:
        super().__init__(split, step_limit)
        self.source = source
        self._state: State | None = None

    @property
    def splits(self) -> tuple[str, ...]:
        return self.source.splits

    def tasks(self, split: str) -> Panel:
        """The fixed panel of a split. Raises ValueError for an unknown one."""
        return self.source.panel(split)

    @property
    def state(self) -> State:
        if self._state is None:
            raise ResetNeeded("There is no game yet: call reset() first.")
        return self._state

    def save(self) -> State:
        return self.state

    def load(self, state: State) -> None:
        self._state = state


def level_of(levels: Mapping[str, Level], difficulty: str, world: str) -> Level:
    """The level of a difficulty. Raises ValueError for an unknown one."""
    if difficulty not in levels:
        raise unknown("difficulty", difficulty, levels, world)
    return levels[difficulty]


def check_expert(kind: str, world: str) -> None:
    """Raises ValueError for an unknown kind of expert."""
    if kind not in EXPERTS:
        raise unknown("expert", kind, EXPERTS, world)


def report(success: bool, valid: bool, admissible: list[str] | None = None, score: float | None = None) -> Info:
    """``info`` after a step; ``score`` is that of the success unless a world has a finer one."""
    info: Info = {"success": success, "score": float(success) if score is None else score, "valid": valid}
    if admissible is not None:
        info["admissible_actions"] = admissible
    return info
