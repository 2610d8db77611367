"""A judge: a model behind a chat API that reads an episode and answers a rubric, with reasons before its choices.

An answer that is no verdict is sent back with what is wrong with it. After ``answers`` of them, and where the request
fails, the episode has no verdict: JudgeError, never a verdict of 0.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from turnwise.agents.chat_client import ChatClient, ContextFullError, ExhaustedError, Usage, addressed
from turnwise.grading.settings import AskedConfig, Criterion, JudgeConfig, Rubric
from turnwise.grading.transcript import described, messages, response_format, transcript
from turnwise.grading.verdicts import Choice, Key, Verdict, Verdicts
from turnwise.trajectory import Grade, Trajectory

NAME = "judge:"
"""The names of a judge's grades begin with it; the criterion's follows."""

_THOUGHT = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)


class JudgeError(Exception):
    """The judge gave no verdict on an episode: for which ``fault``, and what it took."""

    def __init__(self, message: str, fault: str, usage: Usage) -> None:
        super().__init__(message)
        self.fault, self.usage = fault, usage


class UnreadableError(ValueError):
    """An answer that is no verdict; the message says why."""


class Judge:
    """Asks one model. Several threads may use it. Verdicts are known by the model's name, wherever it is asked.

    Raises ValueError where the key cannot be used (``ChatClient``).
    """

    def __init__(self, config: JudgeConfig, verdicts: Verdicts) -> None:
        self.config, self.verdicts = config, verdicts
        model, endpoint = addressed(config.model, config.endpoint)
        hint = "Verdicts are kept: `turnwise train --resume RUN`, or the same command, goes on"
        self.client = ChatClient(model, endpoint, hint)
        self.name = f"{model}, rubric {config.rubric.hash}"
        how = [endpoint.extra] * bool(endpoint.extra or config.structured) + ["structured"] * config.structured
        self._identity = json.dumps([model, *how], sort_keys=True) if how else model

    def grades(self, episode: Trajectory, task: Mapping[str, Any]) -> tuple[tuple[Grade, ...], float]:
        """A grade for each criterion, and the verdict in [0, 1]: their mean by the rubric's weights.

        Raises JudgeError, and EndpointError where nobody answers or the key is refused: then nobody can be judged.
        """
        rubric, weight = self.config.rubric.filled(task), self.config.weight
        asked = described(rubric)
        record = transcript(episode, self.config.view, thoughts=self.config.thoughts)
        key = Key.of(self._identity, asked, record)
        verdict = self.verdicts.once(key, episode.episode, lambda: self._asked(key, episode, rubric, asked, record))
        total = sum(criterion.weight for criterion in rubric.criteria)
        worth = [_worth(criterion, each) for criterion, each in zip(rubric.criteria, verdict, strict=True)]
        shares = [criterion.weight / total for criterion in rubric.criteria]
        grades = tuple(
            Grade(NAME + each.criterion, value, weight * share, each.reason)
            for each, value, share in zip(verdict, worth, shares, strict=True)
        )
        return grades, sum(value * share for value, share in zip(worth, shares, strict=True))

    def _asked(self, key: Key, episode: Trajectory, rubric: Rubric, asked: str, record: str) -> tuple[Verdict, Usage]:
        try:
            said, fields = messages(asked, record), response_format(rubric) if self.config.structured else {}
            return answered(self.client, self.config, said, lambda text: read_verdict(text, rubric), fields)
        except JudgeError as error:
            self.verdicts.write(key, episode.episode, error.usage, verdict=None, fault=error.fault[:500])
            raise


def answered(
    client: ChatClient,
    config: AskedConfig,
    said: list[dict[str, str]],
    read: Callable[[str], Verdict],
    fields: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[Verdict, Usage]:
    """The verdict that ``read`` finds in an answer to these messages, and what it took.

    ``fields`` are more of the request. ``read`` raises UnreadableError for an answer that is none, which is then sent
    back. Raises JudgeError, and EndpointError.
    """
    usage, fault = Usage(), ""
    for _ in range(config.answers):
        try:
            answer = client.ask(said, {"temperature": 0, "max_tokens": config.max_tokens, **fields})
        except ContextFullError:
            fault = f"the episode does not fit its context (rewards.{config.section}.view=last shows less of it)"
            break
        except ExhaustedError as error:
            fault = str(error)
            break
        usage += answer.usage
        try:
            return read(answer.text), usage
        except UnreadableError as error:
            fault = f"its last answer of {config.answers} was no verdict: {error}"
            again = f"That is no verdict: {error}. Answer with the JSON object alone, in the form that was given."
            said += [{"role": "assistant", "content": answer.text}, {"role": "user", "content": again}]
    raise JudgeError(f"{client.model} gave no verdict: {fault}", fault, usage)


def read_verdict(text: str, rubric: Rubric) -> Verdict:
    """The verdict in an answer: one JSON object, from its first brace to its last. Raises ValueError for another.

    What stands around the object is not read. Where there are two objects there is no verdict: one may be quoted.
    """
    given = listed(text, "verdict", "criterion")
    names = [criterion.name for criterion in rubric.criteria]
    if set(given) != set(names):
        raise UnreadableError(f"expected the criteria {', '.join(names)}; got {', '.join(given) or 'none'}"[:300])
    return tuple(_choice(criterion, given[criterion.name]) for criterion in rubric.criteria)


def listed(text: str, name: str, key: str) -> dict[str, Any]:
    """The items of a list ``name`` in the one JSON object of an answer, by what each has as ``key``.

    Raises UnreadableError where there is no such list, and for two items of one key.
    """
    text = _THOUGHT.sub("", text)
    begin, end = text.find("{"), text.rfind("}")
    try:
        answers = json.loads(text[begin : end + 1])[name] if begin >= 0 else None
        given = {str(each[key]): each for each in answers} if isinstance(answers, list) else None
    except (ValueError, LookupError, TypeError, RecursionError):
        given, answers = None, None
    if given is None or answers is None or len(given) < len(answers):
        raise UnreadableError(f"expected one JSON object with a list `{name}`, a {key} each; got {text[:100]!r}")
    return given


def _choice(criterion: Criterion, answer: Mapping[str, Any]) -> Choice:
    by_word = {choice.strip().lower(): choice for choice in criterion.choices}
    said, reason = answer.get("choice"), answer.get("reason")
    if isinstance(said, bool):
        said = "yes" if said else "no"
    chosen = by_word.get(str(said).strip().lower())
    if chosen is None:
        raise UnreadableError(f"{criterion.name}: expected one of {', '.join(criterion.choices)}; got {said!r}"[:300])
    if not isinstance(reason, str) or not reason.strip():
        raise UnreadableError(f"{criterion.name}: expected a reason before the choice")
    return Choice(criterion.name, chosen, reason.strip())


def _worth(criterion: Criterion, answer: Choice) -> float:
    return criterion.choices[answer.choice]
