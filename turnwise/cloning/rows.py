"""What is cloned, as rows of tokens: an expert's demonstrations, won episodes of a run, or chats.

A source is an endless iterator. Each item is one demonstration, episode or chat: one row where its context only grows,
and a row for each fresh context of an agent with a window. The order depends on the seed alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np

from turnwise.agents.actions import parse_action, written
from turnwise.agents.chat import ChatFormat
from turnwise.agents.dialogue import asked, offered
from turnwise.agents.episode import SuccessRule
from turnwise.agents.forms import stored_form
from turnwise.agents.opening import Example, example_turns, new_context
from turnwise.agents.prompts import AgentConfig
from turnwise.agents.roles import Roles
from turnwise.agents.seating import TextEnv
from turnwise.agents.toolcalls import Tools
from turnwise.cloning.chats import Chat
from turnwise.cloning.demonstrations import Demonstration, demonstrations
from turnwise.cloning.losses import END, FIRST, OBSERVATION, REST, CloningRow
from turnwise.cloning.settings import WarmstartConfig
from turnwise.envs.interface import instructions_of, with_system
from turnwise.envs.said import Call, Said
from turnwise.seeds import mix
from turnwise.trajectory import BoolArray, IntArray, Task, Trajectory, Turn

Item = TypeVar("Item")
Rows = Iterator[list[CloningRow]]


@dataclass(frozen=True, slots=True)
class Stored:
    """What is cloned in the place of an expert.

    ``content`` is a hash of it. ``tasks`` are those whose episodes it holds; None: that cannot be known. ``rows`` makes
    it rows of tokens, for a tokenizer, the run's world and the examples that its agent is shown.
    """

    content: str
    tasks: tuple[Task, ...] | None
    rows: Callable[[Any, TextEnv, Sequence[Example]], Rows]


def expert_rows(
    env: TextEnv,
    chat: ChatFormat,
    agent: AgentConfig,
    config: WarmstartConfig,
    seed: int,
    rule: SuccessRule | None = None,
    examples: Sequence[Example] = (),
) -> Rows:
    """Demonstrations of the world's expert, as rows."""
    instructions = instructions_of(env)
    for shown in demonstrations(env, config, seed, rule):
        yield rows_of(shown, chat, agent, instructions, config.observation_weight, examples)


def rows_of(
    shown: Demonstration,
    chat: ChatFormat,
    agent: AgentConfig,
    instructions: str,
    observation_weight: float,
    examples: Sequence[Example] = (),
) -> list[CloningRow]:
    """A demonstration as rows, with the prompts and contexts that the agent has in its own episodes.

    An agent with a full context has one row an episode, one with a window a row for each turn. Where it is shown
    ``examples``, each row begins with them, and their tokens weigh nothing. Rows longer than
    ``agent.max_context_tokens`` are left out.
    """
    context = new_context(chat, agent, instructions, examples)
    prompt, continues = context.begin(shown.observations[0], shown.infos[0]), False
    made = _Rows(chat, observation_weight, _ahead(chat, agent, instructions, examples, shown.infos[0]))
    said = shown.replies(agent.action_format, chat.dialect)
    for n, (action, text, learn) in enumerate(zip(shown.actions, said, shown.learn, strict=True)):
        reply = chat.reply(text)
        made.add(prompt, continues, reply, learn)
        if n + 1 < len(shown.actions):
            prompt, continues = context.extend(reply, action, shown.observations[n + 1], shown.infos[n + 1])
    return made.fitting(agent)


def _ahead(
    chat: ChatFormat, agent: AgentConfig, instructions: str, examples: Sequence[Example], first: Mapping[str, Any]
) -> int:
    """The number of tokens up to the end of the examples in each context; ``first``: what was asked first in roles."""
    if not examples:
        return 0
    context = new_context(chat, agent, instructions, examples)
    if isinstance(context, Roles):
        context.begin("", dict(first))
        return context.num_ahead()
    return chat.after(example_turns(examples, agent, instructions)).num_tokens


def episode_rows(
    episode: Trajectory,
    chat: ChatFormat,
    agent: AgentConfig,
    instructions: str,
    config: WarmstartConfig,
    as_is: bool,
    examples: Sequence[Example] = (),
) -> list[CloningRow]:
    """A stored episode as rows: with the tokens that were sampled (``as_is``), or its texts in the agent's own prompts.

    Replies without a valid action are not learned.
    """
    first = asked(episode.turns[0])
    made = _Rows(chat, config.observation_weight, _ahead(chat, agent, instructions, examples, first))
    if as_is:
        for turn in episode.turns:
            forced = None if turn.processing is None else turn.processing.forced
            made.add(turn.prompt_ids, turn.continues, turn.action_ids, turn.valid, forced)
        return made.fitting(agent)
    context = new_context(chat, agent, instructions, examples)
    infos = list(map(asked, episode.turns))
    tools = offered(episode.turns) if first else [None] * len(infos)
    prompt, continues = context.begin(episode.turns[0].observation, infos[0]), False
    for n, turn in enumerate(episode.turns):
        reply = chat.reply(_said_again(turn, tools[n], chat, agent))
        made.add(prompt, continues, reply, turn.valid)
        if n + 1 < len(episode.turns):
            prompt, continues = context.extend(reply, turn.action, episode.turns[n + 1].observation, infos[n + 1])
    return made.fitting(agent)


def _said_again(turn: Turn, tools: Tools | None, chat: ChatFormat, agent: AgentConfig) -> str:
    """A stored reply; where it calls ``tools`` in another dialect, it is written in the agent's."""
    style = agent.action_format
    if style != "calls":
        return turn.reply
    read = parse_action(turn.reply, style, chat.dialect, tools, stored_form(turn, asked(turn), chat.dialect))
    return turn.reply if read.text == turn.action else written(turn.action, style, chat.dialect)


def takeover_rows(
    episode: Trajectory,
    chat: ChatFormat,
    agent: AgentConfig,
    instructions: str,
    observation_weight: float,
    examples: Sequence[Example] = (),
) -> list[CloningRow]:
    """An episode that the expert took over, as rows: the expert's actions are learned.

    What the learner did before (the turns of its parent), and what it was shown, is context, which weighs nothing.
    Rows without an action of the expert's are left out.
    """
    assert episode.fork is not None
    first = asked(episode.turns[0])
    made = _Rows(chat, observation_weight, _ahead(chat, agent, instructions, examples, first))
    for n, turn in enumerate(episode.turns):
        experts = n >= episode.fork.turn
        made.add(turn.prompt_ids, turn.continues, turn.action_ids, experts, seen=experts)
    return [row for row in made.fitting(agent) if (row.weights == 1.0).any()]


def chat_rows(talk: Chat, chat: ChatFormat, agent: AgentConfig, config: WarmstartConfig) -> list[CloningRow]:
    """A chat as one row; the assistant's messages are learned. It is left out where it does not fit."""
    made, prompt = _Rows(chat, config.observation_weight), chat.open(talk.turns[0][0])
    for n, (_, said) in enumerate(talk.turns):
        reply = chat.reply(said)
        made.add(prompt, n > 0, reply, learn=True)
        if n + 1 < len(talk.turns):
            prompt = chat.extend(reply, talk.turns[n + 1][0])
    return made.fitting(agent)


def told_rows(talk: Chat, chat: ChatFormat, agent: AgentConfig, config: WarmstartConfig) -> list[CloningRow]:
    """A chat with roles, and maybe tools, as one row; the assistant's messages are learned."""
    assert chat.rendering is not None
    made, new = _Rows(chat, config.observation_weight), list[Any]()
    before: IntArray | None = None
    said = Said()
    for message in with_system(talk.told, agent.system or ""):
        if message["role"] != "assistant":
            new.append(message)
            continue
        if before is None:
            prompt = chat.rendering.render(new, talk.tools)
        else:
            prompt = chat.rendering.after(before, said, new, talk.tools)
        calls = tuple(Call(call["name"], call["arguments"]) for call in message.get("tool_calls", ()))
        said = Said(message["content"], calls)
        thought = f"<think>\n{message['reasoning']}\n</think>\n\n" if message.get("reasoning") else ""
        reply = chat.reply(thought + chat.dialect.write(said))
        made.add(prompt, before is not None, reply, learn=True)
        new, before = [], reply
    return made.fitting(agent)


def chats_as_rows(
    talks: Sequence[Chat], tokenizer: object, agent: AgentConfig, config: WarmstartConfig, seed: int
) -> Rows:
    """Chats as rows, again and again. One with a system message of its own has that in the place of the agent's.

    For an agent with roles it is joined to the agent's, as a world's is. Raises ValueError for chats with tools where
    the agent has no roles.
    """
    if agent.context == "roles":
        chat = ChatFormat.of(tokenizer, agent)
        return (told_rows(talk, chat, agent, config) for talk in repeated(talks, seed))
    if any(talk.messages for talk in talks):
        raise ValueError(
            "these chats call tools, which the agent is not shown: set agent.context=roles agent.action_format=calls"
        )

    @lru_cache(maxsize=64)
    def format_of(system: str | None) -> ChatFormat:
        return ChatFormat.of(tokenizer, agent if system is None else agent.model_copy(update={"system": system}))

    return (chat_rows(talk, format_of(talk.system), agent, config) for talk in repeated(talks, seed))


def repeated(items: Sequence[Item], seed: int) -> Iterator[Item]:
    """The items again and again, each pass in a new order."""
    passes = 0
    while True:
        order = np.random.default_rng(mix("stored", seed, passes)).permutation(len(items))
        yield from (items[int(place)] for place in order)
        passes += 1


class _Rows:
    """Rows that grow turn by turn. The first ``ahead`` tokens of each weigh nothing."""

    def __init__(self, chat: ChatFormat, observation_weight: float, ahead: int = 0) -> None:
        self._end_ids, self._weight, self._ahead = chat.end_ids, observation_weight, ahead
        self._parts: list[tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]] = []

    def add(
        self,
        prompt: IntArray,
        continues: bool,
        reply: IntArray,
        learn: bool,
        forced: BoolArray | None = None,
        seen: bool = True,
    ) -> None:
        """Add a turn. Its reply is learned with weight 1, or 0; ``forced`` tokens [A], which nobody chose, with 0.

        Its prompt has the weight of observations, or 0 where it is not ``seen``.
        """
        if not continues:
            self._parts.append(([], [], []))
        ids, weights, kinds = self._parts[-1]
        ids += [prompt, reply]
        learned = np.full(len(reply), float(learn))
        if forced is not None:
            learned[forced] = 0.0
        weights += [np.full(len(prompt), self._weight if seen else 0.0), learned]
        own = np.full(len(reply), REST)
        own[:1] = FIRST
        if len(reply) and int(reply[-1]) in self._end_ids:
            own[-1] = END
        kinds += [np.full(len(prompt), OBSERVATION), own]
        if not continues:
            weights[0][: self._ahead] = 0.0

    def fitting(self, agent: AgentConfig) -> list[CloningRow]:
        made = [CloningRow(*map(np.concatenate, parts)) for parts in self._parts]
        return [row for row in made if len(row.ids) <= agent.max_context_tokens]
