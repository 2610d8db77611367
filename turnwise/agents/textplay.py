"""Many episodes of agents that answer by themselves, several at once while they wait for a server.

An episode is a thread's from beginning to end, but worlds never run beside each other: what they share stays theirs.
As with engines, a world that raises is replaced and its episode retried once; a second failure is an ``error``.
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
from turnwise.agents.endpoint import ChatPlayer
from turnwise.agents.episode import Episode, Job, Seating, SuccessRule, TextEnv
from turnwise.agents.scripted import play_out
from turnwise.errors import AgentError
from turnwise.seeds import mix
from turnwise.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class Played:
    """A job's trajectories, one for each recorded seat, and what endpoints were asked for them."""

    job: Job
    trajectories: tuple[Trajectory, ...]
    usage: Usage = field(default_factory=Usage)


class _InTurn(gymnasium.Wrapper[str, str, str, str]):
    """A world that waits until no other one runs."""

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
class _Player:
    """One worker: plays job after job in a world of its own."""

    make_env: Callable[[], TextEnv]
    seating: Seating
    seed: int
    success: SuccessRule
    lock: threading.Lock
    env: TextEnv | None = None

    def play(self, number: int, job: Job) -> Played:
        """Job ``number`` of all: it feeds the agents' own draws."""
        found = self._once(number, job)
        if isinstance(found, Played):
            return found
        found = self._once(number, job)
        if isinstance(found, Played):
            return found
        nothing = Trajectory(
            job.episode, job.task, job.env_seed(self.seed), job.sample, (), "error", None, None, found
        )  # what was played of it tells nothing
        return Played(job, (nothing,))

    def _once(self, number: int, job: Job) -> Played | str:
        """The episode, or what its world raised."""
        try:
            if self.env is None:
                with self.lock:
                    self.env = _InTurn(self.make_env(), self.lock)
            seats = self.seating.seats(self.env, job, mix("agent", self.seed, number) if self.seed else number)
            episode = Episode(self.env, job, self.seed, seats)
            end, reason = play_out(episode)
        except AgentError:
            raise
        except (Exception, SystemExit) as error:  # whatever a third party's world raises, also where it would leave
            self.close()
            return f"{type(error).__name__}: {error}"[:200]
        usage = sum((seat.agent.usage for seat in seats if isinstance(seat.agent, ChatPlayer)), Usage())
        return Played(job, tuple(episode.trajectories(end, reason, self.success)), usage)

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
) -> Iterator[Played]:
    """Play numbered jobs, ``workers`` at once, and yield each as it ends (with one worker: in order).

    What an episode does depends on seed, number and job alone, as far as its agents repeat themselves. Raises what an
    agent raises (AgentError); the other workers then stop after what they are at.
    """
    lock = threading.Lock()
    crew = [_Player(make_env, seating, seed, success or SuccessRule(), lock) for _ in range(min(workers, len(jobs)))]
    if len(crew) > 1:
        yield from _together(crew, jobs)
        return
    for player in crew:
        with contextlib.closing(player):
            for number, job in jobs:
                yield player.play(number, job)


def _together(crew: Sequence[_Player], jobs: Sequence[tuple[int, Job]]) -> Iterator[Played]:
    """Threads that nobody waits for: an interrupted evaluation ends although a server still owes it an answer."""
    waiting: queue.SimpleQueue[tuple[int, Job] | None] = queue.SimpleQueue()
    ended: queue.SimpleQueue[Played | BaseException] = queue.SimpleQueue()
    stopped = threading.Event()
    for numbered in (*jobs, *(None for _ in crew)):
        waiting.put(numbered)

    def work(player: _Player) -> None:
        with contextlib.closing(player):
            while not stopped.is_set() and (numbered := waiting.get()) is not None:
                try:
                    ended.put(player.play(*numbered))
                except BaseException as error:  # it is raised where the results are read
                    ended.put(error)
                    return

    for player in crew:
        threading.Thread(target=work, args=(player,), daemon=True).start()
    try:
        for _ in jobs:
            result = ended.get()
            if isinstance(result, BaseException):
                raise result
            yield result
    finally:
        stopped.set()
