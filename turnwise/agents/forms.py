r"""Processors that hold a reply to a form which its request asks for: JSON that fits a schema, or calls of tools.

A grammar of llguidance says before each token which ones may come next; the others are not sampled, and the learner
scores under what was left (``models/processing.py``). A call is spelled as the model's dialect spells it. Where the
chat template's header opens a thought, the thought comes first, as long as it likes or ``agent.thought_tokens`` allow.

The grammar says nothing of the token limit. A reply that reaches it is cut, as any other is, and is then no whole JSON.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from torch import Tensor

from turnwise.agents.toolcalls import Dialect, Tools, call_form, name_of
from turnwise.envs.forms import Form, json_rule
from turnwise.models.processing import Processor, Step
from turnwise.trajectory import Turn

if TYPE_CHECKING:
    from turnwise.agents.chat import ChatFormat

_TAG = re.compile(r"<\S+>|\[\S+\]")

MAX_STEPS = 512
"""Masks of a vocabulary that are kept as sets of ids."""

_FUEL = {"initial_lexer_fuel": 100_000_000, "step_lexer_fuel": 20_000_000}
"""What the grammar's lexer may construct, at first and before each token: enough for texts between tags of
``callforms.MAX_CHARACTERS``. The library's own limits end at a maxLength of about 80."""


class Reader(Protocol):
    """Finds the tags of thoughts in a reply (``guiding.TagReader``)."""

    def read(self, token: int) -> tuple[str, str] | None: ...


def stored_form(turn: Turn, request: Mapping[str, Any], dialect: Dialect) -> Form | None:
    """The form that a stored reply was held to, in a run of this dialect; ``request`` is what it answered.

    Wishes were not followed where the dialect, or what was installed, could not. The tokens tell.
    """
    form, held = Form.of(request.get("sampling") or {}), turn.processing
    can = form is not None and (not form.calls or call_form(dialect) is not None)
    return form if can and held is not None and held.counts.any() else None


class Forms:
    """Makes the processors that hold replies to forms. Its work on the vocabulary is done once."""

    def __init__(self, chat: ChatFormat) -> None:
        self._chat = chat
        self.num_ids: int | None = None
        """The size of the model's vocabulary, which may be larger than the tokenizer's; None: not seen yet."""
        self._matcher = lru_cache(maxsize=64)(self._compiled)
        self.step = lru_cache(maxsize=MAX_STEPS)(self._step)

    def follows(self, form: Form, tools: Tools) -> bool:
        """Whether replies can be held to a form. Raises ValueError where they cannot and must be.

        Where calls may be left free and cannot be forced, they are.
        """
        try:
            self._matcher(self._grammar(form, tools))
        except ValueError:
            if form.must:
                raise
            return False
        return True

    def processor(self, form: Form, tools: Tools) -> InForm:
        """A processor for one reply. Raises ValueError for a form that cannot be kept."""
        return InForm(self, self._matcher(self._grammar(form, tools)).deep_copy())

    def _grammar(self, form: Form, tools: Tools) -> str:
        """The form in llguidance's Lark. White space may precede it where the header opens a thought."""
        ways, rules, spaced = list[str](), list[str](), self._chat.opens_thought
        if form.schema is not None:
            ways.append("value")
            rules.append(f"value: {json_rule(form.schema)}")
        if form.calls:
            ways.append("calls")
            rules += self._calls(form, tools)
        if spaced:
            rules.append(r"WS: /[ \n]{1,2}/")
        options = ['%llguidance {"no_forcing": true}'] if self._has_phrases else []
        return "\n".join([*options, f"start: {'WS? ' if spaced else ''}({' | '.join(ways)})", *rules])

    @cached_property
    def _has_phrases(self) -> bool:
        """Whether the tokenizer has set phrases as tokens (``models/scratch.py``).

        Where only one text can come the library allows its usual spelling alone, without a token that goes on after it.
        """
        return any(not (token.special or _TAG.fullmatch(token.content)) for token in self._added.values())

    def _calls(self, form: Form, tools: Tools) -> list[str]:
        """The rule "calls", and those that it needs."""
        spelled = call_form(self._chat.dialect)
        dialect = f"the dialect {name_of(self._chat.dialect)} (agent.tool_calls)"
        if spelled is None:
            raise ValueError(
                f"calls in {dialect} cannot be forced: leave tool_choice out, and response_format where tools are "
                "offered"
            )
        if form.schema is not None and not spelled.before:
            raise ValueError(
                f"calls in {dialect} are JSON too, and cannot be told from an answer in JSON: give tools or "
                "response_format, not both"
            )
        made, named = list[str](), [tool["function"] for tool in tools if tool["function"]["name"] in form.calls]
        for number, function in enumerate(named):
            try:
                made += spelled.rule.rules(f"call{number}", function, self._spelled)
            except ValueError as error:
                raise ValueError(
                    f"a call of {function['name']} cannot be forced in {dialect}: {error}. Leave that out of its "
                    "parameters, or do not ask for a call"
                ) from None
        before, between, after = (" ".join(self._spelled(t)) for t in (spelled.before, spelled.between, spelled.after))
        call = f"({' | '.join(f'call{number}' for number in range(len(named)))})"
        again = "" if form.one_call or not between else f" ({between} {call})*"
        end = "" if self._chat.call_end_id == self._chat.end_id else f" <[{self._chat.call_end_id}]>"
        return [*made, f"calls: {before} {call}{again} {after}{end}"]

    def _compiled(self, grammar: str) -> Any:
        from llguidance import LLMatcher, LLParserLimits

        made = LLMatcher(self._tokenizer, grammar, log_level=0, limits=LLParserLimits(**_FUEL))
        if made.is_error():
            raise ValueError(f"the reply cannot be held to this form: {_first(made)}")
        return made

    @cached_property
    def _tokenizer(self) -> Any:
        from llguidance import LLTokenizer

        return LLTokenizer(self._chat.tokenizer.backend_tokenizer.to_str(), eos_token=self._chat.end_id)

    def _spelled(self, text: str) -> list[str]:
        """A text of a dialect as terms of a grammar, its special tokens as such."""
        special = {token.content: number for number, token in self._added.items() if token.special}
        parts = re.split("(" + "|".join(map(re.escape, special)) + ")", text) if special else [text]
        return [f"<[{special[part]}]>" if part in special else json.dumps(part) for part in parts if part]

    @property
    def _added(self) -> Mapping[int, Any]:
        found: Mapping[int, Any] = self._chat.tokenizer.backend_tokenizer.get_added_tokens_decoder()
        return found

    def _step(self, mask: bytes, num_ids: int) -> Step:
        """The smaller one of allowed and excluded ids. Those that no token of the tokenizer has are not allowed."""
        inside = np.zeros(num_ids, np.bool_)
        bits = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")[:num_ids]
        inside[: len(bits)] = bits
        allowed = inside.nonzero()[0].astype(np.int32)
        if 2 * len(allowed) <= num_ids:
            return Step(allowed=allowed)
        return Step(excluded=(~inside).nonzero()[0].astype(np.int32))


def _first(matcher: Any) -> str:
    """The first line of what went wrong."""
    return str(matcher.get_error()).partition("\n")[0]


class InForm:
    """Holds a reply to a grammar. The reply ends where the grammar does, and where it can go on no further."""

    def __init__(self, forms: Forms, matcher: Any) -> None:
        self._forms, self._matcher = forms, matcher

    @property
    def needs_logits(self) -> bool:
        """Once: to see how many ids the model has."""
        return self._forms.num_ids is None

    @property
    def fault(self) -> str:
        """Why the grammar allowed nothing any more, which is not the policy's fault; "" where it did not come to it."""
        return f"the reply cannot be held to its form: {_first(self._matcher)}" if self._matcher.is_error() else ""

    def before(self, logits: Tensor | None) -> Step:
        if logits is not None:
            self._forms.num_ids = len(logits)
        mask = self._matcher.compute_bitmask()
        return self._forms.step(mask, self._forms.num_ids or 8 * len(mask))

    def after(self, token: int, logprob: float, entropy: float) -> None:
        self._matcher.consume_token(token)  # a matcher that has lost its way allows the end alone


class AfterThought:
    """Leaves a reply free until its thought ends, and then to another processor.

    ``tokens`` is the longest thought, None: no limit; ``close`` ends one that is longer. ``ends`` are the tokens that
    end a reply; a thought has none of them.
    """

    def __init__(
        self, tags: Reader, then: Processor, *, tokens: int | None, close: Sequence[int], ends: Sequence[int]
    ) -> None:
        self._tags, self._then, self._left, self._close = tags, then, tokens, close
        self._free = Step(excluded=np.array(sorted(ends), np.int32))
        self._thinks, self._due = True, deque(close if tokens == 0 else ())

    @property
    def fault(self) -> str:
        """As that of the other processor."""
        return str(getattr(self._then, "fault", ""))

    @property
    def needs_logits(self) -> bool:
        return not self._thinks and self._then.needs_logits

    def before(self, logits: Tensor | None) -> Step:
        if not self._thinks:
            return self._then.before(logits)
        return Step(forced=self._due[0]) if self._due else self._free

    def after(self, token: int, logprob: float, entropy: float) -> None:
        if not self._thinks:
            self._then.after(token, logprob, entropy)
            return
        if self._due:
            self._due.popleft()
            self._thinks = bool(self._due)
            return
        tag = self._tags.read(token)
        self._thinks = tag is None or tag[0] != "/think"
        if self._thinks and self._left is not None:
            self._left -= 1
            if self._left <= 0:
                self._due.extend(self._close)
