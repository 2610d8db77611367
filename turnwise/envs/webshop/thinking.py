"""The searching expert, telling why: what it looks for, what it has tried, what a product has and what it lacks.

A small model has to find in one token what the expert finds by comparing a whole page with the instruction. Told word
by word, each comparison is a look at one place of the context. A word stands behind "- ", so that its tokens are those
that it has in the instruction and on the page: a model compares equal tokens long before it compares equal words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from turnwise.envs.interface import Info
from turnwise.envs.webshop.expert import Offer, SearchingExpert, Sight, words

FOLLOWS = FITS, READ, LACKS = "fits", "read", "lacks"
"""What follows for a product: it is bought, its features are read, or it is left. The later prevails."""


class ThinkingExpert(SearchingExpert):
    """Acts as ``SearchingExpert`` does. ``thought`` tells the steps that are left and what was compared."""

    def begin(self, observation: str, info: Info) -> None:
        super().begin(observation, info)
        self._thought = ""
        limit = re.search(r"price lower than ([\d.]+)", observation.lower())
        self._limit = limit[1] if limit else ""
        self._spelled = {stem: word for word in re.findall(r"[a-z0-9]+", observation.lower()) for stem in words(word)}

    def thought(self) -> str:
        return self._thought

    def _choose(self, page: Sight) -> str:
        left, hurried = self._steps_left, self._hurried
        told = [] if hurried and page.place == "results" else list(self._compared(page))
        action = super()._choose(page)
        if hurried and page.place == "results" and (asin := action[len("click[") : -1]) in page.listed:
            told = [f"{_line(asin, page.listed[asin])}: take"]
        self._thought = "\n".join([f"left {left}", *(["hurry"] if hurried else []), *told])
        return action

    def _compared(self, page: Sight) -> Iterator[str]:
        if page.place == "results":
            yield from self._offers(page)
        elif page.place == "item":
            yield from self._product(page)
        elif page.place == "sub":
            yield from self._read()

    def _offers(self, page: Sight) -> Iterator[str]:
        """Each offer up to the first that is opened, and why it is not."""
        wish, kind = self._wish, self._kind(page.listed)
        for asin, offer in page.listed.items():
            line = _line(asin, offer) + self._of_limit
            if asin in self._refused:
                yield f"{line}: tried"
            elif offer.lowest > wish.price:
                yield f"{line}: over"
            elif kind and kind not in words(offer.title):
                yield f"{line}: no {self._spelled.get(kind, kind)}"
            else:
                yield f"{line}: good"
                return
        yield "next"

    def _product(self, page: Sight) -> Iterator[str]:
        """What the page has of what is wanted, and what follows from it; nothing more once options are chosen."""
        assert page.offer is not None
        wish, over = self._wish, page.offer.lowest > self._wish.price
        offered = {value: value in page.options.get(name, ()) for name, value in wish.options.items()}
        if any(name in self._chosen for name in wish.options):
            return
        if not self._hurried and self._asin in self._features_read:
            lacks = over or not all(offered.values()) or len(self._unseen) >= self._too_many_words
            yield LACKS if lacks else FITS
            return
        if self._hurried:
            yield from (_verdict(value, there) for value, there in offered.items())
            return
        found = [(_verdict(value, there), FITS if there else LACKS) for value, there in offered.items()]
        if self._limit:
            price = f"{page.offer.price}{self._of_limit}"
            found.append((f"{price}: over", LACKS) if over else (f"{price}: under", FITS))
        found += [(_verdict(f"- {word}", there), FITS if there else READ) for word, there in self._words()]
        yield from _so_far(found)

    def _read(self) -> Iterator[str]:
        """On a page below a product's: which words of the instruction were read of it, and what follows by then."""
        found, missing = [], 0
        for word, there in self._words():
            missing += not there
            found.append((_verdict(f"- {word}", there), LACKS if missing >= self._too_many_words else FITS))
        yield from _so_far(found)

    def _words(self) -> Iterator[tuple[str, bool]]:
        """The words of the instruction that not every offer has, and whether the product was seen to have them."""
        asked = self._wish.words - self._usual
        return ((word, stem not in self._unseen) for stem, word in self._spelled.items() if stem in asked)

    @property
    def _unseen(self) -> frozenset[str]:
        return self._wish.words - self._shown[self._asin]

    @property
    def _of_limit(self) -> str:
        """What stands behind a price, so that the two are compared side by side."""
        return f" of {self._limit}" if self._limit else ""


def _so_far(found: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Behind each verdict what follows from all until there, so that each is one step and the last one decides."""
    follows = FITS
    for verdict, alone in found:
        follows = max(follows, alone, key=FOLLOWS.index)
        yield f"{verdict}, {follows}"


def _line(asin: str, offer: Offer) -> str:
    """An offer as the page of results lists it."""
    return f"[{asin}] {offer.title}, {offer.price}"


def _verdict(what: str, there: bool) -> str:
    return f"{what} {'yes' if there else 'no'}"
