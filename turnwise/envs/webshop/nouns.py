"""Which words of a title are nouns: the reward asks how many of the wanted title's are in the bought one's.

The official reward asks spaCy's model ``en_core_web_sm`` (``SpacyNouns``). Models do not come with a package, so the
default is a stand-in that needs none and gives the same everywhere: every token with a letter counts as a noun unless
it is one of 70 function words. Tokens are those of spaCy's English tokenizer without its URLs and smileys.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Protocol

_FUNCTION_WORDS = (
    "a an and are as at be but by can do down for from had has have he her his i if in into is it its just more "
    "most my new no not of off on only or our out over own s she so t than that the their them then "
    "these they this those to too under up very we what when who will with you your"
)
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
"""32 of them are certain from recorded lists of nouns, which hold none of them; the others are of their kind."""


class NounTagger(Protocol):
    """Lower-case nouns of a title in order, with repeats."""

    def __call__(self, title: str, /) -> tuple[str, ...]: ...


class SpacyNouns:
    """The official tagger: nouns and names (tags NOUN and PROPN) by a spaCy model that you have installed."""

    def __init__(self, model: str = "en_core_web_sm") -> None:
        try:
            import spacy

            self._parse: Any = spacy.load(model)
        except ImportError as error:
            raise ValueError('Tagging nouns as officially needs spaCy: pip install -e ".[envs]"') from error
        except OSError as error:
            raise ValueError(f"There is no spaCy model {model!r} here: python -m spacy download {model}") from error
        self._nouns = lru_cache(maxsize=1 << 14)(self._tag)

    def __call__(self, title: str, /) -> tuple[str, ...]:
        return self._nouns(title)

    def _tag(self, title: str) -> tuple[str, ...]:
        return tuple(token.text.lower() for token in self._parse(title) if token.pos_ in ("NOUN", "PROPN"))


@lru_cache(maxsize=1 << 14)
def stand_in_nouns(title: str, /) -> tuple[str, ...]:
    """Every token with a letter that is no function word."""
    lowered = (token.lower() for chunk in title.split() for token in _tokens(chunk))
    return tuple(token for token in lowered if token not in FUNCTION_WORDS and any(map(str.isalpha, token)))


_QUOTES = "'\"”“`‘´’‚,„»«「」『』（）〔〕【】《》〈〉⟦⟧"
_PUNCTUATION = "…,:;!?¿؟¡()[]{}<>_#*&。？！，、；：～·।،۔؛٪"
_CURRENCY = "$£€¥฿₽﷼₠-₿"
_SYMBOLS = "¦©®°℀-℆℈℉℔№℗℞-™℥℧℩℮↕-↙↜-⇿⌀-⏿■-➿⬀-⯿㈀-㋾㌀-㏿\ufffc\ufffd\U0001f000-\U0001fa6d"
_UNITS = (
    "km km² km³ m m² m³ dm dm² dm³ cm cm² cm³ mm mm² mm³ ha µm nm yd in ft kg g mg µg t lb oz m/s km/h kmh mph hPa Pa "
    "mbar mb MB kb KB gb GB tb TB T G M K %"
)
_LETTER, _LOWER, _UPPER = r"[^\W\d_]", "[a-zß-öø-ÿ]", "[A-ZÀ-ÖØ-Þ]"


def _any(characters: str) -> str:
    return "[" + characters.replace("[", r"\[").replace("]", r"\]") + "]"


_PREFIX = re.compile(rf"[§%=—–]|\+(?![0-9])|\.\.+|(?:US|C|A)\$|{_any(_PUNCTUATION + _QUOTES + _CURRENCY + _SYMBOLS)}")
_SUFFIX = re.compile(
    rf"(?:{_any(_PUNCTUATION + _QUOTES + _SYMBOLS)}|\.\.+|['’][sS]|[—–]|(?<=[0-9])\+|(?<=[0-9]){_any(_CURRENCY)}|"
    rf"(?<=[0-9])(?:{'|'.join(map(re.escape, sorted(_UNITS.split(), key=len, reverse=True)))})|"
    rf"(?<=[0-9a-zß-öø-ÿ%²+\-{_any(_PUNCTUATION + _QUOTES)[1:-1]}])\.|(?<={_UPPER}{_UPPER})\.)$"
)
_INFIX = re.compile(
    rf"\.\.+|…|{_any(_SYMBOLS)}|(?<=[0-9])[+\-*^](?=[0-9-])|(?<={_LOWER})\.(?={_UPPER})|(?<={_LETTER}),(?={_LETTER})|"
    rf"(?<=[^\W_])(?:---?|——|[-–—~])(?={_LETTER})|(?<=[^\W_])[:<>=/](?={_LETTER})"
)
_CONTRACTION = re.compile(
    "(ai|are|ca|could|did|do|does|had|has|have|is|might|must|need|sha|should|was|were|wo|would)(n['’]?t)|"
    "(i|you|he|she|it|we|they|that|there|this|who|what|where|how|why|let)(['’](?:d|ll|m|re|s|ve))|"
    "(i|you|they|we|it|that|what)(m|ve|re|ll|s)|(can)(not)|(gon|got)(na|ta)|([0-9]|1[0-2])(am|pm|a\\.m\\.|p\\.m\\.)",
    re.IGNORECASE,
)
_WORDS_NOT_SPLIT = {"its", "were", "well", "ill"}
_WHOLE_WORDS = (
    "a. b. c. d. e. f. g. h. i. j. k. l. m. n. o. p. q. r. s. t. u. v. w. x. y. z. a.m. p.m. e.g. i.e. E.g. I.e. "
    "co. vs. v.s. Adm. Bros. Co. Corp. Dr. Gen. Gov. Inc. Jr. Ltd. Messrs. Mr. Mrs. Ms. Mt. Ph.D. Prof. Rep. Rev. "
    "Sen. St. Jan. Feb. Mar. Apr. Jun. Jul. Aug. Sep. Sept. Oct. Nov. Dec. D.C. N.C. N.H. N.J. N.M. N.Y. S.C. "
    "Ala. Ariz. Calif. Colo. Conn. Del. Fla. Ga. Ill. Ind. Kan. La. Mass. Md. Mich. Minn. Miss. Mo. Mont. Okla. "
    "Ore. Pa. Tenn. Va. Wash. Wis. and/or w/o o'clock O'clock C++"
)
_WHOLE = frozenset(_WHOLE_WORDS.split())


def _special(text: str) -> list[str] | None:
    """The tokens of what is a token, or a contraction, by decree."""
    if text in _WHOLE:
        return [text]
    found = None if text.lower() in _WORDS_NOT_SPLIT else _CONTRACTION.fullmatch(text)
    return [part for part in found.groups() if part] if found else None


def _tokens(chunk: str) -> list[str]:
    """Of a piece between spaces: what stands before and after is taken off, one at a time; the rest is split."""
    before: list[str] = []
    after: list[str] = []
    while chunk and not _special(chunk):
        prefix = _PREFIX.match(chunk)
        begin = prefix.end() if prefix else 0
        if prefix and _special(chunk[begin:]):
            before, chunk = [*before, chunk[:begin]], chunk[begin:]
            break
        suffix = _SUFFIX.search(chunk, begin)
        end = suffix.start() if suffix else len(chunk)
        if not prefix and not suffix:
            break
        if suffix and _special(chunk[:end]):
            begin = 0
        before, after = before + ([chunk[:begin]] if begin else []), after + ([chunk[end:]] if suffix else [])
        chunk = chunk[begin:end]
    return before + (_special(chunk) or _split(chunk)) + after[::-1]


def _split(text: str) -> list[str]:
    parts, start = [], 0
    for found in _INFIX.finditer(text):
        if found.start() != start:
            parts += [text[start : found.start()], found[0]]
            start = found.end()
    return [*parts, text[start:]] if text[start:] else parts
