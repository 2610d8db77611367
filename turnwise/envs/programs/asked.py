"""What a client asks of the model: a chat completions request, read, and refused where it cannot be honoured.

A field of a request belongs to one of four kinds:

    honoured   messages, tools, tool_choice, stream, temperature, a smaller max_tokens, stop, response_format
    harmless   user, metadata and the like: they change nothing of what is drawn
    ignored    top_p, seed, parallel_tool_calls ...: the run decides. They are counted, and refused where ``strict``
    refused    n > 1, logit_bias, images ...: the client would read a wrong answer

The one error is ``RefusedError``: an HTTP status and a sentence that says what to do.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from turnwise.envs.forms import Form
from turnwise.envs.programs.formed import wished_form
from turnwise.envs.programs.refused import RefusedError
from turnwise.heat import LEAST_TEMPERATURE

MAX_TEMPERATURE = 2.0
MAX_STOPS = 4  # as the API defines
_TURNS = "the last message must be of the user or a tool, since the reply to it is what is asked for"

_HARMLESS = {
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    *("stream_options", "modalities"),
}
_HONOURED = {
    *("model", "messages", "tools", "stream", "temperature", "max_tokens", "max_completion_tokens", "stop"),
    "response_format",
}
_WAYS_OUT = {
    "functions": "use tools, which took its place",
    "function_call": "use tools, which took its place",
    "logit_bias": "tokens are drawn from the policy alone: leave it out",
    "presence_penalty": "tokens are drawn from the policy alone: leave it out",
    "frequency_penalty": "tokens are drawn from the policy alone: leave it out",
    "logprobs": "the run records log-probs itself: leave it out",
    "top_logprobs": "the run records log-probs itself: leave it out",
    "audio": "the model reads and writes text alone: leave it out",
    "prediction": "the model writes every token itself: leave it out",
    "web_search_options": "give the model a tool that searches",
}
_OFF: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "response_format": ({"type": "text"},),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "top_p": (1,),
    "top_k": (0, -1),
    "min_p": (0,),
    "repetition_penalty": (1,),
    "parallel_tool_calls": (True,),
    "tool_choice": ("auto",),
}
"""The values of a field that ask for nothing; null asks for nothing in every field."""

Message = dict[str, Any]
"""A message as ``turnwise.envs.interface`` describes it."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What an endpoint honours.

    ``model`` is the name that requests must give. ``strict`` refuses what would be ignored. ``greedy`` allows a
    temperature of 0; in training nothing could be learned from such tokens, so it is ignored there. ``temperature`` is
    that of requests which name none (None: the run's).
    """

    model: str = "agent"
    strict: bool = False
    greedy: bool = False
    temperature: float | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """A request that can be answered.

    ``sampling`` has those of "temperature" (above 0, at most 2; 0 where ``Terms.greedy``), "max_tokens", "stop" (a
    list of texts) and "form" (``turnwise.envs.forms``) that were asked for. ``ignored`` names the fields that the run
    decides otherwise. ``digest`` is a hash of the whole body, and ``again`` says that the client has sent it before: a
    retry.
    """

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    sampling: Mapping[str, Any] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    stream: bool = False
    with_usage: bool = False
    digest: str = ""
    again: bool = False


def read_request(body: bytes, terms: Terms, again: bool = False) -> Request:
    """The request in the body of ``POST /v1/chat/completions``. Raises RefusedError."""
    try:
        asked = json.loads(body)
        if b"\\ud" in body.lower():  # half of a surrogate pair is no character that a tokenizer reads
            json.dumps(asked, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise RefusedError(
            400, "the request is not JSON in UTF-8: send a chat completions request", "invalid"
        ) from None
    if not isinstance(asked, dict):
        raise RefusedError(400, f"the request is a {type(asked).__name__}: expected a JSON object", "invalid")
    if asked.get("model") != terms.model:
        raise RefusedError(
            404,
            f"there is no model {asked.get('model')!r} here, only {terms.model!r}: give the name that the program gets "
            "as model.name",
            "model_not_found",
            "model",
        )
    asked = {name: value for name, value in asked.items() if not _asks_nothing(name, value)}
    tools = () if asked.get("tool_choice") == "none" else _tools(asked.get("tools"))
    form = wished_form(asked, tools)
    ignored = _ignored(asked, terms, form)
    return Request(
        messages=_messages(asked.get("messages")),
        tools=tools,
        sampling=_sampling(asked, terms) | ({} if form is None else {"form": form.plain()}),
        ignored=ignored,
        stream=_flag(asked, "stream"),
        with_usage=_flag(_object(asked.get("stream_options", {}), "stream_options"), "include_usage"),
        digest=hashlib.sha256(body).hexdigest(),
        again=again,
    )


def _asks_nothing(name: str, value: Any) -> bool:
    return value is None or value in _OFF.get(name, ())


def _ignored(asked: Mapping[str, Any], terms: Terms, form: Form | None) -> tuple[str, ...]:
    """The fields whose wish is not followed. Raises RefusedError where that would give a wrong answer."""
    if "n" in asked:
        raise RefusedError(400, f"n={asked['n']!r}: ask n times for one reply each, since each is a turn", field="n")
    for name in asked:
        if name in _WAYS_OUT:
            raise RefusedError(400, f"{name} is not supported here: {_WAYS_OUT[name]}", field=name)
    known = _HARMLESS | _HONOURED
    if asked.get("tool_choice") == "none" or (form is not None and form.calls):
        known = known | {"tool_choice"}
    if form is not None and form.one_call:
        known = known | {"parallel_tool_calls"}
    ignored = [name for name in asked if name not in known]
    if asked.get("temperature") == 0 and not terms.greedy:
        ignored.append("temperature=0")
    if ignored and terms.strict:
        raise RefusedError(
            400,
            f"{', '.join(ignored)}: the run decides how tokens are drawn, and this one is strict: leave it out",
            field=ignored[0],
        )
    return tuple(ignored)


def _sampling(asked: Mapping[str, Any], terms: Terms) -> dict[str, Any]:
    made: dict[str, Any] = {}
    if "temperature" in asked:
        found = asked["temperature"]
        if type(found) not in (int, float) or not (found == 0 or LEAST_TEMPERATURE <= found <= MAX_TEMPERATURE):
            expected = f"0, or a number from {LEAST_TEMPERATURE} to {MAX_TEMPERATURE:g}"
            raise RefusedError(400, f"temperature={found!r}: expected {expected}", "invalid", "temperature")
        if found > 0 or terms.greedy:
            made["temperature"] = float(found)
    elif terms.temperature is not None:
        made["temperature"] = terms.temperature
    limits = [asked[name] for name in ("max_tokens", "max_completion_tokens") if name in asked]
    for limit in limits:
        if type(limit) is not int or limit < 1:
            raise RefusedError(400, f"max_tokens={limit!r}: expected a whole number from 1", "invalid", "max_tokens")
    if limits:
        made["max_tokens"] = min(limits)
    if stops := asked.get("stop"):
        stops = [stops] if isinstance(stops, str) else stops
        if not isinstance(stops, list) or len(stops) > MAX_STOPS or not all(isinstance(s, str) and s for s in stops):
            raise RefusedError(400, f"stop: expected a text or up to {MAX_STOPS} texts", "invalid", "stop")
        made["stop"] = stops
    return made


def _flag(asked: Mapping[str, Any], name: str) -> bool:
    found = asked.get(name, False)
    if not isinstance(found, bool):
        raise RefusedError(400, f"{name}={found!r}: expected true or false", "invalid", name)
    return found


def _object(found: Any, name: str) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise RefusedError(400, f"{name}: expected an object, got {type(found).__name__}", "invalid", name)
    return found


def _tools(given: Any) -> tuple[dict[str, Any], ...]:
    if not given:
        return ()
    if not isinstance(given, list):
        raise RefusedError(400, "tools: expected a list of functions", "invalid", "tools")
    made = []
    for tool in given:
        about = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(about, dict) or tool.get("type") != "function" or not isinstance(about.get("name"), str):
            raise RefusedError(
                400,
                'tools: expected {"type": "function", "function": {"name": ...}}; built-in and custom tools are '
                "not supported: write it as a function",
                field="tools",
            )
        shown = {"name": about["name"], "description": about.get("description") or ""}
        parameters = about.get("parameters") or {"type": "object", "properties": {}}
        made.append({"type": "function", "function": {**shown, "parameters": _object(parameters, "parameters")}})
    return tuple(made)


def _messages(given: Any) -> tuple[Message, ...]:
    """Raises RefusedError for a conversation that cannot be answered."""
    if not isinstance(given, list) or not given:
        raise RefusedError(400, "messages: expected a list of at least one message", "invalid", "messages")
    made = tuple(_message(each, number) for number, each in enumerate(given))
    called = {call["id"]: call["name"] for each in made for call in each.get("tool_calls", ())}
    for each in made:
        if each["role"] == "tool" and each["tool_call_id"] in called:
            each["name"] = called[each["tool_call_id"]]
    if made[-1]["role"] in ("assistant", "system"):
        raise RefusedError(400, f"messages end with one of the {made[-1]['role']}: {_TURNS}", "invalid", "messages")
    return made


def _message(given: Any, number: int) -> Message:
    place = f"messages[{number}]"
    role = given.get("role") if isinstance(given, dict) else None
    role = "system" if role == "developer" else role
    if role not in ("system", "user", "assistant", "tool"):
        raise RefusedError(
            400, f"{place} has the role {role!r}: expected system, developer, user, assistant or tool", "invalid", place
        )
    made: Message = {"role": role, "content": _text(given.get("content"), place)}
    if role == "tool":
        answered = given.get("tool_call_id")
        if not isinstance(answered, str):
            raise RefusedError(400, f"{place} is of a tool and has no tool_call_id: name the call", "invalid", place)
        made["tool_call_id"] = answered
        if isinstance(given.get("name"), str):
            made["name"] = given["name"]
    if role == "assistant":
        if given.get("function_call"):
            raise RefusedError(400, f"{place} has a function_call: use tool_calls, which took its place", field=place)
        if calls := given.get("tool_calls"):
            made["tool_calls"] = _calls(calls, place)
        thought = given.get("reasoning_content") or given.get("reasoning")
        if isinstance(thought, str):
            made["reasoning"] = thought
    return made


def _text(content: Any, place: str) -> str:
    """A content as one text: its parts one after the other, "" for null."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RefusedError(400, f"{place}: expected a text or a list of parts as content", "invalid", place)
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("text", part.get("refusal")) if isinstance(part, dict) else None
        if kind not in ("text", "refusal") or not isinstance(text, str):
            raise RefusedError(
                400,
                f"{place} has a part of type {kind!r}: the model reads text alone; describe it in words",
                field=place,
            )
        texts.append(text)
    return "".join(texts)


def _calls(given: Any, place: str) -> list[dict[str, Any]]:
    made = []
    for call in given if isinstance(given, list) else [None]:
        about = call.get("function") if isinstance(call, dict) else None
        if not isinstance(call, dict) or not isinstance(about, dict) or not isinstance(about.get("name"), str):
            raise RefusedError(400, f"{place}: expected tool_calls of functions with a name", "invalid", place)
        made.append(
            {"id": str(call.get("id") or ""), "name": about["name"], "arguments": _arguments(about.get("arguments"))}
        )
    return made


def _arguments(given: Any) -> dict[str, Any]:
    """A call's arguments, which the API writes as a text of JSON; what is no object is kept as {"": text}."""
    try:
        read = json.loads(given) if isinstance(given, str) else given
    except (ValueError, RecursionError):
        read = None
    return read if isinstance(read, dict) else {} if not given else {"": given}
