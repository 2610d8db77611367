"""Forms that a request may want its reply to have: JSON that fits a schema, or calls of tools.

The reply is then sampled under a grammar (``turnwise/agents/forms.py``) of the library llguidance, which is an extra.
Here a world finds out beforehand whether the library is there and whether a schema can be kept.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

INSTALL = 'pip install -e ".[grammar]"'
ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
"""The schema of every JSON object."""

_SPACED = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
"""One space or none after a comma or colon: white space without end would fit most grammars, too."""


@dataclass(frozen=True)
class Form:
    """What a reply must be: JSON that fits ``schema``, or calls of the tools named in ``calls``; with both, either.

    ``one_call``: one call alone. ``must``: it is wrong to answer where calls cannot be held to a form; else they are
    then left free. ``strict`` is what the request said of its schema: another server is told; here every one is kept.
    """

    schema: Mapping[str, Any] | None = None
    calls: tuple[str, ...] = ()
    one_call: bool = False
    must: bool = True
    strict: bool = False

    @classmethod
    def of(cls, sampling: Mapping[str, Any]) -> Form | None:
        """That in ``info["sampling"]``; None where the reply is free."""
        found: Mapping[str, Any] | None = sampling.get("form")
        if found is None:
            return None
        return cls(found.get("schema"), tuple(found.get("calls", ())), *(found.get(k, d) for k, d in _FLAGS.items()))

    def plain(self) -> dict[str, Any]:
        """The same as JSON values, for ``info["sampling"]["form"]``."""
        made: dict[str, Any] = {} if self.schema is None else {"schema": dict(self.schema)}
        if self.calls:
            made["calls"] = list(self.calls)
        return made | {key: getattr(self, key) for key, usual in _FLAGS.items() if getattr(self, key) != usual}


_FLAGS = {"one_call": False, "must": True, "strict": False}


def is_form(found: object) -> bool:
    """Whether ``Form.of`` can read this: a dictionary as ``Form.plain`` gives it, with nothing else in it."""
    if not isinstance(found, Mapping) or not set(found) <= {"schema", "calls", *_FLAGS}:
        return False
    calls = found.get("calls", ())
    named = isinstance(calls, list | tuple) and all(isinstance(name, str) for name in calls)
    flags = all(isinstance(found[key], bool) for key in _FLAGS if key in found)
    return named and flags and isinstance(found.get("schema") or {}, Mapping)


_NAMED, _LISTED = {"properties", "$defs", "definitions", "patternProperties"}, {"anyOf", "oneOf", "prefixItems"}
_SINGLE = {"items", "additionalProperties", "contains"}
"""Where a schema has other schemas: by name, in a list, or one."""


def is_installed() -> bool:
    """Whether replies can be held to a form here."""
    return importlib.util.find_spec("llguidance") is not None


def json_rule(schema: Mapping[str, Any], options: Mapping[str, Any] = MappingProxyType({})) -> str:
    """JSON that fits a schema, as a term in llguidance's form of Lark; ``options`` are more of its "x-guidance"."""
    return f"%json {json.dumps({**closed(schema), 'x-guidance': {**_SPACED, **options}})}"


def closed(schema: Any) -> Any:
    """A schema whose objects have the properties that they declare and no others, unless they say something of others.

    A model would be free to invent more, without end. Parts of an "allOf" are left open, since each must allow the
    others' properties.
    """
    if not isinstance(schema, Mapping):
        return schema
    made = dict(schema)
    for key in _NAMED & made.keys():
        if isinstance(made[key], Mapping):
            made[key] = {name: closed(part) for name, part in made[key].items()}
    for key in _LISTED & made.keys():
        if isinstance(made[key], list):
            made[key] = [closed(part) for part in made[key]]
    for key in _SINGLE & made.keys():
        made[key] = closed(made[key])
    said = {"additionalProperties", "patternProperties", "allOf", "anyOf", "oneOf", "$ref"} & made.keys()
    return made if said or "properties" not in made else {**made, "additionalProperties": False}


def call_schema(function: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The schema of a call as JSON: {"name": that of the function, ``key``: its arguments}.

    A function that declares no parameter gets none.
    """
    arguments = {"type": "object", "properties": {}, **(function.get("parameters") or {})}
    shared = {
        name: arguments.pop(name) for name in ("$defs", "definitions") if name in arguments
    }  # found from the root
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, key: arguments},
        "required": ["name", key],
        "additionalProperties": False,
        **shared,
    }


def fault(schema: Mapping[str, Any]) -> str:
    """Why replies cannot be held to a schema; "" where they can. llguidance must be installed.

    The answer is kept: a program asks with the same schema again and again.
    """
    try:
        return _fault(f"start: {json_rule(schema)}")
    except RecursionError:
        return "it is nested too deeply"


@lru_cache(maxsize=256)
def _fault(grammar: str) -> str:
    from llguidance import LLMatcher

    matcher = LLMatcher(_bytes(), grammar, log_level=0)
    if matcher.is_error():
        told = str(matcher.get_error())
        return told.split("\n")[0].partition("JSON schema: ")[2] or told
    return _ENDLESS if _is_stuck(matcher) else ""


_ENDLESS = "a part of it that must come refers to itself alone, so that no JSON fits"
_WALK, _CLOSING = 64, b']}"'


@lru_cache(maxsize=1)
def _bytes() -> Any:
    """A vocabulary of bytes: whether a grammar goes on does not depend on how texts are cut into tokens."""
    from llguidance import LLTokenizer

    return LLTokenizer("byte")


def _is_stuck(matcher: Any) -> bool:
    """Whether nothing is allowed at the beginning, or soon after it on the way that closes whatever it can.

    The library compiles a schema that refers to itself alone, and fails where that part would begin.
    """
    for _ in range(_WALK):
        mask = matcher.compute_bitmask()
        if matcher.is_error():
            return True
        if matcher.is_accepting():
            return False
        allowed = [8 * at + bit for at, byte in enumerate(mask) for bit in range(8) if byte >> bit & 1]
        matcher.consume_token(next((sign for sign in _CLOSING if sign in allowed), allowed[-1]))
    return False
