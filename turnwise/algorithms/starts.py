"""Groups of attempts from one state in the middle of an episode, and planners that play such attempts.

An example: an attempt has played six turns. A copy of it starts before turn 3, draws that turn anew and plays on. The
two make a group of their own, which starts in the state before turn 3: what they returned from there on differs by what
they did there, and by chance. In it the attempt counts from turn 3 on. Nobody learns from the turns before a second
time: they are a part of the first prompt (``Trajectory.rest``).
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from turnwise.algorithms.composing import ComposerAround
from turnwise.learning.metrics import Occurrences
from turnwise.learning.parts import AdvantageModifier, Composer, Samples, Stream, Streams, required
from turnwise.learning.planning import GroupPlanner, Planner, PlannerAround, Rollouts
from turnwise.learning.recipe import Recipe
from turnwise.replay.buffer import TrajectoryBuffer
from turnwise.trajectory import Group, RolloutFinished, Task, Trajectory, Turn

Where = Literal["any", "entropy"]

Place = tuple[int, int]
"""Where a copy starts: a turn, and how many tokens of the attempt's reply it keeps."""


def several_players(trajectory: Trajectory) -> ValueError:
    """The error of a planner that cannot play games."""
    return ValueError(
        f"{trajectory.episode} is of a game of several players, where no attempt can start within an episode: use an "
        "algorithm that plays independent attempts here, such as grpo"
    )


def plain_base(base: Recipe, name: str) -> Recipe:
    """The base itself, called ``name``. Raises ValueError where it says by itself from where its attempts start."""
    inner = base.planner
    while isinstance(inner, PlannerAround):
        inner = inner.inner
    if inner is not None and not isinstance(inner, GroupPlanner):
        raise ValueError(
            f"{name} decides from where attempts start, and so does {base.name} ({type(inner).__name__}): take another "
            "base"
        )
    return base.named(name)


class ByStart(ComposerAround):
    """Gives ``inner`` groups by start: attempts from the task, and for each state that copies started from the copies
    and what their parent did from there on.
    """

    def __init__(self, inner: Composer) -> None:
        super().__init__(inner)

    def compose(self, update: int, samples: Samples, buffer: TrajectoryBuffer) -> Streams:
        groups, places, cuts = list[Group](), list[int](), list[int]()
        place = 0
        for group in samples.groups:
            for members in starts_of(group.trajectories):
                cut = [trajectory.rest(turn) if turn else trajectory for trajectory, turn in members]
                groups.append(replace(group, trajectories=tuple(cut)))
                places += [place + _place(group, trajectory) for trajectory, _ in members]
                cuts += [turn for _, turn in members]
            place += len(group.trajectories)
        return self.inner.compose(update, Samples(tuple(groups), samples.rewards.select(places).after(cuts)), buffer)


def starts_of(trajectories: Sequence[Trajectory]) -> list[list[tuple[Trajectory, int]]]:
    """The attempts by start, each with the number of its first turn there: from the task, then state by state.

    A copy's parent comes before its copies, if it is among the attempts.
    """
    copies = defaultdict[tuple[str, int], list[Trajectory]](list)
    whole, by_episode = list[Trajectory](), {trajectory.episode: trajectory for trajectory in trajectories}
    for trajectory in trajectories:
        fork = trajectory.fork
        if fork is None or fork.stored:
            whole.append(trajectory)
        else:
            copies[fork.parent, fork.turn].append(trajectory)
    found = [[(trajectory, 0) for trajectory in whole]] if whole else []
    for (parent, turn), members in copies.items():
        first = [by_episode[parent]] if parent in by_episode else []
        found.append([(trajectory, turn) for trajectory in (*first, *members)])
    return found


def _place(group: Group, trajectory: Trajectory) -> int:
    return next(n for n, each in enumerate(group.trajectories) if each is trajectory)


class FirstTurnOnly(AdvantageModifier):
    """Of what starts within an episode the first turn alone has an advantage: the one in which attempts part."""

    def modify(self, stream: Stream) -> Tensor:
        batch, played = stream.batch, stream.samples.trajectories
        advantages = required(batch.advantages, "advantages")
        within = torch.tensor([trajectory.fork is not None for trajectory in played], dtype=torch.bool)
        later = (batch.turn_index > 0) & within[batch.trajectory].unsqueeze(1)
        self.occurred.count("left_out_share", (advantages != 0) & later, advantages != 0)
        return advantages.masked_fill(later, 0.0)


def play_copies(
    tasks: Sequence[Task],
    rollouts: Rollouts,
    roots: int,
    places: Callable[[Trajectory, int], Sequence[Place | None]],
) -> list[Trajectory]:
    """Play ``roots`` attempts from each task, and copies of each from the ``places`` of (attempt, its number).

    An attempt from the task takes the place of a copy that has no place, or that cannot be made. Returns them task by
    task. Raises ValueError in a game of several players.
    """
    started = {rollouts.start(task, n): (place, n) for place, task in enumerate(tasks) for n in range(roots)}
    of_task = {rollout: place for rollout, (place, _) in started.items()}
    finished, last = dict[int, Trajectory](), max(started, default=-1)
    for event in rollouts.events():
        if not isinstance(event, RolloutFinished):
            continue
        finished[event.rollout] = event.trajectory
        if event.trajectory.player:
            raise several_players(event.trajectory)
        if event.rollout in started:
            task, number = started[event.rollout]
            for place in places(event.trajectory, number):
                last = _copied(rollouts, event.rollout, place, tasks[task], last + 1)
                of_task[last] = task
    return [finished[rollout] for rollout in sorted(finished, key=lambda n: (of_task[n], n))]


def _copied(rollouts: Rollouts, parent: int, place: Place | None, task: Task, number: int) -> int:
    if place is not None:
        try:
            return rollouts.fork(parent, *place)
        except ValueError:  # its world failed, and it holds no episode any more
            pass
    return rollouts.start(task, number)


@dataclass(frozen=True, slots=True)
class CounterfactualPlanner:
    """Plays ``roots`` attempts from each task, then ``copies`` from each of ``states`` states that they came to.

    A copy draws anew the turn that an attempt took in that state. The states are dealt out to the attempts in turn;
    each is that before a turn but the first, ``where``: drawn by ``seed``, or the turn of highest mean entropy.
    An attempt from the task takes the place of a copy that cannot be made: of an episode of one turn, or one that
    failed.
    """

    roots: int
    states: int
    copies: int
    where: Where
    seed: int
    occurred: Occurrences = field(default_factory=Occurrences, compare=False)
    remembers: ClassVar[bool] = False

    def plan(self, tasks: Sequence[Task], rollouts: Rollouts, spare: Iterable[Task] = ()) -> list[Trajectory]:
        found = play_copies(tasks, rollouts, self.roots, self.places)
        self._count(len(tasks), found)
        return found

    def places(self, trajectory: Trajectory, number: int) -> list[Place | None]:
        """Where the copies of attempt ``number`` start."""
        turns = self.turns(trajectory, len(range(number, self.states, self.roots)))
        return [None if turn is None else (turn, 0) for turn in turns for _ in range(self.copies)]

    def turns(self, trajectory: Trajectory, number: int) -> list[int | None]:
        """The turns of an attempt that are drawn anew, ``number`` of them; None: there is no further one."""
        turns = list(range(1, len(trajectory.turns))) if trajectory.end != "error" else []
        draws = np.random.default_rng([self.seed, zlib.crc32(trajectory.episode.encode())])
        drawn = [turns[n] for n in draws.permutation(len(turns))]
        if self.where == "entropy":
            drawn.sort(key=lambda n: -_mean_entropy(trajectory.turns[n]))
        return [*drawn[:number], *[None] * (number - len(drawn))]

    def _count(self, num_tasks: int, found: Sequence[Trajectory]) -> None:
        by_episode = {trajectory.episode: trajectory for trajectory in found}
        copies = [(by_episode[t.fork.parent], t, t.fork.turn) for t in found if t.fork is not None]
        states = [members for members in starts_of(found) if members[0][1]]
        self.occurred.count("states_per_task", len(states), num_tasks)
        differing = [len({t.total_reward for t, _ in members if t.end != "error"}) > 1 for members in states]
        self.occurred.count("differing_share", sum(differing), len(states))
        other = [t.turns[n : n + 1] and t.turns[n].action != parent.turns[n].action for parent, t, n in copies]
        self.occurred.count("other_action_share", sum(map(bool, other)), len(copies))

    def acted(self) -> Mapping[str, float]:
        return self.occurred.take()


def _mean_entropy(turn: Turn) -> float:
    return float(turn.entropies.mean(dtype="float64")) if len(turn.entropies) else 0.0


def around(base: Recipe, planner: Planner) -> Recipe:
    """The base with this planner, and groups by start."""
    return replace(base.with_planner(planner), composer=ByStart(base.composer))
