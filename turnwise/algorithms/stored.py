"""Attempts that start in states of earlier won episodes, and the memory of these episodes.

An example: an attempt solved its task in nine turns, and is kept. In a later update a whole group starts from the state
before its last turn, a group of another episode from the state before that one's last turn. When enough of them end in
a success, groups start two turns before the end. So a policy that seldom solves a task from its beginning learns the
end of it first, and then what leads there.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np

from turnwise.algorithms.composing import ComposerAround
from turnwise.algorithms.starts import several_players
from turnwise.learning.metrics import Occurrences
from turnwise.learning.parts import Composer
from turnwise.learning.planning import Rollouts
from turnwise.replay.codec import from_record, to_record
from turnwise.trajectory import RolloutFinished, Task, Trajectory

Order = Literal["backwards", "any"]


@dataclass
class WonEpisodes:
    """Won episodes, one for each task, oldest first, and how many turns before their ends attempts start now.

    A shorter episode of a task takes the place of a longer one. ``capacity``: the oldest leave.
    """

    capacity: int
    depth: int = 1
    by_task: dict[str, Trajectory] = field(default_factory=dict)

    def add(self, episodes: Iterable[Trajectory]) -> None:
        """Keep those that were won."""
        for episode in episodes:
            kept = self.by_task.get(episode.task.key)
            if is_won(episode) and (kept is None or len(episode.turns) < len(kept.turns)):
                self.by_task.pop(episode.task.key, None)
                self.by_task[episode.task.key] = _whole(episode)
        for key in list(self.by_task)[: max(len(self.by_task) - self.capacity, 0)]:
            del self.by_task[key]

    def starts(self, number: int, order: Order, draws: np.random.Generator) -> list[tuple[Trajectory, int]]:
        """At most ``number`` episodes that are drawn, each with the turn that attempts start at.

        Backwards that is ``depth`` turns before the end, in episodes that are longer; else any turn but the first.
        """
        least = self.depth if order == "backwards" else 1
        long = [episode for episode in self.by_task.values() if len(episode.turns) > least]
        drawn = [long[n] for n in draws.permutation(len(long))[:number]]
        if order == "backwards":
            return [(episode, len(episode.turns) - self.depth) for episode in drawn]
        return [(episode, int(draws.integers(1, len(episode.turns)))) for episode in drawn]

    def state(self) -> dict[str, Any]:
        return {"depth": self.depth, "episodes": [to_record(episode) for episode in self.by_task.values()]}

    def load(self, state: Mapping[str, Any]) -> None:
        self.depth = int(state["depth"])
        self.by_task = {found.task.key: found for found in map(from_record, state["episodes"])}


def is_won(episode: Trajectory) -> bool:
    """Whether an episode ended in a success. A world that does not tell has none."""
    return bool(episode.success) and episode.end != "error" and not episode.only_looked_at


def _whole(episode: Trajectory) -> Trajectory:
    """The episode without what is not needed to come to its states again."""
    return replace(episode.ungraded(), fork=None)


class RememberedWins(ComposerAround):
    """Saves with each checkpoint the won episodes that the planner starts from."""

    def __init__(self, inner: Composer, won: WonEpisodes) -> None:
        super().__init__(inner)
        self.won = won

    def own_state(self) -> dict[str, Any]:
        return self.won.state()

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        self.won.load(state)


@dataclass(frozen=True, slots=True)
class StoredStarts:
    """Plays ``group_size`` attempts at every task, but for a ``share`` of them attempts from stored states.

    With ``order=backwards`` the depth grows by ``stride`` where at least ``advance`` of an update's attempts from
    stored states were won. While there are too few won episodes, the tasks are played from their beginnings.
    """

    group_size: int
    share: float
    order: Order
    advance: float
    stride: int
    won: WonEpisodes
    seed: int
    occurred: Occurrences = field(default_factory=Occurrences, compare=False)
    remembers: ClassVar[bool] = True  # what an update's episodes show decides what later ones play

    def plan(self, tasks: Sequence[Task], rollouts: Rollouts, spare: Iterable[Task] = ()) -> list[Trajectory]:
        digest = zlib.crc32("\n".join(task.key for task in tasks).encode())
        draws = np.random.default_rng([self.seed, digest, len(self.won.by_task), self.won.depth])
        chosen = self.won.starts(round(self.share * len(tasks)), self.order, draws)
        begun = tasks[: len(tasks) - len(chosen)]
        order = [rollouts.start(task, sample) for task in begun for sample in range(self.group_size)]
        order += [rollouts.resume(stored, turn) for stored, turn in chosen for _ in range(self.group_size)]
        finished = dict[int, Trajectory]()
        for event in rollouts.events():
            if isinstance(event, RolloutFinished):
                if event.trajectory.player:
                    raise several_players(event.trajectory)
                finished[event.rollout] = event.trajectory
        found = [finished[rollout] for rollout in order]
        self._learn(found, len(tasks), len(chosen))
        return found

    def _learn(self, found: Sequence[Trajectory], num_tasks: int, num_stored: int) -> None:
        """Keep the episodes that were won, and go further back where enough of the stored starts were."""
        later = [episode for episode in found if episode.stored_start is not None and episode.end != "error"]
        wins = sum(map(is_won, later))
        self.occurred.count("stored_share", num_stored, num_tasks)
        self.occurred.count("won_share", wins, len(later))
        self.occurred.count("depth", self.won.depth)
        if self.order == "backwards" and later and wins >= self.advance * len(later):
            self.won.depth += self.stride
        self.won.add(found)
        self.occurred.count("kept_episodes", len(self.won.by_task))

    def acted(self) -> Mapping[str, float]:
        return self.occurred.take()
