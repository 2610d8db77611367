"""The endpoint: keys, bounds, retries and streams, with replies that are dictated."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.envs.programs.agents import post, said, send, user
from turnwise.envs.programs import gateway as gateways
from turnwise.envs.programs.asked import Terms
from turnwise.envs.programs.conversation import reply_message
from turnwise.envs.programs.gateway import Gateway, Keys
from turnwise.envs.programs.running import Model
from turnwise.envs.programs.session import MAX_WAITING, Answer, Session, Usage
from turnwise.envs.said import Call, Said

YES = Said("yes")
CALLING = Said("I look.", (Call("find", {"query": "naïve"}), Call("find", {"query": "b"})), thought="Hm.")


@contextmanager
def serving() -> Iterator[tuple[Keys, Session, Model, Gateway]]:
    keys = Keys()
    server = Gateway(keys)
    session = keys.open(Terms())
    try:
        yield keys, session, Model(server.url, session.key), server
    finally:
        session.close("the test is over")
        server.close()


def background(call: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(call()), daemon=True)
    thread.start()
    return thread, found


def answer(session: Session, reply: Said = YES, number: int = 0, ended: bool = True) -> None:
    exchange = session.next(10)
    assert exchange is not None
    exchange.settle(Answer(reply_message(reply, number), f"chatcmpl-{number}", Usage(7, 3), ended))


def test_a_request_is_answered_in_the_form_of_the_api() -> None:
    with serving() as (_, session, model, _server):
        thread, found = background(lambda: post(model, [user("hi")]))
        answer(session, CALLING, number=4)
        thread.join()
        status, body = found[0]
        choice = body["choices"][0]
        assert (status, body["model"], choice["finish_reason"]) == (200, "agent", "tool_calls")
        assert body["usage"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        assert choice["message"]["reasoning_content"] == "Hm."
        assert [json.loads(c["function"]["arguments"]) for c in choice["message"]["tool_calls"]] == [
            {"query": "naïve"},
            {"query": "b"},
        ]
        thread, found = background(lambda: post(model, [user("hi")]))
        answer(session, ended=False)
        thread.join()
        assert found[0][1]["choices"][0]["finish_reason"] == "length"


def test_a_stream_says_the_same_as_a_whole_reply() -> None:
    with serving() as (_, session, model, _server):
        thread, found = background(
            lambda: post(model, [user("hi")], stream=True, stream_options={"include_usage": True})
        )
        answer(session, CALLING)
        thread.join()
    lines = [line[6:] for line in found[0][1].decode().split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    chunks = [json.loads(line) for line in lines[:-1]]
    assert chunks[-1]["usage"]["total_tokens"] == 10
    deltas = [chunk["choices"][0] for chunk in chunks[:-1]]
    merged: dict[str, Any] = {}
    for delta in deltas:
        for name, value in delta["delta"].items():
            merged[name] = merged.get(name, "") + value if isinstance(value, str) else value
    assert deltas[-1]["finish_reason"] == "tool_calls"
    assert (merged["role"], merged["content"], merged["reasoning_content"]) == ("assistant", "I look.", "Hm.")
    assert [call["index"] for call in merged["tool_calls"]] == [0, 1]


@pytest.mark.parametrize(("key", "status"), [("wrong", 401), ("", 401), (None, 401)])
def test_a_wrong_key_is_refused(key: str | None, status: int) -> None:
    with serving() as (_, _session, model, _server):
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        found = send(f"{model.base_url}/chat/completions", b"{}", headers)
        assert found[0] == status
        assert "model.api_key" in found[1]["error"]["message"]


def test_a_wrong_key_is_refused_before_the_body_is_read() -> None:
    with serving() as (_, _session, _model, server):
        connection = http.client.HTTPConnection(*server.server_address[:2], timeout=5)
        connection.putrequest("POST", "/v1/chat/completions")
        connection.putheader("Content-Length", "1000000")
        connection.endheaders()  # and no body
        assert connection.getresponse().status == 401


def test_a_body_that_is_too_large_or_of_unknown_length_is_refused() -> None:
    with serving() as (_, _session, model, server):
        key = {"Authorization": f"Bearer {model.api_key}"}
        long = {"Content-Length": str(gateways.MAX_BODY + 1)}
        for length, status in ((long, 413), ({"Content-Length": "9" * 5000}, 413), ({}, 411)):
            connection = http.client.HTTPConnection(*server.server_address[:2], timeout=5)
            connection.putrequest("POST", "/v1/chat/completions")
            for name, value in {**key, **length}.items():
                connection.putheader(name, value)
            connection.endheaders()
            assert connection.getresponse().status == status


def test_a_client_that_sends_too_much_hears_why() -> None:
    with serving() as (_, _session, model, _server):
        key = {"Authorization": f"Bearer {model.api_key}"}
        assert send(f"{model.base_url}/chat/completions", b" " * (gateways.MAX_BODY + 2**20), key)[0] == 413


ORIGINS: list[tuple[dict[str, str], int]] = [
    ({"Origin": "https://evil.example", "Content-Type": "text/plain"}, 403),
    ({"Origin": "https://evil.example", "Content-Type": "application/json"}, 403),
    ({"Origin": "null", "Content-Type": "application/json"}, 403),
    ({"Origin": "http://[", "Content-Type": "application/json"}, 403),
    ({"Origin": "http://127.0.0.1:3000", "Content-Type": "text/plain"}, 415),
    ({"Origin": "http://127.0.0.1:3000", "Content-Type": "application/json; charset=utf-8"}, 404),
    ({"Host": "localhost"}, 404),
    ({"Host": "localhost:80"}, 404),
    ({"Host": ""}, 403),
]


@pytest.mark.parametrize(("headers", "status"), ORIGINS)
def test_pages_of_other_sites_are_refused(headers: dict[str, str], status: int) -> None:
    """404: it was read, and asks for a model that is not there."""
    with serving() as (_, _session, model, _server):
        headers = {"Authorization": f"Bearer {model.api_key}", **headers}
        assert send(f"{model.base_url}/chat/completions", b"{}", headers)[0] == status


def test_other_pages_are_refused_with_the_way_out() -> None:
    with serving() as (_, _session, model, _server):
        key = {"Authorization": f"Bearer {model.api_key}"}
        status, body = send(f"{model.base_url}/responses", b"{}", key)
        assert (status, "OpenAIChatCompletionsModel" in body["error"]["message"]) == (404, True)
        assert send(f"{model.base_url}/completions", b"{}", key)[0] == 404
        assert send(f"{model.base_url}/models", None, key)[1]["data"][0]["id"] == "agent"
        assert send(f"{model.base_url.removesuffix('/v1')}/health", None, {})[0] == 200
        assert send(f"{model.base_url}/models", None, {**key, "Host": "evil.example:80"})[0] == 403


def test_a_retry_is_joined_to_the_first_request() -> None:
    """One turn, whichever of them is answered first, and also after the answer. The same body anew is a new turn."""
    with serving() as (_, session, model, _server):
        first, one = background(lambda: post(model, [user("hi")]))
        exchange = session.next(10)
        second, two = background(lambda: post(model, [user("hi")], {"x-stainless-retry-count": "1"}))
        assert session.next(0.3) is None
        assert exchange is not None
        exchange.settle(Answer(reply_message(YES, 0), "0"))
        first.join()
        second.join()
        assert said(one[0]) == said(two[0]) == said(post(model, [user("hi")], {"x-stainless-retry-count": "2"}))
        third, three = background(lambda: post(model, [user("hi")]))
        answer(session, Said("again"), 1)
        third.join()
        assert said(three[0])["content"] == "again"


def test_a_client_that_dies_before_its_reply_harms_nobody() -> None:
    with serving() as (_, session, model, server):
        body = json.dumps({"model": "agent", "messages": [user("hi")]}).encode()
        connection = socket.create_connection(server.server_address[:2])
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:1\r\nAuthorization: Bearer {session.key}\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        exchange = session.next(10)
        connection.close()
        assert exchange is not None
        exchange.settle(Answer(reply_message(Said("x" * 2_000_000), 0), "0"))
        thread, found = background(lambda: post(model, [user("still there?")]))
        answer(session, Said("yes"), 1)
        thread.join()
        assert said(found[0])["content"] == "yes"


def test_requests_at_once_are_answered_in_the_order_of_their_coming() -> None:
    with serving() as (_, session, model, _server):
        talks = []
        for number in range(4):
            talks.append(background(lambda number=number: post(model, [user(f"question {number}")])))
            while len(session._waiting) <= number:
                time.sleep(0.001)
        for number in range(4):
            exchange = session.next(10)
            assert exchange is not None
            assert exchange.request.messages[0]["content"] == f"question {number}"
            exchange.settle(Answer(reply_message(Said(str(number)), number), str(number)))
        for number, (thread, found) in enumerate(talks):
            thread.join()
            assert said(found[0])["content"] == str(number)


def test_too_many_requests_at_once_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("turnwise.envs.programs.session.MAX_WAITING", 2)
    with serving() as (_, session, model, _server):
        for number in range(2):
            background(lambda: post(model, [user("hi")]))
            while len(session._waiting) <= number:
                time.sleep(0.001)
        status, body = post(model, [user("hi")])
        assert (status, body["error"]["code"]) == (429, "too_many_requests")
    assert MAX_WAITING > 2


def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateways, "MAX_CONNECTIONS", 1)
    with serving() as (_, _session, _model, server), socket.create_connection(server.server_address[:2]):
        connection = http.client.HTTPConnection(*server.server_address[:2], timeout=5)
        for _ in range(100):  # until the first connection has its thread
            connection.request("GET", "/health")
            if (status := connection.getresponse().status) == 503:
                break
            connection.close()
        assert status == 503


def test_after_the_end_requests_are_refused() -> None:
    with serving() as (keys, session, model, _server):
        thread, found = background(lambda: post(model, [user("hi")]))
        exchange = session.next(10)
        keys.close(session, "over")
        thread.join()
        assert exchange is not None
        assert (found[0][0], found[0][1]["error"]["message"]) == (409, "over")
        status, body = post(model, [user("hi")])
        assert (status, body["error"]["code"]) == (409, "episode_over")
        assert "after its end" in body["error"]["message"]


def test_sessions_see_nothing_of_each_other() -> None:
    with serving() as (keys, session, _model, server):
        other = keys.open(Terms())
        thread, found = background(lambda: post(Model(server.url, other.key), [user("mine")]))
        assert session.next(0.2) is None
        answer(other, Said("yours"))
        thread.join()
        assert said(found[0])["content"] == "yours"
        assert session.key != other.key


def test_a_port_that_is_taken_is_named() -> None:
    with (
        serving() as (_, _session, _model, server),
        pytest.raises(ValueError, match=r"port \d+ .*: choose another port"),
    ):
        Gateway(Keys(), port=server.server_address[1])
