"""Splits a chat template into the fixed texts that it writes around messages.

A template is a program, so it is not parsed but run. For example, it renders a conversation with the messages
``<<<One>>>``, ``<<<Two>>>`` and ``<<<Three>>>``. What it writes between these marks is what it writes between any user
message, reply and next user message. Conversations of several lengths, with and without the assistant's header, are
compared. A template that would make rollouts differ from the conversations that the model was trained on gives a
ValueError.
"""

from __future__ import annotations

import datetime
import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product, takewhile
from types import MappingProxyType
from typing import Any

DATE = "2024-07-26"
"""The date that templates show by default. Llama's templates use the same one."""

NO_ARGUMENTS: Mapping[str, Any] = MappingProxyType({})

_OWN = frozenset(
    {
        *("messages", "add_generation_prompt", "continue_final_message", "tools", "documents", "chat_template"),
        *("tokenize", "date_string", "strftime_now", "raise_exception", "bos_token", "eos_token", "pad_token"),
        *("unk_token", "tools_in_user_message"),
    }
)
"""What a template is given already, by turnwise or by transformers."""

_FIRST, _ANSWER, _SECOND = "<<<One>>>", "<<<Two>>>", "<<<Three>>>"

# White space at the ends of a message, and text inside it, that a template might change.
_PAD, _INSIDE = " \n ", ".\n\n\n a  b\t'c' & <b>\"D\"</b> {{ 1 }} żó "
_ENDS: dict[str, Callable[[str], str]] = {"": str, "strip": str.strip, "lstrip": str.lstrip, "rstrip": str.rstrip}

_EMPTY_THOUGHT = re.compile(r"\s*<think>\s*</think>\s*")
_STOPPED_CLOCK = re.compile(r"\A\{%- macro strftime_now\(form\) -%\}.*?\{%- endmacro -%\}", re.DOTALL)
_CODES = "aAbBcdDeFHIjmMpSTuUVwWxXyYZ"  # of strftime

_CHANNEL = "<|channel|>"
_OPENED_THOUGHT = re.compile(r"<think>\s*\Z")


@dataclass(frozen=True, slots=True)
class Layout:
    """The texts around messages.

    before    before the first user message, with everything that the template begins with
    after     after a user message: the assistant's header
    lead      white space between the header and the reply, which the model has to write
    closing   what follows a reply in every case. Its first special token ends the reply
    between   from a reply to the next user message. It begins with ``closing``
    opened    a ``<think>`` tag at the end of the header, or ""
    shown     how the template strips user messages ("strip", "lstrip", "rstrip" or ""), except the first one
    said      how it strips the assistant's messages
    began     how it strips the first user message
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


def take_apart(tokenizer: Any, system: str | None, date: str, arguments: Mapping[str, Any] = NO_ARGUMENTS) -> Layout:
    """The layout of a tokenizer's chat template, which gets ``arguments``, such as ``{"enable_thinking": False}``.

    Raises ValueError, which says why, for a template that cannot be used, or does not use an argument.
    """
    if tokenizer.chat_template is None:
        raise ValueError(
            "the tokenizer has no chat template: pass a chat (instruct) model, or set tokenizer.chat_template"
        )
    check_arguments(tokenizer.get_chat_template(), arguments)
    show = partial(rendered, tokenizer, date, arguments)
    opening = [{"role": "system", "content": system}] if system else []
    opening.append({"role": "user", "content": _FIRST})
    answered = [*opening, {"role": "assistant", "content": _ANSWER}]
    asked = [*answered, {"role": "user", "content": _SECOND}]
    first, whole = show(opening), show(asked)
    try:
        before, after = first.split(_FIRST)
        past, rest = whole.split(_ANSWER)
        _, header = past.split(_FIRST)
        between, later = rest.split(_SECOND)
        _, last = show(answered, header=False).split(_ANSWER)
    except ValueError as error:
        if "chat template" in str(error):
            raise
        raise ValueError(
            "the chat template does not show each message exactly once, so turnwise cannot tell which tokens a message "
            "adds: use a template that renders every message verbatim"
        ) from None
    if later != after:
        raise ValueError(
            f"the chat template writes {after[-60:]!r} before the first reply, but {later[-60:]!r} before a later one: "
            "use a template with the same assistant's header everywhere"
        )
    began, shown, said = _trims(show, opening[:-1], (before, header, between, after))
    ignored = first == show(opening, header=False)
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
    show: Callable[[list[dict[str, str]]], str], opening: list[dict[str, str]], pieces: tuple[str, str, str, str]
) -> tuple[str, str, str]:
    """How the template strips the first message, later user messages and the assistant's: keys of ``_ENDS``.

    Raises ValueError where the pieces, put together for a longer conversation, are not what the template writes.
    """
    before, header, between, after = pieces
    texts = [f"{_PAD}{mark}{_INSIDE}{mark}{_PAD}" for mark in (_FIRST, _ANSWER, _SECOND, _ANSWER, _SECOND)]
    roles = ["user", "assistant"] * 2 + ["user"]
    asked = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
    written = show([*opening, *asked])

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
    """The white space that a model has to write before its reply.

    ``header`` is what the template writes before earlier replies, ``after`` what it writes where a reply is asked for.
    Raises ValueError where they differ by more than white space and thoughts.
    """
    rest = header.removeprefix(after)
    if after.startswith(header) or (header.startswith(after) and _EMPTY_THOUGHT.fullmatch(rest)):
        return ""  # the prompt opens a thought, or the history shows that there was none
    if header.startswith(after) and not rest.strip():
        return rest
    if _CHANNEL in rest and header.startswith(after):
        raise ValueError(
            f"the chat template has the model name a channel before it speaks ({rest!r}), as GPT-OSS does: a reply is "
            "then several messages (Harmony), and turnwise reads replies that are one. Use another model; one that is "
            "served elsewhere can be measured through its chat API (`turnwise evaluate openai:MODEL`)"
        )
    what = "ignores add_generation_prompt" if ignored else "has another generation prompt"
    raise ValueError(
        f"the chat template {what}: before an assistant's message it writes {header[-60:]!r} in the history, but "
        f"{after[-60:]!r} where the assistant is to answer. Add the missing header under "
        "`{% if add_generation_prompt %}` at the template's end"
    )


def dated(template: str, date: str) -> str:
    """The template with a fixed date: a macro named ``strftime_now`` at its beginning always gives ``date``.

    ``date`` is year-month-day.
    """
    template = _STOPPED_CLOCK.sub("", template)
    if "strftime_now" not in template:
        return template
    day = datetime.datetime.fromisoformat(date)
    shown = {form: day.strftime(form) for code in _CODES for form in (f"%-{code}", f"%{code}")}
    parts = "".join(f" | replace({form!r}, {text!r})" for form, text in shown.items() if text != form)
    return f"{{%- macro strftime_now(form) -%}}{{{{ form{parts} }}}}{{%- endmacro -%}}{template}"


def check_arguments(template: str, arguments: Mapping[str, Any]) -> None:
    """Raises ValueError for an argument that the template does not use, or that is not for the user to give."""
    if not arguments:
        return
    used = {name for name in _names_in(template) if name not in _OWN}
    for name in arguments:
        if name in _OWN:
            raise ValueError(f"agent.template.{name}: turnwise gives this to the template itself: leave it out")
        if name not in used:
            near = difflib.get_close_matches(name, used, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"agent.template.{name}: the model's chat template does not use it.{hint} It uses: "
                f"{', '.join(sorted(used)) or 'no arguments'}"
            )


def _names_in(template: str) -> set[str]:
    """The names that a template takes from outside; every word in it where it cannot be parsed here."""
    from jinja2 import Environment, TemplateError, meta

    try:
        return set(meta.find_undeclared_variables(Environment(extensions=["jinja2.ext.loopcontrols"]).parse(template)))
    except TemplateError:
        return set(re.findall(r"[A-Za-z_]\w*", template))


def rendered(
    tokenizer: Any,
    date: str,
    arguments: Mapping[str, Any],
    messages: Sequence[Mapping[str, Any]],
    *,
    header: bool = True,
    tools: Sequence[Mapping[str, Any]] = (),
) -> str:
    """What a tokenizer's chat template writes. Raises ValueError where it cannot show the messages."""
    try:
        return str(
            tokenizer.apply_chat_template(
                list(messages),
                tools=list(tools) or None,
                chat_template=dated(tokenizer.get_chat_template(), date),
                tokenize=False,
                add_generation_prompt=header,
                date_string=datetime.datetime.fromisoformat(date).strftime("%d %b %Y"),
                **arguments,
            )
        )
    except Exception as error:  # a template is a program: it may fail in any way
        roles = ", ".join(dict.fromkeys(message["role"] for message in messages))
        raise ValueError(
            f"the chat template cannot show messages of {roles} ({type(error).__name__}: {error}): use another "
            "template, or leave agent.system out where it knows no system message"
        ) from error
