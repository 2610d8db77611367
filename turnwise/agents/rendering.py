"""A conversation with roles and tools, as the tokens that the model's own chat template gives it.

Two pieces are enough for every conversation. ``render`` gives the tokens of a whole one, up to the assistant's header.
``after`` gives what follows a reply: the results of its calls, or whatever else was said, and the header again. For
``after`` the template renders a short conversation in which the reply is a stand-in with the same calls, and what it
writes from the stand-in's end token on is kept. So templates that rewrite earlier turns, as Qwen3's drops thoughts,
need no care: the tokens of earlier turns stay as they were sampled.

Contents are guarded (``spelling.py``): whatever a world, a tool or its schema spells, the control tokens of a prompt
are those of the template.

A template is a program, so what it can do is tried out (``abilities``). One that shows no tools or loses results is
refused by name, unless ``tools_in="system"`` asks for the other way: schemas are then written into the system message,
and calls and results are text, in the form of Hermes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from turnwise.agents.spelling import MARK, Spelling
from turnwise.agents.templates import DATE, NO_ARGUMENTS, rendered
from turnwise.agents.toolcalls import DIALECTS, Dialect, OneCall, Tools, dialect_of
from turnwise.envs.said import Call, Said
from turnwise.trajectory import IntArray

Message = Mapping[str, Any]
"""A message as ``turnwise.envs.interface`` describes it."""

ToolsIn = Literal["template", "system"]

_HERMES = """\
You can call these functions. Their signatures are:
<tools>
{tools}
</tools>
To call one, write a JSON object with its name and arguments between tags; several calls one after the other:
<tool_call>
{{"name": NAME, "arguments": {{...}}}}
</tool_call>"""
_TAGS = "<tool_response></tool_response>"


class Rendering:
    """A tokenizer's chat template, as functions from messages to tokens.

    ``end_ids`` are the tokens that end a reply. ``dialect`` is a name, or "auto": the one in which the template shows
    calls. Raises ValueError for a template that cannot show tools, calls and results.
    """

    tools_in: ToolsIn
    json_arguments: bool

    def __init__(
        self,
        tokenizer: Any,
        end_ids: Collection[int],
        *,
        date: str = DATE,
        template: Mapping[str, Any] = NO_ARGUMENTS,
        tools_in: ToolsIn = "template",
        dialect: str = "auto",
    ) -> None:
        self._prepare(tokenizer, end_ids, date, template, _HERMES + _TAGS if tools_in == "system" else "")
        self.abilities = abilities_of(self)
        self.tools_in = tools_in
        if tools_in == "template":
            self.abilities.check()
        elif self.abilities.shows_tools and self.abilities.keeps_results:
            raise ValueError(
                "agent.tools_in=system writes tools as text for templates that show none, and this model's template "
                "shows them: leave it at template"
            )
        found = self.abilities.dialect if tools_in == "template" else "hermes"
        if dialect == "auto" and not found:
            raise ValueError(
                "agent.tool_calls=auto: the model's chat template writes calls in a form that turnwise does not know. "
                f"Name one of {', '.join(DIALECTS)}, or your own as module:Class"
            )
        spoken = dialect_of(found if dialect == "auto" else dialect)
        self.dialect: Dialect = spoken if self._is_parallel else OneCall(spoken)
        self._check_spelling()

    @classmethod
    def untried(cls, tokenizer: Any, end_ids: Collection[int]) -> Rendering:
        """Any template, also one that would be refused: for ``abilities_of``."""
        made = cls.__new__(cls)
        made._prepare(tokenizer, end_ids, DATE, NO_ARGUMENTS, "")
        return made

    def _prepare(
        self, tokenizer: Any, end_ids: Collection[int], date: str, template: Mapping[str, Any], more: str
    ) -> None:
        self._show = partial(rendered, tokenizer, date, template)
        self._spelling = Spelling(tokenizer, [tokenizer.get_chat_template() + more], mixes=True)
        self._end_ids, self.json_arguments = frozenset(end_ids), False
        self.tools_in = "template"

    def render(self, messages: Sequence[Message], tools: Tools = ()) -> IntArray:
        """The tokens [P] of a whole conversation, then the assistant's header."""
        return np.asarray(self._spelling.mixed(self.text(messages, tools)), np.int32)

    def after(self, reply_ids: IntArray, said: Said, messages: Sequence[Message], tools: Tools = ()) -> IntArray:
        """The tokens [P] after a reply: ``messages``, then the assistant's header.

        ``said`` is what the reply says. A reply that was cut off at its token limit has no end token. It is added here,
        as the first token, where it is not trained on.
        """
        ids = self.following(said.calls if self._is_parallel else said.calls[:1], messages, tools)
        ended = len(reply_ids) > 0 and int(reply_ids[-1]) in self._end_ids
        return np.asarray(ids[1:] if ended else ids, np.int32)

    @property
    def _is_parallel(self) -> bool:
        return self.abilities.parallel or self.tools_in == "system"

    def text(self, messages: Sequence[Message], tools: Tools = (), *, header: bool = True) -> str:
        """What the template writes, with guarded contents."""
        messages, tools = self._guarded(messages), self._guarded(tools)
        if self.tools_in == "system":
            messages, tools = _as_text(messages, tools)
        made = [in_openai_form(message, self.json_arguments) for message in messages]
        return self._show(made, header=header, tools=tools)

    def _guarded(self, value: Any) -> Any:
        """The same value with all text in it guarded."""
        if isinstance(value, _Mark):
            return value
        if isinstance(value, str):
            return self._spelling.guarded(value)
        if isinstance(value, Mapping):
            return {self._guarded(key): self._guarded(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self._guarded(each) for each in value]
        return value

    def following(self, calls: Sequence[Call], messages: Sequence[Message], tools: Tools) -> tuple[int, ...]:
        """The end token of a reply with these calls, and the tokens after it."""
        asked = {"role": "user", "content": "x"}
        text = self.text([asked, _stand_in(calls, messages), *messages], tools)
        rest = self._spelling.mixed(text[text.rindex(MARK) + 1 :])
        at = next((place for place, number in enumerate(rest) if number in self._end_ids), None)
        if at is None:
            raise ValueError("the chat template does not end an assistant's message that calls tools")
        return rest[at:]

    def _check_spelling(self) -> None:
        """A harmless conversation has the tokens that the tokenizer gives for the template's text at once."""
        text = self.text(*TRIED)
        if self._spelling.mixed(text) != self._spelling.whole(text):
            raise ValueError(
                "the tokenizer gives a conversation with tools other tokens as a whole than piece by piece: its added "
                "tokens do not stand alone. Use another tokenizer"
            )

    @property
    def spelling(self) -> Spelling:
        return self._spelling


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a chat template can do with tools.

    ``dialect``: how it shows calls, "" where no dialect reads that. ``keeps_results``: whether every result of two
    calls is shown. ``parallel``: whether a reply may hold several calls. ``verbatim``: whether a result is shown as it
    is, and not quoted as JSON. ``keeps_content``: whether text beside a call is shown. ``keeps_thoughts``: whether
    thoughts of earlier turns are; None where the template shows none at all. ``fault`` says what the template answers
    where it cannot show such a conversation at all.
    """

    shows_tools: bool
    dialect: str
    keeps_results: bool
    parallel: bool
    verbatim: bool
    keeps_content: bool
    keeps_thoughts: bool | None
    fault: str = ""

    def check(self) -> None:
        """Raises ValueError where tools, calls or results would be lost."""
        wrong = (
            "shows the model no tools"
            if not self.shows_tools
            else "loses the results of calls"
            if not self.keeps_results
            else ""
        )
        if wrong:
            told = f" ({self.fault})" if self.fault else ""
            raise ValueError(
                f"the model's chat template {wrong}{told}. Write them into the system message with "
                "agent.tools_in=system, or use a model whose template knows tools (`turnwise template MODEL` tells; a "
                "new small model has one with model.tools=true)"
            )


_NAME, _WHAT, _KEY, _VALUE, _BESIDE, _THOUGHT = "probe_tool", "Probes it.", "probe_key", 'a "b"\nc', "Beside.", "Why?"
_RESULTS = ('one "1"\n<1>', 'two "2"\n<2>')
_TOOL = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": _WHAT,
        "parameters": {"type": "object", "properties": {_KEY: {"type": "string"}}, "required": [_KEY]},
    },
}


def _calling(num: int, **more: str) -> dict[str, Any]:
    calls = [{"id": f"call{n:05d}", "name": _NAME, "arguments": {_KEY: _VALUE}} for n in range(num)]
    return {"role": "assistant", "content": "", "tool_calls": calls, **more}


def _result(number: int) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": f"call{number:05d}", "name": _NAME, "content": _RESULTS[number]}


_USER = {"role": "user", "content": "Try it."}
TRIED = ([_USER, _calling(1), _result(0)], [_TOOL])


def abilities_of(rendering: Rendering) -> Abilities:
    """What a template can do, found out by rendering small conversations with it. Never raises ValueError."""
    faults = list[str]()

    def written(messages: Sequence[Message], tools: Tools = (_TOOL,), *, header: bool = False) -> str:
        try:
            return rendering.spelling.unguarded(rendering.text(messages, tools, header=header))
        except ValueError as error:
            faults.append(str(error))
            return ""

    shown = written([_USER])
    try:
        rendering.text([_USER, _calling(1)])
    except ValueError:
        rendering.json_arguments = True
    called, parallel = written([_USER, _calling(1)]), written([_USER, _calling(2)])
    count = 2 if parallel.count(_NAME) > called.count(_NAME) else 1
    if count == 2:
        answered = written([_USER, _calling(2), _result(0), _result(1)])
    else:
        answered = written([_USER, _calling(1), _result(0), _calling(1), _result(1)])
    bare = [text.replace("\n", "").replace("\\n", "").replace("\\", "") for text in (answered, *_RESULTS)]
    kept = all(result in bare[0] for result in bare[1:]) and bare[0].count(bare[1]) == 1
    if kept:
        try:
            rendering.following([Call(_NAME, {_KEY: _VALUE})], [_result(0)], [_TOOL])
        except ValueError as error:
            faults.append(str(error))
            kept = False
    thinking = [_USER, _calling(1, reasoning=_THOUGHT)]
    later = [*thinking, _result(0), {"role": "assistant", "content": _BESIDE}, _USER]
    return Abilities(
        shows_tools=all(part in shown for part in (_NAME, _KEY, _WHAT)),
        dialect=_dialect_in(called.removeprefix(shown)),
        keeps_results=kept,
        parallel=count == 2,
        verbatim=all(result in answered for result in _RESULTS),
        keeps_content=_BESIDE in written([_USER, {**_calling(1), "content": _BESIDE}]),
        keeps_thoughts=_THOUGHT in written(later) if _THOUGHT in written(thinking) else None,
        fault=faults[0] if faults else "",
    )


def _dialect_in(text: str) -> str:
    """The dialect that reads the call which the template wrote; "" where none does."""
    meant = Call(_NAME, {_KEY: _VALUE})
    words = re.compile(r'</?tool_call>|<function=|"(?:arguments|parameters)"|</?arg_key>|<\|tool_call_(?:start|end)\|>')
    starts = [at for at, letter in enumerate(text) if letter in "{<"]
    for name, dialect in DIALECTS.items():
        if not all(word in text for word in words.findall(dialect.write(Said("", (meant,))))):
            continue
        for start in starts:
            ends = [len(text), text.rfind("}") + 1]
            if any(dialect.read(text[start:end], [_TOOL]).calls == (meant,) for end in ends):
                return name
    return ""


def in_openai_form(message: Message, json_arguments: bool = False) -> dict[str, Any]:
    """A message as templates, trainers and chat APIs read it: arguments are a dictionary, or text for some."""
    made = {key: message[key] for key in ("role", "content", "tool_call_id", "name") if key in message}
    if message.get("tool_calls"):
        made["tool_calls"] = [_call_in_openai_form(call, json_arguments) for call in message["tool_calls"]]
    if message.get("reasoning"):
        made["reasoning_content"] = message["reasoning"]
    return made


def _call_in_openai_form(call: Mapping[str, Any], json_arguments: bool) -> dict[str, Any]:
    given = json.dumps(call["arguments"], ensure_ascii=False) if json_arguments else call["arguments"]
    return {"id": call["id"], "type": "function", "function": {"name": call["name"], "arguments": given}}


class _Mark(str):
    """Text that is not guarded: a mark that is looked for in what the template wrote."""

    __slots__ = ()


def _stand_in(calls: Sequence[Call], messages: Sequence[Message]) -> dict[str, Any]:
    """An assistant's message in the place of a reply, with the same calls. Its contents are marks."""
    mark, ids = _Mark(MARK), [message["tool_call_id"] for message in messages if message["role"] == "tool"]
    made = [
        {"id": ids[n] if n < len(ids) else f"call{n:05d}", "name": call.name, "arguments": {mark: mark}}
        for n, call in enumerate(calls)
    ]
    return {"role": "assistant", "content": mark, **({"tool_calls": made} if made else {})}


def _as_text(messages: Sequence[Message], tools: Tools) -> tuple[Sequence[Message], Tools]:
    """The same conversation with the roles system, user and assistant alone: tools, calls and results are text."""
    made = list[dict[str, Any]]()
    if tools:
        listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
        made.append({"role": "system", "content": _HERMES.format(tools=listed)})
    for message in messages:
        role, content = message["role"], message["content"]
        if role == "tool":
            role, content = "user", f"<tool_response>\n{content}\n</tool_response>"
        if message.get("tool_calls"):
            calls = tuple(Call(call["name"], call["arguments"]) for call in message["tool_calls"])
            content = DIALECTS["hermes"].write(Said(content, calls))
        if made and (made[-1]["role"] == role == "system"):
            made[-1]["content"] = f"{content}\n\n{made[-1]['content']}"
        elif made and (made[-1]["role"] == role == "user"):
            made[-1]["content"] += f"\n{content}"
        else:
            made.append({"role": role, "content": content})
    return made, ()
