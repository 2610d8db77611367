"""A served model: whoever asks it is a world, one for each conversation.

``turnwise serve`` offers a trained agent to anyone's client. Clients have no sessions of their own there: a request
belongs to the conversation whose last reply it goes on from (``conversation.py``), and any other opens a new one. As
many conversations are open as there are worlds. Where a new one finds no room, the one that was silent longest ends.
"""

from __future__ import annotations

import hmac
import time
from collections import deque
from collections.abc import Mapping
from threading import Condition
from typing import Any

import gymnasium
from gymnasium.error import ResetNeeded

from turnwise.envs.interface import AnyText, Info
from turnwise.envs.programs.asked import Request, Terms
from turnwise.envs.programs.refused import RefusedError
from turnwise.envs.programs.results import is_number
from turnwise.envs.programs.session import Exchange, Session
from turnwise.envs.programs.talk import Talk

MAX_NEW = 64
"""Conversations that wait for room; more are refused."""
SILENT_S = 1.0
"""Seconds of silence after which a conversation may end where another one wants its room."""
_POLL_S = 0.25
_ENDED = "this conversation has ended to make room: send its messages again, and it begins anew"


class ClosedError(RuntimeError):
    """The server is closed: no conversation comes any more."""


class Conversations:
    """The door of a served model.

    ``api_key`` is what clients must send; None: nothing. A conversation ends after ``idle_s`` seconds of silence.
    """

    def __init__(self, terms: Terms, api_key: str | None = None, idle_s: float = 600.0) -> None:
        self.terms, self.idle_s = terms, idle_s
        self._api_key = api_key
        self._open: dict[str, Talk] = {}
        self._new: deque[Talk] = deque()
        self._silent: dict[str, Talk] = {}
        self._num_waiting = self._num_leaving = self._count = 0
        self._closed = False
        self._changed = Condition()

    def admit(self, key: str | None) -> Terms:
        if self._api_key is not None and not hmac.compare_digest((key or "").encode(), self._api_key.encode()):
            raise RefusedError(
                401, "the key is wrong: send the one that `turnwise serve --api-key` got", "invalid_api_key"
            )
        return self.terms

    def session(self, key: str | None, request: Request) -> Session:
        """The conversation that a request goes on from, or a new one."""
        with self._changed:
            if self._closed:
                raise RefusedError(503, "the server is closing", "closed")
            for talk in reversed(self._open.values()):
                if talk.session.knows(request) or talk.conversation.knows(request):
                    self._silent.pop(talk.name, None)
                    return talk.session
            if len(self._new) >= MAX_NEW:
                raise RefusedError(429, f"{MAX_NEW} conversations wait for room: try again", "too_many_requests")
            self._count += 1
            talk = Talk(Session(self.terms), f"{self._count}-")
            self._open[talk.name] = talk
            self._new.append(talk)
            self._changed.notify()
            return talk.session

    def next(self) -> Talk:
        """A new conversation; waits for one. Raises ClosedError."""
        with self._changed:
            self._num_leaving = max(0, self._num_leaving - 1)
            self._num_waiting += 1
            try:
                while not self._new and not self._closed:
                    self._changed.wait()
                if self._closed:
                    raise ClosedError("the server is closed")
                return self._new.popleft()
            finally:
                self._num_waiting -= 1

    def is_over(self, talk: Talk) -> bool:
        """Whether a conversation that is silent should end. Then its room is given away."""
        with self._changed:
            self._silent[talk.name] = talk
            silent_s = time.monotonic() - talk.session.last_active
            oldest = min(self._silent.values(), key=lambda each: each.session.last_active)
            num_short = len(self._new) - self._num_waiting - self._num_leaving
            wanted = num_short > 0 and talk is oldest and silent_s > SILENT_S
            over = self._closed or silent_s > self.idle_s or wanted or talk.session.is_finished
            if over:
                self._leave(talk)
            return over

    def end(self, talk: Talk) -> None:
        """Forget a conversation."""
        with self._changed:
            self._leave(talk)
        talk.session.close(_ENDED)

    def _leave(self, talk: Talk) -> None:
        """Its world is on the way to ``next``; one that is counted twice would keep another from making room."""
        self._silent.pop(talk.name, None)
        if self._open.pop(talk.name, None) is not None:
            self._num_leaving += 1

    def judge(self, key: str | None, body: Mapping[str, Any]) -> None:
        """Reward a conversation, which ends by it: {"id": that of a reply, "reward": number, "success": bool}."""
        self.admit(key)
        name = str(body.get("id", "")).removeprefix("chatcmpl-").rpartition("-")[0] + "-"
        reward, success = body.get("reward"), body.get("success")
        if reward is None or isinstance(reward, bool) or not is_number(reward) or success not in (None, True, False):
            raise RefusedError(
                400, 'expected {"id": of a reply, "reward": number, "success": true or false}', "invalid"
            )
        with self._changed:
            talk = self._open.get(name)
            if talk is None:
                raise RefusedError(
                    404, "there is no open conversation with this reply: it has ended", "not_found", "id"
                )
            talk.reward, talk.success = float(reward), success
            talk.session.finish()

    def close(self) -> None:
        """End every conversation, and refuse new ones."""
        with self._changed:
            self._closed = True
            left = list(self._open.values())
            self._changed.notify_all()
        for talk in left:
            talk.session.close("the server is closing")
            talk.session.finish()


class ServedEnv(gymnasium.Env[str, str]):
    """A conversation with whoever asks. ``reset`` waits for a new one; it ends by silence, or by being judged."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  (gymnasium's own declaration)

    def __init__(self, door: Conversations) -> None:
        self.observation_space = AnyText()
        self.action_space = AnyText()
        self._door = door
        self._talk: Talk | None = None

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, Info]:
        super().reset(seed=seed)
        self.close()
        self._talk = self._door.next()
        exchange = self._talk.session.next(0)
        while exchange is None:  # its first request is on its way
            exchange = self._talk.session.next(_POLL_S)
            if exchange is None and self._door.is_over(self._talk):
                self.close()
                raise ClosedError("the conversation ended before its first request")
        return self._talk.show(exchange)

    def step(self, action: str) -> tuple[str, float, bool, bool, Info]:
        if self._talk is None:
            raise ResetNeeded("The conversation has not begun or is over: call reset() before step().")
        return self._advance(self._talk, self._talk.answer(action))

    def counted(self, prompt_tokens: int, reply_tokens: int, ended: bool) -> None:
        assert self._talk is not None
        self._talk.counted(prompt_tokens, reply_tokens, ended)

    def refuse(self) -> tuple[str, float, bool, bool, Info]:
        """The request does not fit into the context. Its client is told so; a conversation without a reply ends."""
        assert self._talk is not None
        self._talk.refuse()
        if not self._talk.conversation.num_turns:
            self.close()
            return "", 0.0, True, False, {}
        return self._advance(self._talk, True)

    def leave(self, why: str = "") -> None:
        """The conversation is over. Where its request has no reply (``why``), its client hears so."""
        if self._talk is not None:
            self._talk.fail(why)
        self.close()

    def close(self) -> None:
        if self._talk is not None:
            self._door.end(self._talk)
        self._talk = None

    def _advance(self, talk: Talk, valid: bool) -> tuple[str, float, bool, bool, Info]:
        while (exchange := talk.session.next(_POLL_S)) is None:
            if self._door.is_over(talk):
                self.close()
                return "the conversation ended", talk.reward, True, False, {"valid": valid, "success": talk.success}
        return self._shown(talk, exchange, valid)

    @staticmethod
    def _shown(talk: Talk, exchange: Exchange, valid: bool) -> tuple[str, float, bool, bool, Info]:
        observation, info = talk.show(exchange)
        return observation, 0.0, False, False, {**info, "valid": valid}
