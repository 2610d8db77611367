"""Whoever plays the episodes of a run: a collector in this process (collector.py), or shards (turnwise.shards).

The trainer and whoever measures use the two protocols of this file, and need not know which one it is.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch

from turnwise.agents.jobs import Job
from turnwise.agents.worldwork import WorldThreads
from turnwise.clock import Clock
from turnwise.models.drawing import Sampling
from turnwise.seeds import mix
from turnwise.trajectory import RolloutEnded, RolloutFinished, Task, Trajectory, TurnFinished

OnEpisode = Callable[[Trajectory], None]
Event = TurnFinished | RolloutEnded | RolloutFinished


class Grader(Protocol):
    """Pays episodes that have ended (turnwise.grading). It works in ``threads``."""

    threads: WorldThreads

    def grade(self, episode: Trajectory) -> Trajectory: ...
    def take_spent(self) -> dict[str, float]: ...
    def close(self) -> None: ...


class SteeredRollouts(Protocol):
    """Running episodes that a planner steers (turnwise.learning.planning.Rollouts), and that jobs can be added to."""

    def start(self, task: Task, sample: int, temperature: float | None = None) -> int: ...
    def add(self, job: Job) -> int: ...
    def fork(self, rollout: int, turn: int, tokens: int = 0) -> int: ...
    def resume(self, stored: Trajectory, turn: int, beyond: int = 0) -> int: ...
    def stop(self, rollout: int) -> None: ...
    def events(self) -> Iterator[Event]: ...


class Playing(Protocol):
    """Plays episodes. ``failures`` counts the failures of environments, and ``clock`` gets the times."""

    failures: int
    clock: Clock

    def collect(self, jobs: Sequence[Job], sampling: Sampling, on_episode: OnEpisode | None = None) -> list[Trajectory]:
        """Play every job. Returns the trajectories in the order of ``jobs``, and of the seats in a game.

        ``on_episode`` is called with each trajectory as its episode ends.
        """
        ...

    def rollouts(self, sampling: Sampling, key: int, on_episode: OnEpisode | None = None) -> SteeredRollouts:
        """Episodes to steer. ``key`` distinguishes repeated visits to a task; a trainer passes the update's number."""
        ...

    def numbers(self) -> dict[str, float]:
        """What else is to be recorded, by name: counts since this was last asked, or of the whole run.

        Those of decoding (``decoding/...``) are sums over tokens, whose number is among them.
        """
        ...

    def close(self) -> None: ...


def play_all(jobs: Sequence[Job], rollouts: SteeredRollouts) -> list[Trajectory]:
    """Add every job and run until all are finished. Returns the trajectories in the order of jobs and of seats."""
    order = [rollouts.add(job) for job in jobs]
    finished: dict[int, list[Trajectory]] = defaultdict(list)
    for event in rollouts.events():
        if isinstance(event, RolloutFinished):
            finished[event.rollout].append(event.trajectory)
    return [trajectory for rollout in order for trajectory in finished[rollout]]


def seed_globals(*key: int) -> None:
    """Seed the process's global generators. turnwise draws from none of them; worlds from elsewhere may."""
    seed = mix("globals", *key) % 2**32
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
