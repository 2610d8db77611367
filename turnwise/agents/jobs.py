"""Which episodes to play.

A job is one attempt at one task. ``jobs_for(tasks, samples=4, key=12)`` makes four jobs for each task, in update 12 of
a run. The four attempts at a task start from the same state and differ in the tokens that are sampled.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from turnwise.seeds import mix
from turnwise.trajectory import Fork, Task, Trajectory, Turn


@dataclass(frozen=True, slots=True)
class Past:
    """The turns of a stored episode of one player that a new one begins with, up to the state that it starts from.

    ``observation`` is that of the turn after them, ``seed`` that of the environment's reset, and ``given`` what the
    world told of the task.
    """

    episode: str
    seed: int
    turns: tuple[Turn, ...]
    observation: str
    given: str

    @classmethod
    def of(cls, stored: Trajectory, turn: int) -> Past:
        """The first ``turn`` turns of a stored episode. Raises ValueError for a state that nobody acted in."""
        if stored.player:
            raise ValueError(f"{stored.episode} is of a game of several players: no episode can start within it")
        if not 0 <= turn < len(stored.turns):
            last = len(stored.turns) - 1
            raise ValueError(f"no episode can start after turn {turn} of {stored.episode}: expected 0 to {last}")
        turns = stored.ungraded().turns
        return cls(stored.episode, stored.seed, turns[:turn], turns[turn].observation, stored.given)

    @property
    def fork(self) -> Fork:
        return Fork(self.episode, len(self.turns), stored=True)


@dataclass(frozen=True, slots=True)
class Job:
    """One episode to play: attempt number ``sample`` at ``task``.

    ``key`` distinguishes repeated visits to a task; a trainer passes the number of the update. ``learner_seat`` is used
    in games with opponents only. It is the number of the seat that the learner fills, modulo the number of seats.
    ``past`` is the stored episode whose state it starts from; None: the start of the task. ``temperature`` > 0 is that
    of its replies; None: the run's.
    """

    task: Task
    sample: int = 0
    key: int = 0
    learner_seat: int = 0
    past: Past | None = field(default=None, compare=False)
    temperature: float | None = None

    def env_seed(self, seed: int) -> int:
        """The seed of the environment's reset, in [0, 2**31). ``seed`` is the run's.

        All attempts at a task with the same ``key`` get the same seed; those that start in a stored state get its own.
        """
        if self.past is not None:
            return self.past.seed
        return mix("env", seed, self.task.key, self.key) >> 33

    @property
    def episode(self) -> str:
        """The episode's id, as it is stored with its trajectories."""
        return f"{self.task.split}-{self.task.index}-{self.key}-{self.sample}"


def jobs_for(tasks: Iterable[Task], samples: int, key: int) -> list[Job]:
    """``samples`` attempts at each task, grouped by task.

    In a game with opponents the learner moves on by one seat from each attempt to the next.
    """
    return [Job(task, sample, key, task.index + sample) for task in tasks for sample in range(samples)]
