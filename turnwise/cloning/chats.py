"""Chats to clone, from a JSONL file: a line holds ``{"messages": [{"role": ..., "content": ...}, ...]}``.

An optional system message comes first; then the user's and the assistant's messages take turns, the user's first. Where
an assistant calls tools, its message has "tool_calls" (OpenAI's form; the arguments are text or an object), the
results follow as messages of the role tool, and "tools" of the line are the schemas. Other keys of a line are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation: pairs of what the user and the assistant said, and the system message, if there is one.

    One with tools has no pairs: ``messages`` are all of it, in the form of ``turnwise.envs.interface``.
    """

    turns: tuple[tuple[str, str], ...]
    system: str | None = None
    messages: tuple[Mapping[str, Any], ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()

    @property
    def told(self) -> tuple[Mapping[str, Any], ...]:
        """All messages, with tools or without."""
        if self.messages:
            return self.messages
        begun = () if self.system is None else ({"role": "system", "content": self.system},)
        pairs = (zip(("user", "assistant"), turn, strict=True) for turn in self.turns)
        return (*begun, *({"role": role, "content": text} for pair in pairs for role, text in pair))


def read_chats(path: str | Path) -> list[Chat]:
    """The chats of a file. Raises ValueError, which names the line, for one that is not as described above."""
    place = Path(path).expanduser()
    try:
        lines = place.read_text(encoding="utf-8").split("\n")  # splitlines also cuts at letters that JSON may hold
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"no chats can be read from {str(path)!r}: {error}") from None
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found.append(_chat(json.loads(line)))
        except ValueError as error:  # JSON's too
            raise ValueError(
                f'{path}, line {number}: {error}; expected {{"messages": [{{"role": "user", "content": ...}}, '
                '{"role": "assistant", "content": ...}, ...]}'
            ) from None
    if not found:
        raise ValueError(f"{path} holds no chats")
    return found


def _chat(line: Any) -> Chat:
    if not isinstance(line, dict) or not isinstance(line.get("messages"), list):
        raise ValueError("it has no list of `messages`")
    said = list(_messages(line["messages"]))
    if line.get("tools") or any(each["role"] == "tool" or "tool_calls" in each for each in said):
        if not any(each["role"] == "assistant" for each in said):
            raise ValueError("the assistant says nothing in it")
        return Chat((), None, tuple(said), tuple(line.get("tools") or ()))
    system = said.pop(0)["content"] if said and said[0]["role"] == "system" else None
    for place, each in enumerate(said):
        if each["role"] != ("user", "assistant")[place % 2]:
            raise ValueError(
                f"message {place + 1 + (system is not None)} is the {each['role']}'s, where "
                f"{('the user', 'the assistant')[place % 2]} has the turn"
            )
    pairs = tuple((said[n]["content"], said[n + 1]["content"]) for n in range(0, len(said) - 1, 2))
    if not pairs:
        raise ValueError("the assistant says nothing in it")
    return Chat(pairs, system)


def _messages(given: list[Any]) -> Iterator[dict[str, Any]]:
    for place, message in enumerate(given, start=1):
        role, content = (message.get(key) for key in ("role", "content")) if isinstance(message, dict) else (None, None)
        if role not in ("system", "user", "assistant", "tool"):
            raise ValueError(f"message {place} has the role {role!r}; known are system, user, assistant, tool")
        calls = list(_calls(message.get("tool_calls") or (), place))
        if not isinstance(content, str) and not (calls and content is None):
            raise ValueError(f"message {place} has no text as its `content`")
        made = {"role": role, "content": content or ""}
        if role == "tool":
            made["tool_call_id"] = str(message.get("tool_call_id", ""))
            made["name"] = str(message.get("name", ""))
        if thought := message.get("reasoning_content") or message.get("reasoning"):
            made["reasoning"] = str(thought)
        yield {**made, "tool_calls": calls} if calls else made


def _calls(given: Any, place: int) -> Iterator[dict[str, Any]]:
    """Calls in the form of ``turnwise.envs.interface``."""
    for number, call in enumerate(given):
        try:
            about = call["function"]
            arguments = about["arguments"]
            arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
            if not isinstance(arguments, dict):
                raise TypeError(arguments)
            yield {
                "id": str(call.get("id", f"call{number:05d}")),
                "name": str(about["name"]),
                "arguments": arguments,
            }
        except (LookupError, TypeError, ValueError, AttributeError):
            raise ValueError(
                f"call {number + 1} of message {place} is none: expected "
                '{"function": {"name": ..., "arguments": {...}}}'
            ) from None
