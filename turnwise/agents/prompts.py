"""What a model is shown of its episode: the settings of an agent, and its context policy.

A *context policy* decides what the model is shown: the whole conversation (``FullHistory``), the same without earlier
thoughts (``WithoutThoughts``), or the task and the last k turns (``Window``); the latter two in a fresh context every
turn. Where a world speaks in a chat with roles, it is the conversation as the world tells it (``roles.py``). They give
``prompt_ids`` and ``continues`` of a ``Turn``.
"""

from __future__ import annotations

import importlib
import inspect
from collections import deque
from collections.abc import Callable
from datetime import date as Date
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from pydantic import BaseModel, ConfigDict, Field, field_validator

from turnwise.agents.actions import ActionFormat, answer
from turnwise.agents.chat import Begun, Chat, ChatTurn
from turnwise.agents.decoding import DecodingConfig
from turnwise.agents.rendering import ToolsIn
from turnwise.agents.roles import Roles
from turnwise.agents.templates import DATE
from turnwise.agents.toolcalls import dialect_of
from turnwise.envs.interface import Info, listed_actions
from turnwise.errors import unknown
from turnwise.trajectory import IntArray

USUAL_EXAMPLES = 2
"""Examples that a pretrained model is shown where nothing else is said."""


class AgentConfig(BaseModel):
    """How the model is shown the world and how its replies are read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    context: str = Field(
        "full",
        description="full: the whole conversation, append-only; window: task and last turns, afresh; roles: a chat "
        "with roles and tools, as the world tells it; or module:Class",
    )
    window: int = Field(2, ge=0, description="turns of history a window shows (the papers' history_length)")
    action_format: ActionFormat = Field(
        "plain",
        description="of the answer after a thought, plain: its first line; tags: its last <action>..</action>; "
        "whole: the reply, thoughts and all; calls: its text and its calls of tools",
    )
    tool_calls: str = Field(
        "auto",
        description="how the model writes calls, auto: as its chat template does; hermes, llama3, qwen_xml, lfm2, "
        "glm4; or module:Class",
    )
    tools_in: ToolsIn = Field(
        "template",
        description="who shows tools, calls and results, template: the model's chat template; system: the system "
        "message and plain text, for templates that show none",
    )
    examples: int | None = Field(
        None,
        ge=0,
        description="episodes of the world's expert shown before the own one, as turns of the chat; None: "
        f"{USUAL_EXAMPLES} for a pretrained model that was not cloned, where the world has an expert and their split, "
        "and does not speak in roles",
    )
    examples_split: str = Field(
        "demonstrations",
        description="split whose tasks the examples show; asked for in a world without a split demonstrations: train",
    )
    examples_seed: int = Field(0, ge=0, description="which tasks the examples show")
    instructions: bool = Field(
        False, description="open with the environment's instructions (for pretrained chat models)"
    )
    show_admissible: bool = Field(False, description="list the admissible actions under each observation")
    admissible_format: Literal["lines", "commas"] = Field(
        "commas", description="how that list is written: an action a line, or all in one line"
    )
    system: str | None = Field(None, description="system message; None: the template's own default")
    template: dict[str, Any] = Field(
        default_factory=dict, description="arguments of the chat template, such as enable_thinking: false"
    )
    thoughts: Literal["keep", "drop"] = Field(
        "keep",
        description="thoughts of earlier turns with agent.context=full, keep: append-only; drop: a fresh context every "
        "turn, in which earlier replies stand without them",
    )
    date: str = Field(
        DATE,
        description="year-month-day that a chat template shows as today's: fixed, so that every day shows the same",
    )
    max_reply_tokens: int = Field(24, ge=1, description="token limit of one reply")
    constrained: bool = Field(
        False,
        description="sample among the admissible actions only, spelled in the action format; with tags, or where the "
        "template opens a thought, free text may come first",
    )
    thought_tokens: int | None = Field(
        None,
        ge=0,
        description="tokens after which the end of a <think> thought is forced; with constrained all free text counts; "
        "null: no limit",
    )
    decoding: DecodingConfig = DecodingConfig()
    max_context_tokens: int = Field(1024, ge=32, description="token limit of a context, replies included")
    max_turns: int = Field(
        500, ge=1, description="an episode is truncated after so many replies: a guard against endless worlds"
    )
    on_overflow: Literal["end", "restart"] = Field(
        "end", description="a turn that does not fit: end the episode (truncated), or open a fresh context"
    )

    def kept_in(self, folder: str | Path) -> AgentConfig:
        """The same with the steering vector that a run's or a model's folder holds (``DecodingConfig.kept_in``)."""
        return self.model_copy(update={"decoding": self.decoding.kept_in(folder)})

    @property
    def unsteered(self) -> AgentConfig:
        """The same without a steering vector."""
        return self.model_copy(update={"decoding": self.decoding.model_copy(update={"steering": None})})

    @field_validator("date", mode="before")
    @classmethod
    def _is_a_day(cls, given: object) -> str:
        try:
            return Date.fromisoformat(str(given)).isoformat()
        except ValueError:
            raise ValueError("expected a day as year-month-day, such as 2025-01-31") from None

    @field_validator("tool_calls")
    @classmethod
    def _is_a_dialect(cls, name: str) -> str:
        if name != "auto":
            dialect_of(name)
        return name

    @field_validator("context")
    @classmethod
    def _exists(cls, name: str) -> str:
        context_policy(name)
        return name


class Context(Protocol):
    """A context policy in one episode. It is made as ``Class(chat, config, instructions)``.

    ``begin`` gets the first observation, ``extend`` the last reply with its action and the next observation, each with
    the world's ``info``. Both return the token ids [P] of the next prompt. ``extend`` also returns whether they
    continue the present context; if not, they are a whole new one. ``restart`` returns a prompt for the present turn in
    a new context. ``fork`` returns an independent copy.
    """

    def begin(self, observation: str, info: Info) -> IntArray: ...
    def extend(self, reply_ids: IntArray, action: str, observation: str, info: Info) -> tuple[IntArray, bool]: ...
    def restart(self) -> IntArray: ...
    def fork(self) -> Context: ...


NewContext = Callable[[Chat, AgentConfig, str], Context]


def message(observation: str, info: Info, config: AgentConfig) -> str:
    """The user message for one observation."""
    admissible = listed_actions(info)
    if not config.show_admissible or admissible is None:
        return observation
    if config.admissible_format == "commas":
        return f"{observation}\nAdmissible actions: {', '.join(admissible)}"
    return "\n".join([observation, "", "You can choose one of these actions:", *admissible])


def check_context_fits(config: AgentConfig, info: Info) -> None:
    """Raises ValueError where a world speaks in messages with roles, and a context of ours would not show them."""
    if info.get("messages") is not None and config.context in ("full", "window"):
        raise ValueError(
            f"this world speaks in messages with roles, and may offer tools, which agent.context={config.context} does "
            "not show: set agent.context=roles agent.action_format=calls"
        )


class FullHistory:
    """The whole conversation. Each turn adds its observation.

    After a restart the context holds the first observation, which states the task, and the present one.
    """

    def __init__(self, chat: Chat, config: AgentConfig, instructions: str = "") -> None:
        self._chat, self._config, self._instructions = chat, config, instructions
        self._first = self._latest = ""

    def begin(self, observation: str, info: Info) -> IntArray:
        self._first = observation
        self._latest = message(observation, info, self._config)
        return self._chat.open(self._instructions + self._latest)

    def extend(self, reply_ids: IntArray, action: str, observation: str, info: Info) -> tuple[IntArray, bool]:
        self._latest = message(observation, info, self._config)
        return self._chat.extend(reply_ids, self._latest), True

    def restart(self) -> IntArray:
        return self._chat.open(f"{self._instructions}{self._first}\n{self._latest}")

    def fork(self) -> FullHistory:
        copy = FullHistory(self._chat, self._config, self._instructions)
        copy._first, copy._latest = self._first, self._latest
        return copy


class WithoutThoughts:
    """The whole conversation in a new context every turn, in which earlier replies stand without their thoughts.

    What two turns have in common is computed once: the engine reuses it.
    """

    def __init__(self, chat: Chat, config: AgentConfig, instructions: str = "") -> None:
        self._chat, self._config, self._instructions = cast(Begun, chat), config, instructions
        self._first = self._latest = self._shown = ""
        self._past: tuple[ChatTurn, ...] = ()

    def begin(self, observation: str, info: Info) -> IntArray:
        self._first = observation
        self._latest = message(observation, info, self._config)
        self._shown = self._instructions + self._latest
        return self._prompt()

    def extend(self, reply_ids: IntArray, action: str, observation: str, info: Info) -> tuple[IntArray, bool]:
        said = answer(self._chat.decode(reply_ids)) or ""
        self._past = (*self._past, (self._shown, said.strip()))
        self._shown = self._latest = message(observation, info, self._config)
        return self._prompt(), False

    def _prompt(self) -> IntArray:
        return (self._chat.after(self._past) if self._past else self._chat).open(self._shown)

    def restart(self) -> IntArray:
        self._past, self._shown = (), f"{self._instructions}{self._first}\n{self._latest}"
        return self._prompt()

    def fork(self) -> WithoutThoughts:
        copy = WithoutThoughts(self._chat, self._config, self._instructions)
        copy._first, copy._latest, copy._shown, copy._past = self._first, self._latest, self._shown, self._past
        return copy


class Window:
    """A new context every turn: the task, the last k observations with their actions, and the present observation.

    k is ``config.window``.
    """

    def __init__(self, chat: Chat, config: AgentConfig, instructions: str = "") -> None:
        self._chat, self._config, self._instructions = chat, config, instructions
        self._first = self._observation = self._latest = ""
        self._turn = 0
        self._past: deque[tuple[str, str]] = deque(maxlen=config.window)

    def begin(self, observation: str, info: Info) -> IntArray:
        self._first = self._observation = observation
        self._latest = message(observation, info, self._config)
        return self.restart()

    def extend(self, reply_ids: IntArray, action: str, observation: str, info: Info) -> tuple[IntArray, bool]:
        self._past.append((self._observation, action))
        self._turn += 1
        self._observation = observation
        self._latest = message(observation, info, self._config)
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


@lru_cache
def context_policy(name: str) -> NewContext:
    """The class that a name stands for: ``full``, ``window``, ``roles``, or ``module:Class`` for one of your own.

    Raises ValueError for an unknown name, for a class that cannot be imported, and for one made for earlier versions.
    """
    known: dict[str, NewContext] = {"full": FullHistory, "window": Window, "roles": Roles}
    if name in known:
        return known[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise unknown("context policy", name, [*known, "module:Class"])
    try:
        found = cast(NewContext, getattr(importlib.import_module(module), attribute))
    except (ImportError, AttributeError) as error:
        raise ValueError(f"context policy {name!r} cannot be imported as module:Class: {error}") from error
    if "admissible" in inspect.signature(getattr(found, "begin", found)).parameters:
        raise ValueError(
            f"context policy {name!r}: begin and extend get the world's info where they got its admissible actions: "
            "name the argument info, and take turnwise.envs.interface.listed_actions(info) of it"
        )
    return found
