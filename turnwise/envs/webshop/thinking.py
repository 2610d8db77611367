"""The searching expert, telling why: what it looks for, what it has tried, what a product has and what it lacks.

A small model has to find in one token what the expert finds by comparing a whole page with the instruction. Told word
by word, each comparison is a look at one place of the context.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from turnwise.envs.interface import Info
from turnwise.envs.webshop.expert import SearchingExpert, Sight, words


class ThinkingExpert(SearchingExpert):
    """Acts as ``SearchingExpert`` does. ``thought`` tells the steps that are left and what was compared."""

    def begin(self, observation: str, info: Info) -> None:
        super().begin(observation, info)
        self._thought = ""
        self._sought: tuple[str, ...] = ()
        """Words of the instruction that the title of the product on show does not have."""
        limit = re.search(r"price lower than ([\d.]+)", observation.lower())
        self._limit = limit[1] if limit else ""
        self._spelled = {stem: word for word in re.findall(r"[a-z0-9]+", observation.lower()) for stem in words(word)}

    def thought(self) -> str:
        return self._thought

    def _choose(self, page: Sight) -> str:
        told = [f"left {self._steps_left}", *self._compared(page)]
        action = super()._choose(page)
        self._thought = "\n".join(told)
        return action

    def _compared(self, page: Sight) -> Iterator[str]:
        if self._hurried:
            yield "hurry"
        elif page.place == "results":
            yield from self._offers(page)
        elif page.place == "item":
            yield from self._product(page)
        elif page.place == "sub":
            said = words(page.says)
            sought = ((stem, word) for stem, word in self._spelled.items() if word in self._sought)
            yield from (f"{word} {'yes' if stem in said else 'no'}" for stem, word in sought)

    def _offers(self, page: Sight) -> Iterator[str]:
        """Each offer up to the first that is opened, and why it is not."""
        wish = self._wish
        kind = wish.kind if any(wish.kind in words(offer.title) for offer in page.listed.values()) else ""
        for asin, offer in page.listed.items():
            line = f"[{asin}] {offer.title}, {offer.price}"
            if asin in self._refused:
                yield f"{line}: tried"
            elif offer.lowest > wish.price:
                yield f"{line}: over {self._limit}"
            elif kind and kind not in words(offer.title):
                yield f"{line}: no {self._spelled.get(kind, kind)}"
            else:
                yield f"{line}: good"
                return
        yield "next"

    def _product(self, page: Sight) -> Iterator[str]:
        """What is on the page of what is wanted; once that is known, nothing more."""
        assert page.offer is not None
        wish, shown = self._wish, self._shown[self._asin]
        unseen = [word for stem, word in self._spelled.items() if stem in wish.words and stem not in shown]
        if self._asin in self._features_read:
            if not any(name in self._chosen for name in wish.options):
                yield f"lacks {' '.join(unseen)}" if unseen else "has all"
            return
        if any(name in self._chosen for name in wish.options):
            return
        for name, value in wish.options.items():
            yield f"{value} {'yes' if value in page.options.get(name, ()) else 'no'}"
        if self._limit:
            yield f"{page.offer.price} {'over' if page.offer.lowest > wish.price else 'under'} {self._limit}"
        self._sought = tuple(unseen)
        if unseen:
            yield f"look for {' '.join(unseen)}"
