"""Examples stand before every context as turns of the same chat, spelled as the agent's own turns are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.models import tokenizer
from turnwise.agents.chat import ChatFormat
from turnwise.agents.opening import Example, check_room, example_turns, new_context, read_examples, write_examples
from turnwise.agents.prompts import AgentConfig

EXAMPLES = (
    Example(("a mug", "took it"), (("take mug", "look"), ("drop mug",)), ("take mug", "drop mug")),
    Example(("a cup",), (None,), ("look",), "key"),
)


def test_a_conversation_begins_with_the_examples() -> None:
    chat = ChatFormat(tokenizer())
    config = AgentConfig(instructions=True, action_format="tags")
    context = new_context(chat, config, "Act well.", EXAMPLES)
    opening = context.begin("a jar", {})
    said = chat.messages(opening, fresh=True)
    first = said.pop(0)
    assert first.startswith("Act well.\n")
    assert first.endswith("\n\na mug")
    tagged = [f"<action>{action}</action>" for action in ("take mug", "drop mug", "look")]
    assert said == [tagged[0], "took it", tagged[1], "a cup", tagged[2], "a jar"]
    roles = ["user", "assistant"] * 3 + ["user"]
    asked = [{"role": role, "content": text} for role, text in zip(roles, [first, *said], strict=True)]
    assert tokenizer().decode(opening) == tokenizer().apply_chat_template(
        asked, tokenize=False, add_generation_prompt=True
    )
    added, continues = context.extend(chat.reply("look"), "look", "wall", {})
    assert continues
    assert chat.messages(added, fresh=False) == ["wall"]
    restarted = chat.messages(context.fork().restart(), fresh=True)
    assert restarted[:-1] == [first, *said[:-1]]
    assert restarted[-1] == "a jar\nwall"


@pytest.mark.parametrize("cut", [False, True])
def test_a_window_begins_with_them_every_turn(cut: bool) -> None:
    chat = ChatFormat(tokenizer())
    config = AgentConfig(context="window", window=1, show_admissible=True)
    context = new_context(chat, config, "", EXAMPLES)
    whole = context.begin("a jar", {"admissible_actions": ["look"]})
    reply = chat.reply("look")[: -1 if cut else None]
    later, continues = context.extend(reply, "look", "wall", {"admissible_actions": ["go"]})
    assert not continues
    said, again = (chat.messages(ids, fresh=True) for ids in (whole, later))
    assert said[:-1] == again[:-1]
    assert said[1::2] == ["take mug", "drop mug", "look"]
    assert "take mug" in said[0]
    assert said[2].startswith("a mug\n> take mug\n[1] took it\n"), "as the agent's own second turn is shown"
    assert "drop mug" in said[2]
    assert again[-1].startswith("a jar\n> look\n[1] wall\n")
    shared = int(np.argmin(whole[: len(later)] == later[: len(whole)]))
    assert shared >= chat.after(example_turns(EXAMPLES, config, "")).num_tokens


def test_examples_that_leave_no_room_are_refused_with_numbers() -> None:
    chat = ChatFormat(tokenizer())
    taken = chat.after(example_turns(EXAMPLES, AgentConfig(), "")).num_tokens
    longest = chat.after(example_turns(EXAMPLES[:1], AgentConfig(), "")).num_tokens
    needed = taken + longest + 5
    check_room(chat, AgentConfig(max_reply_tokens=5, max_context_tokens=needed), "", EXAMPLES)
    check_room(chat, AgentConfig(max_reply_tokens=5, max_context_tokens=32), "", ())
    with pytest.raises(
        ValueError, match=rf"agent.examples=2: the examples take {taken} tokens .* raise it to {needed}"
    ):
        check_room(chat, AgentConfig(max_reply_tokens=5, max_context_tokens=needed - 1), "", EXAMPLES)


def test_stored_examples_are_the_same_again(tmp_path: Path) -> None:
    assert read_examples(tmp_path) is None
    write_examples(tmp_path, EXAMPLES)
    assert read_examples(tmp_path) == EXAMPLES
    (tmp_path / "examples.json").write_text('{"examples": [{}]}')
    with pytest.raises(ValueError, match=r"examples.json is damaged"):
        read_examples(tmp_path)
