"""Dynamic sampling (Yu et al. 2025, arXiv 2503.14476, section 3.2): tasks with uniform groups are replaced.

A group is uniform if all its attempts have the same return. Its advantages are then 0, and it teaches nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import ClassVar

from turnwise.algorithms.common import is_uniform
from turnwise.learning.metrics import Occurrences
from turnwise.learning.planning import Planner, Rollouts
from turnwise.trajectory import Group, Task, Trajectory, group_by_task


@dataclass(frozen=True, slots=True)
class DynamicSampling:
    """A planner around another one. It plays spare tasks until there are as many groups that are not uniform as tasks.

    It stops after ``max_tries`` waves. A group is judged by the attempts that are trained on, not by pre-monitoring
    ones. Uniform groups are returned too, because their tokens were spent; the composer leaves them out.
    """

    inner: Planner
    max_tries: int
    occurred: Occurrences = field(default_factory=Occurrences, compare=False)
    remembers: ClassVar[bool] = False

    def around(self, inner: Planner) -> DynamicSampling:
        return replace(self, inner=inner)

    def plan(self, tasks: Sequence[Task], rollouts: Rollouts, spare: Iterable[Task] = ()) -> list[Trajectory]:
        further, found, wave, tries = iter(spare), list[Trajectory](), list(tasks), 0
        while wave and tries < self.max_tries:
            tries += 1
            found += self.inner.plan(wave, rollouts)
            kept = {group.task.key for group in group_by_task(found) if _is_kept(group)}
            wave = list(islice(further, max(len(tasks) - len(kept), 0)))
        uniform = [not _is_kept(group) for group in group_by_task(found)]
        self.occurred.count("tries", tries)
        self.occurred.count("discarded_share", sum(uniform), len(uniform))
        return found

    def acted(self) -> Mapping[str, float]:
        return self.occurred.take()


def _is_kept(group: Group) -> bool:
    """Whether the composer will keep the group."""
    return not is_uniform([t for t in group.trajectories if not t.only_looked_at])
