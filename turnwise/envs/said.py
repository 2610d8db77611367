"""What an agent says in a world of chats and tools, as one action: a line of JSON.

``{"content": "I look it up.", "calls": [{"name": "find", "arguments": {"query": "mug"}}], "fault": null}`` is such an
action. Models of every family, experts, endpoints and people say the same line: how a model writes a call is its own
matter (``agents/toolcalls.py``). An action that is no such line is heard as content, so that a person may just answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

_KEYS = frozenset({"content", "calls", "fault", "thought"})


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a tool, by name, with its arguments by name."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Said:
    """What was said, the calls in their order, and what could not be read of it (None: nothing was wrong).

    ``thought`` is what was thought before, "" where nothing was.
    """

    content: str = ""
    calls: tuple[Call, ...] = ()
    fault: str | None = None
    thought: str = ""


def said(
    content: str = "",
    calls: Iterable[Call | Mapping[str, Any]] = (),
    fault: str | None = None,
    thought: str | None = None,
) -> str:
    """The action that says this. Calls may be dictionaries with "name" and "arguments"."""
    listed = [{"name": call.name, "arguments": dict(call.arguments)} for call in map(_call, calls)]
    line: dict[str, Any] = {"content": content, "calls": listed, "fault": fault}
    if thought:
        line["thought"] = thought
    return json.dumps(line, ensure_ascii=False)


def heard(action: str) -> Said:
    """What an action says: the inverse of ``said``. Any other text is content."""
    try:
        line = json.loads(action)
        if not isinstance(line, dict) or not {"content", "calls"} <= set(line) <= _KEYS:
            return Said(action)
        content, fault, thought = line["content"], line.get("fault"), line.get("thought") or ""
        calls = tuple(map(_call, line["calls"]))
    except (ValueError, TypeError, LookupError, RecursionError):
        return Said(action)
    texts = isinstance(content, str) and isinstance(thought, str) and isinstance(fault, str | None)
    return Said(content, calls, fault, thought) if texts else Said(action)


def _call(given: Call | Mapping[str, Any]) -> Call:
    if isinstance(given, Call):
        return given
    name, arguments = given["name"], given["arguments"]
    if not isinstance(name, str) or not isinstance(arguments, Mapping):
        raise TypeError(f"expected a call as {{'name': text, 'arguments': dictionary}}, got {given!r}"[:200])
    return Call(name, arguments)
