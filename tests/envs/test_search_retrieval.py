"""BM25 by hand, bm25s on disk, and the server: against our own client, and against servers that misbehave."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from turnwise.commands.serve_search import SearchServer, serve
from turnwise.envs.search import retrieval
from turnwise.envs.search.bm25 import BM25, words
from turnwise.envs.search.corpus import Document, MemoryCorpus, document
from turnwise.envs.search.env import SearchEnv
from turnwise.envs.search.facts import GeneratedQuestions
from turnwise.envs.search.hits import Hit
from turnwise.envs.search.remote import RemoteRetriever
from turnwise.envs.search.retrieval import DiskRetriever, MemoryRetriever, open_retriever

CORPUS = MemoryCorpus(
    "three documents",
    (
        document("a", "Bath", "Bath is a city in Maine"),
        document("b", "Maine", "Maine is a state"),
        document("c", "King", "A governor from Bath"),
    ),
)


# ---------------------------------------------------------------------- our BM25


def test_words() -> None:
    assert words('"Bath"\nÉtienne, b-2!') == ["bath", "étienne", "b", "2"]


def test_bm25_by_hand() -> None:
    # Words: 3, 1, 2, so the mean is 2. "x" is in 2 of 3 documents: idf = ln(1 + 1.5 / 2.5) = ln 1.6.
    index = BM25(["x y x", "z", "x z"], k1=1.5, b=0.75)
    first = math.log(1.6) * 2 / (2 + 1.5 * (0.25 + 0.75 * 1.5))
    third = math.log(1.6) * 1 / (1 + 1.5 * (0.25 + 0.75 * 1.0))
    assert index.scores("x") == pytest.approx([first, 0, third])
    assert index.scores("x X unheard") == pytest.approx([2 * first, 0, 2 * third])
    assert index.top("x", 5) == [(0, pytest.approx(first)), (2, pytest.approx(third))]
    assert index.top("x", 1) == [(0, pytest.approx(first))]
    assert index.top("unheard", 3) == index.top("", 3) == []


def test_ties_are_in_the_order_of_the_documents() -> None:
    index = BM25(["a b", "b", "a b", "a b", "b a"])
    assert [n for n, _ in index.top("a", 3)] == [0, 2, 3]


def test_memory_and_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    hits = MemoryRetriever(CORPUS).search(["bath maine", "nothing"], 2)
    assert [[hit.document.id for hit in found] for found in hits] == [["a", "b"], []]
    with pytest.raises(ValueError, match="holds no document"):
        MemoryRetriever(MemoryCorpus("none", ()))
    monkeypatch.setattr(retrieval, "MEMORY_LIMIT", 2)
    with pytest.raises(ValueError, match=r"more than 2 documents.*retriever='bm25s'"):
        MemoryRetriever(CORPUS)


def test_one_engine_for_equal_corpora() -> None:
    same = MemoryCorpus("again", CORPUS.documents)
    assert open_retriever("bm25", CORPUS) is open_retriever("bm25", same)
    with pytest.raises(ValueError, match="give `corpus`"):
        open_retriever("bm25", None)


# ---------------------------------------------------------------------- bm25s


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TURNWISE_CACHE", str(tmp_path))
    return tmp_path / "search"


def test_bm25s_makes_its_index_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bm25s", reason='needs pip install -e ".[envs]"')
    pytest.importorskip("Stemmer", reason='needs pip install -e ".[envs]"')
    (found, nothing) = DiskRetriever(CORPUS).search(["the governors of Maine", "the"], 5)
    assert {hit.document.id for hit in found} == {"a", "b", "c"}  # stemmed: governors
    assert {hit.document for hit in found} == set(CORPUS)
    assert nothing == []
    (folder,) = cache.iterdir()
    monkeypatch.setattr(DiskRetriever, "_make", None)  # a second index would raise
    assert DiskRetriever(CORPUS).search(["the governors of Maine"], 5) == [found]
    next(folder.glob("data*.npy")).unlink()
    with pytest.raises(ValueError, match=r"index .* is damaged .* Delete that folder"):
        DiskRetriever(CORPUS)


def test_bm25s_missing_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(ValueError, match=r'retriever="bm25s" needs bm25s: pip install -e "\.\[envs\]"'):
        DiskRetriever(CORPUS)


# ---------------------------------------------------------------------- the server and its client


@contextmanager
def running(server: HTTPServer) -> Iterator[HTTPServer]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def url() -> Iterator[str]:
    server = SearchServer(MemoryRetriever(CORPUS), port=0, topk=2)
    with running(server):
        yield server.url


def post(url: str, body: bytes) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body), timeout=5) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_the_server_speaks_search_r1(url: str) -> None:
    status, answer = post(url, b'{"queries": ["bath", "state"], "topk": 1, "return_scores": true}')
    state = {"id": "b", "contents": '"Maine"\nMaine is a state'}
    assert status == 200
    assert answer["result"][1][0]["document"] == state
    assert answer["result"][1][0]["score"] > 0
    assert [len(found) for found in answer["result"]] == [1, 1]
    assert post(url, b'{"queries": ["state"], "topk": null}') == (200, {"result": [[state]]})
    assert post(url, b'{"queries": []}') == (200, {"result": []})
    (found,) = post(url, b'{"queries": ["is a city bath maine"]}')[1]["result"]
    assert len(found) == 2  # the server's own topk


def test_the_server_is_healthy(url: str) -> None:
    with urllib.request.urlopen(url.replace("/retrieve", "/health"), timeout=5) as response:
        assert json.loads(response.read()) == {"status": "ok"}


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"not json", "not JSON"),
        (b"[" * 200_000, "not JSON"),
        (b"[]", "Expected an object"),
        (b'{"query": "x"}', "Expected an object"),
        (b'{"queries": [1]}', '"queries" must be a list of texts'),
        (b'{"queries": ["x"], "topk": 0}', '"topk" must be a whole number from 1 to 1000'),
        (b'{"queries": ["x"], "topk": true}', '"topk" must be'),
        (b'{"queries": ["x"], "return_scores": 1}', '"return_scores" must be'),
    ],
)
def test_bad_requests_get_one_sentence(url: str, body: bytes, sentence: str) -> None:
    status, answer = post(url, body)
    assert status == 400
    assert sentence in answer["detail"]
    assert "\n" not in answer["detail"]


def test_other_paths_are_not_found(url: str) -> None:
    assert post(url.replace("/retrieve", "/search"), b"{}") == (
        404,
        {"detail": "There is no POST /search: expected POST /retrieve."},
    )


def test_an_address_in_use_is_said(url: str) -> None:
    port = int(url.split(":")[2].split("/")[0])
    with pytest.raises(ValueError, match=f"Cannot serve on 127.0.0.1 port {port}.*choose another port"):
        SearchServer(MemoryRetriever(CORPUS), port=port)
    with pytest.raises(ValueError, match="Cannot serve"):
        SearchServer(MemoryRetriever(CORPUS), port=70_000)
    with pytest.raises(ValueError, match="Did you mean 'bm25s'"):
        serve(retriever="bm25ss")


def test_serving_ends_with_an_interrupt(tmp_path: Path) -> None:
    corpus = tmp_path / "c.jsonl"
    corpus.write_text("".join(json.dumps({"id": d.id, "contents": d.contents}) + "\n" for d in CORPUS))
    program = (
        # A shell's background job ignores interrupts, and its children do.
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from turnwise.commands.serve_search import serve; "
        "serve(sys.argv[1], port=0, on_ready=lambda url: sys.stdout.write(url + chr(10)) and sys.stdout.flush())"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(corpus)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert RemoteRetriever(url).search(["state"], 3) == MemoryRetriever(CORPUS).search(["state"], 3)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 0


def test_our_client_finds_what_the_engine_finds(url: str) -> None:
    queries = ["bath", "maine state", "nothing at all"]
    assert RemoteRetriever(url).search(queries, 3) == MemoryRetriever(CORPUS).search(queries, 3)
    assert RemoteRetriever(url.removesuffix("/retrieve")).url == url


def test_an_episode_is_the_same_over_http() -> None:
    here = SearchEnv()
    with running(SearchServer(MemoryRetriever(GeneratedQuestions().world.corpus), port=0)) as server:
        there = SearchEnv(retriever=server.url)  # type: ignore[attr-defined]
        for index in range(5):
            start = {"options": {"split": "test", "task": index}}
            expert, now = here.expert(), here.reset(**start)  # type: ignore[arg-type]
            assert there.reset(**start) == now  # type: ignore[arg-type]
            expert.begin(*now)
            for _ in range(3):
                action = expert.act(*now)
                step = here.step(action)
                assert there.step(action) == step
                now = step[0], step[4]
                if step[2]:
                    break
            assert step[4]["success"]


Answer = Callable[[BaseHTTPRequestHandler], None]


def says(status: int, body: bytes) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


FOUND = says(200, b'{"result": [[{"id": 4, "contents": "x"}]]}')


@contextmanager
def misbehaving(*answers: Answer) -> Iterator[tuple[str, list[int]]]:
    """(URL, requests so far) of a server that gives these answers in turn, the last one for ever."""
    asked: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(1)
            self.rfile.read(int(self.headers["Content-Length"]))
            answers[min(len(asked), len(answers)) - 1](self)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with running(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as server:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked


def hangs_up(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True


def test_the_client_tries_again() -> None:
    with misbehaving(says(500, b"oops"), hangs_up, says(429, b"later"), FOUND) as (url, asked):
        found = RemoteRetriever(url, tries=4, backoff_s=0.001).search(["q"], 3)
    assert found == [[Hit(Document("4", "x"), 0.0)]]
    assert len(asked) == 4


def test_a_slow_server_is_given_up_by_its_url() -> None:
    patience = threading.Event()

    def sleeps(handler: BaseHTTPRequestHandler) -> None:
        patience.wait(0.2)
        hangs_up(handler)

    with misbehaving(sleeps) as (url, asked):
        retriever = RemoteRetriever(url, timeout_s=0.05, tries=2, backoff_s=0.001)
        with pytest.raises(ConnectionError, match=rf"{url}/retrieve in 2 tries \(last: timed out\)"):
            retriever.search(["q"], 3)
        patience.set()
    assert len(asked) == 2


def test_nobody_there() -> None:
    with misbehaving(FOUND) as (url, _):
        pass
    with pytest.raises(ConnectionError, match=f"{url}/retrieve in 2 tries.*Is it running"):
        RemoteRetriever(url, tries=2, backoff_s=0.001).search(["q"], 3)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>hello</html>",
        b"[]",
        b'{"answer": []}',
        b'{"result": []}',
        b'{"result": [{}]}',
        b'{"result": [["x"]]}',
        b'{"result": [[{"document": {"id": 1}, "score": 2}]]}',
        b'{"result": [[{"document": {"contents": "x"}, "score": "high"}]]}',
        b"\xff\xfe",
    ],
)
def test_garbage_is_not_asked_for_twice(body: bytes) -> None:
    with misbehaving(says(200, body)) as (url, asked):
        with pytest.raises(ValueError, match=f"{url}/retrieve did not answer as a retrieval server does"):
            RemoteRetriever(url).search(["q"], 3)
        assert len(asked) == 1


def test_a_refusal_is_passed_on(url: str) -> None:
    with pytest.raises(ValueError, match=r"refused the search: status 400.*whole number from 1 to 1000"):
        RemoteRetriever(url).search(["q"], 5000)


@pytest.mark.parametrize("bad", ["localhost:8000", "ftp://x", "http://"])
def test_what_is_no_url(bad: str) -> None:
    with pytest.raises(ValueError, match="http://host:port"):
        RemoteRetriever(bad)
