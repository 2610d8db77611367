"""How an answer is scored against the golden ones: Search-R1's exact match, and HotpotQA's F1.

Both compare normalised texts: lower case, without punctuation and the articles a, an, the, single spaces.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from types import MappingProxyType

from turnwise.errors import unknown

Measure = Callable[[str, Sequence[str]], float]
"""(answer, golden answers) -> [0, 1]; the best over the golden ones."""

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_VERDICTS = frozenset({"yes", "no", "noanswer"})


def normalised(text: str) -> str:
    """What two answers are compared by."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def em(answer: str, golden: Sequence[str]) -> float:
    """1 where the answer equals a golden one, else 0."""
    return float(normalised(answer) in map(normalised, golden))


def sub_em(answer: str, golden: Sequence[str]) -> float:
    """1 where the answer contains a golden one, else 0."""
    return float(any(normalised(each) in normalised(answer) for each in golden))


def f1(answer: str, golden: Sequence[str]) -> float:
    """2PR / (P + R) of the words in common. Verdicts ("yes", "no") earn nothing but for equality."""
    return max((_f1(normalised(answer), normalised(each)) for each in golden), default=0.0)


def _f1(answer: str, golden: str) -> float:
    if answer == golden:
        return 1.0
    if answer in _VERDICTS or golden in _VERDICTS:
        return 0.0
    given, wanted = answer.split(), golden.split()
    common = (Counter(given) & Counter(wanted)).total()
    return 2 * common / (len(given) + len(wanted)) if common else 0.0


MEASURES = MappingProxyType({"em": em, "f1": f1, "sub_em": sub_em})


def measure(name: str) -> Measure:
    """A measure by its name. Raises ValueError for an unknown one."""
    if name not in MEASURES:
        raise unknown("reward", name, MEASURES)
    return MEASURES[name]
