"""The base class of turnwise's own worlds: tasks by split and index, a step limit, and checks of the order of calls.

A subclass defines three things: its panels (``tasks``), how a task starts (``begin``), and what an action does
(``act``). A world of your own need not use this class. Any ``gymnasium.Env`` of strings can be trained on
(``interface.py``).
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
from gymnasium.error import ResetNeeded

from turnwise.envs.interface import AnyText, Info, Panel


class TaskEnv(gymnasium.Env[str, str], ABC):
    """A text world with fixed panels of tasks.

    ``reset(options={"split": "test", "task": 3})`` starts task 3 of the split "test". Without "task" one is drawn with
    the environment's own random generator. Without "split" it is the ``split`` of the constructor. An episode is
    truncated after ``step_limit`` steps. (The setting is not called ``max_episode_steps``, because ``gymnasium.make``
    gives that to a wrapper of its own, whose count would be missing in snapshots.)
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  (gymnasium's own declaration)
    instructions = ""
    """How actions are written, for a model that was not trained on this world."""

    def __init__(self, split: str = "train", step_limit: int = 50) -> None:
        if step_limit < 1:
            raise ValueError(f"step_limit must be at least 1, got {step_limit}.")
        self.observation_space = AnyText()
        self.action_space = AnyText()
        self.split = split
        self.step_limit = step_limit
        self._num_steps = 0
        self._step_limit = step_limit
        self._ended = True

    @property
    @abstractmethod
    def splits(self) -> tuple[str, ...]:
        """The names of the splits."""

    @abstractmethod
    def tasks(self, split: str) -> Panel:
        """The fixed panel of a split. Raises ValueError for an unknown split."""

    def _size(self, split: str) -> int:
        """The number of tasks of a split. Raises ValueError for an unknown split."""
        return len(self.tasks(split))

    @abstractmethod
    def begin(self, split: str, index: int) -> tuple[str, Info]:
        """Start a task. Returns the first observation and its ``info``. ``self.np_random`` has been seeded before."""

    @abstractmethod
    def act(self, action: str) -> tuple[str, float, bool, Info]:
        """Take an action, which may be any string. Returns observation, reward, terminated and ``info``."""

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[str, Info]:
        """Start a task. Raises ValueError for an unknown option, split or task."""
        super().reset(seed=seed)
        self._ended = True  # where anything below fails, there is no episode to step
        split, index = self._choose(dict(options or {}))
        observation, info = self.begin(split, index)
        self._num_steps = 0
        self._step_limit = self.step_limit
        self._ended = False
        return observation, info

    def step(self, action: str) -> tuple[str, float, bool, bool, Info]:
        """Take an action, which may be any string.

        Raises ResetNeeded before ``reset`` and after the end of the episode, and TypeError where ``action`` is no
        string.
        """
        if self._ended:
            raise ResetNeeded("The episode has not begun or is over: call reset() before step().")
        if not isinstance(action, str):
            raise TypeError(f"An action is a string, got {type(action).__name__}: {action!r}.")
        observation, reward, terminated, info = self.act(action)
        self._num_steps += 1
        truncated = not terminated and self._num_steps >= self._step_limit
        self._ended = terminated or truncated
        return observation, reward, terminated, truncated, info

    def _choose(self, options: dict[str, Any]) -> tuple[str, int]:
        split = options.pop("split", self.split)
        index = options.pop("task", None)
        if options:
            raise ValueError(f"Unknown reset options {sorted(options)}: expected 'split' and 'task'.")
        size = self._size(split)
        if index is None:
            return split, int(self.np_random.integers(size))
        try:
            index = operator.index(index)
        except TypeError as error:
            raise ValueError(f"options['task'] is the index of a task, got {index!r}.") from error
        if not 0 <= index < size:
            raise ValueError(f"Task {index} is not in split {split!r}: it has 0 to {size - 1}.")
        return split, index


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An episode at one moment: the state that the world saved, and its number of steps."""

    state: Any
    num_steps: int
    step_limit: int
    ended: bool


class SnapshotEnv(TaskEnv):
    """A world whose episodes can be copied.

    ``save`` returns the state, which later steps must not change. ``load`` continues from it. The state must be
    complete: another instance, which has played another task before, must be able to load it.
    """

    @abstractmethod
    def save(self) -> Any: ...

    @abstractmethod
    def load(self, state: Any) -> None: ...

    def snapshot(self) -> Snapshot:
        """The present episode. The random generator that draws tasks is not part of it."""
        return Snapshot(self.save(), self._num_steps, self._step_limit, self._ended)

    def restore(self, snapshot: Snapshot) -> None:
        """Continue the episode of ``snapshot``, which may come from another instance."""
        self.load(snapshot.state)
        self._num_steps = snapshot.num_steps
        self._step_limit = snapshot.step_limit
        self._ended = snapshot.ended
