r"""How models write calls of tools: a *dialect* reads what a reply says, and writes such replies for cloning.

    hermes     <tool_call>\n{"name": "find", "arguments": {"query": "mug"}}\n</tool_call>   Qwen 2.5 and 3, and ours
    llama3     {"name": "find", "parameters": {"query": "mug"}}                             Llama 3.1 and later
    qwen_xml   <tool_call>\n<function=find>\n<parameter=query>\nmug\n</parameter>\n</function>\n</tool_call>
               Qwen3-Coder, Qwen 3.5
    lfm2       <|tool_call_start|>[find(query='mug', limit=2)]<|tool_call_end|>             LFM2, LFM2.5
    glm4       <tool_call>find\n<arg_key>query</arg_key>\n<arg_value>mug</arg_value>\n</tool_call>   GLM-4.5 and later

A reply may hold several calls, and text beside them. A broken call costs itself alone: the others are made, and the
world tells the model what was wrong (``Said.fault``). Which dialect a model was trained in is seen from its chat
template, which shows earlier calls in it (``rendering.py``).
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Protocol, cast

from turnwise.agents.callforms import CallForm, JSONCall, TaggedCall
from turnwise.agents.pythonic import LFM2
from turnwise.agents.pythonic import CallError as _CallError
from turnwise.envs.said import Call, Said
from turnwise.errors import unknown

Tools = Sequence[Mapping[str, Any]]
"""Function schemas in OpenAI's form."""


class Dialect(Protocol):
    """Reads and writes replies that may call tools; both without the thought that precedes them.

    ``read`` returns what was said: never an exception, whatever the text is. What cannot be read as a call stays in the
    content. ``tools`` are those that may be called. A dialect may name its ``tags``: where one is a special token of
    the tokenizer, a reply that is cloned has that token.
    """

    def read(self, text: str, tools: Tools = ()) -> Said: ...
    def write(self, said: Said) -> str: ...


def call_form(dialect: Dialect) -> CallForm | None:
    """How calls are spelled; None where they cannot be forced. Between calls that must be alone stands ""."""
    if isinstance(dialect, OneCall):
        inner = call_form(dialect.dialect)
        return None if inner is None else replace(inner, between="")
    found: CallForm | None = getattr(dialect, "call_form", None)
    return found


class Hermes:
    """JSON between ``<tool_call>`` tags, with "name" and "arguments"."""

    tags = ("<tool_call>", "</tool_call>")
    call_form = CallForm("<tool_call>\n", "\n</tool_call>\n<tool_call>\n", "\n</tool_call>", JSONCall("arguments"))
    _TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|(?=<tool_call>)|\Z)", re.DOTALL)

    def read(self, text: str, tools: Tools = ()) -> Said:
        return _read(self._TAGGED, text, self._call, tools)

    def write(self, said: Said) -> str:
        calls = (f"<tool_call>\n{_json(call, 'arguments')}\n</tool_call>" for call in said.calls)
        return "\n".join([*([said.content] if said.content else []), *calls])

    @staticmethod
    def _call(inner: str, tools: Tools) -> Call:
        return _from_json(_loaded(inner), "arguments")


class QwenXML:
    """Tags for the function and each parameter. Values are text; what the schema calls no string is read as JSON."""

    call_form = CallForm(
        "<tool_call>\n",
        "\n</tool_call>\n<tool_call>\n",
        "\n</tool_call>",
        TaggedCall(
            "<function={}>\n",
            "<parameter={}>\n",
            "\n</parameter>\n",
            "</function>",
            barred=("</parameter>", "<tool_call>", "</tool_call>"),
        ),
    )
    _TAGGED = Hermes._TAGGED
    _FUNCTION = re.compile(r"\s*<function=([^>\n]+)>(.*?)(?:</function>\s*)?\Z", re.DOTALL)
    _PARAMETER = re.compile(r"<parameter=([^>\n]+)>")

    def read(self, text: str, tools: Tools = ()) -> Said:
        return _read(self._TAGGED, text, self._call, tools)

    def write(self, said: Said) -> str:
        calls = "\n".join(map(self._written, said.calls))
        return "\n\n".join(part for part in (said.content, calls) if part)

    @staticmethod
    def _written(call: Call) -> str:
        values = ((key, _as_text(value)) for key, value in call.arguments.items())
        inner = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values)
        return f"<tool_call>\n<function={call.name}>\n{inner}</function>\n</tool_call>"

    def _call(self, inner: str, tools: Tools) -> Call:
        found = self._FUNCTION.fullmatch(inner)
        if found is None:
            raise _CallError("a call is written as <function=NAME> <parameter=KEY>value</parameter> </function>")
        name = found.group(1).strip()
        known = _parameters(name, tools)
        return Call(name, {key: _typed(value, _schema(known.get(key))) for key, value in self._pairs(found.group(2))})

    def _pairs(self, body: str) -> Iterator[tuple[str, str]]:
        """Each parameter and its text, read once from the beginning to the end. Raises CallError for other text."""
        at = _past_space(body, 0)
        while at < len(body):
            begin = self._PARAMETER.match(body, at)
            end = body.find("</parameter>", begin.end()) if begin else -1
            if begin is None or end < 0:
                left = body[at : at + 60].strip()
                raise _CallError(f"a parameter is written as <parameter=KEY>value</parameter>; this is not: {left!r}")
            yield begin.group(1), body[begin.end() : end].removeprefix("\n").removesuffix("\n")
            at = _past_space(body, end + len("</parameter>"))


class Llama3:
    """A reply that is a JSON object with "name" and "parameters", and nothing else; several with ; between them."""

    call_form = CallForm("", "; ", "", JSONCall("parameters"))
    _PREFIX = re.compile(r"\s*(?:<\|python_tag\|>)?\s*")

    def read(self, text: str, tools: Tools = ()) -> Said:
        body = self._PREFIX.sub("", text, count=1).rstrip()
        if not body.startswith("{"):
            return Said(text.strip())
        calls, faults, unread, begins = list[Call](), list[str](), list[str](), 0
        try:
            for each, ends in self._objects(body):
                if not calls and not faults and not (isinstance(each, dict) and "name" in each):
                    return Said(text.strip())  # an answer in JSON is an answer
                try:
                    calls.append(_from_json(each, "parameters"))
                except _CallError as error:
                    faults.append(str(error))
                    unread.append(body[begins:ends])
                begins = ends
        except (ValueError, RecursionError) as error:
            if not calls and not re.match(r'\{\s*"name"', body):
                return Said(text.strip())
            faults.append(_not_json(error))
            unread.append(body[begins:])
        return Said("".join(unread).strip(" ;\n"), tuple(calls), "; ".join(faults) or None)

    @staticmethod
    def _objects(body: str) -> Iterator[tuple[Any, int]]:
        """Each object, and where it ends."""
        decoder, at = json.JSONDecoder(), 0
        while at < len(body):
            each, at = decoder.raw_decode(body, at)
            yield each, at
            while at < len(body) and (body[at].isspace() or body[at] == ";"):
                at += 1

    def write(self, said: Said) -> str:
        """Text beside calls is left out: the template of this family drops it."""
        return "; ".join(_json(call, "parameters") for call in said.calls) or said.content


class GLM4:
    """A name, then tags for each key and value. Values are text; what the schema calls no string is read as JSON."""

    tags = ("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")
    call_form = CallForm(
        "<tool_call>",
        "</tool_call>\n<tool_call>",
        "</tool_call>",
        TaggedCall(
            "{}\n",
            "<arg_key>{}</arg_key>\n<arg_value>",
            "</arg_value>\n",
            "",
            barred=("</arg_value>", "<tool_call>", "</tool_call>"),
        ),
    )
    _TAGGED = Hermes._TAGGED

    def read(self, text: str, tools: Tools = ()) -> Said:
        return _read(self._TAGGED, text, self._call, tools)

    def write(self, said: Said) -> str:
        return "\n".join([*([said.content] if said.content else []), *map(self._written, said.calls)])

    @staticmethod
    def _written(call: Call) -> str:
        pairs = (
            f"<arg_key>{key}</arg_key>\n<arg_value>{_as_text(value)}</arg_value>\n"
            for key, value in call.arguments.items()
        )
        return f"<tool_call>{call.name}\n{''.join(pairs)}</tool_call>"

    def _call(self, inner: str, tools: Tools) -> Call:
        name = inner.partition("<arg_key>")[0]
        if not re.fullmatch(r"[^\s<>{}]+", name.strip()):
            raise self._fault()
        known = _parameters(name.strip(), tools)
        pairs = self._pairs(inner, len(name))
        return Call(name.strip(), {key: _typed(value, _schema(known.get(key))) for key, value in pairs})

    def _pairs(self, inner: str, at: int) -> Iterator[tuple[str, str]]:
        """Each key and the text of its value, read once from ``at`` to the end. Raises CallError for other text."""
        at = _past_space(inner, at)
        while at < len(inner):
            key, at = self._between(inner, at, "<arg_key>", "</arg_key>")
            value, at = self._between(inner, at, "<arg_value>", "</arg_value>")
            yield key.strip(), value

    def _between(self, text: str, at: int, begin: str, end: str) -> tuple[str, int]:
        """What stands at ``at`` between two tags, and where the text goes on after them and white space."""
        found = text.find(end, at) if text.startswith(begin, at) else -1
        if found < 0:
            raise self._fault()
        return text[at + len(begin) : found], _past_space(text, found + len(end))

    @staticmethod
    def _fault() -> _CallError:
        return _CallError(
            "a call is written as NAME, then <arg_key>KEY</arg_key> <arg_value>value</arg_value> for each argument"
        )


class OneCall:
    """A dialect where the chat template shows one call a reply: the first one counts, others are a fault."""

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect

    def read(self, text: str, tools: Tools = ()) -> Said:
        found = self.dialect.read(text, tools)
        if len(found.calls) < 2:
            return found
        told = "; ".join(filter(None, (found.fault, "one call a reply can be made: only the first one was")))
        content = "\n".join(filter(None, (found.content, self.dialect.write(Said("", found.calls[1:])))))
        return Said(content, found.calls[:1], told, found.thought)

    def write(self, said: Said) -> str:
        return self.dialect.write(said)


DIALECTS: dict[str, Dialect] = {
    "hermes": Hermes(),
    "qwen_xml": QwenXML(),
    "llama3": Llama3(),
    "lfm2": LFM2(),
    "glm4": GLM4(),
}


@lru_cache
def dialect_of(name: str) -> Dialect:
    """The dialect of this name, or an object of your own class, as ``module:Class``. Raises ValueError for others."""
    if name in DIALECTS:
        return DIALECTS[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise unknown("dialect of tool calls", name, ["auto", *DIALECTS, "module:Class"])
    try:
        made = getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError, TypeError) as error:
        raise ValueError(f"agent.tool_calls={name!r} cannot be made as module:Class: {error}") from error
    if not (callable(getattr(made, "read", None)) and callable(getattr(made, "write", None))):
        raise ValueError(f"agent.tool_calls={name!r} needs the methods read(text, tools) and write(said)")
    return cast(Dialect, made)


def tags_of(dialect: Dialect) -> tuple[str, ...]:
    """The texts that may be special tokens in what a dialect writes."""
    inner = dialect.dialect if isinstance(dialect, OneCall) else dialect
    found: tuple[str, ...] = getattr(inner, "tags", ())
    return found


def name_of(dialect: Dialect) -> str:
    """The inverse of ``dialect_of``, for messages."""
    inner = dialect.dialect if isinstance(dialect, OneCall) else dialect
    own = f"{type(inner).__module__}:{type(inner).__name__}"
    return next((name for name, each in DIALECTS.items() if each is inner), own)


def _read(tagged: re.Pattern[str], text: str, call: Any, tools: Tools) -> Said:
    """What a text says whose calls stand between tags."""
    calls, faults = list[Call](), list[str]()

    def left(found: re.Match[str]) -> str:
        try:
            calls.append(call(found.group(1), tools))
        except _CallError as error:
            faults.append(str(error))
            return found.group()
        return ""

    content = tagged.sub(left, text)
    return Said(content.strip(), tuple(calls), "; ".join(faults) or None)


def _past_space(text: str, at: int) -> int:
    """The first place from ``at`` that has no white space."""
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _CallError(_not_json(error)) from None


def _not_json(error: Exception) -> str:
    return f"the call is not JSON ({error})"


def _from_json(found: Any, key: str) -> Call:
    """The call in a JSON object. The other word for arguments is understood too; text is not taken for an object."""
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        raise _CallError(f'a call is an object with "name" and "{key}"')
    arguments = found.get(key, found.get("arguments", found.get("parameters", {})))
    if not isinstance(arguments, dict):
        raise _CallError(f'"{key}" of {found["name"]} is an object, {{"NAME": value}}, not {_kind(arguments)}')
    return Call(found["name"], arguments)


def _kind(value: Any) -> str:
    return {str: "text", list: "a list", type(None): "null"}.get(type(value), "a number")


def _json(call: Call, key: str) -> str:
    return json.dumps({"name": call.name, key: dict(call.arguments)}, ensure_ascii=False)


def _parameters(name: str, tools: Tools) -> Mapping[str, Any]:
    """The schemas of a tool's parameters by name; {} for an unknown tool."""
    about: Mapping[str, Any] = next((t["function"] for t in tools if t["function"]["name"] == name), {})
    return _schema(_schema(about.get("parameters")).get("properties"))


def _as_text(value: Any) -> str:
    """A parameter's value as text: JSON, but for texts."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _schema(found: Any) -> Mapping[str, Any]:
    """A part of a schema. Other people's schemas have true, null or a list there too, which say nothing of types."""
    return found if isinstance(found, Mapping) else {}


def _typed(value: str, schema: Mapping[str, Any]) -> Any:
    """A parameter's value: text where the schema says string, or says nothing and the text is no JSON."""
    if schema.get("type") == "string":
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
