"""Reads the action from a reply. A reply without an action is an ordinary outcome: the action is marked not valid."""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from turnwise.agents.toolcalls import DIALECTS, Dialect, Tools, call_form
from turnwise.envs.forms import Form
from turnwise.envs.said import Said, heard, said

ActionFormat = Literal["plain", "tags", "whole", "calls"]

MAX_ACTION_CHARS = 65_536
"""Characters. A longer action is not sent to the environment, not even a part of it."""

_NO_END = "the reply ended inside a thought"
_THOUGHT = re.compile(r"<(/?)think(?:ing)?>", re.IGNORECASE)
# The innermost complete pair of tags.
_TAGGED = re.compile(r"<action>((?:(?!</?action>).)*)</action>", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ParsedAction:
    """The text that is sent to the environment, and whether the reply held an action."""

    text: str
    valid: bool


def parse_action(
    reply: str,
    style: ActionFormat,
    dialect: Dialect = DIALECTS["hermes"],
    tools: Tools | None = None,
    form: Form | None = None,
) -> ParsedAction:
    """The action in a reply. For example, ``<think>It is red.</think> take mug`` holds the action ``take mug``.

    The answer is what follows the last thought (``<think>...</think>``). What is read from it depends on ``style``:

    plain   its first line that is not empty
    tags    the text in its last complete ``<action>...</action>``. Without one, its last line is sent and marked not
            valid (some environments still understand it)
    whole   the whole reply, thoughts included, for environments that read tags themselves
    calls   its text and its calls of ``tools``, in the model's ``dialect``. They are sent as one line of JSON
            (``turnwise.envs.said``), also where a call is broken: then marked not valid. Where no tools are offered
            (an empty list; None: it is not known), all of it is text. A reply in a ``form`` is read as what it was
            held to, whatever tags its texts spell

    White space at both ends is dropped. An action longer than ``MAX_ACTION_CHARS`` is not sent and not shortened: the
    text is then empty and not valid.
    """
    if style == "whole":
        return _checked(reply)
    if style == "calls":
        return _called(*(_free(reply, dialect, tools) if form is None else _in_form(reply, dialect, tools, form)))
    text = answer(reply)
    if text is None:
        return ParsedAction("", False)
    lines = [line for line in text.splitlines() if line.strip()]
    if style == "plain":
        return _checked(lines[0] if lines else "")
    tagged = _TAGGED.findall(text)
    if tagged:
        return _checked(tagged[-1])
    return ParsedAction(_checked(lines[-1] if lines else "").text, False)


def written(action: str, style: ActionFormat, dialect: Dialect = DIALECTS["hermes"], thought: str = "") -> str:
    """A reply that holds this action, after a thought where there is one, and nothing else: as an expert's is shown."""
    before = f"<think>\n{thought}\n</think>\n\n" if thought else ""
    if style == "calls":
        return before + dialect.write(heard(action))
    return before + (f"<action>{action}</action>" if style == "tags" else action)


def answer(reply: str) -> str | None:
    """What follows the last thought of a reply; None where that thought has no end.

    The prompt may have opened the thought. Then the reply contains only ``</think>``.
    """
    tags = list(_THOUGHT.finditer(reply))
    if not tags:
        return reply
    return reply[tags[-1].end() :] if tags[-1].group(1) else None


def action_start(reply: str, style: ActionFormat) -> int:
    """Where the action of a reply begins, in characters: after the last thought, or at the last ``<action>``.

    0 where nothing precedes it, the reply's length where it ends inside a thought.
    """
    if style == "whole":
        return 0
    text = answer(reply)
    if text is None:
        return len(reply)
    tagged = list(_TAGGED.finditer(text)) if style == "tags" else []
    return len(reply) - len(text) + (tagged[-1].start() if tagged else 0)


def tokens_before(start: int, num_tokens: int, decode: Callable[[int], str]) -> int:
    """The fewest tokens of a reply whose text has ``start`` characters; all where no more text follows.

    ``decode(n)`` is the text of the first n of its ``num_tokens`` tokens.
    """
    if not start or start >= len(decode(num_tokens)):
        return num_tokens if start else 0
    return bisect_left(range(num_tokens), start, key=lambda n: len(decode(n)))


def unsent(reply: str) -> str:
    """A short reason, for display, why nothing of a reply was sent to the environment."""
    text = answer(reply)
    if text is None:
        return "the reply ends inside a thought"
    longest = len(text.strip())
    return f"too long to be sent: {longest:,} characters" if longest > MAX_ACTION_CHARS else "no action in the answer"


def _free(reply: str, dialect: Dialect, tools: Tools | None) -> tuple[Said, str]:
    """What a reply says, and its thought."""
    text = answer(reply)
    if text is None:
        return Said(fault=_NO_END), reply
    is_text = tools is not None and not tools
    return Said(text.strip()) if is_text else dialect.read(text, tools or ()), reply[: len(reply) - len(text)]


def _in_form(reply: str, dialect: Dialect, tools: Tools | None, form: Form) -> tuple[Said, str]:
    """The same of a reply that was held to a form, before which only the prompt can have opened a thought.

    Calls are told from JSON by the text that they begin with.
    """
    thought, text = "", reply
    if reply.startswith("<think>"):
        thought, closed, text = reply.partition("</think>")
        if not closed:
            return Said(fault=_NO_END), reply
    spelled = call_form(dialect)
    calls = form.calls and spelled is not None and text.lstrip().startswith(spelled.before.strip())
    if form.schema is None or calls:
        return dialect.read(text, tools or ()), thought
    return Said(text.strip(), fault=None if _is_whole(text) else "the reply is no whole JSON"), thought


def _is_whole(text: str) -> bool:
    """Whether a text is JSON to its end."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _called(found: Said, thought: str) -> ParsedAction:
    """What was said, as an action. One that says nothing, or has a broken call, is not valid."""
    line = said(found.content, found.calls, found.fault, _THOUGHT.sub("", thought).strip())
    if len(line) > MAX_ACTION_CHARS:
        return ParsedAction(said(fault=f"the reply is too long: {len(line):,} characters"), False)
    return ParsedAction(line, found.fault is None and bool(found.content or found.calls))


def _checked(action: str) -> ParsedAction:
    text = action.strip()
    if len(text) > MAX_ACTION_CHARS:
        return ParsedAction("", False)
    return ParsedAction(text, bool(text))
