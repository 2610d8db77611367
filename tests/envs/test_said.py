"""An action of a world of chats: what is said is heard, and any other text is content."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnwise.envs.said import Call, Said, heard, said

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
CALLS = st.lists(st.builds(Call, st.text(max_size=8), st.dictionaries(st.text(max_size=5), VALUES, max_size=3)))


@given(st.text(), CALLS, st.none() | st.text(max_size=9), st.text(max_size=9))
def test_what_is_said_is_heard(content: str, calls: list[Call], fault: str | None, thought: str) -> None:
    line = said(content, calls, fault, thought)
    assert "\n" not in line
    assert heard(line) == Said(content, tuple(calls), fault, thought)


@pytest.mark.parametrize(
    "text",
    [
        "a mug",
        "",
        "[1]",
        '{"a": 1}',
        '{"content": 3, "calls": []}',
        '{"content": "", "calls": [{"name": "f"}]}',
        '{"content": "", "calls": [{"name": "f", "arguments": "x"}]}',
        '{"content": "", "calls": [1]}',
        '{"content": "", "calls": [], "more": 1}',
    ],
)
def test_any_other_text_is_content(text: str) -> None:
    assert heard(text) == Said(text)


def test_calls_may_be_dictionaries() -> None:
    assert heard(said(calls=[{"name": "f", "arguments": {"x": 1}}])).calls == (Call("f", {"x": 1}),)


def test_a_call_without_arguments_is_refused() -> None:
    with pytest.raises(TypeError, match="expected a call as"):
        said(calls=[{"name": "f", "arguments": [1]}])
