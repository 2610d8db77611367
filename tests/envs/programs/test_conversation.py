"""Which request goes on from which reply: by content, and only where the echo is what was sampled."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnwise.envs.forms import Form, fault
from turnwise.envs.programs import formed
from turnwise.envs.programs.asked import MAX_TEMPERATURE, Request, Terms, read_request
from turnwise.envs.programs.conversation import Conversation, readable
from turnwise.envs.programs.refused import RefusedError
from turnwise.envs.said import Call, Said

WORDS = [
    *(
        "model",
        "messages",
        "tools",
        "tool_choice",
        "stream",
        "stream_options",
        "temperature",
        "max_tokens",
        "stop",
        "n",
    ),
    *("role", "content", "tool_calls", "function", "name", "arguments", "id", "tool_call_id", "type", "text", "user"),
    *("assistant", "response_format", "parameters", "reasoning_content", "include_usage", "top_p"),
]
FIND = {"type": "function", "function": {"name": "find", "parameters": {"type": "object", "properties": {}}}}
CALLS = Said("I look.", (Call("find", {"query": "mug", "limit": 2}), Call("find", {"query": "cup"})), thought="Hm.")


def asked(*messages: dict[str, Any], terms: Terms | None = None, **more: Any) -> Request:
    return read_request(json.dumps({"model": "agent", "messages": list(messages), **more}).encode(), terms or Terms())


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def echo(message: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A reply as clients send it back."""
    made: dict[str, Any] = {"role": "assistant", "content": message["content"]}
    if calls := message.get("tool_calls"):
        made["tool_calls"] = [
            {
                "id": c["id"],
                "type": "function",
                "function": {"name": c["name"], "arguments": json.dumps(c["arguments"])},
            }
            for c in calls
        ]
    return {**made, **changes}


def test_a_request_that_repeats_what_was_said_goes_on_from_it() -> None:
    talk = Conversation()
    assert talk.place(asked(user("hi"))).after is None
    first = talk.answered(Said("hello"))
    placed = talk.place(asked(user("hi"), echo(first), user("and?")))
    assert (placed.after, placed.messages) == (0, ({"role": "user", "content": "and?"},))
    second = talk.answered(Said("more"))
    placed = talk.place(asked(user("hi"), echo(first), user("and?"), echo(second), user("a"), user("b")))
    assert (placed.after, [m["content"] for m in placed.messages]) == (1, ["a", "b"])


@pytest.mark.parametrize(
    "changed",
    [
        {"refusal": None, "annotations": [], "audio": None, "name": "bot"},
        {"content": [{"type": "text", "text": "I "}, {"type": "text", "text": "look."}]},
        {"reasoning_content": "Hm."},
    ],
)
def test_what_clients_add_to_an_echo_does_not_matter(changed: dict[str, Any]) -> None:
    talk = Conversation()
    talk.place(asked(user("hi"), tools=[FIND]))
    back = echo(talk.answered(CALLS), **changed)
    results = [{"role": "tool", "tool_call_id": c["id"], "content": "3"} for c in back["tool_calls"]]
    placed = talk.place(asked(user("hi"), back, *results, tools=[FIND]))
    assert placed.after == 0
    assert [m["name"] for m in placed.messages] == ["find", "find"]


def test_arguments_are_compared_as_json_in_any_order() -> None:
    talk = Conversation()
    talk.place(asked(user("hi")))
    back = echo(talk.answered(CALLS))
    back["tool_calls"][0]["function"]["arguments"] = '{ "limit": 2,  "query": "mug"}'
    assert talk.place(asked(user("hi"), back, user("go on"))).after == 0


@pytest.mark.parametrize(
    "changed",
    [
        {"content": "I looked."},
        {"tool_calls": None},
        {"reasoning_content": "Another thought."},
    ],
)
def test_a_reply_that_was_changed_begins_afresh(changed: dict[str, Any]) -> None:
    talk = Conversation()
    talk.place(asked(user("hi")))
    back = echo(talk.answered(CALLS), **changed)
    placed = talk.place(asked(user("hi"), back, user("go on")))
    assert placed.after is None
    assert len(placed.messages) == 3


@pytest.mark.parametrize(("thought", "after"), [("Hm.", 1), ("Another thought.", None)])
def test_the_thought_of_an_earlier_reply_counts_too(thought: str, after: int | None) -> None:
    talk = Conversation()
    talk.place(asked(user("hi")))
    first = echo(talk.answered(CALLS), reasoning_content=thought)
    talk.place(asked(user("hi"), {**first, "reasoning_content": "Hm."}, user("go on")))
    second = echo(talk.answered(Said("done")))
    assert talk.place(asked(user("hi"), first, user("go on"), second, user("thanks"))).after == after


def test_an_argument_or_the_tools_changed_begin_afresh() -> None:
    talk = Conversation()
    talk.place(asked(user("hi")))
    back = echo(talk.answered(CALLS))
    assert talk.place(asked(user("hi"), back, user("go on"), tools=[FIND])).after is None
    back["tool_calls"][1]["function"]["arguments"] = '{"query": "cups"}'
    assert talk.place(asked(user("hi"), back, user("go on"))).after is None


def test_a_summarised_or_shortened_history_begins_afresh() -> None:
    talk = Conversation()
    talk.place(asked({"role": "system", "content": "Be brief."}, user("hi")))
    first = echo(talk.answered(Said("hello")))
    assert talk.place(asked(user("hi"), first, user("and?"))).after is None  # without the system message
    assert talk.place(asked(user("Summary: we said hello."), user("and?"))).after is None
    other = {"role": "assistant", "content": "never sampled"}
    told = asked({"role": "system", "content": "Be brief."}, user("hi"), first, user("and?"), other, user("so?"))
    assert talk.place(told).after is None


def test_the_main_agent_is_found_again_after_its_helpers() -> None:
    talk = Conversation()
    talk.place(asked(user("main")))
    main = echo(talk.answered(Said("ask the helper")))
    for number in range(3):
        assert talk.place(asked(user(f"helper {number}"))).after is None
        talk.answered(Said("done"))
    assert talk.place(asked(user("main"), main, user("it said done"))).after == 0


def test_of_two_turns_with_the_same_content_the_last_counts() -> None:
    talk = Conversation()
    for _ in range(2):
        talk.place(asked(user("hi")))
        back = echo(talk.answered(Said("hello")))
    assert talk.place(asked(user("hi"), back, user("go on"))).after == 1


def test_ids_of_calls_follow_from_turn_and_number() -> None:
    talk = Conversation()
    for _ in range(2):
        talk.place(asked(user("hi")))
        message = talk.answered(CALLS)
    assert [call["id"] for call in message["tool_calls"]] == ["call00100", "call00101"]


def test_the_observation_is_readable() -> None:
    result = {"role": "tool", "content": "a mug", "name": "find", "tool_call_id": "x"}
    reply = {"role": "assistant", "content": "", "tool_calls": [{"id": "x", "name": "find", "arguments": {"q": 1}}]}
    assert readable([user("hi"), reply, result]) == '[user] hi\n[assistant] \n  find({"q":1})\n[tool find] a mug'


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"n": 2}, "ask n times"),
    ({"response_format": {"type": "json_schema"}}, "expected .*json_object"),
    ({"response_format": "json"}, "expected .*json_object"),
    ({"tool_choice": {"type": "function", "function": {"name": "find"}}}, r"one of the tools \(none\)"),
    ({"tool_choice": {"type": "allowed_tools"}, "tools": [FIND]}, r"one of the tools \(find\)"),
    ({"tool_choice": {"type": "function", "function": {"name": ["find"]}}, "tools": [FIND]}, "one of the tools"),
    ({"logit_bias": {"5": 1}}, "leave it out"),
    ({"presence_penalty": 0.5}, "leave it out"),
    ({"logprobs": True}, "records log-probs itself"),
    ({"functions": []}, "use tools"),
    ({"temperature": MAX_TEMPERATURE + 0.1}, "from 0.001 to 2"),
    ({"temperature": True}, "from 0.001 to 2"),
    ({"max_tokens": 0}, "from 1"),
    ({"stop": ["a"] * 5}, "up to 4"),
    ({"stream": "yes"}, "true or false"),
    ({"tools": [{"type": "web_search"}]}, "as a function"),
    ({"messages": []}, "at least one"),
    ({"messages": [{"role": "king", "content": "x"}]}, "'king'"),
    ({"messages": [user([{"type": "image_url", "image_url": {"url": "x"}}])]}, "text alone"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "tool_call_id"),
    ({"messages": [user("a"), {"role": "assistant", "content": "b"}]}, "the last message"),
    ({"model": "gpt-5"}, "model.name"),
]


@pytest.mark.parametrize(("body", "way_out"), REFUSED)
def test_what_cannot_be_honoured_is_refused_with_the_way_out(body: dict[str, Any], way_out: str) -> None:
    whole = {"model": "agent", "messages": [user("hi")], **body}
    with pytest.raises(RefusedError, match=way_out):
        read_request(json.dumps(whole).encode(), Terms())


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'"\xff"', b'{"model": "agent", "messages": [{"role": "user", "content": "\\ud83d"}]}']
)
def test_a_body_that_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises(RefusedError) as told:
        read_request(body, Terms())
    assert told.value.status == 400


def test_sampling_that_can_be_honoured_is_passed_on() -> None:
    found = asked(
        user("hi"), temperature=0.5, max_tokens=9, max_completion_tokens=7, stop="\n", top_p=1, n=1, seed=None
    )
    assert (found.sampling, found.ignored) == ({"temperature": 0.5, "max_tokens": 7, "stop": ["\n"]}, ())


def test_a_temperature_that_no_logits_can_be_divided_by_is_refused() -> None:
    with pytest.raises(RefusedError, match=r"temperature=1e-300: expected 0, or a number from 0.001 to 2"):
        asked(user("hi"), temperature=1e-300)


def test_what_the_run_decides_is_named_and_refused_where_it_is_strict() -> None:
    more: dict[str, Any] = {"top_p": 0.9, "seed": 3, "tool_choice": "required", "temperature": 0, "user": "me"}
    found = asked(user("hi"), **more)
    assert found.ignored == ("top_p", "seed", "tool_choice", "temperature=0")
    assert found.sampling == {}
    with pytest.raises(RefusedError, match="top_p, seed"):
        asked(user("hi"), terms=Terms(strict=True), **more)
    assert asked(user("hi"), terms=Terms(greedy=True), temperature=0).sampling == {"temperature": 0.0}


_SELF = {"$defs": {"a": {"$ref": "#/$defs/a"}}}
ENDLESS: list[dict[str, Any]] = [
    {"$ref": "#"},
    {"anyOf": [{"$ref": "#"}]},
    {"$ref": "#/$defs/a", **_SELF},
    {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/a"}, **_SELF},
    {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}, "required": ["a"], **_SELF},
]
HUGE = {"const": "x" * 70_000}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WISHED: list[tuple[dict[str, Any], Form]] = [
    ({"response_format": {"type": "json_object"}}, Form({"type": "object"})),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}}, Form(SCHEMA)),
    ({"response_format": {"type": "json_object"}, "tools": [FIND]}, Form({"type": "object"}, ("find",))),
    (
        {
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}},
            "tools": [FIND],
            "parallel_tool_calls": False,
        },
        Form(SCHEMA, ("find",), one_call=True, strict=True),
    ),
    (
        {"response_format": {"type": "json_object"}, "tools": [FIND], "tool_choice": "none"},
        Form({"type": "object"}),
    ),
    ({"tool_choice": "required", "tools": [FIND]}, Form(None, ("find",), must=False)),
    (
        {"tool_choice": "required", "tools": [FIND], "parallel_tool_calls": False},
        Form(None, ("find",), one_call=True, must=False),
    ),
    (
        {"tool_choice": {"type": "function", "function": {"name": "find"}}, "tools": [FIND]},
        Form(None, ("find",), one_call=True),
    ),
]


@pytest.mark.parametrize(("body", "form"), WISHED)
def test_a_form_of_the_reply_is_passed_on(body: dict[str, Any], form: Form) -> None:
    pytest.importorskip("llguidance")
    found = asked(user("hi"), terms=Terms(strict=True), **body)
    assert Form.of(found.sampling) == form
    assert found.ignored == ()


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}}, r"the schema .*\"not\""),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "bad"}}}}, "Invalid type: bad"),
        *(
            ({"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}, "refers to itself alone")
            for schema in ENDLESS
        ),
        (
            {
                "tools": [
                    {"type": "function", "function": {"name": "find", "parameters": {"properties": {"a": ENDLESS[2]}}}},
                    {"type": "function", "function": {"name": "all", "parameters": {"properties": {"a": HUGE}}}},
                ],
                "tool_choice": "required",
            },
            r"tools: schemas of 70,\d\d\d characters: a reply can be held to 65,536 at most",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": HUGE}}},
            r"response_format: schemas of 70,\d\d\d characters",
        ),
        (
            {
                "tools": [{"type": "function", "function": {"name": "find", "parameters": {"uniqueItems": True}}}],
                "tool_choice": "required",
            },
            "the parameters of find .*uniqueItems",
        ),
    ],
)
def test_a_schema_that_cannot_be_kept_is_refused(body: dict[str, Any], why: str) -> None:
    pytest.importorskip("llguidance")
    with pytest.raises(RefusedError, match=why):
        asked(user("hi"), **body)


def test_a_schema_that_refers_to_itself_and_ends_is_kept() -> None:
    pytest.importorskip("llguidance")
    tree = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "below": {"type": "array", "items": {"$ref": "#"}}},
    }
    for schema in (
        {**tree, "required": ["name", "below"]},
        {"anyOf": [{"type": "null"}, tree]},
        {"const": "x" * 99},
        {},
    ):
        assert fault(schema) == ""


def test_a_schema_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    llguidance = pytest.importorskip("llguidance")
    made, compiled = list[str](), llguidance.LLMatcher
    monkeypatch.setattr(
        llguidance, "LLMatcher", lambda *given, **more: made.append(given[1]) or compiled(*given, **more)
    )
    body = {"type": "json_schema", "json_schema": {"schema": {"const": "asked again and again"}}}
    for _ in range(3):
        asked(user("hi"), response_format=body)
    assert len(made) == 1


def test_a_schema_that_is_nested_too_deeply_is_refused() -> None:
    pytest.importorskip("llguidance")
    deep: dict[str, Any] = {}
    for _ in range(3000):
        deep = {"items": deep}
    assert fault(deep) == "it is nested too deeply"


def test_without_the_library_forms_are_refused_or_a_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formed, "is_installed", lambda: False)
    with pytest.raises(RefusedError, match=r"pip install -e .\.\[grammar\].*function_calling"):
        asked(user("hi"), response_format={"type": "json_object"})
    with pytest.raises(RefusedError, match=r"pip install -e .\.\[grammar\].*offer that function alone"):
        asked(user("hi"), tools=[FIND], tool_choice={"type": "function", "function": {"name": "find"}})
    found = asked(user("hi"), tools=[FIND], tool_choice="required")
    assert (found.sampling, found.ignored) == ({}, ("tool_choice",))


def test_no_tool_choice_hides_the_tools() -> None:
    assert asked(user("hi"), tools=[FIND], tool_choice="none").tools == ()
    assert len(asked(user("hi"), tools=[FIND], tool_choice="auto").tools) == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(WORDS), JSON, max_size=5), st.lists(JSON, max_size=3))
def test_any_request_is_read_or_refused(fields: dict[str, Any], more: list[Any]) -> None:
    """And one that is read can be placed, answered and shown."""
    whole = {"model": "agent", "messages": [user("hi"), *more], **fields}
    for body in (whole, {**whole, "messages": [user("hi")]}):
        refused = None
        try:
            found = read_request(json.dumps(body).encode(), Terms())
        except RefusedError as error:
            refused = error
        if refused is not None:
            assert 400 <= refused.status < 500
            continue
        talk = Conversation()
        assert readable(talk.place(found).messages)
        assert talk.answered(CALLS)["tool_calls"]
