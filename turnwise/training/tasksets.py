"""The tasks of a run: those it trains on, those it is measured on, and the proof that none is in both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from turnwise.cloning.demonstrations import cloned_tasks
from turnwise.cloning.settings import WarmstartConfig
from turnwise.config.sections import EvalConfig
from turnwise.envs.interface import Panel
from turnwise.envs.tasks import TextEnv, panel
from turnwise.seeds import mix
from turnwise.trajectory import Task


@dataclass(frozen=True, slots=True)
class Panels:
    """The task panels of a run. No measured task is trained or cloned on; ``open_panels`` proves it.

    A long panel asks its world for its tasks, so the world must stay open.
    """

    train: Sequence[Task]
    validation: list[Task]
    test: list[Task]

    def hashes(self) -> dict[str, str]:
        """A hash for each panel, of its tasks and their order (of a generated panel: of its definition)."""
        found = {"validation": self.validation, "test": self.test}
        hashes = {name: Panel("", "", tuple(tasks)).hash for name, tasks in found.items() if tasks}
        return {"train": str(getattr(self.train, "hash", "")), **hashes}


class TaskOrder:
    """The ``num`` tasks that an update trains on, as a function of (seed, update)."""

    def __init__(self, split: Sequence[Task], num: int, seed: int) -> None:
        self.split, self.num, self.seed = split, num, seed
        self._pass: tuple[int, Any] = (-1, None)

    def tasks(self, update: int) -> list[Task]:
        """The update's tasks, no two of them the same. Each pass over the split has a new order.

        A pass has as many updates as fit into the split; the few tasks left over differ from pass to pass.
        """
        number, place = divmod(update, len(self.split) // self.num)
        if self._pass[0] != number:
            self._pass = (number, self._permutation("tasks", number))
        return [self.split[int(i)] for i in self._pass[1][place * self.num : (place + 1) * self.num]]

    def spare(self, update: int) -> Iterator[Task]:
        """More tasks for planners that want more groups, in a seeded order, without the update's own."""
        taken = {task.key for task in self.tasks(update)}
        order = self._permutation("spare", update)
        return (task for i in order if (task := self.split[int(i)]).key not in taken)

    def _permutation(self, what: str, number: int) -> Any:
        return np.random.default_rng(mix(what, self.seed, number)).permutation(len(self.split))


def open_panels(
    env: TextEnv, split: str, measured: EvalConfig, num_tasks: int, clone: WarmstartConfig | None = None
) -> Panels:
    """The panels of a run that trains on ``num_tasks`` tasks of ``split`` in each update.

    Raises ValueError for an unknown split, for a measured task that is also trained or cloned on, and for a split with
    fewer tasks than an update takes.
    """
    train = panel(env, split)
    validation = _subset(panel(env, measured.split), measured.tasks) if measured.every else []
    test = _subset(panel(env, measured.test_split), measured.test_tasks) if measured.test_split else []
    prove_disjoint([train, *cloned_tasks(clone, env, train[0].env)], [validation, test])
    if len(train) < num_tasks:
        raise ValueError(f"split {split!r} has {len(train)} tasks, fewer than rollout.num_tasks={num_tasks}")
    return Panels(train, validation, test)


def _subset(tasks: Sequence[Task], num: int) -> list[Task]:
    """The first ``num`` tasks of a panel: the same for every run."""
    return [tasks[i] for i in range(min(num, len(tasks)))]


def prove_disjoint(trained: Sequence[Sequence[Task]], measured: Sequence[Sequence[Task]]) -> None:
    """Check that no measured task is in another measured panel, or may be among those trained or cloned on.

    Tasks are compared by content key. Raises ValueError that names a task which is in two panels.
    """
    seen: dict[str, Task] = {}
    for task in (task for tasks in measured for task in tasks):
        if task.key in seen and seen[task.key].split != task.split:
            raise ValueError(
                f"task {task.key} is in {seen[task.key].split} and in {task.split}: panels must be disjoint"
            )
        seen[task.key] = task
    overlap = [key for tasks in trained for key in seen if _may_contain(tasks, key)]
    if overlap:
        raise ValueError(f"evaluation task {overlap[0]} is also a training task: success on it would prove nothing")


def _may_contain(tasks: Sequence[Task], key: str) -> bool:
    return tasks.may_contain(key) if isinstance(tasks, Panel) else any(task.key == key for task in tasks)
