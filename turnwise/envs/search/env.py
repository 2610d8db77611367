"""Questions that are answered by searching, as a gymnasium environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gymnasium.error import ResetNeeded

from turnwise.envs.interface import Expert, Info, Panel
from turnwise.envs.search.answers import Measure, em, f1, measure
from turnwise.envs.search.corpus import Corpus, Paths, open_corpus
from turnwise.envs.search.experts import KnowingExpert, SearchingExpert
from turnwise.envs.search.facts import GeneratedQuestions, Settings
from turnwise.envs.search.hits import Hit
from turnwise.envs.search.protocol import SearchProtocol, protocol_named
from turnwise.envs.search.questions import FileQuestions, Question, Questions
from turnwise.envs.search.retrieval import Retriever, open_retriever
from turnwise.envs.world import SnapshotEnv
from turnwise.errors import unknown


@dataclass(frozen=True, slots=True)
class Rules:
    """What an episode is played with."""

    source: Questions
    retriever: Retriever
    protocol: SearchProtocol
    reward: Measure
    topk: int


@dataclass(frozen=True, slots=True)
class Episode:
    """``found``: titles of the documents retrieved so far, in order; ``answer``: None until one is given."""

    rules: Rules
    question: Question
    found: tuple[str, ...] = ()
    answer: str | None = None


class SearchEnv(SnapshotEnv):
    """Each turn searches, or answers and ends the episode. The reward comes with the answer; all others are 0.

    Without ``questions``, a generated world of ``difficulty`` "easy" (default), "medium", "hard" or your own
    ``Settings``, and of number ``world`` (0): splits train, demonstrations, validation, test, about one shared world.
    With ``questions``, a file or {split: file} (``FileQuestions`` says how one file is divided), and ``corpus``, the
    files to search (not where ``retriever`` is a URL).

    ``retriever``: "bm25" (in memory), "bm25s" (on disk, the extra ``[envs]``), the URL of a server that
    speaks Search-R1's /retrieve, or any ``Retriever``. ``topk``: documents a search. ``reward``: "em", "f1" or
    "sub_em", in [0, 1].
    ``protocol``: "plain" (default of the generated world) or "search_r1" (default of files).
    ``step_limit``: turns, of which the last one finds nothing: Search-R1's max_turns + 1. Default: the difficulty's
    (6, 8, 10), for files 4.

    ``info``: ``success`` (an exact match, whatever the reward), ``score`` (F1), ``valid`` (False after a reply that is
    no action), ``task_type``, ``question``, ``documents`` (ids that this turn found), and in the generated world
    ``admissible_actions``: a search for, or an answer with, anything that question and documents have named so far.
    ``listed_actions``, which prompts show: of the answers those alone that a document has told of something else.
    """

    gives_answers = True

    def __init__(
        self,
        corpus: Paths | None = None,
        questions: str | Path | Mapping[str, str | Path] | None = None,
        retriever: str | Retriever = "bm25",
        topk: int = 3,
        reward: str = "em",
        difficulty: str | Settings | None = None,
        world: int | None = None,
        split: str = "train",
        step_limit: int | None = None,
        protocol: str | None = None,
    ) -> None:
        if topk < 1:
            raise ValueError(f"topk must be at least 1, got {topk}.")
        source: Questions
        documents: Corpus | None
        if questions is None:
            if corpus is not None:
                raise ValueError("A `corpus` needs `questions` about it; without both, a world is generated.")
            generated = GeneratedQuestions("easy" if difficulty is None else difficulty, world or 0)
            source, documents, limit = generated, generated.world.corpus, generated.settings.step_limit
        else:
            if difficulty is not None or world is not None:
                raise ValueError(
                    "`difficulty` and `world` belong to the generated world: leave them out with `questions`."
                )
            documents, source, limit = _documents(corpus, retriever), FileQuestions(questions), 4
        super().__init__(split, limit if step_limit is None else step_limit)
        self.rules = Rules(
            source,
            open_retriever(retriever, documents) if isinstance(retriever, str) else retriever,
            protocol_named(protocol or ("plain" if questions is None else "search_r1")),
            measure(reward),
            topk,
        )
        self.instructions = self.rules.protocol.instructions
        self._episode: Episode | None = None

    @property
    def splits(self) -> tuple[str, ...]:
        return self.rules.source.splits

    def tasks(self, split: str) -> Panel:
        """The fixed panel of a split. Raises ValueError for an unknown one."""
        return self.rules.source.panel(split)

    def begin(self, split: str, index: int) -> tuple[str, Info]:
        self._episode = Episode(self.rules, self.rules.source.question(split, index))
        return self.rules.protocol.opening(self._episode.question.text), self._info()

    def act(self, action: str) -> tuple[str, float, bool, Info]:
        episode = self._playing()
        rules = episode.rules
        call = rules.protocol.parse(action)
        if call is None:
            return rules.protocol.invalid, 0.0, False, self._info(valid=False)
        if call.kind == "answer":
            self._episode = replace(episode, answer=call.text)
            return "", rules.reward(call.text, episode.question.answers), True, self._info()
        hits = rules.retriever.search([call.text], rules.topk)[0][: rules.topk] if self._turns_left() > 1 else []
        titles = dict.fromkeys((*episode.found, *(hit.document.title for hit in hits)))
        self._episode = replace(episode, found=tuple(titles))
        return rules.protocol.information(hits), 0.0, False, self._info(hits)

    def save(self) -> Episode:
        return self._playing()

    def load(self, state: Episode) -> None:
        self._episode = state

    def expert(self, kind: str = "searching", *, seed: int = 0) -> Expert:
        """ "knowing" goes straight for the documents and the golden answer; "searching", which reads, is for the
        generated world alone. Neither draws anything: ``seed`` changes nothing.
        """
        if kind == "knowing":
            return KnowingExpert(self._playing, self._turns_left)
        if kind != "searching":
            raise unknown("expert", kind, ("searching", "knowing"))
        if not isinstance(self.rules.source, GeneratedQuestions):
            raise ValueError("Only the generated world has a searching expert: of your own questions take 'knowing'.")
        return SearchingExpert(self.rules.protocol)

    def shared_documents(self, first: str, second: str, limit: int = 1000) -> float:
        """Of the documents that ``second``'s tasks need, the share in [0, 1] that ``first``'s need too.

        Counted over the first ``limit`` tasks of each; 0.0 where the questions do not say what they need.
        """
        needed, known = (self._needed(second, limit), self._needed(first, limit))
        return len(needed & known) / max(len(needed), 1)

    def _needed(self, split: str, limit: int) -> set[str]:
        source = self.rules.source
        size = min(limit, len(source.panel(split)))
        return {title for index in range(size) for title in source.question(split, index).titles}

    def _info(self, hits: Sequence[Hit] = (), valid: bool = True) -> Info:
        episode = self._playing()
        rules, question, answer = episode.rules, episode.question, episode.answer
        info: Info = {
            "success": answer is not None and em(answer, question.answers) == 1,
            "score": 0.0 if answer is None else f1(answer, question.answers),
            "valid": valid,
            "task_type": question.type,
            "question": question.text,
            "documents": [hit.document.id for hit in hits],
        }
        choices = rules.source.choices(question, episode.found)
        if choices is not None:
            searches = list(map(rules.protocol.search, choices.searches))
            info["admissible_actions"] = [*searches, *map(rules.protocol.answer, choices.answers)]
            info["listed_actions"] = [*searches, *map(rules.protocol.answer, choices.told)]
        return info

    def _turns_left(self) -> int:
        """Turns left in this episode, the coming one counted."""
        return self._step_limit - self._num_steps

    def _playing(self) -> Episode:
        if self._episode is None:
            raise ResetNeeded("There is no episode yet: call reset() first.")
        return self._episode


def _documents(corpus: Paths | None, retriever: str | Retriever) -> Corpus | None:
    """The corpus that a retriever by name searches; others bring their own documents."""
    brings_its_own = not isinstance(retriever, str) or "://" in retriever
    if corpus is not None and brings_its_own:
        raise ValueError("`corpus` is not used where `retriever` brings its own documents: leave it out.")
    return None if corpus is None else open_corpus(corpus)
