"""The tasks of a run: what it trains on, and what it is measured on, proven to be apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from turnwise.config.schema import RunConfig
from turnwise.envs.interface import Panel
from turnwise.envs.tasks import TextEnv, close, closed_after, panel
from turnwise.seeds import mix
from turnwise.trajectory import Task


@dataclass(frozen=True, slots=True)
class Panels:
    """The tasks of a run; what is trained or cloned on is proven apart from what is measured.

    ``env`` is the world that they come from: a long panel may ask it for tasks until ``close``.
    """

    train: Sequence[Task]
    validation: list[Task]
    test: list[Task]
    env: TextEnv

    def close(self) -> None:
        close(self.env)

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


def open_panels(config: RunConfig) -> Panels:
    """The run's panels, to be closed. Raises ValueError for an unknown split, an overlap, or too few training tasks."""
    with ExitStack() as undo:
        panels = _panels(config, undo.enter_context(closed_after(config.env.make())))
        undo.pop_all()
    return panels


def panel_hashes(config: RunConfig) -> dict[str, str]:
    """Identity of the run's panels (``Panels.hashes``). Raises as ``open_panels`` does."""
    with closing(open_panels(config)) as panels:
        return panels.hashes()


def _panels(config: RunConfig, env: TextEnv) -> Panels:
    train, test_split = panel(env, config.env.split), config.eval.test_split
    validation = _subset(panel(env, config.eval.split), config.eval.tasks) if config.eval.every else []
    test = _subset(panel(env, test_split), config.eval.test_tasks) if test_split else []
    prove_disjoint([train, *_cloned(config, env)], [validation, test])
    if len(train) < config.rollout.num_tasks:
        raise ValueError(
            f"split {config.env.split!r} has {len(train)} tasks, fewer than "
            f"rollout.num_tasks={config.rollout.num_tasks}"
        )
    return Panels(train, validation, test, env)


def _cloned(config: RunConfig, env: TextEnv) -> list[Sequence[Task]]:
    """The demonstrated tasks; none of those of another world, which only has to be there, are this one's."""
    if config.warmstart is None:
        return []
    if config.warmstart.env is None:
        return [panel(env, config.warmstart.split)]
    with closed_after(config.demonstration_env()) as world:
        panel(world, config.warmstart.split)
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
