"""The searching expert, telling why: what it looks for, what it has tried, what a product has and what it lacks.

A small model has to find in one token what the expert finds by comparing a whole page with the instruction. Told word
by word, each comparison is a look at one place of the context. A word stands behind "- ", so that its tokens are those
that it has in the instruction and on the page: a model compares equal tokens long before it compares equal words.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from turnwise.envs.interface import Info
from turnwise.envs.webshop.expert import Offer, SearchingExpert, Sight, words

LACKS, READ, FITS = "lacks", "read", "fits"
"""What follows for a product: it is left, its features are read, or it is bought."""


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
            yield LACKS if over or not all(offered.values()) else self._tally
            return
        yield from (_verdict(value, there) for value, there in offered.items())
        if self._hurried:
            return
        if self._limit:
            yield f"{page.offer.price}{self._of_limit}: {'over' if over else 'under'}"
        yield from self._words()
        yield LACKS if over or not all(offered.values()) else READ if self._unseen else FITS

    def _read(self) -> Iterator[str]:
        """On a page below a product's: words of the instruction, and whether the product fits as far as was read."""
        yield from self._words(self._too_many_words)
        yield self._tally

    @property
    def _tally(self) -> str:
        return LACKS if len(self._unseen) >= self._too_many_words else FITS

    def _words(self, enough: float = math.inf) -> Iterator[str]:
        """The words of the instruction, and whether the product was seen to have them, until ``enough`` are missing."""
        for stem, word in self._spelled.items():
            if stem in self._wish.words and enough > 0:
                enough -= stem in self._unseen
                yield f"- {_verdict(word, stem not in self._unseen)}"

    @property
    def _unseen(self) -> frozenset[str]:
        return self._wish.words - self._shown[self._asin]

    @property
    def _of_limit(self) -> str:
        """What stands behind a price, so that the two are compared side by side."""
        return f" of {self._limit}" if self._limit else ""


def _line(asin: str, offer: Offer) -> str:
    """An offer as the page of results lists it."""
    return f"[{asin}] {offer.title}, {offer.price}"


def _verdict(what: str, there: bool) -> str:
    return f"{what} {'yes' if there else 'no'}"
