"""What algorithms ask of the rest of the system: a scorer of tokens, and rollouts that a planner can steer.

Both are protocols: the policy and the collector satisfy them structurally, and neither imports the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor
from torch.nn import Parameter

from turnwise.replay.batch import TokenBatch
from turnwise.trajectory import RolloutFinished, Task, Trajectory, TurnFinished


class Scores(Protocol):
    """What a policy says about a batch's tokens, [B, T] nats, 0 outside the action mask.

    ``hidden`` [M, h] are the states that predict the M action tokens, in the order of the mask's True positions.
    Differentiable where gradients are enabled and the reference was not asked for.
    """

    @property
    def logprobs(self) -> Tensor: ...

    @property
    def entropies(self) -> Tensor | None: ...

    @property
    def hidden(self) -> Tensor | None: ...


class Scorer(Protocol):
    """The learner's policy: the same sampling temperature as the rollouts', so that ratios start at 1."""

    def score(self, batch: TokenBatch, *, entropy: bool, reference: bool = False, hidden: bool = False) -> Scores:
        """Score the action tokens; ``reference`` asks the frozen policy (adapters off) instead."""
        ...

    def parameters(self) -> Iterable[Parameter]:
        """What is trained, in an order that never changes."""
        ...

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states, for parts that build on them."""
        ...


class Rollouts(Protocol):
    """Running episodes, named by the numbers that ``start`` and ``fork`` give out."""

    def start(self, task: Task, sample: int) -> int:
        """Queue attempt number ``sample`` at a task."""
        ...

    def fork(self, rollout: int, turn: int) -> int:
        """Queue a copy of a rollout, context and environment, as it stood after ``turn`` turns."""
        ...

    def stop(self, rollout: int) -> None:
        """Abandon a rollout; it gives no trajectory."""
        ...

    def events(self) -> Iterator[TurnFinished | RolloutFinished]:
        """Run until nothing is queued or running; what is started meanwhile joins."""
        ...


class Planner(Protocol):
    """Decides which rollouts happen. Planners wrap one another and react to events, never in lock step."""

    def plan(self, tasks: Sequence[Task], rollouts: Rollouts, spare: Iterable[Task] = ()) -> list[Trajectory]:
        """Every trajectory that was played, used or not: what is left out is the composer's matter.

        ``spare`` gives further tasks, none of them among ``tasks``, to those that want more of them.
        """
        ...


@runtime_checkable
class PlannerAround(Planner, Protocol):
    """A planner that leaves the playing to another one."""

    @property
    def inner(self) -> Planner: ...

    def around(self, inner: Planner) -> Planner:
        """Itself around another planner."""
        ...


@runtime_checkable
class Acting(Protocol):
    """What tells how often its mechanism acted since last asked: parts do, planners may."""

    def acted(self) -> Mapping[str, float]: ...


@dataclass(frozen=True, slots=True)
class GroupPlanner:
    """``group_size`` independent attempts at every task, returned in the order of tasks and attempts.

    (A game of several players gives a trajectory for each seat of a learner.)
    """

    group_size: int

    def plan(self, tasks: Sequence[Task], rollouts: Rollouts, spare: Iterable[Task] = ()) -> list[Trajectory]:
        order = [rollouts.start(task, sample) for task in tasks for sample in range(self.group_size)]
        finished: dict[int, list[Trajectory]] = {rollout: [] for rollout in order}
        for event in rollouts.events():
            if isinstance(event, RolloutFinished):
                finished[event.rollout].append(event.trajectory)
        return [trajectory for rollout in order for trajectory in finished[rollout]]
