"""A retrieval server over our BM25 engines, with the protocol that Search-R1's trainers use: POST /retrieve.

    {"queries": ["...", ...], "topk": 3 or null, "return_scores": true or false}
    -> {"result": [[{"document": {"id", "contents"}, "score"}, ...], ...]}    without scores each document alone

GET /health answers {"status": "ok"}. A request that is wrong is answered with {"detail": "one sentence"}.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from turnwise.envs.search.corpus import Corpus, Paths, open_corpus
from turnwise.envs.search.facts import GeneratedQuestions
from turnwise.envs.search.hits import as_json
from turnwise.envs.search.retrieval import ENGINES, Retriever, open_retriever
from turnwise.errors import unknown

MAX_BODY = 16 * 2**20
MAX_TOPK = 1000
_log = logging.getLogger(__name__)


def serve(
    corpus: Paths | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    topk: int = 3,
    retriever: str = "bm25",
    difficulty: str = "easy",
    world: int = 0,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until interrupted; Ctrl-C returns. Raises ValueError for bad data, or where the address cannot be used.

    ``corpus`` names files that ``turnwise.envs.search.corpus`` reads. Without it the documents are those of the
    generated world of ``difficulty`` with the number ``world``. ``retriever`` is "bm25" (in memory) or "bm25s" (index
    on disk). ``topk`` is the number of documents where a request names none. ``on_ready`` is called with the URL once
    requests are answered. The server has no passwords: with a ``host`` other than this machine's loopback address,
    everyone who reaches the port can search.
    """
    if retriever not in ENGINES:
        raise unknown("retriever", retriever, ENGINES)
    documents: Corpus = GeneratedQuestions(difficulty, world).world.corpus if corpus is None else open_corpus(corpus)
    with SearchServer(open_retriever(retriever, documents), host, port, topk) as server:
        if on_ready is not None:
            on_ready(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            _log.info("stopped")


class SearchServer(ThreadingHTTPServer):
    """The server. It listens at once and answers within ``serve_forever``, with a thread for each connection.

    ``port`` 0 takes a free port.
    """

    daemon_threads = True
    request_queue_size = 128  # a batch of rollouts connects at once

    def __init__(self, retriever: Retriever, host: str = "127.0.0.1", port: int = 8000, topk: int = 3) -> None:
        if not 1 <= topk <= MAX_TOPK:
            raise ValueError(f"topk must be 1 to {MAX_TOPK}, got {topk}.")
        self.retriever, self.topk = retriever, topk
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            raise ValueError(f"Cannot serve on {host} port {port} ({error}): choose another port or host.") from error

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}/retrieve"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log the failure of one request, such as a client that went away; other requests are still served."""
        _log.warning("the request of %s failed", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: SearchServer
    timeout = 60  # seconds without a byte, after which a connection is dropped

    def do_GET(self) -> None:
        if self.path == "/health":
            self._reply(200, {"status": "ok"})
        else:
            self._reply(404, {"detail": f"There is no GET {self.path}: expected GET /health or POST /retrieve."})

    def do_POST(self) -> None:
        try:
            body = self._body()
            if self.path != "/retrieve":
                self._reply(404, {"detail": f"There is no POST {self.path}: expected POST /retrieve."})
                return
            queries, topk, with_scores = _request(body, self.server.topk)
        except ValueError as error:
            self._reply(400, {"detail": str(error)})
            return
        found = self.server.retriever.search(queries, topk)
        self._reply(200, {"result": [as_json(hits, with_scores) for hits in found]})

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MAX_BODY:
            raise ValueError(f"Content-Length must say how long the request is, at most {MAX_BODY} bytes.")
        return self.rfile.read(int(length))

    def _reply(self, status: int, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        _log.debug(format, *args)


def _request(body: bytes, default_topk: int) -> tuple[list[str], int, bool]:
    """(queries, topk, return_scores) of a request. Raises ValueError with one sentence for its sender."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"The request is not JSON ({error}).") from error
    if not isinstance(asked, dict) or not isinstance(asked.get("queries"), list):
        raise ValueError('Expected an object {"queries": [text, ...], "topk": number, "return_scores": true or false}.')
    queries, topk = asked["queries"], asked.get("topk")
    with_scores = asked.get("return_scores", False)
    if not all(isinstance(query, str) for query in queries):
        raise ValueError('"queries" must be a list of texts.')
    if topk is None:
        topk = default_topk
    if type(topk) is not int or not 1 <= topk <= MAX_TOPK:
        raise ValueError(f'"topk" must be a whole number from 1 to {MAX_TOPK}, or null for {default_topk}.')
    if not isinstance(with_scores, bool):
        raise ValueError('"return_scores" must be true or false.')
    return queries, topk, with_scores
