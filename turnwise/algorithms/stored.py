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
from turnwise.learning.metrics import Metrics, Occurrences
from turnwise.learning.parts import Composer, Streams
from turnwise.learning.planning import Rollouts
from turnwise.replay.codec import from_record, to_record
from turnwise.trajectory import RolloutFinished, Task, Trajectory

Order = Literal["backwards", "any"]

HOPELESS = 16
"""Stored states in a row that nobody could start from, after which a run ends."""


@dataclass
class WonEpisodes:
    """Won episodes, one for each task, oldest first, and how many turns before their ends attempts start now.

    A shorter episode of a task takes the place of a longer one. ``capacity``: the oldest leave. ``lost`` counts the
    states that their worlds did not come to again, since one did. ``counted`` are an update's attempts from stored
    states that were won, and all of them.
    """

    capacity: int
    depth: int = 1
    lost: int = 0
    by_task: dict[str, Trajectory] = field(default_factory=dict)
    counted: tuple[int, int] = (0, 0)

    def add(self, episodes: Iterable[Trajectory]) -> None:
        """Keep those that were won. A request that was refused is no turn: what followed it cannot be come to again."""
        for episode in episodes:
            kept = self.by_task.get(episode.task.key)
            if is_won(episode) and not episode.num_refused and (kept is None or len(episode.turns) < len(kept.turns)):
                self.by_task.pop(episode.task.key, None)
                self.by_task[episode.task.key] = _whole(episode)
        for key in list(self.by_task)[: max(len(self.by_task) - self.capacity, 0)]:
            del self.by_task[key]

    def forget(self, episode: Trajectory) -> None:
        """Drop an episode whose states its world does not come to again.

        Raises ValueError where that was so of many states and not otherwise of any since.
        """
        self.by_task.pop(episode.task.key, None)
        self.lost += 1
        if self.lost >= HOPELESS:
            raise ValueError(
                f"none of the last {self.lost} stored states could be started from: the attempts at each of them ended "
                f"in an error (errors of {episode.task.env} are in the run's episodes). Where a world does not repeat "
                "itself, use an algorithm that starts at the beginning of tasks, such as grpo"
            )

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

    def count(self, wins: int, attempts: int) -> None:
        """Count attempts from stored states."""
        self.counted = self.counted[0] + wins, self.counted[1] + attempts

    def take(self) -> tuple[int, int]:
        """What was counted since this was last asked."""
        taken, self.counted = self.counted, (0, 0)
        return taken

    def state(self) -> dict[str, Any]:
        return {
            "depth": self.depth,
            "lost": self.lost,
            "episodes": [to_record(episode) for episode in self.by_task.values()],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        self.counted = 0, 0  # of an update that is begun again
        self.depth, self.lost = int(state["depth"]), int(state.get("lost", 0))
        self.by_task = {found.task.key: found for found in map(from_record, state["episodes"])}


def is_won(episode: Trajectory) -> bool:
    """Whether an episode ended in a success. A world that does not tell has none."""
    return bool(episode.success) and episode.end != "error" and not episode.only_looked_at


def _whole(episode: Trajectory) -> Trajectory:
    """The episode without what is not needed to come to its states again."""
    return replace(episode.ungraded(), fork=None)


class RememberedWins(ComposerAround):
    """Saves with each checkpoint the won episodes that the planner starts from, and tells it that an update ends."""

    def __init__(self, inner: Composer, planner: StoredStarts) -> None:
        super().__init__(inner)
        self.planner = planner

    def after_update(self, update: int, streams: Streams, metrics: Metrics) -> None:
        super().after_update(update, streams, metrics)
        self.planner.advance()

    def own_state(self) -> dict[str, Any]:
        return self.planner.won.state()

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        self.planner.won.load(state)


@dataclass(frozen=True, slots=True)
class StoredStarts:
    """Plays ``group_size`` attempts at every task, but for a ``share`` of them attempts from stored states.

    With ``order=backwards`` the depth grows by ``stride`` where at least ``advance_share`` of an update's attempts from
    stored states were won, in however many waves it was planned. While there are too few won episodes, the tasks are
    played from their beginnings; so is a task whose place a state had that the world does not come to again.
    """

    group_size: int
    share: float
    order: Order
    advance_share: float
    stride: int
    won: WonEpisodes
    seed: int
    occurred: Occurrences = field(default_factory=Occurrences, compare=False)
    remembers: ClassVar[bool] = True  # what an update's episodes show decides what later ones play
    reads_success: ClassVar[bool] = True

    def plan(self, tasks: Sequence[Task], rollouts: Rollouts, spare: Iterable[Task] = ()) -> list[Trajectory]:
        digest = zlib.crc32("\n".join(task.key for task in tasks).encode())
        draws = np.random.default_rng([self.seed, digest, len(self.won.by_task), self.won.depth])
        wanted = self.share * len(tasks)
        number = int(wanted + draws.spawn(1)[0].random())  # a part of a group is one in some of the updates
        chosen = self.won.starts(number, self.order, draws)
        begun = tasks[: len(tasks) - len(chosen)]
        places = [[rollouts.start(task, sample) for sample in range(self.group_size)] for task in begun]
        # Where nothing was begun, their numbers would start from 0, as those of a task do that is begun later.
        beyond = 0 if begun else self.group_size
        places += [[rollouts.resume(stored, turn, beyond) for _ in range(self.group_size)] for stored, turn in chosen]
        finished = self._played(rollouts)
        failed = [n for n, (stored, _) in enumerate(chosen, len(begun)) if self._is_lost(stored, places[n], finished)]
        # The task whose place such a state had is played: an update keeps its size.
        places += [[rollouts.start(tasks[n], sample) for sample in range(self.group_size)] for n in failed]
        finished |= self._played(rollouts) if failed else {}
        self.occurred.count("lost_share", len(failed), len(chosen))
        found = [finished[rollout] for place in places for rollout in place]
        self._learn(found, len(tasks), len(chosen))
        return found

    @staticmethod
    def _played(rollouts: Rollouts) -> dict[int, Trajectory]:
        """Play all that is queued; the episodes by their numbers."""
        finished = dict[int, Trajectory]()
        for event in rollouts.events():
            if isinstance(event, RolloutFinished):
                if event.trajectory.player:
                    raise several_players(event.trajectory)
                finished[event.rollout] = event.trajectory
        return finished

    def _is_lost(self, stored: Trajectory, attempts: Sequence[int], finished: Mapping[int, Trajectory]) -> bool:
        """Whether all attempts from a stored state ended in an error; then its episode is forgotten."""
        if any(finished[attempt].end != "error" for attempt in attempts):
            self.won.lost = 0
            return False
        self.won.forget(stored)
        return True

    def _learn(self, found: Sequence[Trajectory], num_tasks: int, num_stored: int) -> None:
        """Keep the episodes that were won, and count what is asked of the stored starts."""
        later = [episode for episode in found if episode.stored_start is not None and episode.end != "error"]
        wins = sum(map(is_won, later))
        self.occurred.count("stored_share", num_stored, num_tasks)
        self.occurred.count("won_share", wins, len(later))
        self.occurred.count("depth", self.won.depth)
        self.won.count(wins, len(later))
        self.won.add(found)
        self.occurred.count("kept_episodes", len(self.won.by_task))

    def advance(self) -> None:
        """At the end of an update: go further back where enough of its attempts from stored states were won."""
        wins, later = self.won.take()
        if self.order == "backwards" and later and wins >= self.advance_share * later:
            self.won.depth += self.stride

    def acted(self) -> Mapping[str, float]:
        return self.occurred.take()
