"""Calls as models write them: what is written is read, and a broken call costs itself alone."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnwise.agents.actions import parse_action
from turnwise.agents.prompts import AgentConfig
from turnwise.agents.seating import Seat
from turnwise.agents.toolcalls import DIALECTS, OneCall, dialect_of, name_of
from turnwise.envs.said import Call, Said, heard
from turnwise.errors import AgentError

WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="<>=\n"), min_size=1, max_size=6)
NAMES = WORDS.map(str.strip).filter(bool)
VALUES = st.recursive(
    st.booleans() | st.integers(), lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=2)
)
CALLS = st.lists(st.builds(Call, NAMES, st.dictionaries(NAMES, VALUES, max_size=3)), min_size=1, max_size=3)


@pytest.mark.parametrize("name", ["hermes", "qwen_xml", "llama3"])
@given(calls=CALLS, content=st.just("") | NAMES)
def test_what_is_written_is_read(name: str, calls: list[Call], content: str) -> None:
    dialect = DIALECTS[name]
    content = "" if name == "llama3" else content  # its template shows no text beside calls
    assert dialect.read(dialect.write(Said(content, tuple(calls)))) == Said(content, tuple(calls))


IDENTIFIERS = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.\-]{0,5}", fullmatch=True)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<>"), max_size=8)
OF_IDENTIFIERS = st.lists(
    st.builds(Call, IDENTIFIERS, st.dictionaries(IDENTIFIERS, VALUES | TEXTS | st.floats(-9, 9), max_size=3)),
    min_size=1,
    max_size=3,
)


@given(calls=OF_IDENTIFIERS, content=st.just("") | NAMES)
def test_calls_like_python_are_read(calls: list[Call], content: str) -> None:
    dialect = DIALECTS["lfm2"]
    assert dialect.read(dialect.write(Said(content, tuple(calls)))) == Said(content, tuple(calls))


@given(calls=OF_IDENTIFIERS, content=st.just("") | NAMES)
def test_calls_between_tags_of_keys_and_values_are_read(calls: list[Call], content: str) -> None:
    """By the schema, since a text may look like a number."""
    tools = []
    for call in calls:
        kinds = {key: {"type": "string"} for key, value in call.arguments.items() if isinstance(value, str)}
        tools.append({"function": {"name": call.name, "parameters": {"properties": kinds}}})
    dialect = DIALECTS["glm4"]
    for call, tool in zip(calls, tools, strict=True):
        assert dialect.read(dialect.write(Said(content, (call,))), [tool]) == Said(content, (call,))


PYTHONIC: list[tuple[str, dict[str, Any] | None]] = [
    ("[find(query='it's \"so\"\nlong', limit=2)]", {"query": 'it\'s "so"\nlong', "limit": 2}),
    ("find(query='a')", {"query": "a"}),
    (
        '[find(query="a, b", deep={"k": [1, 2.5, null]}, on=true)]',
        {"query": "a, b", "deep": {"k": [1, 2.5, None]}, "on": True},
    ),
    ("[find(query='\\x3c|tool_call_end|>', path='C:\\d')]", {"query": "<|tool_call_end|>", "path": "C:\\d"}),
    ('[{"name": "find", "arguments": {"query": "a"}}]', {"query": "a"}),
    ("[find()]", {}),
    ("[find(query=mug)]", None),
    ("[find('mug')]", None),
    ("[find(query='mug]", None),
    ("[find(query='mug'", None),
    ('[{"name": "find"', None),
    ("[find(a=[[" + "[" * 5000, None),
    ("[find(a=" + "9" * 5000 + ")]", None),
    ("", None),
]


@pytest.mark.parametrize(("body", "arguments"), PYTHONIC)
def test_what_models_write_like_python(body: str, arguments: dict[str, Any] | None) -> None:
    for text in (f"<|tool_call_start|>{body}<|tool_call_end|>", f"<|tool_call_start|>{body}"):
        found = DIALECTS["lfm2"].read(f"Well. {text}")
        if arguments is None:
            assert found.calls == ()
            assert found.fault
            assert found.content.startswith("Well. <|tool_call_start|>")
        else:
            assert (found.content, found.calls, found.fault) == ("Well.", (Call("find", arguments),), None)


def test_a_broken_call_between_tags_of_keys_costs_itself_alone() -> None:
    good, bad = (
        "<tool_call>find\n<arg_key>q</arg_key>\n<arg_value>a</arg_value>\n</tool_call>",
        "<tool_call>{}</tool_call>",
    )
    found = DIALECTS["glm4"].read(f"{good}{bad}{good}")
    assert found.calls == (Call("find", {"q": "a"}),) * 2
    assert found.content == bad
    assert "NAME, then <arg_key>" in (found.fault or "")


@pytest.mark.parametrize("name", DIALECTS)
@given(
    text=st.text(max_size=30)
    | st.lists(
        st.sampled_from(
            [
                "<tool_call>",
                "</tool_call>",
                "{",
                '"name"',
                ":",
                "}",
                "<function=f>",
                "<parameter=x>",
                "<|tool_call_start|>",
                "<|tool_call_end|>",
                "f(",
                "a=",
                "'",
                ")",
                "<arg_key>",
                "</arg_key>",
                "<arg_value>",
                "</arg_value>",
                "</parameter>",
                "[",
                "1",
                '"f"',
                "\n",
            ]
        ),
        max_size=12,
    ).map("".join)
)
def test_no_text_is_an_exception(name: str, text: str) -> None:
    found = DIALECTS[name].read(text)
    assert heard(parse_action(text, "calls", DIALECTS[name]).text).calls == found.calls


HERMES = {
    '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>': ([("f", {"x": 1})], None),
    '<tool_call>{"name": "f", "arguments": {}}</tool_call><tool_call>{"name": "g"}</tool_call>': (
        [("f", {}), ("g", {})],
        None,
    ),
    '<tool_call>{"name": "f", "parameters": {"x": 1}}': ([("f", {"x": 1})], None),
    '<tool_call>{"name": "f", "arg</tool_call><tool_call>{"name": "g", "arguments": {}}</tool_call>': (
        [("g", {})],
        "the call is not JSON",
    ),
    '<tool_call>{"name": "f", "arguments": "x"}</tool_call>': ([], '"arguments" of f is an object'),
    '<tool_call>{"name": "f", "arguments": [1]}</tool_call>': ([], "not a list"),
    '<tool_call>{"arguments": {}}</tool_call>': ([], 'an object with "name" and "arguments"'),
    "<tool_call></tool_call>": ([], "not JSON"),
    "just an answer": ([], None),
}


@pytest.mark.parametrize("text", HERMES)
def test_hermes(text: str) -> None:
    calls, fault = HERMES[text]
    found = DIALECTS["hermes"].read(text)
    assert [(call.name, call.arguments) for call in found.calls] == calls
    assert (found.fault is None) == (fault is None)
    assert (fault or "") in (found.fault or "")
    action = parse_action(text, "calls")
    assert action.valid == (fault is None)
    broken = text.partition("</tool_call><tool_call>")[0] if found.calls else text
    assert found.content == ("" if fault is None and found.calls else broken + "</tool_call>" * bool(found.calls))


def test_text_beside_calls_and_thoughts_before_them_are_kept() -> None:
    text = '<think>\nWhich?\n</think>\n\nI look.\n<tool_call>{"name": "f", "arguments": {}}</tool_call>\nSoon.'
    assert heard(parse_action(text, "calls").text) == Said("I look.\n\nSoon.", (Call("f"),), None, "Which?")
    cut = parse_action("<think>\nWhich", "calls")
    assert not cut.valid
    assert "inside a thought" in (heard(cut.text).fault or "")
    assert heard(cut.text).thought == "Which"


def test_where_no_tools_are_offered_all_is_text() -> None:
    text = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    none = parse_action(f"<think>Hm.</think> {text}", "calls", tools=[])
    assert (heard(none.text), none.valid) == (Said(text, thought="Hm."), True)
    assert heard(parse_action(text, "calls").text).calls == (Call("f"),)


def test_llama_takes_an_answer_in_json_for_an_answer() -> None:
    read = DIALECTS["llama3"].read
    assert read('{"city": "Rome"}') == Said('{"city": "Rome"}')
    assert read("It is {so}.") == Said("It is {so}.")
    assert read('<|python_tag|>{"name": "f", "parameters": {"x": "y"}}').calls == (Call("f", {"x": "y"}),)
    broken = read('{"name": "f", "parameters": {"x": ')
    assert (broken.calls, broken.content) == ((), '{"name": "f", "parameters": {"x":')
    assert "not JSON" in (broken.fault or "")
    later = read('{"name": "f", "parameters": {}}; {"name"')
    assert later.calls == (Call("f"),)
    assert (later.fault is not None, later.content) == (True, '{"name"')
    wrong = read('{"name": "f"}; {"name": "f", "parameters": 1}; {"name": "g"}')
    assert (wrong.calls, wrong.content) == ((Call("f"), Call("g")), '{"name": "f", "parameters": 1}')


def test_qwen_reads_values_as_the_schema_says() -> None:
    values = "".join(f"<parameter={key}>\n12\n</parameter>\n" for key in "ab")
    said = f"<tool_call>\n<function=f>\n{values}</function>\n</tool_call>"
    kinds = {"a": {"type": "string"}, "b": {"type": "integer"}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"properties": kinds}}}]
    assert DIALECTS["qwen_xml"].read(said, tools).calls == (Call("f", {"a": "12", "b": 12}),)
    for kinds in ({"a": True, "b": None}, None, [], True):
        loose = [{"type": "function", "function": {"name": "f", "parameters": {"properties": kinds}}}]
        assert DIALECTS["qwen_xml"].read(said, loose).calls == (Call("f", {"a": 12, "b": 12}),)
        none = [{"type": "function", "function": {"name": "f", "parameters": kinds}}]
        assert DIALECTS["qwen_xml"].read(said, none).calls == (Call("f", {"a": 12, "b": 12}),)
    left = DIALECTS["qwen_xml"].read("<tool_call><function=f>x=1</function></tool_call>")
    assert left.calls == ()
    assert "a parameter is written as" in (left.fault or "")


def test_where_one_call_a_reply_is_shown_the_first_counts() -> None:
    dialect = OneCall(DIALECTS["hermes"])
    two = dialect.write(Said("", (Call("f"), Call("g"))))
    assert dialect.read(two).calls == (Call("f"),)
    assert "only the first" in (dialect.read(two).fault or "")
    assert dialect.read(two).content == '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>'
    assert dialect.read(dialect.write(Said("", (Call("f"),)))) == Said("", (Call("f"),))


class Other:
    """A dialect that stumbles over everything."""

    def read(self, text: str, tools: Any = ()) -> Said:
        raise KeyError("mug")

    def write(self, said: Said) -> str:
        return said.content


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_dialect_that_cannot_read_is_named(wrapped: bool) -> None:
    own = dialect_of("tests.agents.test_toolcalls:Other")
    chat = SimpleNamespace(dialect=OneCall(own) if wrapped else own)
    model: Any = SimpleNamespace(config=AgentConfig(context="roles", action_format="calls"), chat=chat)
    with pytest.raises(AgentError, match=r"dialect tests\.agents\.test_toolcalls:Other .*KeyError: 'mug'.* 'so'"):
        Seat(model=model, context=cast(Any, None)).read("so")


def test_dialects_have_names() -> None:
    assert [name_of(each) for each in DIALECTS.values()] == list(DIALECTS)
    with pytest.raises(ValueError, match="Did you mean 'hermes'"):
        dialect_of("hermees")
    with pytest.raises(ValueError, match="cannot be made"):
        dialect_of("tests.nowhere:Dialect")
    with pytest.raises(ValueError, match="needs the methods read"):
        dialect_of("builtins:dict")


@pytest.mark.parametrize("name", DIALECTS)
@pytest.mark.parametrize(
    ("begin", "again"),
    [
        ("<tool_call>f\n", "<arg_key>k</arg_key><arg_value>"),
        ("<tool_call>f\n<arg_key>", "</arg_key> <arg_value>"),
        ("<tool_call><function=f>", "<parameter=k>\n"),
        ("<tool_call><function=f>", "<parameter="),
        ("", "<tool_call>"),
        ("", "<|tool_call_start|>[f(a="),
        ("<|tool_call_start|>[f(a='", "' "),
        ("", '{"name": "f", "parameters": '),
    ],
)
def test_what_a_policy_repeats_is_read_in_a_moment(name: str, begin: str, again: str) -> None:
    """Tags that nothing closes: a reader that looks from each of them to the end takes minutes."""
    text = begin + again * (150_000 // len(again))
    before = time.process_time()
    assert DIALECTS[name].read(text).calls == ()
    assert time.process_time() - before < 5


def test_values_may_hold_tags() -> None:
    tags = "<arg_key>k</arg_key> <parameter=a>\n\n"
    for name in ("glm4", "qwen_xml"):
        (call,) = (
            DIALECTS[name].read(DIALECTS[name].write(Said("", (Call("f", {"x": tags, "y": "<arg_value>"}),)))).calls
        )
        assert call.arguments == {"x": tags, "y": "<arg_value>"}
