"""A tool: a function that a model may call, with its schema and the checks of its arguments, both from type hints.

A function must hint the type of each parameter; pydantic makes the schema and reads the arguments. The docstring is the
tool's description. Whatever goes wrong in a call is text for the model, never an exception: an unknown tool, arguments
of a wrong type, and what the function itself raises.
"""

from __future__ import annotations

import asyncio
import difflib
import inspect
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any, NotRequired, get_type_hints

from pydantic import PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import to_json
from typing_extensions import TypedDict

from turnwise.envs.said import Call

ASYNC_TIMEOUT_S = 60.0
"""Seconds that an asynchronous tool may take."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a call gave, as text. ``understood`` is False where there was no such tool, or its arguments were wrong."""

    text: str
    understood: bool = True


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool by its name. ``schema`` is that of its parameters; ``run`` gets the arguments, which fit the schema;
    it may return a ``Result``."""

    name: str
    description: str
    schema: Mapping[str, Any]
    run: Callable[[Mapping[str, Any]], Any]
    check: Callable[[Mapping[str, Any]], Mapping[str, Any]]

    @property
    def described(self) -> dict[str, Any]:
        """The tool as models are shown it: OpenAI's form of a function schema."""
        about = {"name": self.name, "description": self.description, "parameters": dict(self.schema)}
        return {"type": "function", "function": about}


class WorldBrokenError(RuntimeError):
    """What stands behind a tool is gone: the episode fails, and not the call."""


class WrongArgumentsError(ValueError):
    """Arguments that do not fit a tool's schema. The message is for the model."""


def tool_of(function: Callable[..., Any], name: str = "") -> Tool:
    """A function, or a bound method, as a tool. Raises ValueError, which says why, for one that cannot be described."""
    name = name or function.__name__
    adapter, schema = _known_arguments(getattr(function, "__func__", function), inspect.ismethod(function), name)

    def check(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            return adapter.validate_python(dict(arguments))  # type: ignore[no-any-return]
        except ValidationError as error:
            raise WrongArgumentsError("; ".join(map(_problem, error.errors()))) from None

    return Tool(name, inspect.getdoc(function) or "", schema, lambda given: _outcome(function(**given)), check)


def tools_of(source: Any) -> list[Tool]:
    """The tools in a function, a list of functions, or an object: its public methods. Each name once.

    Raises ValueError for anything else, and for a function that cannot be described.
    """
    if inspect.isroutine(source):
        return [tool_of(source)]
    if isinstance(source, Mapping):
        return [tool_of(function, str(name)) for name, function in source.items()]
    if isinstance(source, Iterable):
        found = list(map(tool_of, source))
    else:
        found = [tool_of(getattr(source, name)) for name in _methods(type(source))]
    if not found:
        raise ValueError(f"{source!r} has no tools: expected functions, or a class with public methods"[:300])
    names = [tool.name for tool in found]
    if doubled := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two tools are called {min(doubled)!r}: give each a name of its own, as {{name: function}}")
    return found


def check_class(kind: type) -> None:
    """Raises what ``tools_of`` would raise for an instance: ValueError for no tools, or one that has no description."""
    if issubclass(kind, Iterable):  # an instance lists its tools
        return
    names = _methods(kind)
    if not names:
        raise ValueError(f"{kind.__name__} has no tools: expected functions, or a class with public methods")
    for name in names:
        found = inspect.getattr_static(kind, name)
        _known_arguments(getattr(found, "__func__", found), not isinstance(found, staticmethod), name)


def call(tools: Mapping[str, Tool], asked: Call) -> Result:
    """Make a call. Never raises what a tool raises: the model reads it. WorldBrokenError alone is passed on."""
    if asked.name not in tools:
        near = difflib.get_close_matches(asked.name, tools, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]}?" if near else ""
        return Result(f"Error: there is no tool {asked.name!r}.{hint} There are: {', '.join(tools)}.", False)
    tool = tools[asked.name]
    try:
        arguments = tool.check(asked.arguments)
    except WrongArgumentsError as error:
        return Result(f"Error: {asked.name}: {error}", False)
    try:
        found = tool.run(arguments)
        return found if isinstance(found, Result) else Result(as_text(found))
    except WorldBrokenError:
        raise
    except (Exception, SystemExit) as error:  # a function of the user's: it may fail in any way
        return Result(f"Error: {' '.join(f'{type(error).__name__}: {error}'.split())[:1000]}")


def as_text(value: Any) -> str:
    """What a tool returned, as the model reads it: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else to_json(value, fallback=str, inf_nan_mode="strings").decode()


_typed_dict: Any = TypedDict  # given names that only the function's signature knows


def _methods(kind: type) -> list[str]:
    """The public methods of a class, in the order in which they are written, those of its bases first."""
    order = [name for base in reversed(kind.__mro__[:-1]) for name in vars(base)]
    return [name for name in dict.fromkeys(order) if name[0] != "_" and _is_method(inspect.getattr_static(kind, name))]


def _is_method(found: object) -> bool:
    return inspect.isroutine(found) and not isinstance(found, cached_property)  # a value, which looks like a method


@lru_cache(maxsize=1024)
def _known_arguments(function: Any, is_method: bool, name: str) -> tuple[TypeAdapter[Any], dict[str, Any]]:
    """The same for each episode's instance of a class: making a schema takes a millisecond."""
    return _arguments(partial(function, None) if is_method else function, function, name)


def _arguments(called: Any, function: Any, name: str) -> tuple[TypeAdapter[Any], dict[str, Any]]:
    """What reads the arguments of a function, as it is ``called``, and their schema."""
    where = f"tool {name}{inspect.signature(called)}"
    fields: dict[str, Any] = {}
    try:
        hints = get_type_hints(function, include_extras=True)
    except (NameError, TypeError) as error:
        raise ValueError(f"{where}: a type hint cannot be read: {error}") from error
    defaults = {}
    for parameter in inspect.signature(called).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ValueError(f"{where}: a model gives arguments by name, and {parameter} takes none so: name each one")
        if parameter.name not in hints:
            raise ValueError(f"{where}: say of which type {parameter.name!r} is, such as {parameter.name}: str")
        hint = hints[parameter.name]
        fields[parameter.name] = hint if parameter.default is parameter.empty else NotRequired[hint]
        if parameter.default is not parameter.empty:
            defaults[parameter.name] = parameter.default
    kind = _typed_dict(name, fields)
    kind.__pydantic_config__ = {"extra": "forbid"}
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(kind)
        schema = _plain(adapter.json_schema())
    except PydanticUserError as error:
        raise ValueError(f"{where}: no schema can be made of it: {str(error).splitlines()[0]}") from error
    for parameter_name, default in defaults.items():
        if default is None or isinstance(default, str | int | float | bool):
            schema["properties"][parameter_name]["default"] = default
    return adapter, {"type": "object", "properties": schema.get("properties", {}), **_rest(schema)}


def _rest(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {key: schema[key] for key in ("required", "$defs") if key in schema}


def _plain(schema: Any) -> Any:
    """A schema without the titles that pydantic makes up from names."""
    if isinstance(schema, list):
        return [_plain(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    named = ("properties", "$defs")
    return {
        key: {name: _plain(each) for name, each in value.items()} if key in named else _plain(value)
        for key, value in schema.items()
        if not (key == "title" and isinstance(value, str))
    }


def _problem(error: Any) -> str:
    place = ".".join(map(str, error["loc"]))
    told = {"missing": "it is missing", "extra_forbidden": "there is no such argument"}.get(error["type"], error["msg"])
    return f"{place}: {told}" if place else str(told)


def _outcome(value: Any) -> Any:
    """What a function returned; that of an asynchronous one is waited for."""
    if not inspect.isawaitable(value):
        return value

    async def waited() -> Any:
        return await asyncio.wait_for(value, ASYNC_TIMEOUT_S)

    return wait_for(waited())


def wait_for(work: Coroutine[Any, Any, Any]) -> Any:
    """The result of asynchronous work, which runs in the one event loop of all tools: clients may be shared there."""
    return asyncio.run_coroutine_threadsafe(work, loop_of_tools()).result()


@lru_cache(maxsize=1)
def loop_of_tools() -> asyncio.AbstractEventLoop:
    """The event loop of asynchronous tools and of clients, in a thread of its own."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="tools", daemon=True).start()
    return loop


def listed(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """The schemas of tools, as ``info["tools"]`` gives them."""
    return [tool.described for tool in tools]
