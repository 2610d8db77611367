"""The form that a request wants its reply to have: ``response_format`` and ``tool_choice``.

    json_object            a JSON object
    json_schema            JSON that fits the schema, ``strict`` or not; with tools offered, that or calls
    required               calls of the tools; exactly one with parallel_tool_calls=false
    a named function       one call of it

``required`` is a wish: where nothing here can hold a reply to calls it is counted and not followed. The others are
refused there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from turnwise.envs.forms import ANY_OBJECT, INSTALL, Form, call_schema, fault, is_installed
from turnwise.envs.programs.refused import RefusedError

MAX_SCHEMA = 65_536
"""Characters of JSON, of all schemas of a request together. Compiling more of them takes seconds, in which no episode
goes on."""

_MISSING = f"the library llguidance is needed for it, and is not installed here: {INSTALL}"
_WAYS_OUT = {
    "response_format": "or give the schema as a tool (LangChain: with_structured_output(..., "
    'method="function_calling"))',
    "tool_choice": "or offer that function alone, and say in the messages that it should be called",
}
_FORMATS = '{"type": "json_object"}, or {"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}'
_CHOICES = '"auto", "none", "required", or {"type": "function", "function": {"name": ...}} with'


def wished_form(asked: Mapping[str, Any], tools: Sequence[Mapping[str, Any]]) -> Form | None:
    """The form of the reply to a request, whose ``tools`` were read; None: it is free. Raises RefusedError."""
    functions = {tool["function"]["name"]: tool["function"] for tool in tools}
    schema, choice = _schema(asked.get("response_format")), asked.get("tool_choice")
    named = _named(choice, functions) if isinstance(choice, dict) else ""
    required = bool(choice == "required" and functions)
    if not (named or required or schema is not None):
        return None
    if not is_installed():
        if not named and schema is None:
            return None
        field = "tool_choice" if named else "response_format"
        raise _refused(field, f"{_MISSING}, {_WAYS_OUT[field]}", "unsupported")
    if named or required:
        schema = None  # a call is what must come
    calls = (named,) if named else tuple(functions)
    asked_of = [call_schema(functions[name], "arguments") for name in calls]
    _check_size("response_format" if schema is not None else "tools", [schema, *asked_of])
    if schema is not None:
        _check("response_format", "the schema", schema)
    for name, each in zip(calls, asked_of, strict=True):
        _check("tools", f"the parameters of {name}", each)
    one_call = bool(named) or bool(calls and asked.get("parallel_tool_calls") is False)
    strict = schema is not None and _is_strict(asked.get("response_format"))
    return Form(schema, calls, one_call=one_call, must=not required, strict=strict)


def _schema(given: Any) -> Mapping[str, Any] | None:
    """The JSON schema of a ``response_format``."""
    if given is None:
        return None
    kind = given.get("type") if isinstance(given, dict) else None
    if kind == "json_object":
        return ANY_OBJECT
    about = given.get("json_schema") if kind == "json_schema" else None
    if not isinstance(about, dict) or not isinstance(about.get("schema"), dict):
        raise _refused("response_format", f"expected {_FORMATS}")
    found: Mapping[str, Any] = about["schema"]
    return found


def _is_strict(given: Any) -> bool:
    about = given.get("json_schema")
    return isinstance(about, dict) and about.get("strict") is True


def _named(choice: Mapping[str, Any], functions: Mapping[str, Any]) -> str:
    about = choice.get("function")
    name = about.get("name") if isinstance(about, dict) and choice.get("type") == "function" else None
    if not isinstance(name, str) or name not in functions:
        raise _refused("tool_choice", f"expected {_CHOICES} one of the tools ({', '.join(functions) or 'none'})")
    return name


def _check_size(field: str, schemas: Sequence[Any]) -> None:
    size = sum(len(json.dumps(each)) for each in schemas if each is not None)
    if size > MAX_SCHEMA:
        raise _refused(
            field,
            f"schemas of {size:,} characters: a reply can be held to {MAX_SCHEMA:,} at most; ask for less at once",
        )


def _check(field: str, what: str, schema: Mapping[str, Any]) -> None:
    if why := fault(schema):
        raise _refused(field, f"replies cannot be held to {what} ({why}): leave that part out")


def _refused(field: str, message: str, code: str = "invalid") -> RefusedError:
    return RefusedError(400, f"{field}: {message}", code, field)
