"""Observers of a run: a display, or the callbacks of a caller."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from turnwise.cloning.cloner import Progress
from turnwise.evaluation.report import Report
from turnwise.trajectory import Trajectory


class Observer(Protocol):
    """The methods that a run calls. An exception in one of them ends the run, which can then be resumed."""

    def stage(self, name: str) -> None:
        """A stage begins: ``clone``, ``measure``, ``train``, or ``stop`` (after a signal)."""

    def engine(self, name: str, why: str) -> None:
        """The run begins or goes on, and this engine samples (``rollout.backend``)."""

    def cloning(self, progress: Progress) -> None:
        """Cloning has made progress."""

    def episode(self, trajectory: Trajectory) -> None:
        """An episode has ended, in training or in a measurement."""

    def update(self, record: dict[str, Any]) -> None:
        """An update is done. ``record`` is its line in metrics.jsonl."""

    def report(self, report: Report) -> None:
        """A measurement on the test panel is done."""


class Callback:
    """An observer that does nothing. Subclass it and override the methods that you need."""

    def stage(self, name: str) -> None: ...
    def engine(self, name: str, why: str) -> None: ...
    def cloning(self, progress: Progress) -> None: ...
    def episode(self, trajectory: Trajectory) -> None: ...
    def update(self, record: dict[str, Any]) -> None: ...
    def report(self, report: Report) -> None: ...


class _OnUpdate(Callback):
    def __init__(self, function: Callable[[dict[str, Any]], object]) -> None:
        self._function = function

    def update(self, record: dict[str, Any]) -> None:
        self._function(record)


class Together(Callback):
    """Several observers as one, called in order. A function among them is called with each update's record."""

    def __init__(self, observers: Sequence[Observer | Callable[[dict[str, Any]], object]]) -> None:
        self._all: list[Observer] = []
        for each in observers:
            if not isinstance(each, type) and all(
                hasattr(each, name) for name in ("stage", "cloning", "episode", "update", "report")
            ):
                self._all.append(each)  # type: ignore[arg-type]
            elif callable(each) and not isinstance(each, type):
                self._all.append(_OnUpdate(each))
            else:
                raise ValueError(
                    f"a callback is a function of an update's record, or a turnwise.Callback; got {each!r}"[:200]
                )

    def stage(self, name: str) -> None:
        for each in self._all:
            each.stage(name)

    def engine(self, name: str, why: str) -> None:
        for each in self._all:
            if hasattr(each, "engine"):  # observers from before it was told need not have it
                each.engine(name, why)

    def cloning(self, progress: Progress) -> None:
        for each in self._all:
            each.cloning(progress)

    def episode(self, trajectory: Trajectory) -> None:
        for each in self._all:
            each.episode(trajectory)

    def update(self, record: dict[str, Any]) -> None:
        for each in self._all:
            each.update(record)

    def report(self, report: Report) -> None:
        for each in self._all:
            each.report(report)
