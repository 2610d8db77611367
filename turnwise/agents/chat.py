r"""The tokens that each message adds to a model's context.

With a ChatML template, for example, the first prompt is ``<|im_start|>user\n``, the observation,
``<|im_end|>\n<|im_start|>assistant\n``. The model samples a reply and its end token. The next prompt is only what
comes after them: ``\n<|im_start|>user\n``, the next observation, and the assistant's header again. The whole context
has the tokens that a tokenizer gives for the same text at once.

``ChatFormat`` makes these pieces. It splits a tokenizer's own chat template into fixed parts (``templates.py``) and
encodes text so that the pieces fit together (``spelling.py``). Earlier turns are never rendered again, because chat
templates may remove earlier thoughts, and never tokenised again. Text of an environment is encoded without special
tokens: an observation that contains ``<|im_end|>`` stays ordinary text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from turnwise.agents.rendering import Rendering
from turnwise.agents.spelling import Opening, Spelling
from turnwise.agents.templates import DATE, NO_ARGUMENTS, take_apart
from turnwise.agents.toolcalls import DIALECTS, Dialect, tags_of
from turnwise.envs.said import Call
from turnwise.trajectory import IntArray

if TYPE_CHECKING:
    from turnwise.agents.prompts import AgentConfig

ChatTurn = tuple[str, str]
"""A user's message and the assistant's reply."""


class ChatFormat:
    """A tokenizer's chat template, as functions from text to the tokens of one message.

    ``system`` is the system message; None leaves it to the template. ``date`` (year-month-day) is shown by templates
    that show today's date. ``end_ids`` are further tokens that end a reply, such as those of the model's
    generation_config. ``template`` are arguments of the template, such as ``{"enable_thinking": False}``. Raises
    ValueError, which says why, for a template that cannot be used.
    """

    def __init__(
        self,
        tokenizer: Any,
        system: str | None = None,
        *,
        date: str = DATE,
        end_ids: Iterable[int] = (),
        template: Mapping[str, Any] = NO_ARGUMENTS,
    ) -> None:
        self.tokenizer = tokenizer
        self.rendering: Rendering | None = None
        """Conversations with roles and tools; None where the agent calls no tools."""
        layout = self._layout = take_apart(tokenizer, system, date, template)
        spelling = self._spelling = Spelling(tokenizer, [layout.before, layout.after, layout.between])
        self._plain = lru_cache(maxsize=4096)(spelling.plain)
        self._begun = lru_cache(maxsize=16)(partial(Begun, self))
        end, given = spelling.control(layout.between), frozenset(end_ids)
        # Some templates write nothing after a reply: the next message's first token ends it (GLM-4).
        self._ends_with_next = bool(end.ids) and not layout.closing and not end.texts[0] and end.ids[0] in given
        if not end.ids or (end.ends[0] > len(layout.closing) and not self._ends_with_next):
            raise ValueError(
                "the chat template does not end an assistant's message with a special token (it writes "
                f"{layout.closing!r} there), so that the end of a reply could not be recognised: use a template that "
                "writes one"
            )
        self.end_id = end.ids[0]
        """The special token that the template writes after a reply. A model samples it to end its reply."""
        eos = tokenizer.eos_token_id
        self.end_ids = frozenset({self.end_id, *given, *([] if eos is None else [eos])})
        """All tokens that end a reply: ``end_id``, the tokenizer's end of sequence, and the given ``end_ids``."""
        self._first, self._next = spelling.opening(layout.before), spelling.opening(layout.between, skip=1)
        self._head, self._header = spelling.closing(layout.after)
        self._trail = end.texts[0]
        # The text between the header's last special token and the reply, and its tokens. Replies are decoded after it.
        self._stem = spelling.control(layout.after).texts[-1]
        self._stem_ids = spelling.plain(self._stem, True) or (*self._header, self.end_id)[:1]
        # A space that the tokenizer adds before a reply is not part of the reply. Nor is the template's white space.
        self._before_reply = spelling.text_after(self._stem_ids, self._spelled(layout.lead + "x")).partition("x")[0]

    @classmethod
    def of(cls, tokenizer: Any, config: AgentConfig, end_ids: Iterable[int] = ()) -> ChatFormat:
        """The chat of an agent with these settings."""
        made = cls(tokenizer, config.system, date=config.date, end_ids=end_ids, template=config.template)
        if config.action_format == "calls":
            made.rendering = Rendering(
                tokenizer,
                made.end_ids,
                date=config.date,
                template=config.template,
                tools_in=config.tools_in,
                dialect=config.tool_calls,
            )
        return made

    @property
    def dialect(self) -> Dialect:
        """How the model writes calls of tools."""
        return self.rendering.dialect if self.rendering else DIALECTS["hermes"]

    def messages(self, prompt_ids: IntArray, *, fresh: bool) -> list[str]:
        """The messages in ``prompt_ids`` [P], which ``open`` (``fresh``) or ``extend`` (not ``fresh``) made.

        That is the user's message alone, or with examples before it all of theirs, user and assistant in turn. White
        space that the template drops at the ends of a message is missing. Raises ValueError for tokens that were not
        made so.
        """
        left, said = tuple(prompt_ids.tolist()), list[str]()
        openings = [self._first.ids] if fresh else [self._next.ids, (self.end_id, *self._next.ids)]
        while True:
            text, left = self._first_message(left, openings, self._next if said or not fresh else self._first)
            said.append(text)
            if not left:
                return said
            end = left.index(self.end_id) + 1 if self.end_id in left else len(left)
            said.append(self.decode(np.asarray(left[:end], np.int32)))
            left, openings = left[end:], [self._next.ids]

    def _first_message(
        self, ids: tuple[int, ...], openings: Sequence[tuple[int, ...]], opening: Opening
    ) -> tuple[str, tuple[int, ...]]:
        """The user's message that ``ids`` begin with, and the ids after the assistant's header that follows it."""
        for lead in openings:
            rest = ids[len(lead) :]
            length = next((n for n, number in enumerate(rest) if number in self._spelling.used), len(rest))
            after = length + len(self._header)
            if ids[: len(lead)] == lead and rest[length:after] == self._header:
                text = self._spelling.text_of(rest[:length], opening.behind, self._stem_ids)
                if text.startswith(opening.tail) and text.endswith(self._head):
                    return text[len(opening.tail) : len(text) - len(self._head)], rest[after:]
        raise ValueError("these tokens are not a message in this tokenizer's chat template")

    def after(self, turns: tuple[ChatTurn, ...]) -> Begun:
        """The same chat, every conversation of which begins with these turns. At least one; made once for each."""
        return self._begun(turns)

    def open(self, text: str) -> IntArray:
        """The tokens [P] of a new conversation: a user message with ``text``, then the assistant's header."""
        return self._prompt((), self._first, text)

    def extend(self, reply_ids: IntArray, text: str) -> IntArray:
        """The tokens [P] after a reply: the next user message with ``text``, then the assistant's header.

        A reply that was cut off at its token limit has no end token. It is added here, as the first token of the
        prompt, where it is not trained on.
        """
        ended = len(reply_ids) > 0 and int(reply_ids[-1]) in self.end_ids
        return self._prompt(() if ended else (self.end_id,), self._next, text)

    def _prompt(self, missing: tuple[int, ...], opening: Opening, text: str) -> IntArray:
        segment = self._plain(
            opening.tail + self._layout.of_user(text, first=opening is self._first) + self._head, opening.behind
        )
        return np.asarray([*missing, *opening.ids, *segment, *self._header], np.int32)

    def reply(self, text: str) -> IntArray:
        """The tokens [A] of a demonstrated reply and its end token. ``text`` may begin with a thought."""
        lead = self._layout.lead
        if self._layout.opened:  # the header has the tag that begins a thought
            thinking = text.removeprefix("<think>")
            lead, text = ("</think>\n\n", text) if thinking == text else ("", thinking.lstrip())
        first, *more = self._tagged(lead + self._layout.of_assistant(text) + self._trail)
        ids = list(self._spelled(first)) if first else []
        for tag, between in zip(more[::2], more[1::2], strict=True):
            ids += [self._tags[tag], *self.within(between)]
        calls = bool(self.rendering) and bool(self.dialect.read(text).calls)
        return np.asarray([*ids, self.call_end_id if calls else self.end_id], np.int32)

    @cached_property
    def call_end_id(self) -> int:
        """The token that ends a reply with calls: ``end_id``, or where the next message's does, that of a result."""
        if not self._ends_with_next or self.rendering is None:
            return self.end_id
        result = {"role": "tool", "tool_call_id": "call00000", "name": "", "content": ""}
        return self.rendering.following([Call("")], [result], ())[0]

    def _tagged(self, text: str) -> list[str]:
        """A text in the dialect, split at those of its tags that are special tokens: texts and tags in turn."""
        return re.split(f"({'|'.join(map(re.escape, self._tags))})", text) if self._tags else [text]

    @cached_property
    def _tags(self) -> Mapping[str, int]:
        added = self.tokenizer.backend_tokenizer.get_added_tokens_decoder() if self.rendering else {}
        tags = tags_of(self.dialect)
        return {token.content: number for number, token in added.items() if token.special and token.content in tags}

    def rest(self, lead: str, text: str) -> IntArray:
        """The tokens [A] that end a reply: ``lead``, ``text`` and the end token, after what was said already."""
        return np.asarray([*self.within(lead + self._layout.of_assistant(text) + self._trail), self.end_id], np.int32)

    def start(self, text: str) -> tuple[int, ...]:
        """The tokens of ``text`` at the beginning of a reply."""
        return self._spelled(self._layout.lead + text)

    def within(self, text: str) -> tuple[int, ...]:
        """The tokens of ``text`` in the middle of a reply."""
        return self._plain(text, True)

    def text(self, token: int) -> str:
        """The text of one token, special or not."""
        return self._spelling.text([token])

    @property
    def opens_thought(self) -> bool:
        """Whether the assistant's header ends with ``<think>``, so that every reply begins inside a thought."""
        return bool(self._layout.opened)

    def _spelled(self, said: str) -> tuple[int, ...]:
        """The tokens of a reply after the header, whose own tokens must not change."""
        if self._stem:
            for stem in (self._stem, "\n"):  # where text merges with the header's tokens, a line break stands for it
                ahead, whole = self._plain(stem, True), self._plain(stem + said, True)
                if whole[: len(ahead)] == ahead:
                    return whole[len(ahead) :]
        return self._plain(said, True)

    def decode(self, reply_ids: IntArray) -> str:
        """The text of a reply [A] without its end token. It begins with ``<think>`` where the header ends with that."""
        ids, trail = reply_ids.tolist(), ""
        if ids and ids[-1] in self.end_ids:
            trail, ids = self._trail, ids[:-1]
        text = self._spelling.text_after(self._stem_ids, ids)
        return self._layout.opened + text.removeprefix(self._before_reply).removesuffix(trail)


class Begun:
    """A ``Chat`` whose conversations begin with turns that were not played: examples."""

    def __init__(self, chat: ChatFormat, turns: Sequence[ChatTurn]) -> None:
        parts: list[IntArray] = []
        for shown, said in turns:
            parts += [chat.extend(parts[-1], shown) if parts else chat.open(shown), chat.reply(said)]
        self._chat, self._said, self._turns, self._last = chat, turns, np.concatenate(parts), parts[-1]
        self.num_tokens = len(self._turns)

    def open(self, text: str) -> IntArray:
        return np.concatenate([self._turns, self._chat.extend(self._last, text)])

    def extend(self, reply_ids: IntArray, text: str) -> IntArray:
        return self._chat.extend(reply_ids, text)

    def decode(self, reply_ids: IntArray) -> str:
        return self._chat.decode(reply_ids)

    def after(self, turns: tuple[ChatTurn, ...]) -> Begun:
        return self._chat.after((*self._said, *turns))


class Chat(Protocol):
    """What a context policy needs of a ``ChatFormat``: the tokens that each message adds."""

    def open(self, text: str) -> IntArray: ...
    def extend(self, reply_ids: IntArray, text: str) -> IntArray: ...
