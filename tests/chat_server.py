"""Local servers that speak the chat completions API: one that misbehaves as told, one with a real model behind it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from turnwise.agents.seating import ModelAgent
from turnwise.models.engine import Sampling


@dataclass(frozen=True)
class Response:
    """``delay_s`` passes before the status, ``trickle_s`` between its bytes."""

    content: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    trickle_s: float = 0.0


@dataclass
class Asked:
    """One request as the server saw it, and when."""

    body: dict[str, Any]
    headers: dict[str, str]
    at: float


class ChatServer(ThreadingHTTPServer):
    """``answer`` makes a response of each request; ``asked`` are all of them."""

    daemon_threads = True

    def __init__(self, answer: Callable[[dict[str, Any]], Response]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.asked: list[Asked] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: ChatServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(Asked(body, dict(self.headers), time.monotonic()))
        known = self.path == "/v1/chat/completions"
        made = self.server.answer(body) if known else Response(b"no such page", 404)
        time.sleep(made.delay_s)
        try:
            self.send_response(made.status)
            for name, value in {"Content-Length": str(len(made.content)), **made.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            for byte in made.content if made.trickle_s else ():
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(made.trickle_s)
            if not made.trickle_s:
                self.wfile.write(made.content)
        except ConnectionError:
            pass  # the client has given up

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(answer: Callable[[dict[str, Any]], Response]) -> Iterator[ChatServer]:
    server = ChatServer(answer)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def completion(text: str, prompt_tokens: int = 10, completion_tokens: int = 3) -> Response:
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    message = {"role": "assistant", "content": text}
    return Response(json.dumps({"choices": [{"message": message}], "usage": usage}).encode())


def refusal(status: int, message: str, code: str = "", **headers: str) -> Response:
    return Response(json.dumps({"error": {"message": message, "code": code}}).encode(), status, headers)


def in_turn(*responses: Response) -> Callable[[dict[str, Any]], Response]:
    """One after the other, the last for ever."""
    left = list(responses)
    return lambda body: left.pop(0) if len(left) > 1 else left[0]


class ServedModel:
    """A model of ours behind the API. It remembers the ids of what it said, so that a conversation goes on exactly."""

    def __init__(self, agent: ModelAgent) -> None:
        self.agent = agent
        self._said: dict[tuple[str, ...], Any] = {}
        self._lock = threading.Lock()

    def __call__(self, body: dict[str, Any]) -> Response:
        with self._lock:
            return self._answer([message["content"] for message in body["messages"]], body)

    def _answer(self, texts: Sequence[str], body: Mapping[str, Any]) -> Response:
        ids = self._ids(texts)
        if len(ids) > self.agent.config.max_context_tokens - body["max_tokens"]:
            return refusal(400, "This model's maximum context length is exceeded", "context_length_exceeded")
        engine = self.agent.engine
        slot = engine.open()
        sampling = Sampling(body["temperature"], max_tokens=body["max_tokens"])
        engine.submit(slot, np.asarray(ids, np.int32), fresh=True, key=body.get("seed", 0), sampling=sampling)
        replies = engine.step()
        while not replies:
            replies = engine.step()
        engine.close(slot)
        text = self.agent.chat.decode(replies[0].ids)
        self._said[*texts, text] = replies[0].ids
        return completion(text, len(ids), len(replies[0].ids))

    def _ids(self, texts: Sequence[str]) -> list[int]:
        """Texts of user and assistant in turn, as the tokens that the model has seen and said."""
        ids = self.agent.chat.open(texts[0]).tolist()
        for place in range(1, len(texts), 2):
            said = self._said.get(tuple(texts[: place + 1]))
            said = self.agent.chat.reply(texts[place]) if said is None else said
            ids += [*said.tolist(), *self.agent.chat.extend(said, texts[place + 1]).tolist()]
        return ids
