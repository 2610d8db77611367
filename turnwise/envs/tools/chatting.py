"""What worlds of tools share: a conversation of a user, an agent and tools, and what is asked of the agent next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from turnwise.envs.interface import Info, with_system
from turnwise.envs.said import Said
from turnwise.envs.tools.tool import Tool, call, listed

Message = dict[str, Any]

FAULT = "Error: the call could not be read: {}. Calls before and after it were made."


class Talk:
    """One conversation: it counts the turns, makes the calls and words the results.

    A result longer than ``max_chars`` is cut, and says so: a context has an end.
    """

    def __init__(self, tools: Sequence[Tool], max_chars: int = 8_000) -> None:
        self.tools = {tool.name: tool for tool in tools}
        self._max_chars, self.turn = max_chars, -1

    def open(self, question: str, system: str = "") -> tuple[str, Info]:
        """The first observation and its ``info``: the user's message, and the tools."""
        return question, self.open_with([{"role": "user", "content": question}], system)

    def open_with(self, messages: Sequence[Mapping[str, Any]], system: str = "") -> Info:
        """The ``info`` of a conversation that has begun."""
        self.turn = -1
        return {"messages": list(with_system(messages, system)), "tools": listed(list(self.tools.values()))}

    def answer(self, said: Said) -> tuple[str, Info, bool]:
        """Make the calls of a reply, in their order.

        Returns the next observation, its ``info``, and whether all were understood.
        """
        self.turn += 1
        results = [call(self.tools, asked) for asked in said.calls]
        texts = [self._cut(result.text) for result in results]
        names = [asked.name for asked in said.calls]
        if said.fault is not None:
            texts.append(FAULT.format(said.fault) if results else f"Error: the call could not be read: {said.fault}.")
            names.append("error")
        messages = [
            {"role": "tool", "tool_call_id": f"call{self.turn:03d}{n:02d}", "name": name, "content": text}
            for n, (name, text) in enumerate(zip(names, texts, strict=True))
        ]
        valid = said.fault is None and all(result.understood for result in results)
        return "\n".join(texts), {"messages": messages, "after": self.turn, "valid": valid}, valid

    def _cut(self, text: str) -> str:
        if len(text) <= self._max_chars:
            return text
        return f"{text[: self._max_chars]} ... (cut: {len(text):,} characters)"
