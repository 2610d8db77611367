"""The controller's end of a shard: it sends messages, and says them again to a new shard where one is lost.

    connection.tell("go", commands, False)
    batch = connection.told()

A shard is lost when its process or node ends, or when an answer takes too long. A new one gets the same messages since
``hold``. It repeats the same events. Those that were heard before are compared with the first time and dropped, so that
nothing happens twice.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Protocol

import numpy as np

from turnwise.agents.playing import Event
from turnwise.clock import Clock
from turnwise.errors import AgentError, StoppedRunError
from turnwise.shards.messages import Batch
from turnwise.shards.shard import Shard
from turnwise.trajectory import RolloutFinished, TurnFinished

ROUNDING = 1e-3
"""Nats. Where a world failed only the first time, other episodes share a batch, which is rounded otherwise."""

_TIMES = ("env_s",)
_CLOSING_S = 60.0


class ShardLostError(RuntimeError):
    """A shard's process or node has ended, or did not answer in time. Says what happened."""


class ShardError(StoppedRunError):
    """Shards cannot go on: they are lost again and again, or do not repeat themselves, or are not of this run."""


class Place(Protocol):
    """A process or an actor with a ``Served`` (shard.py). One call at a time."""

    def tell(self, name: str, *arguments: Any) -> None:
        """Start ``Served.call``. Raises ShardLostError."""
        ...

    def told(self, seconds: float) -> Any:
        """Wait for the answer. Raises ShardLostError, and what the shard raised as ``reported`` says."""
        ...

    def leave(self) -> None:
        """Let the process or the actor end, after it has answered."""
        ...

    def end(self) -> None:
        """End it at once. Further calls do nothing."""
        ...


class Host(Protocol):
    """Where shards can be placed: processes of this machine, or a cluster."""

    def place(self, number: int, seconds: float) -> Place:
        """A new place for shard ``number``. Raises ShardLostError where there is none in time."""
        ...

    def shared(self, tensors: bytes) -> Any:
        """What stands for these bytes in messages to several shards."""
        ...

    def close(self) -> None: ...


Make = Callable[[], Shard]
"""Makes a shard where it is unpickled."""


@dataclass(frozen=True, slots=True)
class Patience:
    """``seconds`` for an answer; ``losses`` of one shard in one session before the run stops."""

    seconds: float
    losses: int


@dataclass(slots=True)
class _Said:
    name: str
    arguments: tuple[Any, ...]
    answer: Any = None
    answered: bool = False


class Connection:
    """One shard. ``make`` makes it, and ``apart`` makes it with worlds in processes of their own.

    The second is used once a shard was lost twice in a session: a world may have ended its process. ``lost`` counts the
    shards that were lost, ``repeated`` the messages that were said again, and ``recovery_s`` the seconds of that and of
    waiting for answers that never came.
    """

    def __init__(self, number: int, host: Host, make: Make, apart: Make, patience: Patience) -> None:
        self.number, self.patience, self.clock = number, patience, Clock()
        self.lost = self.repeated = 0
        self.recovery_s = 0.0
        self._host, self._make, self._apart = host, make, apart
        self._place: Place | None = None
        self._base = [_Said("build", (make,))]  # and the weights
        self._session: list[_Said] = []
        self._heard: dict[tuple[int, int, str], Event] = {}  # of this session
        self._fresh: list[Event] = []  # heard from a new shard for the first time, and not passed on yet
        self._losses = 0  # in this session
        self._given_up = False

    def build(self) -> None:
        """Begin to make the shard; ``told`` returns how it describes itself."""
        self._send(self._base[0])

    def hold(self, side: str, version: int, tensors: Any) -> None:
        """Give it the weights of a side; ``told`` returns their hash. The session before is over."""
        if self._session:
            self._losses = 0
        known = [said for said in self._base if said.name == "build" or said.arguments[0] != side]
        self._base, self._session = [*known, _Said("hold", (side, version, tensors))], []
        self._send(self._base[-1])

    def tell(self, name: str, *arguments: Any) -> None:
        """Say a message of a session; ``told`` returns its answer. ``begin`` begins a new session."""
        if name == "begin":
            self._session, self._heard, self._fresh, self._losses = [], {}, [], 0
        self._session.append(_Said(name, arguments))
        self._send(self._session[-1])

    def told(self) -> Any:
        """The answer to what was said last; of a batch, the events that were not heard before.

        Raises ShardError, and AgentError or ValueError where the shard does.
        """
        said = (self._session or self._base)[-1]
        answer = None
        while not said.answered:
            began, again = self.clock.now(), self._place is None
            try:
                if (place := self._place) is None:
                    answer = self._say_again()
                else:
                    answer = self._answer(place, said)
                    if isinstance(answer, Batch):
                        self._heard |= {_key(event): event for event in answer.events}
            except ShardLostError as error:
                again = True
                self._lose(error)
            finally:
                if again:
                    self._count_recovery(self.clock.now() - began)
        return answer

    def _count_recovery(self, seconds: float) -> None:
        self.recovery_s += seconds
        self.clock.add("recovery", seconds, 0)

    def abandon(self, seconds: float | None = None) -> None:
        """Wait for an answer that nobody needs any more, so that other messages can follow."""
        said = (self._session or self._base)[-1]
        if (place := self._place) is None or said.answered:
            return
        try:
            self._answer(place, said, seconds)
        except (ShardLostError, ShardError, ValueError):
            self.end()

    def end(self) -> None:
        """End the shard. What is said next makes a new one."""
        place, self._place = self._place, None
        if place is not None:
            place.end()

    def give_up(self) -> None:
        """End the shard for good, also while another thread waits for its answer: that one gets a ShardError."""
        self._given_up = True
        self.end()

    def close(self) -> None:
        """Have the shard close its worlds, and end it."""
        if not self._given_up:
            self.abandon(_CLOSING_S)
        if self._place is not None:
            with suppress(ShardLostError, ShardError, ValueError):
                self._place.tell("close")
                self._place.told(_CLOSING_S)
                self._place.leave()
        self.end()

    def _send(self, said: _Said) -> None:
        """Send a message; where the shard is lost, ``told`` makes another one."""
        try:
            place = self._new_place() if self._place is None and said.name == "build" else self._place
            if place is not None:
                place.tell(said.name, *said.arguments)
        except ShardLostError as error:
            self._lose(error)

    def _new_place(self) -> Place:
        self._place = place = self._host.place(self.number, self.patience.seconds)
        if self._given_up:  # meanwhile: whoever gave it up saw no place to end
            raise ShardLostError("it was given up")
        return place

    def _answer(self, place: Place, said: _Said, seconds: float | None = None) -> Any:
        try:
            said.answer = place.told(self.patience.seconds if seconds is None else seconds)
        except ShardLostError:
            raise
        except Exception:
            said.answered = True  # by an error: nothing more is to come
            raise
        said.answered = True
        return said.answer

    def _say_again(self) -> Any:
        """Make a new shard and say everything to it. Returns the last answer, with all events that are new."""
        if self._given_up:
            raise ShardLostError("it was given up")
        place = self._new_place()
        answer: Any = None
        for said in (*self._base, *self._session):
            place.tell(said.name, *said.arguments)
            before = said.answer if said.answered else None
            answer = self._answer(place, said)
            self.repeated += 1
            if isinstance(answer, Batch):
                self._compare(answer)
            elif before is not None and answer != before:
                raise ShardError(f"shard {self.number} was made again and is another one: {before} and {answer}")
        if not isinstance(answer, Batch):
            return answer
        fresh, self._fresh = self._fresh, []
        return replace(answer, events=tuple(fresh))

    def _compare(self, batch: Batch) -> None:
        """Keep the events that were not heard before. The others must be as they were. Raises ShardError."""
        for event in batch.events:
            before = self._heard.setdefault(_key(event), event)
            if before is event:
                self._fresh.append(event)
            elif unlike := differing(before, event):
                raise ShardError(
                    f"shard {self.number} was lost and played its episodes again, and rollout {event.rollout} differs "
                    f"in {unlike}: the world does not repeat itself, or rounding decided between two tokens. "
                    "`turnwise train --resume RUN` repeats the update from the newest checkpoint"
                )

    def _lose(self, error: ShardLostError) -> None:
        """Count a loss, so that a new shard is made. Raises ShardError where there were too many, or none is wanted."""
        self.end()
        if self._given_up:
            raise ShardError(f"shard {self.number} was given up, because the run ends") from None
        self.lost += 1
        self._losses += 1
        if self._losses > self.patience.losses:
            raise ShardError(
                f"shard {self.number} was lost {self._losses} times in one update, the last time because {error}. "
                "rollout.shard_losses and rollout.shard_timeout_s say how often and how soon one is given up; where a "
                "world ends its process or hangs, env.process=true holds it apart"
            ) from None
        told = "a new one plays its episodes again"
        if self._losses == 2 and self._make is not self._apart:
            told += ", with every world in a process of its own, because a world may have ended it"
            self._base[0].arguments = (self._apart,)
            self._make = self._apart
        warnings.warn(f"shard {self.number} was lost ({error}): {told}", stacklevel=2)


def reported(type_name: str, message: str, trace: str) -> Exception:
    """The error that a shard reports: AgentError and ValueError as they are, anything else as a ShardError."""
    for kind in (AgentError, ValueError):
        if type_name == kind.__name__:
            return kind(message)
    error = ShardError(f"a shard failed: {type_name}: {message}")
    error.add_note(f"In the shard:\n{trace}")
    return error


def _key(event: Event) -> tuple[int, int, str]:
    if isinstance(event, TurnFinished):
        return event.rollout, event.turn, ""
    return event.rollout, -1, event.trajectory.player if isinstance(event, RolloutFinished) else ""


def differing(first: Any, second: Any, name: str = "it") -> str | None:
    """The name of a field in which two records differ, or None. Times are left out; numbers may differ by rounding."""
    if type(first) is not type(second):
        return name
    if is_dataclass(first):
        names = [field.name for field in fields(first) if field.name not in _TIMES]
        found = (differing(getattr(first, each), getattr(second, each), each) for each in names)
        return next(filter(None, found), None)
    if isinstance(first, tuple):
        if len(first) != len(second):
            return name
        return next(filter(None, (differing(a, b, name) for a, b in zip(first, second, strict=True))), None)
    if isinstance(first, np.ndarray):
        if first.shape != second.shape:
            return name
        near = first.dtype.kind == "f" and np.allclose(first, second, rtol=0, atol=ROUNDING)
        return None if near or np.array_equal(first, second) else name
    return None if first == second else name
