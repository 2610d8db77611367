"""Planners, which decide what is played, and the two protocols through which algorithms use the rest of the system.

- ``Scorer``: the policy, which gives log-probs of tokens. The policy of ``turnwise.models`` satisfies it.
- ``Rollouts``: running episodes, which a planner starts, forks and stops. ``turnwise.agents.rollouts`` satisfies it.

So algorithms import neither models nor agents, and these do not import algorithms. An example of a planner is
``GroupPlanner``, at the end of this file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor
from torch.nn import Parameter

from turnwise.replay.batch import TokenBatch
from turnwise.trajectory import RolloutEnded, RolloutFinished, Task, Trajectory, TurnFinished


class Reading(Protocol):
    """A number for each token, read from the distribution over the vocabulary that it was drawn from.

    Readings are compared and hashed: equal ones are read once. A frozen dataclass of settings will do.
    """

    def __call__(self, logits: Tensor, targets: Tensor, states: Tensor, /) -> Tensor:
        """Logits [R, V], tokens [R] and the states [R, h] that predict them -> [R].

        Logits and states are over the token's temperature, the logits far below all others where an id was not allowed.
        """
        ...

    def __hash__(self) -> int: ...


class Scores(Protocol):
    """A policy's scores of a batch's tokens.

    ``logprobs`` and ``entropies`` are [B, T] in nats and 0 outside the action mask. ``hidden`` [M, h] holds the states
    that predict the M action tokens, in the order of the mask's True positions. ``readings`` are those that were asked
    for, [B, T] each, 0 outside the mask. All are differentiable if gradients are enabled, except for the reference
    policy's.
    """

    @property
    def logprobs(self) -> Tensor: ...

    @property
    def entropies(self) -> Tensor | None: ...

    @property
    def hidden(self) -> Tensor | None: ...

    @property
    def readings(self) -> tuple[Tensor, ...]: ...


class Scorer(Protocol):
    """The policy in training. It scores at the rollouts' sampling temperature, so that ratios start at 1."""

    def score(
        self,
        batch: TokenBatch,
        *,
        entropy: bool,
        reference: bool = False,
        hidden: bool = False,
        readings: Sequence[Reading] = (),
    ) -> Scores:
        """Score the action tokens; with ``reference``, by the frozen policy (adapters off)."""
        ...

    def parameters(self) -> Iterable[Parameter]:
        """The trained parameters, always in the same order."""
        ...

    @property
    def hidden_size(self) -> int:
        """Width h of the hidden states, for parts that build on them."""
        ...

    def as_of(self, version: int) -> AbstractContextManager[None]:
        """A context in which it scores with the weights of an earlier version, which played ahead of the learner."""
        ...


class Rollouts(Protocol):
    """Running episodes. Each has the number that ``start`` or ``fork`` returned."""

    def start(self, task: Task, sample: int, temperature: float | None = None) -> int:
        """Queue attempt number ``sample`` at a task; returns the rollout's number.

        ``temperature`` > 0 is that of all its replies, and is recorded with their tokens; None: the run's.
        """
        ...

    def fork(self, rollout: int, turn: int, tokens: int = 0) -> int:
        """Queue a copy of a rollout, context and environment, as it stood after ``turn`` turns; returns its number.

        Its next reply begins with the first ``tokens`` of the rollout's own in that turn: they are no action tokens in
        the copy. Raises ValueError where it cannot be forked.
        """
        ...

    def resume(self, stored: Trajectory, turn: int, beyond: int = 0) -> int:
        """Queue an attempt that starts as a stored episode stood after ``turn`` turns; returns its number.

        Its sample number is its own number and ``beyond`` more. Nobody learns from those turns. Raises ValueError for a
        turn that was not played, and in a game.
        """
        ...

    def stop(self, rollout: int) -> None:
        """Abandon a rollout. It gives no trajectory."""
        ...

    def events(self) -> Iterator[TurnFinished | RolloutEnded | RolloutFinished]:
        """Run until nothing is queued or running, rollouts that are started meanwhile included.

        ``RolloutEnded`` follows the last turn of a rollout whose episode is graded then.
        """
        ...


class Planner(Protocol):
    """Decides which episodes are played for an update. It does so while they run, by reacting to their events.

    An attribute ``remembers`` says whether something of one update decides what a later one plays. Only planners with
    ``remembers = False`` can play ahead of the learner (``rollout.ahead``). One that forks within replies says so with
    an attribute ``within_replies``: not every engine can.
    """

    def plan(self, tasks: Sequence[Task], rollouts: Rollouts, spare: Iterable[Task] = ()) -> list[Trajectory]:
        """Play, and return every trajectory that was played. The composer decides which of them are trained on.

        ``spare`` gives further tasks, none of them among ``tasks``, for planners that want more.
        """
        ...


@runtime_checkable
class PlannerAround(Planner, Protocol):
    """A planner that calls another one, ``inner``, to play. Dynamic sampling is an example."""

    @property
    def inner(self) -> Planner: ...

    def around(self, inner: Planner) -> Planner:
        """The same planner around another inner one."""
        ...


@runtime_checkable
class Acting(Protocol):
    """An object that counts how often its mechanism acted. Every part does; a planner may."""

    def acted(self) -> Mapping[str, float]:
        """The counts since the last call, by name."""
        ...


@dataclass(frozen=True, slots=True)
class GroupPlanner:
    """Plays ``group_size`` independent attempts at every task, and returns them in the order of tasks and attempts.

    In a game of several players an attempt gives a trajectory for each seat of a learner.
    """

    group_size: int
    remembers: ClassVar[bool] = False

    def plan(self, tasks: Sequence[Task], rollouts: Rollouts, spare: Iterable[Task] = ()) -> list[Trajectory]:
        order = [rollouts.start(task, sample) for task in tasks for sample in range(self.group_size)]
        finished: dict[int, list[Trajectory]] = {rollout: [] for rollout in order}
        for event in rollouts.events():
            if isinstance(event, RolloutFinished):
                finished[event.rollout].append(event.trajectory)
        return [trajectory for rollout in order for trajectory in finished[rollout]]


@dataclass(frozen=True, slots=True)
class NoRollouts:
    """Plays nothing: the composer takes episodes that were stored before."""

    def plan(self, tasks: Sequence[Task], rollouts: Rollouts, spare: Iterable[Task] = ()) -> list[Trajectory]:
        return []
