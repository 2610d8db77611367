"""A served model: which conversation a request belongs to, and when one ends. Replies are dictated."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.envs.programs.agents import post, said, send, user
from turnwise.envs.programs import serving as served
from turnwise.envs.programs.asked import Terms, read_request
from turnwise.envs.programs.gateway import Gateway
from turnwise.envs.programs.running import Model
from turnwise.envs.programs.serving import ClosedError, Conversations, ServedEnv
from turnwise.envs.programs.talk import Talk


class Player(threading.Thread):
    """Plays conversations, one after the other, by saying how many turns each has had; keeps how they ended."""

    def __init__(self, door: Conversations) -> None:
        super().__init__(daemon=True)
        self.env = ServedEnv(door)
        self.seen: list[list[Any]] = []
        self.ends: list[tuple[float, Any]] = []
        self.start()

    def run(self) -> None:
        while True:
            try:
                _, info = self.env.reset()
            except ClosedError:
                return
            self.seen.append([info.get("after")])
            over = False
            while not over:
                _, reward, over, _, info = self.env.step(f"reply {len(self.seen[-1])}")
                if over:
                    self.ends.append((reward, info["success"]))
                else:
                    self.seen[-1].append(info.get("after"))


@contextmanager
def service(worlds: int = 1, **more: Any) -> Iterator[tuple[Model, list[Player], Conversations]]:
    door = Conversations(Terms(greedy=True), **more)
    gateway = Gateway(door)
    players = [Player(door) for _ in range(worlds)]
    try:
        yield Model(gateway.url, more.get("api_key") or "any"), players, door
    finally:
        door.close()
        gateway.close()
        for player in players:
            player.join(10)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "_POLL_S", 0.02)
    monkeypatch.setattr(served, "SILENT_S", 0.05)


def test_a_conversation_goes_on_where_its_messages_do() -> None:
    with service(worlds=2) as (model, players, _):
        for name in ("ann", "bob"):
            first = said(post(model, [user(name)]))
            assert first["content"] == "reply 1"
            assert said(post(model, [user(name), first, user("more")]))["content"] == "reply 2"
        assert sorted(player.seen for player in players) == [[[None, 0]], [[None, 0]]]


def test_a_silent_conversation_makes_room_and_begins_anew() -> None:
    with service(worlds=1) as (model, (player,), _):
        ann = said(post(model, [user("ann")]))
        said(post(model, [user("bob")]))  # waits until ann is silent for long enough
        again = said(post(model, [user("ann"), ann, user("still there?")]))
        assert again["content"] == "reply 1"
        assert player.seen == [[None], [None], [None]]
        assert player.ends == [(0.0, None)] * 2


def opened(door: Conversations, name: str, silent_s: float = 0.0) -> Talk:
    """A conversation with one reply, which was given ``silent_s`` seconds ago."""
    body = json.dumps({"model": "agent", "messages": [user(name)]}).encode()
    request = read_request(body, door.terms)
    session = door.session(None, request)
    session.ask(request)
    talk = door.next()
    exchange = talk.session.next(1)
    assert exchange is not None
    talk.show(exchange)
    session.last_active -= 1000.0  # as if the reply had taken long
    talk.answer("x")
    session.last_active -= silent_s
    return talk


def test_silence_is_counted_from_the_reply() -> None:
    door = Conversations(Terms(), idle_s=600.0)
    assert not door.is_over(opened(door, "ann"))
    assert door.is_over(opened(door, "bob", silent_s=601.0))


def test_one_new_conversation_ends_one_silent_one() -> None:
    """Also before the world that makes room has come back for the new one."""
    door = Conversations(Terms())
    talks = [opened(door, name, silent_s) for name, silent_s in (("a", 9.0), ("b", 8.0), ("c", 7.0))]
    assert [door.is_over(talk) for talk in talks] == [False] * 3
    for name in ("d", "e"):
        door.session(None, read_request(json.dumps({"model": "agent", "messages": [user(name)]}).encode(), door.terms))
    assert [door.is_over(talk) for talk in talks] == [True, True, False]
    door.end(talks[0])
    door.end(talks[1])
    assert not door.is_over(talks[2])
    assert [door.next().name for _ in range(2)] == ["4-", "5-"]
    door.session(None, read_request(json.dumps({"model": "agent", "messages": [user("f")]}).encode(), door.terms))
    assert door.is_over(talks[2])


def test_a_conversation_ends_by_silence() -> None:
    with service(idle_s=0.1) as (model, (player,), _):
        said(post(model, [user("ann")]))
        _wait_for(lambda: player.ends == [(0.0, None)])


def test_feedback_rewards_a_conversation_and_ends_it() -> None:
    with service() as (model, (player,), _):
        status, answer = post(model, [user("ann")])
        assert status == 200
        url = f"{model.base_url}/feedback"
        key = {"Authorization": f"Bearer {model.api_key}"}

        def tell(**body: Any) -> Any:
            return send(url, json.dumps(body).encode(), key)[0]

        assert tell(id=answer["id"], reward="much") == 400
        assert tell(id=answer["id"], reward=10**400) == 400
        assert tell(id=answer["id"], reward=1, success="yes") == 400
        assert tell(id="chatcmpl-99-0", reward=1) == 404
        assert tell(id=answer["id"], reward=0.5, success=True) == 200
        _wait_for(lambda: player.ends == [(0.5, True)])
        assert tell(id=answer["id"], reward=1) == 404


def test_a_retry_opens_no_second_conversation() -> None:
    with service(worlds=2) as (model, players, _):
        first = post(model, [user("ann")])
        again = post(model, [user("ann")], {"x-stainless-retry-count": "1"})
        assert first[1]["id"] == again[1]["id"]
        assert sum(len(player.seen) for player in players) == 1


def test_a_key_is_asked_for_where_one_is_set() -> None:
    with service(api_key="secret") as (model, _, _door):
        assert post(Model(model.base_url, "other"), [user("hi")])[0] == 401
        assert post(model, [user("hi")])[0] == 200


def test_too_many_conversations_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "MAX_NEW", 0)
    with service() as (model, _, _door):
        status, body = post(model, [user("hi")])
        assert (status, body["error"]["code"]) == (429, "too_many_requests")


def test_a_closed_door_refuses() -> None:
    with service() as (model, _, door):
        said(post(model, [user("hi")]))
        door.close()
        assert post(model, [user("hello")])[0] == 503


def test_a_request_that_is_too_long_ends_a_conversation_without_replies() -> None:
    door = Conversations(Terms())
    gateway = Gateway(door)
    env, found = ServedEnv(door), []
    model = Model(gateway.url, "any")
    thread = threading.Thread(target=lambda: found.append(post(model, [user("long")])))
    thread.start()
    env.reset()
    assert env.refuse()[2:4] == (True, False)
    thread.join()
    assert (found[0][0], found[0][1]["error"]["code"]) == (400, "context_length_exceeded")
    gateway.close()


def _wait_for(found: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not found():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.01)
