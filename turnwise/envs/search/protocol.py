"""How questions, searches, documents and answers are written: Search-R1's tags, or a compact plain form.

Search-R1: https://github.com/PeterGriffinJin/Search-R1 (Jin et al. 2025, arXiv:2503.09516). Its texts are kept to the
letter, the white space too, so that a model trained there reads here what it knows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, Protocol

from turnwise.envs.search.hits import Hit
from turnwise.errors import unknown


@dataclass(frozen=True, slots=True)
class Call:
    """What a reply asks for."""

    kind: Literal["search", "answer"]
    text: str


class SearchProtocol(Protocol):
    """One way of writing an episode down."""

    @property
    def instructions(self) -> str:
        """How an action is written, where the first observation does not say it."""

    @property
    def invalid(self) -> str:
        """The observation after a reply that is no action."""

    def opening(self, question: str) -> str:
        """The first observation."""

    def parse(self, reply: str) -> Call | None:
        """The action of a reply; None where it is none."""

    def information(self, hits: Sequence[Hit]) -> str:
        """The observation after a search."""

    def search(self, query: str) -> str:
        """The action that searches."""

    def answer(self, text: str) -> str:
        """The action that answers."""


class SearchR1:
    """Replies are cut at the first </search>, without one at the first </answer>; the first whole tag acts.

    Search-R1 scores the last <answer> of the whole episode's text, and only beside the one of the prompt's example;
    here it is the last one of the reply that answers. They differ where an earlier reply left an <answer> open.
    """

    instructions = ""
    invalid = (
        "\nMy previous action is invalid. If I want to search, I should put the query between <search> and </search>. "
        "If I want to give the final answer, I should put the answer between <answer> and </answer>. "
        "Let me try again.\n"
    )
    _prompt = (
        "Answer the given question. You must conduct reasoning inside <think> and </think> first every time you get "
        "new information. After reasoning, if you find you lack some knowledge, you can call a search engine by "
        "<search> query </search> and it will return the top searched results between <information> and "
        "</information>. You can search as many times as your want. If you find no further external knowledge needed, "
        "you can directly provide the answer inside <answer> and </answer>, without detailed illustrations. For "
        "example, <answer> Beijing </answer>. Question: {}\n"
    )
    _call = re.compile(r"<(search|answer)>(.*?)</\1>", re.DOTALL)
    _answer = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)

    def opening(self, question: str) -> str:
        question = question.strip()
        return self._prompt.format(question if question.endswith("?") else question + "?")

    def parse(self, reply: str) -> Call | None:
        end = "</search>" if "</search>" in reply else "</answer>"
        head, found, _ = reply.partition(end)
        call = self._call.search(head + found)
        if call is None:
            return None
        if call[1] == "search":
            return Call("search", call[2].strip())
        return Call("answer", self._answer.findall(head + found)[-1].strip())

    def information(self, hits: Sequence[Hit]) -> str:
        lines = []
        for number, hit in enumerate(hits, start=1):
            title, _, text = hit.document.contents.partition("\n")  # the title keeps its quotes
            lines.append(f"Doc {number}(Title: {title}) {text}")
        return "\n\n<information>" + "\n".join(lines).strip() + "</information>\n\n"

    def search(self, query: str) -> str:
        return f"<search> {query} </search>"

    def answer(self, text: str) -> str:
        return f"<answer> {text} </answer>"


class Plain:
    """``search: words`` and ``answer: words``; a line for each document, the title only where the text does not begin
    with it. Short enough for a context of some hundred tokens.
    """

    instructions = (
        "An action is one line. To look something up: search: <words>. It returns the best documents, a line each. "
        "To answer the question, which ends the episode: answer: <words>."
    )
    invalid = "write search: words, or answer: words."
    nothing = "nothing found."
    _call = re.compile(r"\s*(search|answer)\s*:\s*(\S.*)", re.DOTALL | re.IGNORECASE)

    def opening(self, question: str) -> str:
        return question.strip()

    def parse(self, reply: str) -> Call | None:
        call = self._call.fullmatch(reply)
        if call is None:
            return None
        return Call("search" if call[1].lower() == "search" else "answer", " ".join(call[2].split()))

    def information(self, hits: Sequence[Hit]) -> str:
        return "\n".join(map(self._line, hits)) or self.nothing

    def _line(self, hit: Hit) -> str:
        title, text = hit.document.title, " ".join(hit.document.text.split())
        return text if text.lower().startswith(title.lower()) else f"{title}: {text}"

    def search(self, query: str) -> str:
        return f"search: {query}"

    def answer(self, text: str) -> str:
        return f"answer: {text}"


PROTOCOLS = MappingProxyType[str, SearchProtocol]({"search_r1": SearchR1(), "plain": Plain()})


def protocol_named(name: str) -> SearchProtocol:
    """A protocol by its name. Raises ValueError for an unknown one."""
    if name not in PROTOCOLS:
        raise unknown("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]
