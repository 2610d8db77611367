"""Which request goes on from which reply, by the content of the messages.

A program sends its whole history with each request, and may edit, shorten or summarise it, or lead several at once. A
request goes on from a turn where all of this holds:

    its messages begin with those of the turn's request, and the next is the assistant's, as the reply was given
    no other message of the assistant follows
    the tools are the same

The last such turn counts. What is new since its reply is then all that the model has to read: the tokens before stay as
they were sampled. Every other request begins afresh.

Messages are compared by role, text, calls (with their arguments as JSON, in any order) and the ids of calls. Other keys
are not looked at. The thought of any reply may be missing from its echo, but not be another one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from turnwise.envs.programs.asked import Message, Request
from turnwise.envs.said import Said


@dataclass(frozen=True, slots=True)
class Placed:
    """A request's place: ``messages`` are new since turn ``after``; None: afresh, and they are all."""

    messages: tuple[Message, ...]
    after: int | None


@dataclass(slots=True)
class Conversation:
    """The requests and replies of one program, as turns counted from 0."""

    num_turns: int = 0
    _told: str = ""  # of the request that is due: a hash of its tools and messages
    _turns: dict[str, tuple[int, str]] = field(default_factory=dict)  # the same with the reply -> turn, its thought

    def place(self, request: Request) -> Placed:
        """The place of the request that is answered next."""
        self._told, found = self._read(request)
        return Placed(request.messages, None) if found is None else Placed(request.messages[found[1] :], found[0])

    def knows(self, request: Request) -> bool:
        """Whether a request goes on from a turn of this conversation."""
        return self._read(request)[1] is not None

    def _read(self, request: Request) -> tuple[str, tuple[int, int] | None]:
        """A hash of the request; the turn that it goes on from, and the number of messages before what is new."""
        told, found, edited = _digest("", list(request.tools)), None, False
        for number, message in enumerate(request.messages):
            told = _digest(told, _compared(message))
            if message["role"] == "assistant":
                turn, thought = self._turns.get(told, (-1, ""))
                edited = edited or (turn >= 0 and message.get("reasoning", thought) != thought)
                found = (turn, number + 1) if turn >= 0 and not edited else None
        return told, found

    def answered(self, reply: Said) -> Message:
        """The reply to the request that was placed, as the message that the client gets and sends back."""
        message = reply_message(reply, self.num_turns)
        self._turns[_digest(self._told, _compared(message))] = self.num_turns, reply.thought
        self.num_turns += 1
        return message


def reply_message(reply: Said, turn: int) -> Message:
    """What was said at a turn, as a message. The ids of its calls follow from the turn, so that an episode repeats."""
    message: Message = {"role": "assistant", "content": reply.content}
    if reply.calls:
        message["tool_calls"] = [
            {"id": f"call{turn % 1000:03d}{number % 100:02d}", "name": call.name, "arguments": dict(call.arguments)}
            for number, call in enumerate(reply.calls)
        ]
    if reply.thought:
        message["reasoning"] = reply.thought
    return message


def readable(messages: Sequence[Message]) -> str:
    """Messages as text, for people: what an observation shows."""
    return "\n".join(map(_line, messages))


def _line(message: Message) -> str:
    calls = "".join(f"\n  {call['name']}({_canonical(call['arguments'])})" for call in message.get("tool_calls", ()))
    name = f" {message['name']}" if "name" in message else ""
    return f"[{message['role']}{name}] {message['content']}{calls}"


def _compared(message: Mapping[str, Any]) -> Any:
    calls = [(call["id"], call["name"], call["arguments"]) for call in message.get("tool_calls", ())]
    return [message["role"], message["content"], calls, message.get("tool_call_id", "")]


def _digest(before: str, content: Any) -> str:
    return hashlib.sha256(f"{before}{_canonical(content)}".encode(errors="surrogatepass")).hexdigest()


def _canonical(content: Any) -> str:
    return json.dumps(content, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
