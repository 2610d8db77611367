"""A served model: clients talk to it, and what they said is kept as episodes that everything else reads."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.clients.dictation import deviation
from tests.envs.programs.agents import LEVELS, post, said, send, user
from tests.models import chatting_folder
from turnwise.agents.rendering import Rendering
from turnwise.agents.seating import Seat
from turnwise.assembly.serving import Offer, Service
from turnwise.cloning.chats import read_chats
from turnwise.config.files import load_config
from turnwise.envs.programs.running import Model
from turnwise.envs.tasks import SERVED, make_env
from turnwise.models.policy import Policy
from turnwise.replay.store import TrajectoryReader
from turnwise.runs.directory import RunDirectory
from turnwise.runs.trajectories import Selection, select
from turnwise.view.page import write_view

OFFER = Offer(port=0, num_slots=2, agent={"max_reply_tokens": 12, "max_context_tokens": 256})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chatting_folder(tmp_path_factory.mktemp("model"))


@contextmanager
def service(folder: Path, offer: Offer = OFFER) -> Iterator[Model]:
    made = Service(str(folder), offer)
    thread = threading.Thread(target=made.run)
    thread.start()
    try:
        yield Model(made.url, offer.api_key or "any", offer.name)
    finally:
        made.stop()
        thread.join(20)
        made.close()
        assert not thread.is_alive()


def test_a_conversation_is_served_and_recorded(folder: Path, tmp_path: Path) -> None:
    with service(folder, replace(OFFER, record=tmp_path / "served")) as model:
        first = said(post(model, [user("Where is the mug?")]))
        more = [user("Where is the mug?"), first, user("And?")]
        status, answer = post(model, more, temperature=0.5)
        assert status == 200
        assert answer["usage"]["prompt_tokens"] > answer["usage"]["completion_tokens"] > 0
        assert said(post(model, [user("Another one.")])) is not None
        streamed = post(model, [user("Streamed.")], stream=True, temperature=0)[1]
        whole = said(post(model, [user("Streamed.")], temperature=0))["content"] or ""
        assert _text(streamed) == whole
    stored = list(TrajectoryReader(tmp_path / "served" / "trajectories.jsonl.gz"))
    assert sorted(len(each.turns) for each in stored) == [1, 1, 1, 2]
    (talk,) = (each for each in stored if len(each.turns) == 2)
    assert [turn.continues for turn in talk.turns] == [False, True]
    assert talk.turns[1].processing is not None
    sampled = [replace(each, turns=each.turns[:1]) for each in stored if "Streamed" not in each.turns[0].observation]
    assert deviation(sampled, Policy.load(folder, lora=None).sampler) < 1e-4
    assert len(list(select(tmp_path / "served", Selection(text="mug")))) == 1
    write_view([tmp_path / "served"], tmp_path / "new" / "view.html", 10)
    assert (tmp_path / "new" / "view.html").stat().st_size > 10_000


def test_conversations_are_kept_as_chats(folder: Path, tmp_path: Path) -> None:
    """What is recorded is read as what is to be cloned, with the reward that somebody gave."""
    path = tmp_path / "kept" / "chats.jsonl"
    agent = {**OFFER.agent, "system": "Be brief."}
    with service(folder, replace(OFFER, record=path, agent=agent)) as model:
        answer = post(model, [user("Where is the mug?")])[1]
        judged = json.dumps({"id": answer["id"], "reward": 0.5, "success": True}).encode()
        assert (
            send(model.base_url.removesuffix("/v1") + "/v1/feedback", judged, {"Authorization": "Bearer any"})[0] == 200
        )
        said(post(model, [user("Another one.")]))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted((row["success"] is True, row["total_reward"]) for row in rows) == [(False, 0.0), (True, 0.5)]
    assert [chat.system for chat in read_chats(path)] == ["Be brief."] * 2
    told = {chat.turns[0] for chat in read_chats(path)}
    assert ("Where is the mug?", answer["choices"][0]["message"]["content"]) in told
    with pytest.raises(ValueError, match=r"must be a new file .*choose another name"):
        Service(str(folder), replace(OFFER, record=path))


def test_a_reply_has_the_form_that_is_asked_for(folder: Path) -> None:
    pytest.importorskip("llguidance")
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": LEVELS}}
    with service(folder, replace(OFFER, agent={"max_reply_tokens": 40, "max_context_tokens": 256})) as model:
        for temperature in (0, 1.0):
            answer = said(post(model, [user("How high?")], response_format=schema, temperature=temperature))
            assert json.loads(answer["content"])["level"] in ("low", "high")
        status, body = post(model, [user("hi")], response_format={**schema, "json_schema": {"schema": {"not": {}}}})
        assert (status, body["error"]["param"]) == (400, "response_format")


def test_a_run_that_trained_at_a_vllm_server_keeps_forms_when_it_is_served(folder: Path, tmp_path: Path) -> None:
    """The own engine plays, and nobody asks the server. A form that is refused is one client's alone."""
    pytest.importorskip("llguidance")
    own = [f"model.path={folder}", "lora.rank=2", "agent.max_reply_tokens=40", "agent.max_context_tokens=256"]
    theirs = ["rollout.backend=vllm", "rollout.vllm.url=http://127.0.0.1:9"]
    settings = ["env.kwargs.run=tests.envs.programs.agents:twice", "env.kwargs.tasks=x.jsonl", *own, *theirs]
    run = RunDirectory.create(tmp_path / "run", load_config("program", ["warmstart=null", *settings]), {})
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": LEVELS}}
    refused = {**schema, "json_schema": {"schema": {"not": {}}}}
    with service(run.path, Offer(port=0, num_slots=2, checkpoint=0)) as model:
        first = said(post(model, [user("mug")]))
        assert post(model, [user("hi")], response_format=refused)[0] == 400
        assert json.loads(said(post(model, [user("How?")], response_format=schema))["content"])["level"]
        assert post(model, [user("mug"), first, user("And?")])[1]["id"] == "chatcmpl-1-1"


def test_a_form_that_fails_in_the_middle_of_a_reply_is_told_to_its_client_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(seat: Seat) -> str:
        return "the reply cannot be held to its form: no token" if "broken" in seat.observation else ""

    monkeypatch.setattr(Seat, "fault", property(fault))
    with service(folder) as model:
        first = said(post(model, [user("mug")]))
        status, body = post(model, [user("broken")])
        told = "the model cannot reply to this request: the reply cannot be held to its form: no token"
        assert (status, body["error"]["message"], body["error"]["code"]) == (400, told, "invalid")
        assert post(model, [user("mug"), first, user("And?")])[1]["id"] == "chatcmpl-1-1"
        assert post(model, [user("plate")])[0] == 200


def test_a_request_that_does_not_fit_is_refused_and_the_next_one_is_not(folder: Path) -> None:
    with service(folder) as model:
        status, body = post(model, [user("mug " * 500)])
        assert (status, body["error"]["code"]) == (400, "context_length_exceeded")
        assert post(model, [user("mug")])[0] == 200


def test_an_empty_key_is_none(folder: Path) -> None:
    with service(folder, replace(OFFER, api_key="")) as model:
        assert post(model, [user("hi")])[0] == 200


def test_a_request_may_be_warmer_than_a_greedy_service(folder: Path) -> None:
    with service(folder, replace(OFFER, temperature=0.0)) as model:

        def replies(**more: Any) -> set[str]:
            return {json.dumps(said(post(model, [user(f"mug {n % 2}")], **more))) for n in range(6)}

        assert len(replies()) <= 2
        assert len(replies(temperature=1.5)) > 2


def test_a_new_conversation_is_begun_while_another_is_silent(folder: Path) -> None:
    """It takes the room of the older one; the younger one is still there."""
    with service(folder) as model:
        firsts = [said(post(model, [user(name)])) for name in ("ann", "bob")]
        assert post(model, [user("cy")])[1]["id"] == "chatcmpl-3-0"
        answer = post(model, [user("bob"), firsts[1], user("still there?")])[1]
        assert answer["id"] == "chatcmpl-2-1"


@pytest.mark.parametrize("before", [0, 1])
def test_a_template_that_refuses_a_request_is_heard(folder: Path, monkeypatch: pytest.MonkeyPatch, before: int) -> None:
    written = Rendering.text

    def text(self: Rendering, messages: Any, *rest: Any, **more: Any) -> str:
        if "twice" in json.dumps([message["content"] for message in messages if "content" in message], default=str):
            raise ValueError("roles must alternate")
        return written(self, messages, *rest, **more)

    with service(folder) as model:
        messages = [user("hi"), said(post(model, [user("hi")]))] if before else []
        monkeypatch.setattr(Rendering, "text", text)
        status, body = post(model, [*messages, user("twice")])
        assert (status, body["error"]["code"]) == (400, "invalid")
        assert "cannot reply to this request: roles must alternate" in body["error"]["message"]
        assert post(model, [user("once")])[0] == 200


def test_an_error_ends_every_conversation_and_is_raised(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both worlds wait: one for the reply that fails, the other for a conversation."""
    made, raised = Service(str(folder), OFFER), list[BaseException]()

    def run() -> None:
        try:
            made.run()
        except RuntimeError as error:
            raised.append(error)

    def fails() -> None:
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(made.agent.engine, "step", fails)
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert post(Model(made.url, "any", "agent"), [user("hi")])[0] == 409
    thread.join(20)
    try:
        assert not thread.is_alive()
        assert [str(error) for error in raised] == ["the disk is full"]
    finally:
        made.close()


def test_conversations_are_not_played_again() -> None:
    """There was "Did you mean 'turnwise/Search-v0'?"."""
    with pytest.raises(ValueError, match=r"conversations that `turnwise serve --record` kept, .* cannot be made"):
        make_env(SERVED)


def test_what_cannot_be_served_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give --api-key KEY too"):
        Service(str(folder), replace(OFFER, host="0.0.0.0"))
    for name in ("random", "expert:knowing", "openai:gpt@http://127.0.0.1:1/v1"):
        with pytest.raises(ValueError, match=f"{name} is no model of this machine: serve a run, a model folder or a"):
            Service(name, OFFER)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="not an empty folder"):
        Service(str(folder), replace(OFFER, record=tmp_path))
    with service(folder) as model, pytest.raises(ValueError, match="choose another port"):
        Service(str(folder), replace(OFFER, port=int(model.base_url.rpartition(":")[2].partition("/")[0])))


def _text(events: bytes) -> str:
    lines = [line[6:] for line in events.decode().split("\n\n") if line.startswith("data: {")]
    deltas: list[Any] = [choice["delta"] for line in lines for choice in json.loads(line)["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas)
