"""What worlds show, as the model's tokens; and what models reply, as actions."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np

from tests.fuzz.harness import clear
from tests.fuzz.texts import text
from tests.models import TEXTS, tokenizer
from turnwise.agents.actions import MAX_ACTION_CHARS, ActionFormat, parse_action
from turnwise.agents.chat import ChatFormat
from turnwise.agents.opening import new_context
from turnwise.agents.prompts import AgentConfig
from turnwise.agents.spelling import encodable

_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def observation(rng: random.Random, folder: Path) -> str:
    """Three observations, instructions and admissible actions: none of them ever becomes a control token."""
    chat = rng.choice(chats())
    config = AgentConfig(
        context=rng.choice(["full", "window"]),
        window=rng.randint(0, 2),
        instructions=rng.random() < 0.5,
        show_admissible=rng.random() < 0.5,
        action_format=rng.choice(["plain", "tags"]),
    )
    special = set(chat.tokenizer.all_special_ids)
    context = new_context(chat, config, text(rng))
    prompt, fresh, closing = context.begin(text(rng), {"admissible_actions": _actions(rng)}), True, True
    for _ in range(3):
        own = list(chat.open("") if fresh else chat.extend(_reply(closing, chat), ""))
        assert [i for i in prompt.tolist() if i in special] == [i for i in own if i in special]
        chat.messages(prompt, fresh=fresh)
        closing = rng.random() < 0.5
        prompt, continues = context.extend(
            _reply(closing, chat), text(rng), text(rng), {"admissible_actions": _actions(rng)}
        )
        fresh = not continues
    shown = text(rng)
    assert chat.messages(chat.open(shown), fresh=True) == [encodable(shown)], "the model is shown something else"
    return "shown as text"


def reply(rng: random.Random, folder: Path) -> str:
    """Text with tags and control tokens, or any token ids at all: an action or none, never more than the reply held."""
    chat, style = rng.choice(chats()), rng.choice(get_args(ActionFormat))
    if rng.random() < 0.5:
        said = text(rng)
    else:
        some = [rng.choice(chat.tokenizer.all_special_ids), *range(5, 260)]
        said = chat.decode(np.asarray(rng.choices(some, k=rng.randint(0, 40)), np.int32))
    parsed = parse_action(said, style)
    assert isinstance(parsed.text, str)
    assert not (parsed.valid and not parsed.text.strip())
    assert len(parsed.text) <= MAX_ACTION_CHARS
    assert style == "calls" or parsed.text in said
    if style == "plain":
        assert len(parsed.text.splitlines()) <= 1
    if style == "tags" and parsed.valid:
        assert "<action>" in said.lower()
    return "an action" if parsed.valid else "no action"


def template(rng: random.Random, folder: Path) -> str:
    """A tokenizer whose chat template is missing, broken or unusual, and any system message."""
    source = rng.choice([None, "", "{{ messages }}", "{% for m in messages %}", "{{ 1/0 }}", text(rng), _CHATML])
    whole = chats()[rng.randrange(2)].tokenizer
    kept = whole.chat_template
    try:
        whole.chat_template = source
        ChatFormat(whole, rng.choice([None, text(rng)]))
    except ValueError as error:
        return clear(str(error))
    finally:
        whole.chat_template = kept
    return "taken"


def _reply(closed: bool, chat: ChatFormat) -> Any:
    return np.asarray([7, 8, *([chat.end_id] if closed else [])], np.int32)


def _actions(rng: random.Random) -> list[str] | None:
    return None if rng.random() < 0.3 else [text(rng) for _ in range(rng.randint(0, 3))]


@cache
def chats() -> list[ChatFormat]:
    """Ours, and one with the tokens and the template of ChatML."""
    from transformers import PreTrainedTokenizerFast

    from tests.models import TINY
    from turnwise.models.scratch import train_tokenizer

    inner = train_tokenizer(TEXTS, TINY.vocab_size).backend_tokenizer
    chatml = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        clean_up_tokenization_spaces=False,
    )
    chatml.chat_template = _CHATML
    return [ChatFormat(tokenizer()), ChatFormat(chatml)]
