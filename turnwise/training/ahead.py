"""Episodes that are played ahead: while the learner learns, shards play the next updates with earlier weights (ADR 38).

    ahead = Ahead(2, ...)
    played = ahead.take(7)       # the episodes of update 7, played with the weights after 5 updates
    with ahead.paused():         # the shards are free for a measurement
        ...

The weights of an update's episodes follow from its number alone: update u is played with the weights after
max(0, u - num) updates. Sessions are played whole and one after another, each with one set of weights. So nothing
depends on how long anything takes, and a run repeats. A thread of this process steers the shards, which do the work.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Protocol

from turnwise.agents.jobs import Job
from turnwise.agents.playing import Event, OnEpisode, Playing, SteeredRollouts
from turnwise.clock import Clock, Work
from turnwise.learning.planning import Acting, Planner
from turnwise.learning.recipe import layers
from turnwise.models.engine import Sampling
from turnwise.models.past import Weights
from turnwise.training.tasksets import TaskOrder
from turnwise.trajectory import Task, Trajectory

_LEAVING_S = 60.0


class PlayingWeights(Playing, Protocol):
    """Plays episodes with weights that are given, in other processes."""

    def rollouts(
        self,
        sampling: Sampling,
        key: int,
        on_episode: OnEpisode | None = None,
        weights: Mapping[str, Weights] | None = None,
    ) -> SteeredRollouts: ...

    def end(self) -> None:
        """End the other processes at once."""
        ...


@dataclass(frozen=True, slots=True)
class Played:
    """An update's episodes, and what playing them took.

    ``failures``, ``numbers`` and ``work`` are as of ``Playing``, ``mechanisms`` is how often the planner's mechanisms
    acted, ``spent`` what the judge took. The seconds are of the wall: ``playing_s`` of the whole session, ``idle_s`` of
    the shards before it began, without the measurements in between.
    """

    trajectories: list[Trajectory]
    failures: int
    numbers: Mapping[str, float]
    mechanisms: Mapping[str, float]
    spent: Mapping[str, float]
    work: Work
    playing_s: float
    idle_s: float


class _StoppedError(Exception):
    """Nobody wants the session's episodes any more."""


class Ahead:
    """Plays an update's episodes ``num`` updates ahead of the learner.

    ``weights`` gives all policies' weights of a version, by side. ``last`` is the last update that is played; None
    where a budget of tokens ends the run: there up to ``num`` updates are played that nobody learns from. ``collector``
    and ``planner`` are used by the thread of this object alone. ``spent`` gives what the judge took since it was asked.
    """

    def __init__(
        self,
        num: int,
        *,
        collector: PlayingWeights,
        planner: Planner,
        order: TaskOrder,
        sampling: Sampling,
        weights: Callable[[int], Mapping[str, Weights]],
        last: int | None,
        spent: Callable[[], Mapping[str, float]] = dict,
    ) -> None:
        self.num, self.last, self._spent = num, last, spent
        self._collector, self._planner, self._order = collector, planner, order
        self._sampling, self._weights = sampling, weights
        self._asked: SimpleQueue[tuple[int, Mapping[str, Weights], Future[Played]] | None] = SimpleQueue()
        self._futures: dict[int, Future[Played]] = {}  # by update, of what was not taken yet
        self._open, self._stopping = threading.Event(), threading.Event()
        self._open.set()
        self._playing = threading.Lock()  # held during a session, and while the shards are somebody else's
        self._thread: threading.Thread | None = None
        self._free_since = 0.0  # when the shards last had something to do

    def version(self, update: int) -> int:
        """How many updates are behind the weights that play an update's episodes."""
        return max(0, update - self.num)

    def take(self, update: int) -> Played:
        """Wait for an update's episodes. All updates up to ``num`` after it are played from now on.

        The learner must hold the weights after ``update`` updates. Raises what the session raised.
        """
        last = update + self.num if self.last is None else min(update + self.num, self.last)
        for number in range(update, max(last, update) + 1):
            if number not in self._futures:
                self._futures[number] = Future()
                self._asked.put((number, self._weights(self.version(number)), self._futures[number]))
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="turnwise-ahead", daemon=True)
            self._thread.start()
        played = self._futures[update].result()
        del self._futures[update]
        return played

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A context in which the shards play nothing ahead. It begins when the session that they play has ended."""
        self._open.clear()
        try:
            with self._playing:
                began = time.perf_counter()
                try:
                    yield
                finally:
                    self._free_since += time.perf_counter() - began
        finally:
            self._open.set()

    def restart(self) -> None:
        """Forget everything that was played or asked for. A session that is being played is broken off."""
        self._stop()
        with self._playing:
            self._stopping.clear()

    def close(self) -> None:
        """End the thread. Where its shards do not answer for a while, they are ended at once."""
        self._stop()
        if self._thread is None:
            return
        self._asked.put(None)
        self._thread.join(_LEAVING_S)
        if self._thread.is_alive():
            self._collector.end()
            self._thread.join(_LEAVING_S)

    def _stop(self) -> None:
        self._stopping.set()
        for future in self._futures.values():
            future.cancel()
        self._futures.clear()

    def _work(self) -> None:
        """What the thread does."""
        self._free_since = time.perf_counter()
        while (asked := self._asked.get()) is not None:
            update, weights, future = asked
            self._open.wait()
            with self._playing:
                if not future.set_running_or_notify_cancel():
                    continue
                began = time.perf_counter()
                try:
                    future.set_result(self._play(update, weights, began, began - self._free_since))
                except BaseException as error:  # whoever takes the update gets it
                    future.set_exception(error)
                self._free_since = time.perf_counter()

    def _play(self, update: int, weights: Mapping[str, Weights], began: float, idle: float) -> Played:
        collector = self._collector
        collector.clock, collector.failures = clock, _ = Clock(), 0
        rollouts = _Stoppable(collector.rollouts(self._sampling, update, weights=weights), self._stopping)
        try:
            found = self._planner.plan(self._order.tasks(update), rollouts, self._order.spare(update))
        except BaseException:  # also where the session is broken off: what it counted is of no update
            for take in (collector.numbers, self._spent, lambda: _acted(self._planner)):
                take()
            raise
        return Played(
            found,
            collector.failures,
            collector.numbers(),
            _acted(self._planner),
            self._spent(),
            clock.take(),
            time.perf_counter() - began,
            idle,
        )


class _Stoppable:
    """Rollouts that end with an error once ``stopping`` is set."""

    def __init__(self, rollouts: SteeredRollouts, stopping: threading.Event) -> None:
        self._rollouts, self._stopping = rollouts, stopping

    def start(self, task: Task, sample: int, temperature: float | None = None) -> int:
        return self._rollouts.start(task, sample, temperature)

    def resume(self, stored: Trajectory, turn: int, beyond: int = 0) -> int:
        return self._rollouts.resume(stored, turn, beyond)

    def add(self, job: Job) -> int:
        return self._rollouts.add(job)

    def fork(self, rollout: int, turn: int, tokens: int = 0) -> int:
        return self._rollouts.fork(rollout, turn, tokens)

    def stop(self, rollout: int) -> None:
        self._rollouts.stop(rollout)

    def events(self) -> Iterator[Event]:
        with closing(self._rollouts.events()) as events:  # type: ignore[type-var]  # a generator
            for event in events:
                if self._stopping.is_set():
                    raise _StoppedError
                yield event


def _acted(planner: Planner) -> dict[str, float]:
    """How often the mechanisms of a planner and of those inside it acted, by ``Class/name``."""
    found = {}
    for layer in layers(planner):
        if isinstance(layer, Acting):
            found.update({f"{type(layer).__name__}/{name}": value for name, value in layer.acted().items()})
    return found
