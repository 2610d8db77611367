"""The context policy of worlds that speak in a chat with roles: the conversation as the world tells it.

Each request of such a world says which turn it goes on from (``turnwise.envs.interface``). Where that is the last turn,
the context goes on, with what is new. Where it is an earlier one, as when a main agent returns from its helpers, the
context is that turn's, token for token, with what is new: a fresh row. A request that begins afresh, because its
history was edited or summarised, is rendered whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from turnwise.agents.rendering import Message, Rendering
from turnwise.agents.toolcalls import Tools
from turnwise.envs.interface import Info, with_system
from turnwise.envs.said import Said, heard
from turnwise.trajectory import IntArray

if TYPE_CHECKING:
    from turnwise.agents.chat import Chat, ChatFormat
    from turnwise.agents.prompts import AgentConfig


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request and its place: the turn that it goes on from (None: afresh), the tokens it added, the tools."""

    before: int | None
    prompt_ids: IntArray
    messages: Sequence[Message]
    tools: Tools


@dataclass(frozen=True, slots=True)
class _Turn:
    asked: _Asked
    reply_ids: IntArray
    said: Said


class Roles:
    """The conversation in roles. ``prompt_ids`` of a turn are what it added, or the whole context of a fresh one.

    ``examples`` are messages that every context has behind its system message.
    """

    def __init__(
        self, chat: Chat, config: AgentConfig, instructions: str = "", examples: Sequence[Message] = ()
    ) -> None:
        rendering = cast("ChatFormat", chat).rendering
        if rendering is None:
            raise ValueError("agent.context=roles needs agent.action_format=calls: set both")
        self._rendering: Rendering = rendering
        self._system = "\n\n".join(filter(None, (config.system, instructions.strip())))
        self._examples = examples
        self._turns: tuple[_Turn, ...] = ()
        self._asked = _Asked(None, np.zeros(0, np.int32), (), ())

    def begin(self, observation: str, info: Info) -> IntArray:
        return self.ask(info)[0]

    def extend(self, reply_ids: IntArray, action: str, observation: str, info: Info) -> tuple[IntArray, bool]:
        self._turns = (*self._turns, _Turn(self._asked, reply_ids, heard(action)))
        return self.ask(info)

    def restart(self) -> IntArray:
        """The beginning of the conversation up to the first user's message, the last reply, and what came after it."""
        asked = self._asked
        if asked.before is None:
            return asked.prompt_ids
        last, first = self._turns[asked.before], self._first(asked.before)
        opened = next((n for n, each in enumerate(first.messages) if each["role"] == "user"), len(first.messages))
        messages = [*first.messages[: opened + 1], as_message(last.said, asked.messages), *asked.messages]
        return self._keep(None, messages, asked.tools)[0]

    def fork(self) -> Roles:
        copy = object.__new__(Roles)
        copy._rendering, copy._system, copy._examples = self._rendering, self._system, self._examples
        copy._turns, copy._asked = self._turns, self._asked
        return copy

    def num_ahead(self) -> int:
        """How many tokens the present context has up to the end of its examples."""
        asked = self._asked if self._asked.before is None else self._first(self._asked.before)
        begun = [message for message in asked.messages[:1] if message["role"] == "system"]
        text = self._rendering.text([*begun, *self._examples], asked.tools, header=False)
        ahead = self._rendering.spelling.mixed(text)
        pairs = zip(ahead, asked.prompt_ids.tolist(), strict=False)
        return next((place for place, (one, other) in enumerate(pairs) if one != other), len(ahead))

    @property
    def tools(self) -> Tools:
        """The tools that are offered with the present request."""
        return self._asked.tools

    def ask(self, info: Info) -> tuple[IntArray, bool]:
        """The tokens of a request, also of one in the place of the last; and whether they continue the context."""
        messages, before = info.get("messages"), info.get("after")
        if messages is None:
            raise ValueError(
                "agent.context=roles is for worlds that speak in messages with roles, and this one gives no "
                "info['messages']: leave agent.context and agent.action_format at their defaults"
            )
        if before is not None and not 0 <= before < len(self._turns):
            raise ValueError(
                f"the world goes on from turn {before!r} (info['after']); expected one of the {len(self._turns)} "
                "turns before, counted from 0"
            )
        if before is None:
            return self._keep(None, with_system(messages, self._system), info.get("tools") or ())
        return self._keep(before, messages, info.get("tools") or self._turns[before].asked.tools)

    def _keep(self, before: int | None, messages: Sequence[Message], tools: Tools) -> tuple[IntArray, bool]:
        """The tokens of a request, which is kept; and whether they continue the present context."""
        if before is None:
            shown = with_examples(messages, self._examples)
            self._asked = _Asked(None, self._rendering.render(shown, tools), messages, tools)
            return self._asked.prompt_ids, False
        last = self._turns[before]
        added = self._rendering.after(last.reply_ids, last.said, messages, tools)
        self._asked = _Asked(before, added, messages, tools)
        if before == len(self._turns) - 1:
            return added, True
        return np.concatenate([*self._context(before), added]), False

    def _context(self, turn: int | None) -> list[IntArray]:
        """The exact tokens up to the end of a turn's reply, in pieces."""
        pieces = list[IntArray]()
        while turn is not None:
            pieces += [self._turns[turn].reply_ids, self._turns[turn].asked.prompt_ids]
            turn = self._turns[turn].asked.before
        return pieces[::-1]

    def _first(self, turn: int) -> _Asked:
        """The request with which a turn's context began."""
        asked = self._turns[turn].asked
        while asked.before is not None:
            asked = self._turns[asked.before].asked
        return asked


def with_examples(messages: Sequence[Message], examples: Sequence[Message]) -> Sequence[Message]:
    """The messages of a conversation with ``examples`` behind its system message."""
    begun = bool(messages) and messages[0]["role"] == "system"
    return [*messages[:begun], *examples, *messages[begun:]] if examples else messages


def as_answered(said: Said, new: Sequence[Message]) -> list[dict[str, Any]]:
    """A reply and the messages after it, as chat APIs and trainers take them: a tool answers nothing but a call.

    What a world tells of a broken call, which the reply's message cannot hold, becomes a user's message.
    """
    results = [message for message in new if message["role"] == "tool"]
    unasked = {id(message) for message in results[len(said.calls) :]}
    told = ({"role": "user", "content": each["content"]} if id(each) in unasked else dict(each) for each in new)
    return [as_message(said, new), *told]


def as_message(said: Said, answers: Sequence[Message] = ()) -> dict[str, Any]:
    """What was said, as an assistant's message. Its calls have the ids that the ``answers`` of tools name."""
    ids = [message["tool_call_id"] for message in answers if message["role"] == "tool"]
    calls = [
        {"id": ids[n] if n < len(ids) else f"call{n:05d}", "name": call.name, "arguments": dict(call.arguments)}
        for n, call in enumerate(said.calls)
    ]
    made: dict[str, Any] = {"role": "assistant", "content": said.content}
    if calls:
        made["tool_calls"] = calls
    return {**made, "reasoning": said.thought} if said.thought else made
