r"""How dialects spell calls that must come: a call of each tool that fits its schema, as rules of llguidance's Lark.

    JSONCall       {"name": "find", "arguments": {"query": "mug"}}      hermes, llama3
    TaggedCall     a name, then each argument between tags              qwen_xml, glm4
    KeywordCall    find(query="mug", limit=2)                           lfm2

Arguments come in the order of the schema, and no others. Their values are JSON. Between tags a value whose schema says
"string" is its text as it is: its choice (enum, const) is kept, and its length up to ``MAX_CHARACTERS``; a pattern or a
format cannot be.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

from turnwise.envs.forms import call_schema, json_rule

MAX_CHARACTERS = 2000
"""The largest minLength and maxLength of a text between tags. The grammar counts characters, state by state."""

Function = Mapping[str, Any]
"""A tool's "name" and the schema of its "parameters"."""

Spell = Callable[[str], list[str]]
"""A text of the dialect as terms of a grammar: literals, and its special tokens."""


class CallRule(Protocol):
    """Writes the rule ``name`` for a call of one function, and those that it needs.

    Raises ValueError, which says what of the function cannot be kept.
    """

    def rules(self, name: str, function: Function, spell: Spell) -> list[str]: ...


@dataclass(frozen=True, slots=True)
class CallForm:
    """How a dialect spells calls: ``before`` the first, ``between`` two, ``after`` the last, and each by its ``rule``.

    Calls that must be alone have "" between them. A dialect that has one, as ``call_form``, can be held to calls.
    """

    before: str
    between: str
    after: str
    rule: CallRule


@dataclass(frozen=True, slots=True)
class JSONCall:
    """An object with "name", and the arguments under ``key``."""

    key: str

    def rules(self, name: str, function: Function, spell: Spell) -> list[str]:
        return [f"{name}: {json_rule(call_schema(function, self.key))}"]


@dataclass(frozen=True, slots=True)
class TaggedCall:
    """The function's name in ``opening``; for each argument its name in ``key``, its value and ``close``; ``end``.

    No text between tags has one of ``barred``, by which calls are read.
    """

    opening: str
    key: str
    close: str
    end: str
    barred: tuple[str, ...]

    def rules(self, name: str, function: Function, spell: Spell) -> list[str]:
        made, call = list[str](), spell(self.opening.format(_word(function["name"])))
        for n, each in enumerate(_parameters(function)):
            value = f"{name}_{n}"
            if each.is_text:
                made.append(f"{value.upper()}: {self._text(each, spell)}")
                said = [value.upper(), *self._closing(spell)[1]]
            else:
                said = [each.json(), *spell(self.close)]
            made.append(f"{value}: {' '.join([*spell(self.key.format(_word(each.key))), *said])}")
            call.append(value if each.required else f"{value}?")
        return [*made, f"{name}: {' '.join([*call, *spell(self.end)])}"]

    def _text(self, each: _Parameter, spell: Spell) -> str:
        """A terminal: the text with what closes it, up to a special token. So it ends where the tag does."""
        closing, _ = self._closing(spell)
        if choice := each.choice():
            if any(tag in text for text in choice for tag in self.barred):
                raise ValueError(f"a value of {each.key!r} has a tag of the dialect in it")
            return " | ".join(" ".join([json.dumps(text, ensure_ascii=False), *closing]) for text in choice)
        least, most = each.length()
        tags = "|".join(re.escape(tag).replace("/", r"\/") for tag in self.barred)
        return " ".join([f"(/(?s:.{{{least},{most}}})/ & ~/(?s:.*)({tags})(?s:.*)/)", *closing])

    def _closing(self, spell: Spell) -> tuple[list[str], list[str]]:
        """``close`` up to its first special token, and from there on."""
        terms = spell(self.close)
        at = next((n for n, term in enumerate(terms) if term.startswith("<")), len(terms))
        return terms[:at], terms[at:]


@dataclass(frozen=True, slots=True)
class KeywordCall:
    """As Python would write it, with its texts between double quotes."""

    def rules(self, name: str, function: Function, spell: Spell) -> list[str]:
        parameters, ways = list(_parameters(function)), list[str]()
        made = [f'{name}_{n}: "{_word(each.key)}=" {each.json(_READ)}' for n, each in enumerate(parameters)]
        for n, each in enumerate(parameters):  # which argument comes first
            after = ((f'", " {name}_{m}', parameters[m].required) for m in range(n + 1, len(parameters)))
            ways.append(" ".join([f"{name}_{n}", *(term if needed else f"({term})?" for term, needed in after)]))
            if each.required:
                break
        needed = any(each.required for each in parameters)
        listed = f"({' | '.join(ways)}){'' if needed else '?'}" if ways else ""
        return [*made, f'{name}: "{_word(function["name"])}(" {listed} ")"']


_READ = {"json_allowed_escapes": 'nrt\\"u'}
"""The escapes that the dialect's reader reads as JSON does."""


@dataclass(frozen=True, slots=True)
class _Parameter:
    """A parameter of a function. ``shared`` are the definitions that its schema may refer to."""

    key: str
    schema: Mapping[str, Any]
    required: bool
    shared: Mapping[str, Any]

    @property
    def is_text(self) -> bool:
        """Whether a dialect between tags reads its value as a text."""
        return self.schema.get("type") == "string"

    def json(self, options: Mapping[str, Any] = MappingProxyType({})) -> str:
        return json_rule({**self.schema, **self.shared}, options)

    def choice(self) -> list[str]:
        """The texts that it may be; [] where its schema names none."""
        if unknown := self.schema.keys() - _OF_TEXTS:
            raise ValueError(f"the text {self.key!r} has {', '.join(sorted(unknown))}")
        listed = self.schema.get("enum", [self.schema["const"]] if "const" in self.schema else [])
        return [text for text in listed if isinstance(text, str)]

    def length(self) -> tuple[int, int | str]:
        """The fewest and the most characters; "" for no limit."""
        for name in ("minLength", "maxLength"):
            if self.schema.get(name, 0) > MAX_CHARACTERS:
                raise ValueError(
                    f"the text {self.key!r} has {name}={self.schema[name]}, and lengths up to {MAX_CHARACTERS} can be "
                    "kept"
                )
        return self.schema.get("minLength", 0), self.schema.get("maxLength", "")


_SAID = {"type", "title", "description", "default", "examples", "deprecated"}
_OF_TEXTS = _SAID | {"enum", "const", "minLength", "maxLength"}
_SHARED = {"$defs", "definitions"}
_OF_ALL = _SAID | _SHARED | {"properties", "required", "additionalProperties", "$schema"}


def _parameters(function: Function) -> Iterator[_Parameter]:
    about = function.get("parameters") or {}
    if unknown := about.keys() - _OF_ALL:
        raise ValueError(f"its parameters have {', '.join(sorted(unknown))} beside their properties")
    shared = {name: about[name] for name in _SHARED & about.keys()}
    for key, schema in about.get("properties", {}).items():
        yield _Parameter(key, schema if isinstance(schema, Mapping) else {}, key in about.get("required", ()), shared)


def _word(name: str) -> str:
    """A name that can be spelled outside JSON."""
    if not re.fullmatch(r"[\w.\-]+", name):
        raise ValueError(f"the name {name!r} is not of letters, digits, '_', '.' and '-'")
    return name
