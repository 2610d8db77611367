"""A stored episode of a chat with roles, told again: who said what before each reply, and in it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from turnwise.agents.roles import as_answered, as_message
from turnwise.envs.said import heard
from turnwise.trajectory import Turn

Messages = list[dict[str, Any]]


def asked(turn: Turn) -> dict[str, Any]:
    """What a turn was asked: "messages", "after", "tools", and a form in "sampling", as the world gave them.

    {} without roles.
    """
    found: dict[str, Any] = json.loads(turn.request) if turn.request else {}
    return found


def conversations(turns: Sequence[Turn]) -> list[Messages]:
    """The messages before each reply: those of the turn that it goes on from, that turn's reply, and what is new."""
    return told_before(list(map(asked, turns)), [turn.action for turn in turns])


def told_before(requests: Sequence[Mapping[str, Any]], actions: Sequence[str]) -> list[Messages]:
    """The same of requests and the actions that answered them."""
    told = list[Messages]()
    for request in requests:
        before, new = request.get("after"), list(request["messages"])
        told.append(new if before is None else [*told[before], *as_answered(heard(actions[before]), new)])
    return told


def offered(turns: Sequence[Turn]) -> list[Messages]:
    """The tools that could be called in each reply."""
    found = list[Messages]()
    for turn in turns:
        request = asked(turn)
        before = request.get("after")
        found.append(request.get("tools") or (found[before] if before is not None else []))
    return found


def lines(turn: Turn) -> list[tuple[str, str]]:
    """What was new before a reply, for readers: (role, text); a tool's role is its name."""
    return [
        (message.get("name") or "tool" if message["role"] == "tool" else message["role"], _text(message))
        for message in asked(turn).get("messages", ())
    ]


def action_text(turn: Turn) -> str:
    """The action of a turn for readers: calls as ``name(argument=value)``, and what was said beside them."""
    if not turn.request:
        return turn.action
    said = heard(turn.action)
    calls = as_message(said).get("tool_calls", [])
    fault = f"({said.fault})" if said.fault else ""
    return "\n".join(filter(None, [said.content, *map(_call, calls), fault]))


def _text(message: dict[str, Any]) -> str:
    return "\n".join(filter(None, [message["content"], *map(_call, message.get("tool_calls") or ())]))


def _call(call: dict[str, Any]) -> str:
    given = ", ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in call["arguments"].items())
    return f"{call['name']}({given})"
