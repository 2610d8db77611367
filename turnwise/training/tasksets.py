"""The tasks of a run: what it trains on, and what it is measured on, proven to be apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from turnwise.cloning.settings import WarmstartConfig
from turnwise.config.sections import EvalConfig
from turnwise.envs.interface import Panel
from turnwise.envs.tasks import TextEnv, closed_after, make_env, panel
from turnwise.seeds import mix
from turnwise.trajectory import Task


@dataclass(frozen=True, slots=True)
class Panels:
    """The tasks of a run; what is trained or cloned on is proven apart from what is measured.

    A long panel asks the world that it comes from for its tasks: keep that open.
    """

    train: Sequence[Task]
    validation: list[Task]
    test: list[Task]

    def hashes(self) -> dict[str, str]:
        """Identity of each panel's content and order (a generated one's definition)."""
        found = {"validation": self.validation, "test": self.test}
        hashes = {name: Panel("", "", tuple(tasks)).hash for name, tasks in found.items() if tasks}
        return {"train": str(getattr(self.train, "hash", "")), **hashes}


class TaskOrder:
    """Which tasks an update trains on, ``num`` of them: a function of (seed, update)."""

    def __init__(self, split: Sequence[Task], num: int, seed: int) -> None:
        self.split, self.num, self.seed = split, num, seed
        self._pass: tuple[int, Any] = (-1, None)

    def tasks(self, update: int) -> list[Task]:
        """No two the same: the split in a seeded order, shuffled anew for each pass over it.

        A pass has as many updates as fit; the few tasks that are left over differ from pass to pass.
        """
        number, place = divmod(update, len(self.split) // self.num)
        if self._pass[0] != number:
            self._pass = (number, self._permutation("tasks", number))
        return [self.split[int(i)] for i in self._pass[1][place * self.num : (place + 1) * self.num]]

    def spare(self, update: int) -> Iterator[Task]:
        """Further tasks in a seeded order, none of them the update's own, for planners that want more groups."""
        taken = {task.key for task in self.tasks(update)}
        order = self._permutation("spare", update)
        return (task for i in order if (task := self.split[int(i)]).key not in taken)

    def _permutation(self, what: str, number: int) -> Any:
        return np.random.default_rng(mix(what, self.seed, number)).permutation(len(self.split))


def open_panels(
    env: TextEnv, split: str, measured: EvalConfig, num_tasks: int, clone: WarmstartConfig | None = None
) -> Panels:
    """The panels of a run that trains on ``split``, ``num_tasks`` tasks an update.

    Raises ValueError for an unknown split, for a task that is trained or cloned on and measured, and for fewer tasks
    than an update takes.
    """
    train = panel(env, split)
    validation = _subset(panel(env, measured.split), measured.tasks) if measured.every else []
    test = _subset(panel(env, measured.test_split), measured.test_tasks) if measured.test_split else []
    prove_disjoint([train, *_cloned(clone, env)], [validation, test])
    if len(train) < num_tasks:
        raise ValueError(f"split {split!r} has {len(train)} tasks, fewer than rollout.num_tasks={num_tasks}")
    return Panels(train, validation, test)


def _cloned(clone: WarmstartConfig | None, env: TextEnv) -> list[Sequence[Task]]:
    """The demonstrated tasks; none of those of another world, which only has to be there, are this one's."""
    if clone is None:
        return []
    if clone.env is None:
        return [panel(env, clone.split)]
    with closed_after(make_env(clone.env, **clone.env_kwargs)) as world:
        panel(world, clone.split)
    return []


def _subset(tasks: Sequence[Task], num: int) -> list[Task]:
    """The first ``num`` tasks of a panel: the same for every run."""
    return [tasks[i] for i in range(min(num, len(tasks)))]


def prove_disjoint(trained: Sequence[Sequence[Task]], measured: Sequence[Sequence[Task]]) -> None:
    """No measured task is in another measured panel, or may be among those trained or cloned on, by content key.

    Raises ValueError that names one that is.
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
