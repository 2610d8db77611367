"""A client of the chat completions API, which OpenAI defined and many servers offer. Standard library only.

A request is ``POST {base_url}/chat/completions`` with a model's name and messages. Failures that may be temporary are
retried after a pause that doubles each time: no connection, no answer in time, an answer that cannot be read, and
status 408, 409, 425, 429 and 5xx. Where the server sends ``Retry-After``, all threads wait so long. Any other failure
raises EndpointError. The API key comes from an environment variable, is sent in one header, and is removed from every
message of the server before that is shown.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import os
import random
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, NoReturn
from urllib.parse import SplitResult, urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator

from turnwise.errors import AgentError

KEY_VARIABLES = ("TURNWISE_API_KEY", "OPENAI_API_KEY")
PREFIX = "openai:"
"""Names of endpoints begin with it: ``openai:MODEL``, or ``openai:MODEL@URL``."""

_NOBODY = (ConnectionRefusedError, TimeoutError, socket.gaierror)
_PASSING = {408, 409, 425, 429}
_FULL = re.compile(r"context[ _]?(length|window|size)|maximum context|prompt is too long", re.IGNORECASE)
_MAX_BYTES = 1 << 24  # of an answer
_MAX_PAUSE_S = 60.0
_EXCERPT = 200  # characters of an answer that an error quotes


class EndpointError(AgentError):
    """The endpoint refuses requests, cannot be reached, or has stopped answering."""


class ExhaustedError(EndpointError):
    """A request failed for good, after all of its retries, at an endpoint that has answered others."""


class ContextFullError(Exception):
    """The server says that the messages do not fit the model's context."""


class EndpointConfig(BaseModel):
    """How an endpoint is asked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base_url: str = Field("https://api.openai.com/v1", description="what comes before /chat/completions")
    key_variable: str | None = Field(
        None, description="environment variable that holds the key; null: TURNWISE_API_KEY, or else OPENAI_API_KEY"
    )
    concurrency: int = Field(8, ge=1, description="episodes at once, each with a request on its way")
    requests_per_minute: float | None = Field(None, gt=0, description="at most so many, evenly spaced")
    timeout_s: float = Field(120.0, gt=0, description="seconds from a request to the end of its answer")
    retries: int = Field(6, ge=0, description="how often a request is made again after what may pass by itself")
    backoff_s: float = Field(1.0, gt=0, description="seconds before the first retry; doubles, to a minute at most")
    max_wait_s: float = Field(300.0, gt=0, description="a server that asks for a longer pause ends the evaluation")
    input_price: float | None = Field(None, ge=0, description="of a million prompt tokens, in your currency")
    output_price: float | None = Field(None, ge=0, description="of a million completion tokens")
    send_seed: bool = Field(False, description="send a seed of task, sample and turn; some servers refuse it")
    extra: dict[str, Any] = Field(
        default_factory=dict, description="further fields of each request; null leaves out one of ours"
    )
    allow_http: bool = Field(False, description="send the key over http to another machine: anyone between reads it")

    @model_validator(mode="after")
    def _sound(self) -> EndpointConfig:
        _checked_url(self.base_url)
        if self.key_variable is not None and not self.key_variable.isidentifier():  # not quoted: it may be a key
            raise ValueError("endpoint.key_variable is the name of an environment variable, such as JUDGE_API_KEY")
        if (self.input_price is None) != (self.output_price is None):
            raise ValueError("give both endpoint.input_price and endpoint.output_price, or neither")
        return self


REACHED = tuple(name for name in EndpointConfig.model_fields if name not in ("extra", "send_seed"))
"""Settings that say how an endpoint is reached and what it costs, and change nothing that it is asked."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Requests to an endpoint, and tokens as the server counted them.

    ``requests`` include ``retries``. ``uncounted`` answers came without token counts, so that the sums are too low.
    """

    requests: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.requests + other.requests,
            self.retries + other.retries,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.uncounted + other.uncounted,
        )

    def cost(self, config: EndpointConfig) -> float | None:
        """The cost in the currency of the prices; None without prices. Too low where answers are ``uncounted``."""
        if config.input_price is None or config.output_price is None:
            return None
        return (self.prompt_tokens * config.input_price + self.completion_tokens * config.output_price) / 1e6


def uncounted_text(num: int) -> str:
    """What stands behind sums of tokens that lack those of ``num`` answers; "" where they lack none."""
    return f"; {num:,} answers came without a count of tokens: more was used" if num else ""


@dataclass(frozen=True, slots=True)
class Answer:
    """The model's text, the requests and tokens that it took, and its message as the server gave it."""

    text: str
    usage: Usage
    message: Mapping[str, Any] = field(default_factory=dict)


class _PassingError(Exception):
    """A failure that may be temporary. ``pause_s`` is the pause that the server asks for, or None."""

    def __init__(self, what: str, pause_s: float | None = None, unreachable: bool = False) -> None:
        super().__init__(what)
        self.pause_s, self.unreachable = pause_s, unreachable


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Does not follow redirects, which would send the key to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


@dataclass
class ChatClient:
    """A client for one model of one endpoint. Several threads may use it; ``spent`` sums up all their requests.

    ``hint`` says, in errors, how what was done so far can be kept. Raises ValueError for a key with characters that
    cannot be sent, where the variable that should hold it is not set, and where it would be sent unencrypted to another
    machine.
    """

    model: str
    config: EndpointConfig
    hint: str = "With --out, finished episodes are kept: run the same command again to continue"
    spent: Usage = field(default_factory=Usage, init=False)

    def __post_init__(self) -> None:
        url = _checked_url(self.config.base_url)
        self._variables = (self.config.key_variable,) if self.config.key_variable else KEY_VARIABLES
        self._key = _key_from_environment(self._variables)
        if self.config.key_variable and not self._key:
            raise ValueError(
                f"endpoint.key_variable={self.config.key_variable}: that environment variable is not set: export it"
            )
        local = _is_loopback(url.hostname or "")
        if self._key and url.scheme == "http" and not local and not self.config.allow_http:
            raise ValueError(
                f"{self.config.base_url} is neither https nor this machine: the key of {_key_name(self._variables)} "
                "would be readable on the way. Use https, unset the variable, or allow it with endpoint.allow_http=true"
            )
        self._url = self.config.base_url.rstrip("/") + "/chat/completions"
        proxies = [urllib.request.ProxyHandler({})] if local else []
        self._opener = urllib.request.build_opener(_NoRedirect, *proxies)
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._next = 0.0  # when the next request may begin, on the monotonic clock
        self._reached = False
        self._jitter = random.Random()

    def close(self) -> None:
        """Make threads that wait for their next request raise EndpointError."""
        self._stop.set()

    def ask(self, messages: Sequence[Mapping[str, Any]], fields: Mapping[str, Any]) -> Answer:
        """The model's answer to these messages.

        ``fields`` are added to the request; ``endpoint.extra`` overrides them. Raises ContextFullError where the server
        says that the context is too long, and EndpointError where the request fails for good.
        """
        body = {"model": self.model, "messages": list(messages), **fields, **self.config.extra}
        data = json.dumps({name: value for name, value in body.items() if value is not None}).encode()
        used = Usage()
        for attempt in range(self.config.retries + 1):
            self._wait_for_turn()
            asked = Usage(requests=1, retries=int(attempt > 0))
            self._spend(asked)
            used += asked
            try:
                message, counted = self._once(data)
            except _PassingError as error:
                self._pause(error, attempt)
            else:
                self._spend(counted)
                return Answer(str(message.get("content") or ""), used + counted, message)
        raise AssertionError("the last attempt returns or raises")

    def _once(self, data: bytes) -> tuple[Mapping[str, Any], Usage]:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "turnwise"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self._url, data, headers, method="POST")
        deadline = time.monotonic() + self.config.timeout_s
        try:
            with self._opener.open(request, timeout=self.config.timeout_s) as response:
                content = _read(response, deadline)
        except urllib.error.HTTPError as error:
            self._reached = True
            with error:
                self._refused(error, deadline)
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from None
        self._reached = True
        return self._parsed(content)

    def _parsed(self, content: bytes) -> tuple[Mapping[str, Any], Usage]:
        try:
            answer = json.loads(content)
            message = self._hidden(answer["choices"][0]["message"])
            if not isinstance(message, dict) or not {"content", "tool_calls"} & set(message):
                raise LookupError
        except (ValueError, LookupError, TypeError):
            raise _PassingError(f"an answer that is no chat completion: {self._quoted(content)}") from None
        counts = answer.get("usage")
        prompt, completion = (
            counts.get(name) if isinstance(counts, dict) else None for name in ("prompt_tokens", "completion_tokens")
        )
        if isinstance(prompt, int) and isinstance(completion, int):
            return message, Usage(prompt_tokens=prompt, completion_tokens=completion)
        return message, Usage(uncounted=1)

    def _refused(self, error: urllib.error.HTTPError, deadline: float) -> NoReturn:
        """Raise the exception for a status other than 2xx."""
        try:
            content = _read(error, deadline)
        except (OSError, http.client.HTTPException):
            content = b""
        said = f"status {error.code}: {self._quoted(content)}"
        if error.code in (401, 403):
            raise EndpointError(
                f"{self._url} refuses the key ({said}). Set {' or '.join(self._variables)} to one of that server's"
            )
        if error.code in (400, 413, 422) and _FULL.search(content.decode(errors="replace")):
            raise ContextFullError
        if b"insufficient_quota" in content or (error.code not in _PASSING and error.code < 500):
            raise EndpointError(f"{self._url} refuses to answer ({said})")
        raise _PassingError(said, _retry_after(error.headers.get("Retry-After")))

    def _unreachable(self, error: Exception) -> Exception:
        """The exception for a failed connection."""
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            return EndpointError(f"{self._url} does not prove who it is ({reason.verify_message})")
        # urllib wraps what goes wrong before the request has left: there may be nobody at this address
        nobody = isinstance(error, urllib.error.URLError) and isinstance(reason, _NOBODY)
        if isinstance(reason, TimeoutError):
            return _PassingError(f"no answer in {self.config.timeout_s:g} s", unreachable=nobody)
        return _PassingError(self._hide(f"{type(reason).__name__}: {reason}"), unreachable=nobody)

    def _pause(self, error: _PassingError, attempt: int) -> None:
        """Wait before the next attempt. Raises EndpointError where there is none."""
        if error.unreachable and not self._reached:
            raise EndpointError(f"{self._url} cannot be reached ({error}). Does the server run, is the address right?")
        if attempt == self.config.retries:
            raise ExhaustedError(f"{self._url} failed {attempt + 1} times in a row, at last with {error}. {self.hint}")
        if error.pause_s is not None and error.pause_s > self.config.max_wait_s:
            raise EndpointError(
                f"{self._url} asks for a pause of {error.pause_s:.0f} s ({error}), more than "
                f"endpoint.max_wait_s={self.config.max_wait_s:g}. {self.hint}"
            )
        if error.pause_s is not None:
            with self._lock:
                self._next = max(self._next, time.monotonic() + error.pause_s)
        else:
            pause = min(_MAX_PAUSE_S, self.config.backoff_s * 2**attempt)
            self._sleep(pause * self._jitter.uniform(0.5, 1.0))  # so that threads do not all retry at once

    def _wait_for_turn(self) -> None:
        per_minute = self.config.requests_per_minute
        with self._lock:
            begin = max(self._next, time.monotonic())
            self._next = begin + (60 / per_minute if per_minute else 0.0)
        self._sleep(begin - time.monotonic())

    def _sleep(self, seconds: float) -> None:
        if self._stop.wait(max(seconds, 0.0)):
            raise EndpointError("stopped")

    def _spend(self, usage: Usage) -> None:
        with self._lock:
            self.spent += usage

    def _quoted(self, content: bytes) -> str:
        """The server's error message where it has the usual form, else the beginning of its answer."""
        text = content.decode(errors="replace")
        try:
            inner = json.loads(text)["error"]
            text = str(inner["message"] if isinstance(inner, dict) else inner)
        except (ValueError, LookupError, TypeError):
            pass
        return repr(self._hide(text)[:_EXCERPT])

    def _hidden(self, found: Any) -> Any:
        """A value of JSON with the key hidden in every text of it."""
        if isinstance(found, str):
            return self._hide(found)
        if isinstance(found, dict):
            return {name: self._hidden(value) for name, value in found.items()}
        return [self._hidden(value) for value in found] if isinstance(found, list) else found

    def _hide(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def addressed(name: str, config: EndpointConfig) -> tuple[str, EndpointConfig]:
    """The model that ``openai:MODEL[@URL]`` names, and ``config`` with the URL where there is one.

    Raises ValueError for a name without a model, and for a malformed URL.
    """
    model, at, url = name.removeprefix(PREFIX).rpartition("@http")
    if not at:
        model = url
    else:
        config = EndpointConfig.model_validate({**config.model_dump(), "base_url": "http" + url})
    if not model or not name.startswith(PREFIX):
        raise ValueError(f"{name!r} names no model: expected {PREFIX}MODEL or {PREFIX}MODEL@URL")
    return model, config


def _read(response: Any, deadline: float) -> bytes:
    """The whole answer. Raises TimeoutError after the deadline (the socket's own limit is for each piece)."""
    parts, size = [], 0
    while part := response.read1(1 << 16):
        parts.append(part)
        size += len(part)
        if time.monotonic() > deadline:
            raise TimeoutError
        if size > _MAX_BYTES:
            raise http.client.HTTPException(f"an answer of more than {_MAX_BYTES} bytes")
    return b"".join(parts)


def _retry_after(value: str | None) -> float | None:
    """The seconds in a Retry-After header, which is a number or a date; None where it is neither."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _checked_url(text: str) -> SplitResult:
    try:
        url = urlsplit(text)
        sound = url.scheme in ("http", "https") and bool(url.hostname) and (url.port or 1) > 0
    except ValueError:
        sound = False
    if not sound:
        raise ValueError(f"{text!r} is no base URL of an endpoint: expected one like http://127.0.0.1:8000/v1")
    if url.username or url.password or url.query or url.fragment:
        raise ValueError(
            f"the base URL of {url.hostname} holds more than an address: a key belongs into {KEY_VARIABLES[0]}, "
            "further fields of the request into endpoint.extra"
        )
    return url


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _key_name(variables: Sequence[str]) -> str:
    return next((name for name in variables if os.environ.get(name, "").strip()), "")


def _key_from_environment(variables: Sequence[str]) -> str:
    name = _key_name(variables)
    key = os.environ[name].strip() if name else ""
    if not all("!" <= character <= "~" for character in key):
        raise ValueError(f"{name} holds characters that no key has (a space, a line break, a letter beyond ASCII)")
    return key
