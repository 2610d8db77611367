"""A planner that grows trees of attempts: some start from the task, the others branch off where entropy rises.

It hears of every finished turn, asks a controller (branching.py) what is to grow, and forks the rollouts: context and
world, so that it works wherever one player plays. A branch that resamples a turn stands before it, in the past of its
parent: its world takes the parent's actions again, so that branches save tokens and no steps of a world. With
*pre-monitoring* one attempt at each task comes first, and its
entropies divide the budget between attempts from the root and branches.

What a fork shares with its parent was sampled once (``Trajectory.num_sampled_tokens``). A pre-monitoring attempt that
is only looked at has the sample number ``MONITOR``: it is returned, stored and counted, and not trained on (the buffer
does not take it).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from pydantic import Field

from turnwise.algorithms.branching import (
    Grower,
    LockStep,
    PathWise,
    Rule,
    Segment,
    Shape,
    Shoot,
    initial_attempts,
    segment_entropy,
)
from turnwise.algorithms.composing import ComposerAround
from turnwise.learning.metrics import Occurrences
from turnwise.learning.parts import Composer
from turnwise.learning.planning import Rollouts
from turnwise.learning.settings import RunInfo, Settings
from turnwise.trajectory import RolloutFinished, Task, Trajectory, TurnFinished

MONITOR = -1  # a negative number: Trajectory.only_looked_at
QWEN = 11.93  # ln 151,936, nats


class TreeSettings(Settings):
    """How a group's attempts are spread over a tree. The budget is the group size."""

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


@dataclass(frozen=True, slots=True)
class PreMonitoring:
    """One attempt at each task before the others; ``keep`` counts it as one of them."""

    beta: float
    keep: bool


@dataclass(slots=True)
class FirstEntropies:
    """Of the first batch, by path, where the released planner never forgets them; else always empty."""

    remembered: bool = False
    values: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TreePlanner:
    """``budget`` attempts at every task. Raises ValueError in a game of several players: it cannot be forked."""

    budget: int
    settings: TreeSettings
    rule: Rule
    seed: int
    log_vocabulary: float  # nats
    monitoring: PreMonitoring | None = None
    first: FirstEntropies = field(default_factory=FirstEntropies)
    occurred: Occurrences = field(default_factory=Occurrences, compare=False)

    def plan(self, tasks: Sequence[Task], rollouts: Rollouts, spare: Iterable[Task] = ()) -> list[Trajectory]:
        found = _Collecting(self, tasks, rollouts).run()
        looks, forks = [t for t in found if t.only_looked_at], sum(t.fork is not None for t in found)
        self.occurred.count("branches_per_task", forks, len(tasks))
        self.occurred.count("branch_share", forks, len(found) - len(looks))
        if self.monitoring is not None:
            spent, all_spent = (sum(t.num_sampled_tokens for t in some) for some in (looks, found))
            self.occurred.count("monitor_token_share", spent, all_spent)
        return found

    def acted(self) -> Mapping[str, float]:
        return self.occurred.take()

    @property
    def resamples(self) -> bool:
        """Whether a branch draws the turn anew that made its parent branch, or starts after it."""
        return self.settings.form == "paper"

    def entropy(self, entropies: Any) -> float:
        return segment_entropy(entropies, self.settings.entropy_tokens, self.log_vocabulary)

    def grower(self, tasks: Sequence[Task], all_tasks: Sequence[Task]) -> Grower:
        """A controller whose draws depend on its tasks and on the batch that they are in."""
        settings = self.settings
        shape = Shape(self.budget, settings.branches, self.rule, settings.origin, self.resamples)
        draws = np.random.default_rng([self.seed, *(_digest(part) for part in (tasks, all_tasks))])
        made = LockStep if settings.pace == "lockstep" else PathWise
        return made(shape, lambda: float(draws.random()), self.first.values)

    def initial(self, attempt: Trajectory | None) -> int:
        """Attempts from the root of a task, given its pre-monitoring attempt."""
        if self.monitoring is None or attempt is None:
            return self.settings.initial or max(self.budget // 2, 1)
        found = [self.entropy(turn.entropies) for turn in attempt.turns]
        difference = found[0] - float(np.mean(found)) if found else 0.0
        return initial_attempts(self.budget, difference, self.monitoring.beta)


def _digest(tasks: Sequence[Task]) -> int:
    return zlib.crc32("\n".join(task.key for task in tasks).encode())


def with_outlook(
    events: Iterable[TurnFinished | RolloutFinished],
) -> Iterator[tuple[TurnFinished | RolloutFinished, bool]]:
    """Each event, and whether its rollout goes on: a turn is held back until the next event tells."""
    held: TurnFinished | None = None
    for event in events:
        if held is not None:
            yield held, not (isinstance(event, RolloutFinished) and event.rollout == held.rollout)
        held = event if isinstance(event, TurnFinished) else None
        if held is None:
            yield event, False
    assert held is None, "the events ended before a rollout did"


class _Grove:
    """Tasks with a controller of their own: all of them in lock step, each its own otherwise."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks = tasks
        self.grower: Grower | None = None
        self.monitors: dict[int, Trajectory | None] = {}  # by rollout; None while it runs
        self.rollouts: list[int] = []  # of the controller's paths
        self.members: list[list[int]] = [[] for _ in tasks]  # every rollout of a task


class _Collecting:
    """One act of planning."""

    def __init__(self, planner: TreePlanner, tasks: Sequence[Task], rollouts: Rollouts) -> None:
        self.planner, self.tasks, self.rollouts = planner, tasks, rollouts
        together = planner.settings.pace == "lockstep"
        self.groves = [_Grove(tasks)] if together else [_Grove([task]) for task in tasks]
        self.paths: dict[int, tuple[_Grove, int]] = {}  # by rollout
        self.heard: dict[int, int] = {}  # by rollout: turns that were heard of
        self.finished: dict[int, Trajectory] = {}
        self.last = -1

    def run(self) -> list[Trajectory]:
        for grove in self.groves:
            if self.planner.monitoring is None:
                self._plant(grove)
            else:
                self._monitor(grove, self.planner.monitoring)
        for event, goes_on in with_outlook(self.rollouts.events()):
            if isinstance(event, RolloutFinished):
                self._end(event)
            elif event.rollout in self.paths and event.turn >= self.heard.get(event.rollout, 0):
                self.heard[event.rollout] = event.turn + 1  # a world that failed begins again, and repeats its turns
                self._hear(event.rollout, Segment(event.turn, self.planner.entropy(event.entropies), goes_on))
        self._remember()
        rollouts = [number for grove in self.groves for members in grove.members for number in sorted(members)]
        return [self.finished[number] for number in rollouts]

    def _monitor(self, grove: _Grove, monitoring: PreMonitoring) -> None:
        for place, task in enumerate(grove.tasks):
            rollout = self._started(grove, place, self.rollouts.start(task, 0 if monitoring.keep else MONITOR))
            grove.monitors[rollout] = None

    def _plant(self, grove: _Grove) -> None:
        """Start the attempts from the root, numbered from 0; a kept pre-monitoring attempt is the first of them.

        At least one more starts beside it while there is room: only what starts here branches.
        """
        planner = self.planner
        looked = planner.monitoring is not None
        used = int(looked and planner.monitoring.keep)  # type: ignore[union-attr]
        looks = list(grove.monitors.values()) or [None] * len(grove.tasks)
        attempts = [min(max(planner.initial(look) - used, 1), planner.budget - used) for look in looks]
        grove.grower = planner.grower(grove.tasks, self.tasks)
        for shoot in grove.grower.plant(attempts, used):
            self._grow(grove, shoot, sample=len(grove.members[shoot.prompt]) - looked + used)

    def _grow(self, grove: _Grove, shoot: Shoot, sample: int | None = None) -> None:
        """Start or fork what a controller asks for; later attempts are numbered apart from all forks."""
        rollout = None
        if shoot.parent is not None:
            try:
                rollout = self.rollouts.fork(grove.rollouts[shoot.parent], shoot.turn)
            except ValueError:  # its world failed and begins again, or it is a game: an attempt of its own instead
                rollout = None
        if rollout is None:
            number = self.last + 1 if sample is None else sample
            rollout = self.rollouts.start(grove.tasks[shoot.prompt], number)
        assert shoot.path == len(grove.rollouts)
        grove.rollouts.append(self._started(grove, shoot.prompt, rollout))
        self.paths[rollout] = grove, shoot.path

    def _started(self, grove: _Grove, prompt: int, rollout: int) -> int:
        grove.members[prompt].append(rollout)
        self.last = rollout
        return rollout

    def _hear(self, rollout: int, segment: Segment) -> None:
        grove, path = self.paths[rollout]
        assert grove.grower is not None
        if not segment.goes_on:
            del self.paths[rollout]
        for shoot in grove.grower.hear(path, segment):
            self._grow(grove, shoot)

    def _end(self, event: RolloutFinished) -> None:
        if event.trajectory.player:
            raise ValueError(
                "attempts cannot branch in a game of several players: it cannot be forked. Use an algorithm that "
                "plays independent attempts here, such as grpo"
            )
        self.finished[event.rollout] = event.trajectory
        if event.rollout in self.paths:  # without a last turn: it failed, or its context was full at once
            self._hear(event.rollout, Segment(len(event.trajectory.turns), None, goes_on=False))
        for grove in self.groves:
            if event.rollout in grove.monitors:
                grove.monitors[event.rollout] = event.trajectory
                if all(look is not None for look in grove.monitors.values()):
                    self._plant(grove)

    def _remember(self) -> None:
        first = self.planner.first
        if first.remembered:
            paths = [path for grove in self.groves if grove.grower is not None for path in grove.grower.paths]
            found = {number: path.first for number, path in enumerate(paths) if path.first is not None}
            first.values = {**found, **first.values}


def planner_of(
    settings: TreeSettings,
    rule: Rule,
    run: RunInfo,
    monitoring: PreMonitoring | None = None,
    first: FirstEntropies | None = None,
) -> TreePlanner:
    """A planner whose budget is the group size. Raises ValueError where ``initial`` exceeds it."""
    if settings.initial is not None and settings.initial > run.group_size:
        raise ValueError(f"initial={settings.initial} attempts from the root exceed group_size={run.group_size}")
    unit = log_vocabulary(settings, run)
    return TreePlanner(run.group_size, settings, rule, run.seed, unit, monitoring, first or FirstEntropies())


def log_vocabulary(settings: TreeSettings, run: RunInfo) -> float:
    """What segment entropies are divided by, in nats: the setting, else ln of the run's vocabulary.

    Where no model is known, as when a configuration is only checked, Qwen's: weights and threshold were chosen for it.
    """
    if settings.log_vocabulary is not None:
        return settings.log_vocabulary
    return QWEN if run.vocabulary is None else math.log(run.vocabulary)


class Remembering(ComposerAround):
    """Saves with a checkpoint what the planner remembers of the first batch (``forget=false``)."""

    def __init__(self, inner: Composer, first: FirstEntropies) -> None:
        super().__init__(inner)
        self.first = first

    def own_state(self) -> dict[str, Any]:
        return {"first": {str(path): value for path, value in self.first.values.items()}}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        self.first.values = {int(path): float(value) for path, value in state["first"].items()}
