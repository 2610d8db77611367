"""Many episodes of agents without a model of ours: scripted agents, and models behind a chat API.

Several episodes run at once, so that one can wait for a server while others play. Each episode runs in one thread from
beginning to end, but only one environment works at a time: environments of one process may share state.

As in the collector, an environment that raises is replaced and its episode is retried once. A second failure gives a
trajectory whose end is "error".
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium

from turnwise.agents.chat_client import Usage
from turnwise.agents.endpoint import ChatAgent, RolesAgent
from turnwise.agents.episode import Episode, SuccessRule
from turnwise.agents.jobs import Job
from turnwise.agents.scripted import play_out
from turnwise.agents.seating import Seating, TextEnv
from turnwise.errors import AgentError, with_place
from turnwise.seeds import mix
from turnwise.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class Played:
    """The trajectories of a job, one for each recorded seat, and the requests that they took at endpoints."""

    job: Job
    trajectories: tuple[Trajectory, ...]
    usage: Usage = field(default_factory=Usage)


class _OneAtATime(gymnasium.Wrapper[str, str, str, str]):
    """An environment whose ``reset`` and ``step`` wait until no other environment is working."""

    def __init__(self, env: TextEnv, lock: threading.Lock) -> None:
        super().__init__(env)
        self._lock = lock

    def reset(self, **given: Any) -> Any:
        with self._lock:
            return self.env.reset(**given)

    def step(self, action: str) -> Any:
        with self._lock:
            return self.env.step(action)


@dataclass
class _Worker:
    """Plays one job after the other, in an environment of its own."""

    make_env: Callable[[], TextEnv]
    seating: Seating
    seed: int
    success: SuccessRule
    lock: threading.Lock
    grade: Callable[[Trajectory], Trajectory] | None = None
    env: TextEnv | None = None

    def play(self, number: int, job: Job) -> Played:
        """Play a job. ``number`` is its place among all jobs; it seeds the agents' own random choices."""
        found = self._once(number, job)
        if isinstance(found, Played):
            return found
        found = self._once(number, job)
        if isinstance(found, Played):
            return found
        nothing = Trajectory(
            job.episode, job.task, job.env_seed(self.seed), job.sample, (), "error", None, None, found
        )  # the turns before the failure are dropped
        return Played(job, (nothing,))

    def _once(self, number: int, job: Job) -> Played | str:
        """The played episode, or what its environment raised, as one line."""
        try:
            if self.env is None:
                with self.lock:
                    self.env = _OneAtATime(self.make_env(), self.lock)
            seats = self.seating.seats(self.env, job, mix("agent", self.seed, number) if self.seed else number)
            episode = Episode(self.env, job, self.seed, seats)
            end, reason = play_out(episode)
        except AgentError:
            raise
        except (Exception, SystemExit) as error:  # whatever a third party's world raises, also where it would leave
            self.close()
            return with_place(error)[:400]
        usage = sum((seat.agent.usage for seat in seats if isinstance(seat.agent, ChatAgent | RolesAgent)), Usage())
        found = episode.trajectories(end, reason, self.success)
        return Played(job, tuple(map(self.grade, found) if self.grade is not None else found), usage)

    def close(self) -> None:
        env, self.env = self.env, None
        with contextlib.suppress(Exception, SystemExit):
            if env is not None:
                env.close()


def play_jobs(
    make_env: Callable[[], TextEnv],
    seating: Seating,
    jobs: Sequence[tuple[int, Job]],
    *,
    seed: int = 0,
    success: SuccessRule | None = None,
    workers: int = 1,
    grade: Callable[[Trajectory], Trajectory] | None = None,
) -> Iterator[Played]:
    """Play numbered jobs, ``workers`` at once, and yield each as it ends. With one worker that is in order.

    ``grade`` pays each episode beside its world.

    What an episode does depends on seed, number and job alone, as far as its agents are deterministic. Raises the
    AgentError of an agent; the other workers then stop after their present job.
    """
    lock = threading.Lock()
    rule = success or SuccessRule()
    team = [_Worker(make_env, seating, seed, rule, lock, grade) for _ in range(min(workers, len(jobs)))]
    if len(team) > 1:
        yield from _together(team, jobs)
        return
    for worker in team:
        with contextlib.closing(worker):
            for number, job in jobs:
                yield worker.play(number, job)


def _together(team: Sequence[_Worker], jobs: Sequence[tuple[int, Job]]) -> Iterator[Played]:
    """Several workers, in daemon threads.

    Nobody waits for such threads, so that an interrupted evaluation ends at once although a server has not answered.
    """
    waiting: queue.SimpleQueue[tuple[int, Job] | None] = queue.SimpleQueue()
    ended: queue.SimpleQueue[Played | BaseException] = queue.SimpleQueue()
    stopped = threading.Event()
    for numbered in (*jobs, *(None for _ in team)):
        waiting.put(numbered)

    def work(worker: _Worker) -> None:
        with contextlib.closing(worker):
            while not stopped.is_set() and (numbered := waiting.get()) is not None:
                try:
                    ended.put(worker.play(*numbered))
                except BaseException as error:  # it is raised where the results are read
                    ended.put(error)
                    return

    for worker in team:
        threading.Thread(target=work, args=(worker,), daemon=True).start()
    try:
        for _ in jobs:
            result = ended.get()
            if isinstance(result, BaseException):
                raise result
            yield result
    finally:
        stopped.set()
