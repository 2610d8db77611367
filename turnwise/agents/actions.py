"""From a reply to an action. Tolerant: what cannot be parsed is an ordinary outcome, recorded as not valid."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

ActionFormat = Literal["plain", "tags", "whole"]

MAX_ACTION_CHARS = 65_536
"""A longer action is not sent: a world is not meant to be given a book, nor a part of one."""

_THOUGHT = re.compile(r"<(/?)think(?:ing)?>", re.IGNORECASE)
# The innermost whole pair: no other tag of the kind inside.
_TAGGED = re.compile(r"<action>((?:(?!</?action>).)*)</action>", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ParsedAction:
    """What is sent to the world, and whether the reply held an action."""

    text: str
    valid: bool


def parse_action(reply: str, style: ActionFormat) -> ParsedAction:
    """Read the answer, which is what follows the reply's last thought (``<think>...</think>``).

    ``plain``: its first line that is not empty. ``tags``: the text of its last whole ``<action>...</action>``, with the
    white space inside; without one the answer's last line is sent and marked not valid (some worlds still take it).
    ``whole``: the reply as it is, thoughts included, for worlds that read tags themselves. White space at both ends is
    dropped; nothing is ever cut: of an action beyond ``MAX_ACTION_CHARS`` nothing is sent (``unsent`` says so).
    """
    if style == "whole":
        return _checked(reply)
    said = answer(reply)
    if said is None:
        return ParsedAction("", False)
    lines = [line for line in said.splitlines() if line.strip()]
    if style == "plain":
        return _checked(lines[0] if lines else "")
    tagged = _TAGGED.findall(said)
    if tagged:
        return _checked(tagged[-1])
    return ParsedAction(_checked(lines[-1] if lines else "").text, False)


def answer(reply: str) -> str | None:
    """What follows the last thought of a reply; None where that thought does not end.

    A thought may have been opened by the prompt: then only its end stands in the reply.
    """
    tags = list(_THOUGHT.finditer(reply))
    if not tags:
        return reply
    return reply[tags[-1].end() :] if tags[-1].group(1) else None


def unsent(reply: str) -> str:
    """Why nothing of a reply that is not valid was sent to the world, for whoever is shown the reply."""
    said = answer(reply)
    if said is None:
        return "the reply ends inside a thought"
    longest = len(said.strip())
    return f"too long to be sent: {longest:,} characters" if longest > MAX_ACTION_CHARS else "no action in the answer"


def _checked(action: str) -> ParsedAction:
    text = action.strip()
    if len(text) > MAX_ACTION_CHARS:
        return ParsedAction("", False)
    return ParsedAction(text, bool(text))
