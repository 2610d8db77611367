"""A hidden word: each guess is answered letter by letter. The number of letters is the difficulty.

Letters stand apart, in guesses and in answers, so that a tokenizer keeps them apart too.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

from turnwise.envs.interface import Expert, Info, Panel
from turnwise.envs.panels import content_key
from turnwise.envs.toys.toy import ToyEnv, check_expert, level_of, report
from turnwise.envs.toys.words import WORDS
from turnwise.errors import unknown
from turnwise.trajectory import Task

ENV_ID = "turnwise/Wordle-v0"
SPLITS = ("train", "demonstrations", "validation", "test")

INSTRUCTIONS = """\
Find the hidden English word. An action is a word of as many letters, the letters apart: "c r a n e".
The answer marks each letter: = is in the right place, + is in the word but elsewhere, - is not in the word (or not
once more)."""

HERE, ELSEWHERE, ABSENT = "=", "+", "-"


@dataclass(frozen=True, slots=True)
class Level:
    letters: int
    step_limit: int
    """Guesses, those that are not answered included."""


LEVELS = {"easy": Level(3, 10), "medium": Level(4, 8), "hard": Level(5, 6)}
ANY_LETTERS = 3
"""Up to this length any letters may be guessed: who has yet to learn the words can learn from the answers."""


def marks(word: str, guess: str) -> str:
    """One mark for each letter of the guess; no letter is found more often than the word has it."""
    left = [ours for ours, theirs in zip(word, guess, strict=True) if ours != theirs]
    found = ""
    for ours, theirs in zip(word, guess, strict=True):
        if ours == theirs:
            found += HERE
        elif theirs in left:
            left.remove(theirs)
            found += ELSEWHERE
        else:
            found += ABSENT
    return found


def _free(guess: str) -> bool:
    """Whether letters that are no word may be guessed."""
    return len(guess) <= ANY_LETTERS and guess.isascii() and guess.isalpha()


def spelled(word: str) -> str:
    return " ".join(word)


class HiddenWords:
    """The words of a length, each in the split that its hash says: about a quarter of them in each."""

    def __init__(self, letters: int) -> None:
        self.splits = SPLITS
        self.all = WORDS[letters]
        self.known = frozenset(self.all)
        self.guesses = [spelled(word) for word in self.all]
        keys = {word: content_key(word) for word in self.all}
        in_order = sorted(self.all, key=keys.__getitem__)  # by hash: neighbours in a panel are not alike
        self._words = {
            split: [word for word in in_order if int(keys[word][0], 16) * len(SPLITS) // 16 == number]
            for number, split in enumerate(SPLITS)
        }
        self._panels = {
            split: Panel(ENV_ID, split, tuple(Task(ENV_ID, split, n, keys[word]) for n, word in enumerate(words)))
            for split, words in self._words.items()
        }

    def panel(self, split: str) -> Panel:
        if split not in self._panels:
            raise unknown("split", split, SPLITS, ENV_ID)
        return self._panels[split]

    def content(self, split: str, index: int) -> str:
        return self._words[split][index]


class WordExpert:
    """Guesses a word that agrees with every answer so far."""

    def __init__(self, words: tuple[str, ...], seed: int) -> None:
        self._words, self._rng = words, random.Random(seed)
        self._left = list(words)

    def begin(self, observation: str, info: Info) -> None:
        self._left = list(self._words)

    def act(self, observation: str, info: Info) -> str:
        pairs = [pair for pair in observation.split() if pair[1:] in (HERE, ELSEWHERE, ABSENT)]
        if pairs:
            guess, answer = "".join(pair[0] for pair in pairs), "".join(pair[1] for pair in pairs)
            self._left = [word for word in self._left if marks(word, guess) == answer]
        return spelled(self._rng.choice(self._left))


class KnowingWordExpert:
    """Says the hidden word."""

    def __init__(self, env: WordleEnv) -> None:
        self._env = env

    def begin(self, observation: str, info: Info) -> None:
        pass

    def act(self, observation: str, info: Info) -> str:
        return spelled(self._env.state)


class WordleEnv(ToyEnv[str]):
    """Reward 1.0 for the hidden word, else 0.0; an answer is like "c- r+ a= n- e-".

    ``difficulty``: "easy" (three letters, 10 guesses), "medium" (four, 8), "hard" (five, 6); ``step_limit``
    overrides the number of guesses. A guess must be on the list of words (any split's); on "easy" any letters will do.
    What is not answered costs a guess too.
    Splits are by the hidden word: 125 to 269 words each, no word in two of them.

    ``info``: ``admissible_actions`` (the list of words), ``success``, ``score`` (0.0 or 1.0), ``valid``.
    """

    instructions = INSTRUCTIONS

    def __init__(self, difficulty: str = "easy", split: str = "train", step_limit: int | None = None) -> None:
        self.level = level_of(LEVELS, difficulty, ENV_ID)
        self.difficulty = difficulty
        self.words = hidden_words(self.level.letters)
        super().__init__(self.words, split, self.level.step_limit if step_limit is None else step_limit)

    def begin(self, split: str, index: int) -> tuple[str, Info]:
        self._state = self.source.content(split, index)
        return f"guess a word of {len(self._state)} letters.", self._info(False)

    def act(self, action: str) -> tuple[str, float, bool, Info]:
        word, guess = self.state, "".join(action.split()).lower()
        if len(guess) != len(word) or not (guess in hidden_words(len(word)).known or _free(guess)):
            return f"not a known word of {len(word)} letters.", 0.0, False, self._info(False, valid=False)
        success = guess == word
        answer = " ".join(letter + mark for letter, mark in zip(guess, marks(word, guess), strict=True))
        return answer, float(success), success, self._info(success)

    def _info(self, success: bool, valid: bool = True) -> Info:
        return report(success, valid, list(hidden_words(len(self.state)).guesses))

    def expert(self, kind: str = "searching", *, seed: int = 0) -> Expert:
        """ "searching" guesses among the words that are left, "knowing" says the word."""
        check_expert(kind, ENV_ID)
        return KnowingWordExpert(self) if kind == "knowing" else WordExpert(self.words.all, seed)


@lru_cache(maxsize=8)
def hidden_words(letters: int) -> HiddenWords:
    return HiddenWords(letters)
