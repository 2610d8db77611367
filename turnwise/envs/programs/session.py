"""One client's requests, waiting for their replies: where the threads of the server and the world meet.

The server's threads ask (``ask``) and wait (``Exchange.outcome``). The world takes one request after the other
(``next``) and answers it. Requests that are made at the same time are answered in the order in which they came. A
request that its client sends again, because it lost patience or the connection, is joined to the first one.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from dataclasses import dataclass, field
from threading import Condition, Event

from turnwise.envs.programs.asked import Message, Request, Terms
from turnwise.envs.programs.refused import RefusedError

MAX_WAITING = 64
"""Requests of a session that wait for their turn; more are refused."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of the whole context before a reply, and of the reply."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply as its client gets it. ``id`` names it; ``ended``: the model ended it, and no limit."""

    message: Message
    id: str
    usage: Usage = Usage()
    ended: bool = True


class Exchange:
    """One request on its way to an answer or a refusal."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self._settled = Event()
        self._outcome: Answer | RefusedError | None = None

    def settle(self, outcome: Answer | RefusedError) -> None:
        """Answer or refuse it. Only the first outcome counts, and the request is let go: a history may be long."""
        if not self._settled.is_set():
            self._outcome, self.request = outcome, Request(())
            self._settled.set()

    def outcome(self, timeout_s: float) -> Answer | RefusedError:
        """The answer, or why there is none; waits for it."""
        if not self._settled.wait(timeout_s) or self._outcome is None:
            return RefusedError(504, f"no reply came within {timeout_s:g} s: try again", "timeout")
        return self._outcome


@dataclass(slots=True)
class Session:
    """The requests of one client. ``key`` is what it identifies itself by; ``last_active`` is the time (monotonic,
    seconds) of its last request or the last reply to it.
    """

    terms: Terms = field(default_factory=Terms)
    key: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    last_active: float = field(default_factory=time.monotonic)
    _changed: Condition = field(default_factory=Condition)
    _waiting: deque[Exchange] = field(default_factory=deque)
    _asked: list[Exchange] = field(default_factory=list)
    _known: dict[str, Exchange] = field(default_factory=dict)
    _finished: bool = False
    _over: str | None = None

    def ask(self, request: Request) -> Exchange:
        """Queue a request, or find the one that it repeats. Raises RefusedError."""
        with self._changed:
            if self._over is not None:
                raise RefusedError(409, self._over, "episode_over")
            if request.again and (first := self._known.get(request.digest)) is not None:
                return first
            if len(self._waiting) >= MAX_WAITING:
                raise RefusedError(
                    429, f"{MAX_WAITING} requests are waiting: wait for their replies", "too_many_requests"
                )
            exchange = Exchange(request)
            self._known[request.digest] = exchange
            self._asked.append(exchange)
            self._waiting.append(exchange)
            self.last_active = time.monotonic()
            self._changed.notify_all()
            return exchange

    def knows(self, request: Request) -> bool:
        """Whether this is a retry of one of its requests."""
        return request.again and request.digest in self._known

    def next(self, timeout_s: float) -> Exchange | None:
        """The request that is due; None where none came in time, and once the client is finished."""
        with self._changed:
            if not self._waiting and not self._finished:
                self._changed.wait(timeout_s)
            return self._waiting.popleft() if self._waiting and not self._finished else None

    @property
    def is_finished(self) -> bool:
        return self._finished

    def finish(self) -> None:
        """The client has ended: whoever waits for its next request returns at once."""
        with self._changed:
            self._finished = True
            self._changed.notify_all()

    def close(self, why: str) -> None:
        """Refuse every request that waits and all that still come, with the sentence ``why``."""
        with self._changed:
            if self._over is None:
                self._over = why
            for exchange in self._asked:  # those that were answered keep their answer
                exchange.settle(RefusedError(409, self._over, "episode_over"))
            self._waiting.clear()
            self._asked.clear()
            self._changed.notify_all()
