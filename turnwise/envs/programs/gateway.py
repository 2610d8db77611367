"""The endpoint: an HTTP server that speaks the chat completions API and hands requests to sessions.

    POST /v1/chat/completions    a reply, whole or as a stream of events
    POST /v1/feedback            what a conversation with a served model is worth
    GET  /v1/models              the one model
    GET  /health                 {"status": "ok"}

A client identifies itself by a key (``Authorization: Bearer KEY``). ``Door`` says which session a request belongs to:
that of a program, by the random key that it was given (``Keys``), or that of a conversation (``serving.py``). Bodies,
connections, waiting requests and the time of each are bounded; a wrong key is refused before a body is read. Pages of
other sites, which a browser lets post here without asking, are refused by their ``Origin``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections import deque
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from typing import Any, Protocol
from urllib.parse import urlsplit

from turnwise.envs.programs.asked import Request, Terms, read_request
from turnwise.envs.programs.refused import RefusedError
from turnwise.envs.programs.replies import completion, events
from turnwise.envs.programs.session import Session

HOST = "127.0.0.1"
MAX_BODY = 16 * 2**20
"""Bytes of a request."""
_MAX_DRAINED = 4 * MAX_BODY
_DRAIN_S = 2.0
MAX_CONNECTIONS = 512
MAX_LEFT = 1000
"""Keys of ended sessions that are remembered, so that a late request is told why it is refused."""
REPLY_TIMEOUT_S = 3600.0
"""Seconds that a client may wait for a reply; programs have limits of their own."""
_BUSY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_RESPONSES = (
    "the Responses API is not served here, only chat completions. Agents SDK: OpenAIChatCompletionsModel(model.name, "
    'AsyncOpenAI(base_url=..., api_key=...)), or set_default_openai_api("chat_completions"); LangChain: leave '
    "use_responses_api out"
)
_log = logging.getLogger(__name__)


class Door(Protocol):
    """Who may come in, and to which session. Every method may raise RefusedError."""

    def admit(self, key: str | None) -> Terms:
        """What a client with this key is offered."""

    def session(self, key: str | None, request: Request) -> Session:
        """Whose request this is."""

    def judge(self, key: str | None, body: Mapping[str, Any]) -> None:
        """Somebody says what a conversation was worth."""


class Keys:
    """The door of programs: each has a session with a key of its own."""

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}
        self._left: deque[str] = deque(maxlen=MAX_LEFT)
        self._lock = threading.Lock()

    def open(self, terms: Terms) -> Session:
        """A new session."""
        session = Session(terms)
        with self._lock:
            self._sessions[session.key] = session
        return session

    def close(self, session: Session, why: str) -> None:
        """End a session. Its key is known as one that is over."""
        session.close(why)
        with self._lock:
            self._sessions.pop(session.key, None)
            self._left.append(session.key)

    def admit(self, key: str | None) -> Terms:
        return self._found(key).terms

    def session(self, key: str | None, request: Request) -> Session:
        return self._found(key)

    def judge(self, key: str | None, body: Mapping[str, Any]) -> None:
        raise RefusedError(404, "a program says its reward by returning it", "not_found")

    def _found(self, key: str | None) -> Session:
        with self._lock:
            if key in self._left:
                raise RefusedError(
                    409, "this episode is over: a program must not ask the model after its end", "episode_over"
                )
            if key is None or key not in self._sessions:
                raise RefusedError(
                    401,
                    "the key is not one of a running program: send model.api_key as it was given",
                    "invalid_api_key",
                )
            return self._sessions[key]


class Gateway(ThreadingHTTPServer):
    """The server. It answers in threads of its own from its making until ``close``; ``port`` 0 takes a free port.

    Raises ValueError where the address cannot be used.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, door: Door, host: str = HOST, port: int = 0) -> None:
        self.door = door
        self._room = threading.BoundedSemaphore(MAX_CONNECTIONS)
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            raise ValueError(f"cannot serve on {host} port {port} ({error}): choose another port or host") from error
        threading.Thread(target=self.serve_forever, args=(0.05,), name="gateway", daemon=True).start()

    @property
    def url(self) -> str:
        """What clients call ``base_url``."""
        return f"http://{self.server_address[0]!s}:{self.server_address[1]}/v1"

    @property
    def is_local(self) -> bool:
        """Whether it listens to this machine alone."""
        return ip_address(str(self.server_address[0])).is_loopback

    def close(self) -> None:
        """Stop listening. Requests that wait are for their sessions to refuse."""
        self.shutdown()
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for each connection, up to a limit."""
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
            return
        with contextlib.suppress(OSError):
            request.sendall(_BUSY)
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is nobody's fault; what else fails in a request is logged."""
        _log.debug("the request of %s failed", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: Gateway
    protocol_version = "HTTP/1.1"  # connections are kept
    disable_nagle_algorithm = True
    timeout = 60  # seconds without a byte, after which a connection is dropped

    def do_GET(self) -> None:
        try:
            self._check_host()
            if self.path == "/health":
                self._send(200, b'{"status": "ok"}')
                return
            terms = self.server.door.admit(self._key())
            if self.path.rstrip("/") != "/v1/models":
                raise self._unknown()
            model = {"id": terms.model, "object": "model", "created": 0, "owned_by": "turnwise"}
            self._send(200, json.dumps({"object": "list", "data": [model]}).encode())
        except RefusedError as refused:
            self._refuse(refused)

    def do_POST(self) -> None:
        body = None
        try:
            self._check_host()
            self._check_type()
            terms = self.server.door.admit(self._key())
            body = self._body()
            if self.path == "/v1/feedback":
                self.server.door.judge(self._key(), _object(body))
                self._send(200, b'{"status": "ok"}')
                return
            if self.path.split("?")[0] != "/v1/chat/completions":
                raise self._unknown()
            again = self.headers.get("x-stainless-retry-count", "0") != "0"
            request = read_request(body, terms, again)
            outcome = self.server.door.session(self._key(), request).ask(request).outcome(REPLY_TIMEOUT_S)
            if isinstance(outcome, RefusedError):
                raise outcome
        except RefusedError as refused:
            self.close_connection = body is None  # what was not read would be taken for the next request
            self._refuse(refused)
            if body is None:
                self._drain()
            return
        if request.stream:
            self._send(200, events(outcome, terms.model, request.with_usage), "text/event-stream")
        else:
            self._send(200, completion(outcome, terms.model))

    def _key(self) -> str | None:
        kind, _, key = self.headers.get("Authorization", "").partition(" ")
        return key.strip() if kind.lower() == "bearer" else None

    def _check_host(self) -> None:
        """No other site may reach this server: by a name that leads here (DNS rebinding), or from its own pages."""
        name = _host(f"//{self.headers.get('Host', '')}")
        if self.server.is_local and name not in (str(self.server.server_address[0]), HOST, "localhost"):
            raise RefusedError(403, f"this endpoint is served to {HOST} alone, not to {name!r}", "forbidden")
        origin = self.headers.get("Origin")
        if origin is not None and _host(origin) != name:
            raise RefusedError(403, f"pages of {origin[:100]!r} may not ask here: ask from a program", "forbidden")

    def _check_type(self) -> None:
        """From a page, JSON alone: a form is posted by a browser without asking whether it may."""
        kind = self.headers.get_content_type()
        if "Origin" in self.headers and kind != "application/json":
            raise RefusedError(415, f"the request is {kind}: send application/json", "invalid")

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise RefusedError(411, "Content-Length is missing: say how long the request is", "invalid")
        if len(length) > 15 or int(length) > MAX_BODY:
            raise RefusedError(413, f"the request has {length[:15]} bytes: at most {MAX_BODY:,} are read", "too_large")
        return self.rfile.read(int(length))

    def _drain(self) -> None:
        """Read a refused body, up to a limit: a client that is still sending would not see why it was refused."""
        left = _MAX_DRAINED
        with contextlib.suppress(OSError):
            self.connection.settimeout(_DRAIN_S)
            while left > 0 and (piece := self.rfile.read1(65_536)):
                left -= len(piece)

    def _unknown(self) -> RefusedError:
        if self.path.startswith("/v1/responses"):
            return RefusedError(404, _RESPONSES, "unsupported")
        return RefusedError(
            404, f"there is no {self.command} {self.path[:100]}: expected /v1/chat/completions", "not_found"
        )

    def _refuse(self, refused: RefusedError) -> None:
        self._send(refused.status, json.dumps(refused.body()).encode(), final=refused.status == 409)

    def _send(self, status: int, body: bytes, kind: str = "application/json", final: bool = False) -> None:
        """Everything in one write. A client that has gone away is left alone."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if final:
            self.send_header("x-should-retry", "false")  # clients of OpenAI's make would try a 409 again
        if self.close_connection:
            self.send_header("Connection", "close")
        self._headers_buffer.append(b"\r\n" + body)  # type: ignore[attr-defined]
        try:
            self.flush_headers()
        except OSError:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        _log.debug(format, *args)


def _host(address: str) -> str | None:
    """The host's name in an address, without the port."""
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise RefusedError(400, "expected a JSON object", "invalid")
    return found
