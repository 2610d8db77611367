"""Chats with tools are cloned: each assistant's message is learned, in the template's own tokens, and nothing else."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from tests.agents.test_rendering import HERMES, TOOLS, in_openai_form
from tests.agents.test_templates import bytes_of
from tests.cloning.test_sources import GOOD, written
from turnwise.agents.prompts import AgentConfig
from turnwise.cloning.chats import read_chats
from turnwise.cloning.rows import chats_as_rows
from turnwise.cloning.settings import WarmstartConfig

AGENT = AgentConfig(context="roles", action_format="calls", max_context_tokens=4096)


def call(arguments: Any) -> dict[str, Any]:
    return {"id": "x", "type": "function", "function": {"name": "find", "arguments": arguments}}


TOLD = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "a mug"},
    {"role": "assistant", "content": None, "tool_calls": [call('{"query": "mug"}'), call({"query": "cup"})]},
    {"role": "tool", "tool_call_id": "x", "name": "find", "content": "one"},
    {"role": "tool", "tool_call_id": "x", "content": "two"},
    {"role": "assistant", "content": "Here."},
]


def test_chats_with_tools_are_rows(tmp_path: Path) -> None:
    own = bytes_of(HERMES)
    talks = read_chats(written(tmp_path / "a.jsonl", {"messages": TOLD, "tools": TOOLS}, GOOD))
    rows = [row for made in islice(chats_as_rows(talks, own, AGENT, WarmstartConfig(), 0), 2) for row in made]
    texts = {own.decode(row.ids): own.decode(row.ids[row.weights == 1.0]) for row in rows}
    whole = own.apply_chat_template([in_openai_form(dict(each)) for each in talks[0].told], tools=TOOLS, tokenize=False)
    (told,) = (text for text in texts if "Be brief" in text)
    assert whole.startswith(told)
    assert texts[told] == (
        '<tool_call>\n{"name": "find", "arguments": {"query": "mug"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "find", "arguments": {"query": "cup"}}\n</tool_call><|im_end|>Here.<|im_end|>'
    )
    (plain,) = (text for text in texts if text != told)
    assert texts[plain] == "look<|im_end|>go to drawer 1<|im_end|>"


def test_a_line_ends_where_jsonl_says(tmp_path: Path) -> None:
    said = [{"role": "user", "content": "a\u2028b\x85c"}, {"role": "assistant", "content": "d"}]
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"messages": said}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert [talk.turns for talk in read_chats(path)] == [(("a\u2028b\x85c", "d"),)]


@pytest.mark.parametrize(
    ("own", "told"),
    [("Be brief.", "Be brief."), ("Be brief", "Be brief\n\nBe brief."), ("Call.", "Call.\n\nBe brief.")],
)
def test_a_system_message_that_is_there_is_not_said_twice(own: str, told: str, tmp_path: Path) -> None:
    """Exported chats begin with the agent's."""
    talks = read_chats(written(tmp_path / "a.jsonl", {"messages": TOLD, "tools": TOOLS}))
    tokenizer, agent = bytes_of(HERMES), AGENT.model_copy(update={"system": own})
    (row,) = next(chats_as_rows(talks, tokenizer, agent, WarmstartConfig(), 0))
    text = tokenizer.decode(row.ids)
    assert f"system\n{told}\n<tools>" in text


def test_the_agent_must_be_shown_tools(tmp_path: Path) -> None:
    talks = read_chats(written(tmp_path / "a.jsonl", {"messages": TOLD}))
    with pytest.raises(ValueError, match=r"set agent\.context=roles agent\.action_format=calls"):
        chats_as_rows(talks, bytes_of(HERMES), AgentConfig(), WarmstartConfig(), 0)


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ({"role": "assistant", "content": "", "tool_calls": [call("[1]")]}, "call 1 of message 1 is none"),
        ({"role": "assistant", "content": "", "tool_calls": [3]}, "call 1 of message 1 is none"),
        ({"role": "tool", "content": "x"}, "the assistant says nothing"),
        ({"role": "robot", "content": "x"}, "message 1 has the role 'robot'"),
    ],
)
def test_what_is_no_chat_with_tools_is_named(message: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"line 1: {told}"):
        read_chats(written(tmp_path / "a.jsonl", json.dumps({"messages": [message]})))
