"""An endpoint in a world of chats with roles: it gets messages and tools as they are, and its calls are made."""

from __future__ import annotations

import json
from typing import Any

import gymnasium
import pytest

from tests.chat_server import Response, in_turn, refusal, serving
from turnwise.agents.chat_client import EndpointConfig
from turnwise.agents.dialogue import conversations
from turnwise.agents.endpoint import endpoint, heard_from, wished
from turnwise.agents.jobs import Job, jobs_for
from turnwise.agents.prompts import AgentConfig
from turnwise.agents.scripted import play_episode
from turnwise.agents.seating import Seating
from turnwise.agents.wishes import Wishes
from turnwise.cloning.examples import examples_for
from turnwise.envs.forms import Form
from turnwise.envs.interface import AnyText
from turnwise.envs.said import Call, Said
from turnwise.envs.tasks import make_env, panel
from turnwise.models.engine import Sampling
from turnwise.trajectory import Task

CONFIG = AgentConfig(context="roles", action_format="calls", instructions=True, system="You are an agent.")


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNWISE_API_KEY", "sk-secret")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def calling(*calls: tuple[str, str], content: str | None = None) -> Response:
    listed = [
        {"id": f"x{n}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for n, (name, arguments) in enumerate(calls)
    ]
    message = {"role": "assistant", "content": content, **({"tool_calls": listed} if listed else {})}
    return Response(json.dumps({"choices": [{"message": message}], "usage": {}}).encode())


def played(*responses: Response, settings: AgentConfig = CONFIG) -> tuple[Any, list[dict[str, Any]]]:
    env = make_env("turnwise/SQL-v0")
    (job,) = jobs_for(panel(env, "test")[:1], 1, 0)
    with serving(in_turn(*responses)) as server:
        asked = EndpointConfig(base_url=server.url, backoff_s=0.001)
        agent = endpoint("openai:m", settings, asked)
        (episode,) = play_episode(env, Seating({"": agent}), job)
        return episode, [each.body for each in server.asked]


def test_calls_are_made_and_answered() -> None:
    env = make_env("turnwise/SQL-v0")
    env.reset(options={"split": "test", "task": 0})
    problem = env.unwrapped.problem  # type: ignore[attr-defined]
    query = json.dumps({"sql": problem.sql})
    episode, bodies = played(
        calling(("tables", ""), ("query", "{"), content="I look."),
        calling(("query", query)),
        calling(content=problem.answer),
    )
    assert episode.success
    assert [turn.valid for turn in episode.turns] == [False, True, True]
    system, user = bodies[0]["messages"]
    assert system["content"].startswith("You are an agent.\n\nAnswer the question")
    assert user == {"role": "user", "content": problem.question}
    assert [tool["function"]["name"] for tool in bodies[0]["tools"]] == ["tables", "query"]
    roles = [message["role"] for message in bodies[2]["messages"]]
    assert roles == ["system", "user", "assistant", "tool", "user", "assistant", "tool"]
    told = bodies[2]["messages"]
    assert told[2]["tool_calls"][0] == {
        "id": "call00000",
        "type": "function",
        "function": {"name": "tables", "arguments": "{}"},
    }
    assert json.loads(told[5]["tool_calls"][0]["function"]["arguments"]) == {"sql": problem.sql}
    assert "could not be read" in told[4]["content"]
    assert bodies[2]["tools"] == bodies[0]["tools"]


def test_examples_stand_behind_the_system_message() -> None:
    """Their calls have ids that their results name, as a server wants it."""
    env, (job,) = make_env("turnwise/SQL-v0"), jobs_for(panel(make_env("turnwise/SQL-v0"), "test")[:1], 1, 0)
    examples = examples_for(env, CONFIG.model_copy(update={"examples": 1}), usual=True)
    with serving(in_turn(calling(content="42"))) as server:
        asked = EndpointConfig(base_url=server.url, backoff_s=0.001)
        play_episode(env, Seating({"": endpoint("openai:m", CONFIG, asked, examples)}), job)
        told = server.asked[0].body["messages"]
    assert [message["role"] for message in told[:3]] == ["system", "user", "assistant"]
    assert told[-1]["role"] == "user"
    assert told[-1]["content"] != told[1]["content"]
    called = [call["id"] for message in told for call in message.get("tool_calls", ())]
    assert called == [message["tool_call_id"] for message in told if message["role"] == "tool"]
    assert called


def test_no_message_of_a_tool_answers_what_is_no_call() -> None:
    """OpenAI's own server refuses a request with such a message."""
    episode, bodies = played(
        calling(("tables", "{")), calling(("query", "{"), ("tables", "{}"), ("query", "[1]")), calling(content="42")
    )
    told = bodies[2]["messages"][2:]
    assert [message["role"] for message in told] == ["assistant", "user", "assistant", "tool", "user"]
    assert told[3]["tool_call_id"] == told[2]["tool_calls"][0]["id"]
    assert set(told[1]) == {"role", "content"}
    assert "could not be read" in told[1]["content"]
    assert "Calls before and after it were made" in told[4]["content"]
    stored = conversations(episode.turns)[-1]  # what an export as chats holds
    assert [message["role"] for message in stored[1:]] == [message["role"] for message in told]


def test_a_full_context_ends_the_episode() -> None:
    episode, _ = played(
        calling(("tables", "{}")), refusal(400, "maximum context length is exceeded", "context_length_exceeded")
    )
    assert (episode.end, episode.end_reason, len(episode.turns)) == ("truncated", "context", 1)
    with pytest.raises(ValueError, match="does not start anew"):
        played(settings=CONFIG.model_copy(update={"on_overflow": "restart"}))
    with pytest.raises(ValueError, match=r"set agent\.context=roles"):
        played(calling(), settings=AgentConfig())


FORMS: list[tuple[Form, dict[str, Any]]] = [
    (Form({"type": "object"}), {"response_format": {"type": "json_object"}}),
    (
        Form({"type": "string"}, ("find",)),
        {"response_format": {"type": "json_schema", "json_schema": {"name": "reply", "schema": {"type": "string"}}}},
    ),
    (
        Form({"type": "string"}, ("find",), one_call=True, strict=True),
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "reply", "schema": {"type": "string"}, "strict": True},
            },
            "parallel_tool_calls": False,
        },
    ),
    (Form(None, ("find",), one_call=True), {"tool_choice": {"type": "function", "function": {"name": "find"}}}),
    (Form(None, ("find",), must=False), {"tool_choice": "required"}),
    (Form(None, ("find",), True, must=False), {"tool_choice": "required", "parallel_tool_calls": False}),
]


@pytest.mark.parametrize(("form", "fields"), FORMS)
def test_a_form_is_asked_of_the_server(form: Form, fields: dict[str, Any]) -> None:
    usual = {"temperature": 1.0, "max_tokens": 9}
    assert wished(usual, Wishes(form=form)) == {**usual, **fields}


def test_what_a_program_wishes_is_asked_of_the_server() -> None:
    """A greedy measurement stays greedy, and the agent's own limit holds too."""

    class Wishing(gymnasium.Env[str, str]):
        in_roles = True
        observation_space = action_space = AnyText()

        def reset(self, **more: Any) -> Any:
            return "", {"messages": [{"role": "user", "content": "Hi."}], "sampling": {"temperature": 0.25, **WISHES}}

        def step(self, action: str) -> Any:
            return "", 1.0, True, False, {}

    def asked(temperature: float) -> dict[str, Any]:
        with serving(in_turn(calling(content="x"))) as server:
            agent = endpoint("openai:m", CONFIG, EndpointConfig(base_url=server.url, backoff_s=0.001))
            agent.make.sampling = Sampling(temperature)  # type: ignore[attr-defined]
            play_episode(Wishing(), Seating({"": agent}), Job(Task("Wishing", "train", 0, "0"), 0, 0, 0))
            return server.asked[0].body

    first = asked(1.0)
    assert (first["temperature"], first["max_tokens"], first["stop"]) == (0.25, CONFIG.max_reply_tokens, ["."])
    assert asked(0.0)["temperature"] == 0.0


WISHES = {"max_tokens": 1000, "stop": ["."]}


def test_what_a_server_may_say() -> None:
    assert heard_from({"content": None, "reasoning_content": "Hm."}) == Said("", (), None, "Hm.")
    both = {
        "tool_calls": [
            {"function": {"name": "f", "arguments": "[1]"}},
            {"function": {"name": "g", "arguments": "{}"}},
            3,
        ]
    }
    found = heard_from(both)
    assert found.calls == (Call("g"),)
    assert found.fault is not None
    assert "no object" in found.fault
