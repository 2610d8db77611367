"""Token deltas: what each turn adds to the context, rendered once and never again.

``ChatFormat`` takes a tokenizer's own chat template apart into three fixed pieces of tokens; a conversation is
those pieces laid around the encoded observations and the sampled replies. History is never re-rendered (chat
templates may strip earlier thoughts) and never re-tokenised. Text of an environment is encoded with special
tokens disabled, so an observation that spells ``<|im_end|>`` stays text.

A *context policy* decides what the model sees: everything so far (``FullHistory``), or the task and the last k
turns, rendered afresh each turn (``Window``). Both yield ``prompt_ids`` and ``continues`` of a ``Turn``.
"""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, Protocol, cast

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from turnwise.agents.actions import ActionFormat
from turnwise.naming import unknown
from turnwise.trajectory import IntArray

_FIRST, _ANSWER, _SECOND = "<<<one>>>", "<<<two>>>", "<<<three>>>"

TAG_INSTRUCTIONS = (
    "First think step by step inside <think> </think>. Then give exactly one action inside <action> </action>."
)


class ChatFormat:
    """The fixed tokens of a chat template. Raises ValueError for a template that cannot be taken apart."""

    def __init__(self, tokenizer: Any, system: str | None = None) -> None:
        self.tokenizer = tokenizer
        if tokenizer.chat_template is None:
            raise ValueError(
                "the tokenizer has no chat template: pass a chat (instruct) model, or set tokenizer.chat_template"
            )
        opening = [{"role": "system", "content": system}] if system else []
        opening.append({"role": "user", "content": _FIRST})
        more = [{"role": "assistant", "content": _ANSWER}, {"role": "user", "content": _SECOND}]
        first, whole = self._render(opening), self._render(opening + more)
        try:
            before, after = first.split(_FIRST)
            _, rest = whole.split(_ANSWER)
            between, end = rest.split(_SECOND)
        except ValueError:
            raise ValueError(
                "the chat template does not show each message exactly once: turnwise cannot build token deltas "
                "from it; use a template that renders every message verbatim"
            ) from None
        if end != after:
            raise ValueError("the chat template opens the assistant's turn differently later in a conversation")
        self.before_user = self._encode_control(before)
        self.after_user = self._encode_control(after)
        self.between = self._encode_control(between)
        end_id = next((t for t in self.between if t in set(tokenizer.all_special_ids)), None)
        if end_id is None:
            raise ValueError("the chat template does not end an assistant's message with a special token")
        self.end_id, eos = int(end_id), tokenizer.eos_token_id
        self.end_ids = frozenset({self.end_id} if eos is None else {self.end_id, eos})
        """Tokens that end a reply: the template's own, and the tokenizer's end of sequence."""
        self._head = self.between[: self.between.index(end_id) + 1]
        self._tail = self.between[self.between.index(end_id) + 1 :]
        self._plain = lru_cache(maxsize=4096)(self._encode_plain)

    def _render(self, messages: list[dict[str, str]]) -> str:
        try:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except Exception as error:  # a template is a program: it may fail in any way
            roles = ", ".join(dict.fromkeys(message["role"] for message in messages))
            raise ValueError(
                f"the chat template cannot show messages of {roles} ({type(error).__name__}: {error}): use another "
                "template, or leave agent.system out where it knows no system message"
            ) from error

    def _encode_control(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(encodable(text), add_special_tokens=False))

    def _encode_plain(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(encodable(text), add_special_tokens=False, split_special_tokens=True))

    def message(self, prompt_ids: IntArray, *, fresh: bool) -> str:
        """The text that ``open`` (``fresh``) or ``extend`` made ``prompt_ids`` of; ValueError where neither did."""
        ids = prompt_ids.tolist()
        openings = [self.before_user] if fresh else [self.between, self._tail]
        opening = next((o for o in openings if ids[: len(o)] == o), None)
        end = len(ids) - len(self.after_user)
        if opening is None or end < len(opening) or ids[end:] != self.after_user:
            raise ValueError("these tokens are not a message in this tokenizer's chat template")
        return self._decode(ids[len(opening) : end])

    def open(self, text: str) -> IntArray:
        """A fresh conversation: one user message, then the assistant's header."""
        return np.asarray([*self.before_user, *self._plain(text), *self.after_user], np.int32)

    def extend(self, reply_ids: IntArray, text: str) -> IntArray:
        """The next user message. A reply that was cut gets its missing end token here, outside its mask."""
        ended = len(reply_ids) > 0 and int(reply_ids[-1]) in self.end_ids
        closing = self._tail if ended else self.between
        return np.asarray([*closing, *self._plain(text), *self.after_user], np.int32)

    def reply(self, text: str) -> IntArray:
        """A reply as demonstrations give it: the text and the end token."""
        return np.asarray([*self._plain(text), *self._head], np.int32)

    def decode(self, reply_ids: IntArray) -> str:
        """The reply's text, without the end token."""
        ids = reply_ids.tolist()
        if ids and ids[-1] in self.end_ids:
            ids = ids[:-1]
        return self._decode(ids)

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


class Chat(Protocol):
    """What a context policy lays a conversation with: the pieces that each message adds."""

    def open(self, text: str) -> IntArray: ...
    def extend(self, reply_ids: IntArray, text: str) -> IntArray: ...


def encodable(text: str) -> str:
    """The same text where UTF-8 can hold it; halves of surrogate pairs become U+FFFD."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class AgentConfig(BaseModel):
    """How the model is shown the world and how its replies are read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    context: str = Field(
        "full",
        description="full: the whole conversation, append-only; window: task and last turns, afresh; or module:Class",
    )
    window: int = Field(2, ge=0, description="turns of history a window shows (the papers' history_length)")
    action_format: ActionFormat = Field(
        "plain",
        description="plain: the reply's first line; tags: <think>..</think><action>..</action>; whole: all of it",
    )
    instructions: bool = Field(
        False, description="open with the environment's instructions (for pretrained chat models)"
    )
    show_admissible: bool = Field(False, description="list the admissible actions under each observation")
    system: str | None = Field(None, description="system message; None: the template's own default")
    max_reply_tokens: int = Field(24, ge=1, description="token limit of one reply")
    max_context_tokens: int = Field(1024, ge=32, description="token limit of a context, replies included")
    max_turns: int = Field(
        500, ge=1, description="an episode is truncated after so many replies: a guard against endless worlds"
    )
    on_overflow: Literal["end", "restart"] = Field(
        "end", description="a turn that does not fit: end the episode (truncated), or open a fresh context"
    )

    @field_validator("context")
    @classmethod
    def _exists(cls, name: str) -> str:
        context_policy(name)
        return name


class Context(Protocol):
    """One episode's context; made as ``Class(chat, config, instructions)``.

    ``begin`` and ``extend`` give the tokens to add before the next reply; ``extend`` also whether they continue the
    context (or are all of a fresh one). ``restart`` gives the prompt of a fresh context at the present turn, ``fork`` a
    copy.
    """

    def begin(self, observation: str, admissible: list[str] | None) -> IntArray: ...
    def extend(
        self, reply_ids: IntArray, action: str, observation: str, admissible: list[str] | None
    ) -> tuple[IntArray, bool]: ...
    def restart(self) -> IntArray: ...
    def fork(self) -> Context: ...


NewContext = Callable[[Chat, AgentConfig, str], Context]


def message(observation: str, admissible: list[str] | None, config: AgentConfig) -> str:
    """The user's text for one observation."""
    if not config.show_admissible or admissible is None:
        return observation
    return f"{observation}\nAdmissible actions: {', '.join(admissible)}"


class FullHistory:
    """The whole conversation; each turn adds its observation. A restart keeps the task and the last turn."""

    def __init__(self, chat: Chat, config: AgentConfig, instructions: str = "") -> None:
        self._chat, self._config, self._instructions = chat, config, instructions
        self._first = self._latest = ""

    def begin(self, observation: str, admissible: list[str] | None) -> IntArray:
        self._first = observation
        self._latest = message(observation, admissible, self._config)
        return self._chat.open(self._instructions + self._latest)

    def extend(
        self, reply_ids: IntArray, action: str, observation: str, admissible: list[str] | None
    ) -> tuple[IntArray, bool]:
        self._latest = message(observation, admissible, self._config)
        return self._chat.extend(reply_ids, self._latest), True

    def restart(self) -> IntArray:
        return self._chat.open(f"{self._instructions}{self._first}\n{self._latest}")

    def fork(self) -> FullHistory:
        copy = FullHistory(self._chat, self._config, self._instructions)
        copy._first, copy._latest = self._first, self._latest
        return copy


class Window:
    """Task, the last k observations with their actions, and the present one: a fresh context every turn."""

    def __init__(self, chat: Chat, config: AgentConfig, instructions: str = "") -> None:
        self._chat, self._config, self._instructions = chat, config, instructions
        self._first = self._observation = self._latest = ""
        self._turn = 0
        self._past: deque[tuple[str, str]] = deque(maxlen=config.window)

    def begin(self, observation: str, admissible: list[str] | None) -> IntArray:
        self._first = self._observation = observation
        self._latest = message(observation, admissible, self._config)
        return self.restart()

    def extend(
        self, reply_ids: IntArray, action: str, observation: str, admissible: list[str] | None
    ) -> tuple[IntArray, bool]:
        self._past.append((self._observation, action))
        self._turn += 1
        self._observation = observation
        self._latest = message(observation, admissible, self._config)
        return self.restart(), False

    def restart(self) -> IntArray:
        if self._turn == 0:
            return self._chat.open(self._instructions + self._latest)
        first_shown = self._turn - len(self._past)
        lines = [self._first] if first_shown > 0 else []
        for i, (observation, action) in enumerate(self._past, start=first_shown):
            lines.append(f"{observation}\n> {action}" if i == 0 else f"[{i}] {observation}\n> {action}")
        lines.append(f"[{self._turn}] {self._latest}")
        return self._chat.open(self._instructions + "\n".join(lines))

    def fork(self) -> Window:
        copy = Window(self._chat, self._config, self._instructions)
        copy._first, copy._observation, copy._latest = self._first, self._observation, self._latest
        copy._turn, copy._past = self._turn, deque(self._past, maxlen=self._past.maxlen)
        return copy


def new_context(chat: Chat, config: AgentConfig, env_instructions: str) -> Context:
    """The context policy that ``config`` names."""
    parts = []
    if config.instructions:
        parts = [env_instructions] if env_instructions else []
        if config.action_format == "tags":
            parts.append(TAG_INSTRUCTIONS)
    instructions = "\n".join(parts) + "\n\n" if parts else ""
    return context_policy(config.context)(chat, config, instructions)


@lru_cache
def context_policy(name: str) -> NewContext:
    """``full``, ``window``, or ``module:Class`` of your own; ValueError for what is none of them."""
    known: dict[str, NewContext] = {"full": FullHistory, "window": Window}
    if name in known:
        return known[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise unknown("context policy", name, [*known, "module:Class"])
    try:
        return cast(NewContext, getattr(importlib.import_module(module), attribute))
    except (ImportError, AttributeError) as error:
        raise ValueError(f"Context policy {name!r} cannot be imported as module:Class: {error}") from error
