"""The planner of ARPO and AEPO: some attempts start from the task, others branch off where entropy rises.

An example with a group of 4: two attempts start from the task. After each finished turn an expander (branching.py) is
told the turn's entropy. Attempt 0 becomes uncertain at turn 3, so its rollout is forked: context and world are copied
as they stood, and the copy plays on as another attempt. The last attempt branches in the same way, or starts from the
task when both have ended. Forking needs an episode of one player.

A copy that draws turn 3 anew starts before that turn. Its world is made by repeating the parent's actions. So a branch
saves tokens but no steps of a world. The turns that a branch shares with its parent were sampled once
(``Trajectory.num_sampled_tokens``).

With *pre-monitoring* (AEPO) one attempt at each task is played first. Its entropies divide the budget between attempts
from the root and branches. A pre-monitoring attempt that does not count as one of the group has the sample number
``MONITOR``: it is returned, stored and counted, but not trained on (the buffer does not take it).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from turnwise.algorithms.branching import (
    Branch,
    Expander,
    LockStep,
    PathWise,
    Rule,
    Segment,
    Shape,
    initial_attempts,
    segment_entropy,
)
from turnwise.algorithms.composing import ComposerAround
from turnwise.errors import UnusedSettingError
from turnwise.learning.metrics import Occurrences
from turnwise.learning.parts import Composer
from turnwise.learning.planning import Rollouts
from turnwise.learning.settings import RunInfo, Settings
from turnwise.trajectory import FloatArray, RolloutEnded, RolloutFinished, Task, Trajectory, TurnFinished

MONITOR = -1  # a sample number; any negative one makes Trajectory.only_looked_at true
QWEN = 11.93  # ln 151,936, nats


class TreeSettings(Settings):
    """How the attempts at a task form a tree. Their number, the budget, is the group size."""

    form: Literal["paper", "released"] = Field(
        default="paper",
        description="Branch where a threshold is passed and draw that turn anew, or by a uniform draw and after the "
        "turn (released).",
    )
    initial: int | None = Field(
        default=None, ge=1, description="Attempts from the root; the others are branches (m). Null: half of the group."
    )
    branches: int = Field(default=1, ge=1, description="Copies that one branching makes at most (beam size - 1).")
    bias: float = Field(
        default=0.5, ge=0, description="Readiness to branch where entropy has not risen (alpha); released: drawn."
    )
    entropy_weight: float = Field(default=0.2, ge=0, description="Readiness per unit of risen entropy (gamma, w).")
    threshold: float = Field(default=0.5, description="Readiness above which a path branches (tau).")
    entropy_tokens: int = Field(default=20, ge=1, description="First tokens of a reply whose entropies are summed.")
    log_vocabulary: float | None = Field(
        default=None, gt=0, description="What the sum is divided by, in nats. Null: ln of the model's own vocabulary."
    )
    origin: Literal["root", "own"] = Field(
        default="root",
        description="Entropy rises from the root attempt's first reply, or from the branch's own (released).",
    )
    pace: Literal["path", "lockstep"] = Field(
        default="path", description="Each path decides by itself, or all wait for one another (released)."
    )

    @model_validator(mode="after")
    def _readiness_is_consistent(self) -> TreeSettings:
        if self.form == "released" and self.changed("bias"):
            raise UnusedSettingError("bias", "bias belongs to form=paper; form=released draws a number in its place")
        return self


@dataclass(frozen=True, slots=True)
class PreMonitoring:
    """One attempt at each task before the others. With ``keep`` it counts as one of the group.

    ``beta`` is AEPO's: how far H_root - H_tool moves the division (``initial_attempts``).
    """

    beta: float
    keep: bool


@dataclass(slots=True)
class FirstEntropies:
    """First segment entropies of the first batch, by the path's number, for the released planner, which keeps them.

    Without ``remembered`` the dictionary stays empty.
    """

    remembered: bool = False
    values: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TreePlanner:
    """Plays ``budget`` attempts at every task, as a tree.

    ``plan`` raises ValueError in a game of several players, which cannot be forked.
    """

    budget: int
    settings: TreeSettings
    rule: Rule
    seed: int
    log_vocabulary: float  # nats
    monitoring: PreMonitoring | None = None
    first: FirstEntropies = field(default_factory=FirstEntropies)
    occurred: Occurrences = field(default_factory=Occurrences, compare=False)

    def plan(self, tasks: Sequence[Task], rollouts: Rollouts, spare: Iterable[Task] = ()) -> list[Trajectory]:
        found = _Planning(self, tasks, rollouts).run()
        monitors, forks = [t for t in found if t.only_looked_at], sum(t.fork is not None for t in found)
        self.occurred.count("branches_per_task", forks, len(tasks))
        self.occurred.count("branch_share", forks, len(found) - len(monitors))
        if self.monitoring is not None:
            spent, all_spent = (sum(t.num_sampled_tokens for t in some) for some in (monitors, found))
            self.occurred.count("monitor_token_share", spent, all_spent)
        return found

    def acted(self) -> Mapping[str, float]:
        return self.occurred.take()

    @property
    def remembers(self) -> bool:
        """Whether what one update shows decides what a later one plays."""
        return self.first.remembered

    @property
    def resamples(self) -> bool:
        """Whether a branch draws anew the turn that made its parent branch; else it starts after that turn."""
        return self.settings.form == "paper"

    def entropy(self, entropies: FloatArray) -> float:
        """A reply's segment entropy, from the entropies of its tokens [A], nats."""
        return segment_entropy(entropies, self.settings.entropy_tokens, self.log_vocabulary)

    def expander(self, tasks: Sequence[Task], all_tasks: Sequence[Task]) -> Expander:
        """An expander for some of the update's tasks. Its draws are seeded by these tasks and by all of them."""
        settings = self.settings
        shape = Shape(self.budget, settings.branches, self.rule, settings.origin, self.resamples)
        draws = np.random.default_rng([self.seed, *(_digest(part) for part in (tasks, all_tasks))])
        made = LockStep if settings.pace == "lockstep" else PathWise
        return made(shape, lambda: float(draws.random()), self.first.values)

    def initial(self, attempt: Trajectory | None) -> int:
        """The number of attempts from the root of a task, given its pre-monitoring attempt if there is one."""
        if self.monitoring is None or attempt is None:
            return self.settings.initial or max(self.budget // 2, 1)
        found = [self.entropy(turn.entropies) for turn in attempt.turns]
        difference = found[0] - float(np.mean(found)) if found else 0.0
        return initial_attempts(self.budget, difference, self.monitoring.beta)


def _digest(tasks: Sequence[Task]) -> int:
    return zlib.crc32("\n".join(task.key for task in tasks).encode())


def with_lookahead(
    events: Iterable[TurnFinished | RolloutEnded | RolloutFinished],
) -> Iterator[tuple[TurnFinished | RolloutFinished, bool]]:
    """Each event with whether its rollout goes on after it. A turn is held back until the next event shows this."""
    held: TurnFinished | None = None
    for event in events:
        if held is not None:
            yield held, isinstance(event, TurnFinished) or event.rollout != held.rollout
        held = event if isinstance(event, TurnFinished) else None
        if isinstance(event, RolloutFinished):
            yield event, False
    assert held is None, "the events ended before a rollout did"


class _Forest:
    """The trees of the tasks that one expander decides on: of all tasks in lock step, else of a single task."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks = tasks
        self.expander: Expander | None = None  # None while pre-monitoring attempts run
        self.monitors: dict[int, Trajectory | None] = {}  # by rollout; None while it runs
        self.rollouts: list[int] = []  # by the expander's path
        self.members: list[list[int]] = [[] for _ in tasks]  # by task: all its rollouts


class _Planning:
    """The state of one call of ``TreePlanner.plan``."""

    def __init__(self, planner: TreePlanner, tasks: Sequence[Task], rollouts: Rollouts) -> None:
        self.planner, self.tasks, self.rollouts = planner, tasks, rollouts
        together = planner.settings.pace == "lockstep"
        self.forests = [_Forest(tasks)] if together else [_Forest([task]) for task in tasks]
        self.paths: dict[int, tuple[_Forest, int]] = {}  # by rollout, while it runs: its forest, its path
        self.observed: dict[int, int] = {}  # by rollout: the number of turns that its expander was told of
        self.finished: dict[int, Trajectory] = {}
        self.last = -1

    def run(self) -> list[Trajectory]:
        """All trajectories, by task; those of a task in the order in which they were started."""
        for forest in self.forests:
            if self.planner.monitoring is None:
                self._start_roots(forest)
            else:
                self._start_monitors(forest, self.planner.monitoring)
        for event, goes_on in with_lookahead(self.rollouts.events()):
            if isinstance(event, RolloutFinished):
                self._finish(event)
            elif event.rollout in self.paths and event.turn >= self.observed.get(event.rollout, 0):
                self.observed[event.rollout] = event.turn + 1  # a world that failed begins again, and repeats its turns
                self._observe(event.rollout, Segment(event.turn, self.planner.entropy(event.entropies), goes_on))
        self._remember()
        rollouts = [number for forest in self.forests for members in forest.members for number in sorted(members)]
        return [self.finished[number] for number in rollouts]

    def _start_monitors(self, forest: _Forest, monitoring: PreMonitoring) -> None:
        for place, task in enumerate(forest.tasks):
            rollout = self._started(forest, place, self.rollouts.start(task, 0 if monitoring.keep else MONITOR))
            forest.monitors[rollout] = None

    def _start_roots(self, forest: _Forest) -> None:
        """Start the attempts from the root. A kept pre-monitoring attempt is number 0, and they follow.

        While the budget allows, at least one starts beside the pre-monitoring attempt, because that one never branches.
        """
        planner = self.planner
        monitored = planner.monitoring is not None
        used = int(monitored and planner.monitoring.keep)  # type: ignore[union-attr]
        monitors = list(forest.monitors.values()) or [None] * len(forest.tasks)
        attempts = [min(max(planner.initial(monitor) - used, 1), planner.budget - used) for monitor in monitors]
        forest.expander = planner.expander(forest.tasks, self.tasks)
        for branch in forest.expander.start(attempts, used):
            self._start(forest, branch, sample=len(forest.members[branch.task]) - monitored + used)

    def _start(self, forest: _Forest, branch: Branch, sample: int | None = None) -> None:
        """Start or fork the rollout of a branch.

        ``sample`` None: an attempt that starts from the root during play gets a number that no other rollout has.
        """
        rollout = None
        if branch.parent is not None:
            try:
                rollout = self.rollouts.fork(forest.rollouts[branch.parent], branch.turn)
            except ValueError:  # its world failed and begins again, or it is a game: an attempt of its own instead
                rollout = None
        if rollout is None:
            number = self.last + 1 if sample is None else sample
            rollout = self.rollouts.start(forest.tasks[branch.task], number)
        assert branch.path == len(forest.rollouts)
        forest.rollouts.append(self._started(forest, branch.task, rollout))
        self.paths[rollout] = forest, branch.path

    def _started(self, forest: _Forest, task: int, rollout: int) -> int:
        forest.members[task].append(rollout)
        self.last = rollout
        return rollout

    def _observe(self, rollout: int, segment: Segment) -> None:
        """Tell the expander of a path's turn or end, and start the branches that it answers with."""
        forest, path = self.paths[rollout]
        assert forest.expander is not None
        if not segment.goes_on:
            del self.paths[rollout]
        for branch in forest.expander.expand(path, segment):
            self._start(forest, branch)

    def _finish(self, event: RolloutFinished) -> None:
        if event.trajectory.player:
            raise ValueError(
                "attempts cannot branch in a game of several players: it cannot be forked. Use an algorithm that "
                "plays independent attempts here, such as grpo"
            )
        self.finished[event.rollout] = event.trajectory
        if event.rollout in self.paths:  # without a last turn: it failed, or its context was full at once
            self._observe(event.rollout, Segment(len(event.trajectory.turns), None, goes_on=False))
        for forest in self.forests:
            if event.rollout in forest.monitors:
                forest.monitors[event.rollout] = event.trajectory
                if all(monitor is not None for monitor in forest.monitors.values()):
                    self._start_roots(forest)

    def _remember(self) -> None:
        """Keep the first entropies of this batch where the released planner keeps those of the first batch."""
        first = self.planner.first
        if first.remembered:
            paths = [path for forest in self.forests if forest.expander is not None for path in forest.expander.paths]
            found = {number: path.first for number, path in enumerate(paths) if path.first is not None}
            first.values = {**found, **first.values}


def make_planner(
    settings: TreeSettings,
    rule: Rule,
    run: RunInfo,
    monitoring: PreMonitoring | None = None,
    first: FirstEntropies | None = None,
) -> TreePlanner:
    """A planner whose budget is the group size. Raises ValueError if ``initial`` exceeds it."""
    if settings.initial is not None and settings.initial > run.group_size:
        raise ValueError(f"initial={settings.initial} attempts from the root exceed group_size={run.group_size}")
    unit = log_vocabulary(settings, run)
    return TreePlanner(run.group_size, settings, rule, run.seed, unit, monitoring, first or FirstEntropies())


def log_vocabulary(settings: TreeSettings, run: RunInfo) -> float:
    """What segment entropies are divided by, in nats: the setting, else ln of the size of the run's vocabulary.

    Where no model is known, as when a configuration is only checked, it is Qwen's vocabulary: the default weights and
    threshold were chosen for that one.
    """
    if settings.log_vocabulary is not None:
        return settings.log_vocabulary
    return QWEN if run.vocabulary is None else math.log(run.vocabulary)


class Remembering(ComposerAround):
    """Saves the first batch's entropies, which the planner keeps with ``forget=false``, with each checkpoint."""

    def __init__(self, inner: Composer, first: FirstEntropies) -> None:
        super().__init__(inner)
        self.first = first

    def own_state(self) -> dict[str, Any]:
        return {"first": {str(path): value for path, value in self.first.values.items()}}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        self.first.values = {int(path): float(value) for path, value in state["first"].items()}
