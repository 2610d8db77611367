"""A session as a world shows it: a request is an observation, an action its reply."""

from __future__ import annotations

import time

from turnwise.envs.interface import Info
from turnwise.envs.programs.conversation import Conversation, readable
from turnwise.envs.programs.refused import RefusedError
from turnwise.envs.programs.session import Answer, Exchange, Session, Usage
from turnwise.envs.said import heard

_FULL = (
    "the context is full: shorten the messages (a shorter history begins a fresh context), or raise "
    "agent.max_context_tokens"
)
MAX_FULL = 2
"""Requests in a row that do not fit, after which the episode is truncated."""


class Talk:
    """The requests of a session, one after the other. ``num_full``: how many in a row did not fit into the context.

    ``name`` is part of the names of replies. ``reward`` and ``success`` are what somebody said of a conversation.
    """

    def __init__(self, session: Session, name: str = "") -> None:
        self.session, self.name, self.conversation = session, name, Conversation()
        self.num_full = 0
        self.reward = 0.0
        self.success: bool | None = None
        self._due: Exchange | None = None
        self._usage, self._ended = Usage(), True

    def show(self, exchange: Exchange) -> tuple[str, Info]:
        """The request that is answered next, as observation and ``info``."""
        self._due, asked = exchange, exchange.request
        placed = self.conversation.place(asked)
        info: Info = {"messages": list(placed.messages)}
        if placed.after is not None:
            info["after"] = placed.after
        elif asked.tools:
            info["tools"] = list(asked.tools)
        if asked.ignored:
            info["ignored"] = list(asked.ignored)
        if asked.sampling:
            info["sampling"] = dict(asked.sampling)
        return readable(placed.messages), info

    def counted(self, prompt_tokens: int, reply_tokens: int, ended: bool) -> None:
        """What is told of the reply that comes next, for its client."""
        self._usage, self._ended = Usage(prompt_tokens, reply_tokens), ended

    def answer(self, action: str) -> bool:
        """Give the client its reply. Returns whether the reply could be read as a whole."""
        assert self._due is not None
        reply, name = heard(action), f"chatcmpl-{self.name}{self.conversation.num_turns}"
        self._due.settle(Answer(self.conversation.answered(reply), name, self._usage, self._ended))
        self._due, self.num_full = None, 0
        self.session.last_active = time.monotonic()
        self._usage, self._ended = Usage(), True
        return reply.fault is None

    def refuse(self) -> None:
        """Tell the client that its request does not fit into the context."""
        assert self._due is not None
        self._due.settle(RefusedError(400, _FULL, "context_length_exceeded", "messages"))
        self._due, self.num_full = None, self.num_full + 1
        self.session.last_active = time.monotonic()

    def fail(self, why: str) -> None:
        """Tell the client what is wrong with its request, where one is due."""
        if self._due is not None and why:
            self._due.settle(RefusedError(400, f"the model cannot reply to this request: {why}", "invalid", "messages"))
