"""Processors that hold replies to the admissible actions, and thoughts to a number of tokens.

With ``agent.constrained`` a reply must be one of the admissible actions, as the agent would spell it in its action
format, with the end token. Before each token those tokens are allowed that continue some spelling. For example, after
``go`` the actions ``go`` and ``go north`` allow the end token and `` north``.

Free text may come before the action where the format is ``tags``, where the chat template's header opens a thought, and
where ``agent.thought_tokens`` is given. It lasts until ``</think>``, until ``<action>`` outside a thought, or until
``thought_tokens`` or the room for the longest action are used up; the tokens that end a reply are excluded. What the
format wants is forced then, the end of an open thought included.

``agent.thought_tokens`` without ``constrained`` forces the end of a thought, and leaves the answer free.

A request may also ask for a form of its reply (``forms.py``).
"""

from __future__ import annotations

import re
import warnings
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from turnwise.agents.actions import ParsedAction, parse_action, written
from turnwise.agents.forms import AfterThought, Forms
from turnwise.agents.rules import (
    Acted,
    ActionFloor,
    ActionPart,
    Decoded,
    Draw,
    HeatRule,
    Mirostat,
    Rule,
    Steered,
    Switch,
)
from turnwise.agents.toolcalls import Tools
from turnwise.envs.forms import Form
from turnwise.errors import AgentError
from turnwise.models.drawing import Sampling
from turnwise.models.processing import FREE, Processor, Step
from turnwise.trajectory import IntArray

if TYPE_CHECKING:
    from turnwise.agents.chat import ChatFormat
    from turnwise.agents.prompts import AgentConfig

Ids = tuple[int, ...]

NOTHING_OFFERED = (
    "agent.constrained=true samples among the actions that a world lists, and this world lists none with its first "
    "observation (info['admissible_actions']): set agent.constrained=false, or choose a world that lists them"
)

_BREAK = "\n\n"
_CLOSE, _OPEN, _TAG = f"</think>{_BREAK}", "<think>\n", "<action>"
_TAGS = re.compile(r"<(/?)(think|thinking|action)>", re.IGNORECASE)
_NAMES = [f"<{slash}{name}>" for slash in ("", "/") for name in ("think", "thinking", "action")]
_LONGEST = max(map(len, _NAMES)) - 1


class Menu:
    """Lets a reply, or the rest of one, be one of some ``spellings``. The first ``forced`` tokens are forced.

    Each spelling ends with the end token, so none is the beginning of another.
    """

    needs_logits = False

    def __init__(self, spellings: Sequence[Ids], forced: int = 0) -> None:
        self._left, self._forced, self._place = spellings, forced, 0

    def before(self, logits: Tensor | None) -> Step:
        allowed = sorted({ids[self._place] for ids in self._left})
        if self._place < self._forced:
            return Step(forced=allowed[0])
        return Step(allowed=np.array(allowed, np.int32))

    def after(self, token: int, logprob: float, entropy: float) -> None:
        self._left = [ids for ids in self._left if ids[self._place] == token]
        self._place += 1


class TagReader:
    """Finds ``<think>``, ``</think>`` and ``<action>`` in a reply, token by token.

    ``pieces`` holds the texts of the tokens that may be part of a tag.
    """

    def __init__(self, pieces: Mapping[int, str]) -> None:
        self._pieces, self._tail = pieces, ""

    def read(self, token: int) -> tuple[str, str] | None:
        """The last tag that this token completed ("think", "/think", "action" ...), and the token's text after it."""
        seen = self._tail + self._pieces.get(token, " ")
        found = [tag for tag in _TAGS.finditer(seen) if tag.end() > len(self._tail)]
        self._tail = seen[-_LONGEST:]
        if not found:
            return None
        name = found[-1].group(2).lower()
        return found[-1].group(1) + ("action" if name == "action" else "think"), seen[found[-1].end() :]


class Budget:
    """Forces the tokens ``close`` once a thought has ``tokens`` of them. ``is_open``: the prompt opens a thought."""

    needs_logits = False

    def __init__(self, tags: TagReader, tokens: int, close: Ids, is_open: bool) -> None:
        self._tags, self._left, self._close, self._open = tags, tokens, close, is_open
        self._due = deque(close if is_open and tokens == 0 else ())

    def before(self, logits: Tensor | None) -> Step:
        return Step(forced=self._due[0]) if self._due else FREE

    def after(self, token: int, logprob: float, entropy: float) -> None:
        tag = self._tags.read(token)
        if self._due:
            self._due.popleft()
            self._open = False
            return
        self._left -= self._open
        if tag is not None and tag[0].endswith("think"):
            self._open = tag[0] == "think"
        if self._open and self._left <= 0:
            self._due.extend(self._close)


@dataclass(frozen=True, slots=True)
class Answers:
    """The spellings of the admissible actions, each in the places where a reply may come to them.

    whole     from the beginning of the reply, without a thought
    closing   within a thought, which they close first
    closed    after a thought, or other text
    spaced    the same after white space
    inside    after ``<action>``
    """

    whole: tuple[Ids, ...]
    closing: tuple[Ids, ...] = ()
    closed: tuple[Ids, ...] = ()
    spaced: tuple[Ids, ...] = ()
    inside: tuple[Ids, ...] = ()


class ThoughtThenAction:
    """Leaves the first ``tokens`` tokens of a reply free, or fewer where the thought ends, and then gives a ``Menu``.

    ``opening`` is forced at the beginning. ``close`` are the tokens with which the spellings of ``answers.closing``
    begin. ``tagged``: ``<action>`` outside a thought ends the free text too. ``ends`` are the tokens that end a reply;
    none of them comes in free text.
    """

    needs_logits = False

    def __init__(
        self,
        tags: TagReader,
        answers: Answers,
        tokens: int,
        *,
        opening: Ids,
        close: Ids,
        is_open: bool,
        tagged: bool,
        ends: Sequence[int] = (),
    ) -> None:
        self._free = Step(excluded=np.array(sorted(ends), np.int32))
        self._tags, self._answers, self._left, self._close = tags, answers, tokens, close
        self._due, self._open, self._tagged = deque(opening), is_open, tagged
        self._menu: Menu | None = None

    def before(self, logits: Tensor | None) -> Step:
        if self._menu is not None:
            return self._menu.before(logits)
        return Step(forced=self._due[0]) if self._due else self._free

    def after(self, token: int, logprob: float, entropy: float) -> None:
        if self._menu is not None:
            self._menu.after(token, logprob, entropy)
            return
        tag = self._tags.read(token)
        if self._due:
            self._due.popleft()
        else:
            self._left -= 1
        self._menu = self._after_tag(*tag) if tag is not None else None
        if self._menu is None and self._left <= 0:
            self._menu = self._closing() if self._open else Menu(self._answers.closed)

    def _after_tag(self, name: str, rest: str) -> Menu | None:
        """What follows a tag and the ``rest`` of its token; None: more free text."""
        if name == "action" and self._tagged and not self._open:
            return Menu(self._answers.closed if rest.strip() else self._answers.inside)
        if name == "/think" and rest.strip():
            return self._closing()  # text was said with the tag: the action must not be read together with it
        if name == "/think":
            return Menu(self._answers.spaced if rest else self._answers.closed)
        self._open |= name == "think"
        return None

    def _closing(self) -> Menu:
        return Menu(self._answers.closing, _shared(self._answers.closing, self._close))


def _shared(spellings: Sequence[Ids], ids: Ids) -> int:
    """How many of the tokens ``ids`` all spellings begin with."""
    size = len(ids)
    while not all(spelling[:size] == ids[:size] for spelling in spellings):
        size -= 1
    return size


class Guides:
    """Makes the processor of each reply of an agent, as its settings ask for."""

    def __init__(self, chat: ChatFormat, config: AgentConfig) -> None:
        self._chat, self._config = chat, config
        self.forms = Forms(chat)
        self.acted = Acted()
        self._offered = self._warned = False
        self._answers = lru_cache(maxsize=256)(self._spelled)
        self._fits = lru_cache(maxsize=4096)(self._is_read_back)

    def processor(self, admissible: Sequence[str] | None, max_tokens: int) -> Processor | None:
        """A processor for one reply of at most ``max_tokens``; None where nothing restricts it.

        ``admissible`` are the actions that are possible now; without them the reply is free. Raises AgentError where
        ``agent.constrained`` is set and the first observation comes without them, and where none of them can be said.
        """
        if self._config.constrained:
            if not admissible and not self._offered:
                raise AgentError(NOTHING_OFFERED)
            self._offered = True
            if admissible:
                return self._action(tuple(admissible), max_tokens)
        return self._budget(max_tokens)

    def formed(self, form: Form, tools: Tools) -> Processor:
        """A processor for one reply that must have a ``form``, behind a thought where the chat template opens one."""
        held = self.forms.processor(form, tools)
        if not self._chat.opens_thought:
            return held
        tokens, close = self._config.thought_tokens, self._chat.within(_CLOSE)
        return AfterThought(TagReader(self._pieces), held, tokens=tokens, close=close, ends=tuple(self._chat.end_ids))

    def decoded(self, held: Processor | None, sampling: Sampling, draw: Draw | None) -> Processor | None:
        """The processor of one reply that ``held`` restricts, with ``agent.decoding`` and the heat of ``sampling``.

        ``draw`` draws a token of it with the second model, where there is one.
        """
        config = self._config.decoding
        rules = self._rules(sampling) if sampling.temperature else []
        switch = Switch(config.second, draw, self.acted) if config.second is not None and draw is not None else None
        if not rules and switch is None:
            return held
        return Decoded(held, rules, switch, sampling.temperature, self.acted)

    def _rules(self, sampling: Sampling) -> list[Rule]:
        config, acted, made = self._config.decoding, self.acted, list[Rule]()
        heat = sampling.heat or (config.heat.heat if config.heat is not None else None)
        if heat is not None:
            made.append(HeatRule(heat, acted))
        if (floor := config.floor) is not None:
            made.append(ActionFloor(self._action_part(), floor.temperature, floor.probability, acted))
        if config.mirostat is not None:
            made.append(Mirostat(config.mirostat, acted))
        if config.steering is not None:
            made.append(Steered(acted))
        return made

    def _action_part(self) -> ActionPart:
        if self._config.action_format == "whole":
            return ActionPart(None)
        tags = TagReader(self._pieces)
        return ActionPart(tags.read, is_open=self._chat.opens_thought, tagged=self._is_tagged)

    def _budget(self, max_tokens: int) -> Processor | None:
        tokens = self._config.thought_tokens
        if tokens is None:
            return None
        close = self._chat.within(_CLOSE + (_TAG if self._is_tagged else ""))
        if tokens + len(close) >= max_tokens:
            raise AgentError(
                f"agent.thought_tokens={tokens} and the {len(close)} tokens that end a thought leave no room for an "
                f"answer in agent.max_reply_tokens={max_tokens}: lower the one or raise the other"
            )
        return Budget(TagReader(self._pieces), tokens, close, self._chat.opens_thought)

    def _action(self, actions: tuple[str, ...], max_tokens: int) -> Processor:
        chat, tokens, answers = self._chat, self._config.thought_tokens, self._answers(actions, max_tokens)
        close = chat.within(_CLOSE)
        opening = () if chat.opens_thought or self._is_tagged else chat.start(_OPEN)
        room = max_tokens - len(opening) - max(map(len, (*answers.closing, *answers.closed)), default=max_tokens)
        if room < 1:
            return Menu(answers.whole, _shared(answers.whole, close) if chat.opens_thought else 0)
        return ThoughtThenAction(
            TagReader(self._pieces),
            answers,
            room if tokens is None else min(room, tokens),
            opening=opening,
            close=close,
            is_open=chat.opens_thought,
            tagged=self._is_tagged,
            ends=tuple(chat.end_ids),
        )

    @property
    def _thinks(self) -> bool:
        """Whether free text may come before an action."""
        asked = self._chat.opens_thought or self._is_tagged or self._config.thought_tokens is not None
        return asked and self._config.thought_tokens != 0

    @property
    def _is_tagged(self) -> bool:
        return self._config.action_format == "tags"

    def _spelled(self, actions: tuple[str, ...], max_tokens: int) -> Answers:
        """The spellings of the actions that can be said in ``max_tokens``. Others are left out, with a warning."""
        chat, tag, style = self._chat, _TAG if self._is_tagged else "", self._config.action_format
        said = {action: written(action, style) for action in dict.fromkeys(actions)}
        kept = [action for action in said if self._fits(action, said[action], max_tokens)]
        if not kept:
            raise AgentError(
                f"none of the {len(said)} admissible actions, such as {actions[0]!r}, can be said with "
                f"agent.action_format={style} in agent.max_reply_tokens={max_tokens} tokens: raise the limit, or set "
                "agent.constrained=false"
            )
        if len(kept) < len(said) and not self._warned:
            self._warned = True
            lost = next(action for action in said if action not in kept)
            warnings.warn(
                f"agent.constrained leaves out actions that cannot be said with agent.action_format={style} in "
                f"agent.max_reply_tokens={max_tokens} tokens, such as {lost!r}",
                stacklevel=2,
            )

        def spellings(lead: str, after: str = "") -> tuple[Ids, ...]:
            return _distinct(chat.rest(lead, said[action].removeprefix(after)) for action in kept)

        whole = _distinct(chat.reply(said[action]) for action in kept)
        if not self._thinks:
            return Answers(whole)
        return Answers(whole, spellings(_CLOSE), spellings(_BREAK), spellings(""), spellings("", tag))

    def _is_read_back(self, action: str, said: str, max_tokens: int) -> bool:
        """Whether the reply ``said`` fits into the limit, and is read as the action."""
        ids = self._chat.reply(said)
        read = parse_action(self._chat.decode(ids), self._config.action_format)
        return len(ids) <= max_tokens and read == ParsedAction(action.strip(), True)

    @cached_property
    def _pieces(self) -> dict[int, str]:
        """The texts of the tokens that may be part of a tag."""
        likely = [
            token
            for raw, token in self._chat.tokenizer.get_vocab().items()
            if "<" in raw or ">" in raw or any(raw.lower() in name for name in _NAMES)
        ]
        texts = {token: self._chat.text(token) for token in likely}
        return {token: text for token, text in texts.items() if _touches_tag(text.lower())}


def _distinct(spellings: Iterable[IntArray]) -> tuple[Ids, ...]:
    return tuple(sorted({tuple(ids.tolist()) for ids in spellings}))


def _touches_tag(text: str) -> bool:
    """Whether a tag holds the text, is held by it, begins at its end or ends at its beginning."""
    return any(
        text in name
        or name in text
        or any(text.endswith(name[:size]) or text.startswith(name[-size:]) for size in range(1, len(name)))
        for name in _NAMES
    )
