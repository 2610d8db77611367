"""A chat template taken apart by rendering it: what it writes around messages, and what a reply ends with.

A template is a program. It is asked for conversations whose messages are marks, with and without the assistant's
header, and what stands between the marks is compared. Whatever would make a rollout differ from the conversations
that the model was trained on is refused.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product, takewhile
from typing import Any

DATE = "2024-07-26"
"""What templates with a date show unless told otherwise: the day that Llama's own fall back to."""

_FIRST, _ANSWER, _SECOND = "<<<One>>>", "<<<Two>>>", "<<<Three>>>"

# What messages may hold at their ends, and inside: a template might rewrite it.
_PAD, _INSIDE = " \n ", ".\n\n\n a  b\t'c' & <b>\"D\"</b> {{ 1 }} żó "
_ENDS: dict[str, Callable[[str], str]] = {"": str, "strip": str.strip, "lstrip": str.lstrip, "rstrip": str.rstrip}

_EMPTY_THOUGHT = re.compile(r"\s*<think>\s*</think>\s*")
_STOPPED_CLOCK = re.compile(r"\A\{%- macro strftime_now\(form\) -%\}.*?\{%- endmacro -%\}", re.DOTALL)
_CODES = "aAbBcdDeFHIjmMpSTuUVwWxXyYZ"  # of strftime

_OPENED_THOUGHT = re.compile(r"<think>\s*\Z")


@dataclass(frozen=True, slots=True)
class Layout:
    """Text around messages.

    before    before the first user's message, with what the template opens with
    after     after a user's message: the assistant's header
    lead      white space between header and reply that a model writes itself
    closing   what follows a reply whatever comes next: the first special token in it is the end of a turn
    between   after a reply, up to the next user's message; begins with ``closing``
    opened    a thought's tag that the header leaves open
    shown     what the template does to a message of the user; ``said``: of the assistant; ``began``: to the first of
              all (a method of str that drops white space at its ends, or none)
    """

    before: str
    after: str
    lead: str
    closing: str
    between: str
    opened: str
    shown: str
    said: str
    began: str

    def of_user(self, text: str, *, first: bool = False) -> str:
        return _ENDS[self.began if first else self.shown](text)

    def of_assistant(self, text: str) -> str:
        return _ENDS[self.said](text)


def take_apart(tokenizer: Any, system: str | None, date: str) -> Layout:
    """Raises ValueError, which says why, for a template that cannot be taken apart."""
    if tokenizer.chat_template is None:
        raise ValueError(
            "the tokenizer has no chat template: pass a chat (instruct) model, or set tokenizer.chat_template"
        )
    opening = [{"role": "system", "content": system}] if system else []
    opening.append({"role": "user", "content": _FIRST})
    answered = [*opening, {"role": "assistant", "content": _ANSWER}]
    asked = [*answered, {"role": "user", "content": _SECOND}]
    first, whole = _rendered(tokenizer, opening, date), _rendered(tokenizer, asked, date)
    try:
        before, after = first.split(_FIRST)
        past, rest = whole.split(_ANSWER)
        _, header = past.split(_FIRST)
        between, later = rest.split(_SECOND)
        _, last = _rendered(tokenizer, answered, date, header=False).split(_ANSWER)
    except ValueError as error:
        if "chat template" in str(error):
            raise
        raise ValueError(
            "the chat template does not show each message exactly once: turnwise cannot build token deltas "
            "from it; use a template that renders every message verbatim"
        ) from None
    if later != after:
        raise ValueError("the chat template opens the assistant's turn differently later in a conversation")
    began, shown, said = _trims(tokenizer, opening[:-1], date, (before, header, between, after))
    ignored = first == _rendered(tokenizer, opening, date, header=False)
    opened = _OPENED_THOUGHT.search(after)
    return Layout(
        before=before,
        after=after,
        lead=_lead(header, after, ignored),
        closing="".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(last, between, strict=False))),
        between=between,
        opened=opened.group() if opened else "",
        shown=shown,
        said=said,
        began=began,
    )


def _trims(
    tokenizer: Any, opening: list[dict[str, str]], date: str, pieces: tuple[str, str, str, str]
) -> tuple[str, str, str]:
    """What the template does to the first message, to the user's later ones and to the assistant's.

    Raises ValueError unless the pieces, laid around them, are what it writes for a conversation longer than the one
    that they were taken from.
    """
    before, header, between, after = pieces
    texts = [f"{_PAD}{mark}{_INSIDE}{mark}{_PAD}" for mark in (_FIRST, _ANSWER, _SECOND, _ANSWER, _SECOND)]
    roles = ["user", "assistant"] * 2 + ["user"]
    asked = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
    written = _rendered(tokenizer, [*opening, *asked], date)

    def laid(began: str, shown: str, said: str) -> str:
        ends = (_ENDS[name] for name in (began, said, shown, said, shown))
        first, *parts = (end(text) for end, text in zip(ends, texts, strict=True))
        around = (header, between, header, between)
        return before + first + "".join(a + part for a, part in zip(around, parts, strict=True)) + after

    for began, shown, said in product(_ENDS, repeat=3):
        if laid(began, shown, said) == written:
            return began, shown, said
    verbatim = laid("", "", "")
    at = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(verbatim, written, strict=False)))
    start = max(0, at - 30)
    raise ValueError(
        "the chat template changes what messages hold, or shows a conversation otherwise as it grows: in place of "
        f"{verbatim[start : at + 30]!r} it writes {written[start : at + 30]!r}. Use a template that renders every "
        "message verbatim, or leave agent.system out where a system message moves"
    )


def _lead(header: str, after: str, ignored: bool) -> str:
    """``header`` stands before replies in the history, ``after`` where a reply is asked for: how they may differ."""
    rest = header.removeprefix(after)
    if after.startswith(header) or (header.startswith(after) and _EMPTY_THOUGHT.fullmatch(rest)):
        return ""  # the prompt opens a thought, or the history shows that there was none
    if header.startswith(after) and not rest.strip():
        return rest
    what = "ignores add_generation_prompt" if ignored else "has another generation prompt"
    raise ValueError(
        f"the chat template {what}: before an assistant's message it writes {header[-60:]!r} in the history, but "
        f"{after[-60:]!r} where the assistant is to answer. Add the missing header under "
        "`{% if add_generation_prompt %}` at the template's end"
    )


def dated(template: str, date: str) -> str:
    """The template with its clock stopped at ``date`` (year-month-day): in front stands a macro of the clock's name."""
    template = _STOPPED_CLOCK.sub("", template)
    if "strftime_now" not in template:
        return template
    day = datetime.datetime.fromisoformat(date)
    shown = {form: day.strftime(form) for code in _CODES for form in (f"%-{code}", f"%{code}")}
    parts = "".join(f" | replace({form!r}, {text!r})" for form, text in shown.items() if text != form)
    return f"{{%- macro strftime_now(form) -%}}{{{{ form{parts} }}}}{{%- endmacro -%}}{template}"


def _rendered(tokenizer: Any, messages: list[dict[str, str]], date: str, *, header: bool = True) -> str:
    try:
        return str(
            tokenizer.apply_chat_template(
                messages,
                chat_template=dated(tokenizer.get_chat_template(), date),
                tokenize=False,
                add_generation_prompt=header,
                date_string=datetime.datetime.fromisoformat(date).strftime("%d %b %Y"),
            )
        )
    except Exception as error:  # a template is a program: it may fail in any way
        roles = ", ".join(dict.fromkeys(message["role"] for message in messages))
        raise ValueError(
            f"the chat template cannot show messages of {roles} ({type(error).__name__}: {error}): use another "
            "template, or leave agent.system out where it knows no system message"
        ) from error
