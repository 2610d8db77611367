"""Two experts for the shop: one reads what a player reads, the other sees the goal and the state.

Both choose one action at a time from where the episode is, so they carry on after an action that was not theirs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random
from typing import TYPE_CHECKING, Literal

from turnwise.envs.interface import Info
from turnwise.envs.webshop import pages
from turnwise.envs.webshop.analysis import STOP_WORDS
from turnwise.envs.webshop.porter import stem
from turnwise.envs.webshop.simulator import Simulator, State

if TYPE_CHECKING:
    from turnwise.envs.webshop.env import WebShopEnv

BACK, NEXT, PREVIOUS, BUY = (f"click[{name}]" for name in (pages.BACK, pages.NEXT, pages.PREVIOUS, pages.BUY))
FEATURES = "click[features]"

_OPTION = re.compile(
    r"(?: with |, and )((?:(?! with )[a-z ])+)(?:: |=)(.*?)(?=, and [a-z ]+(?:: |=)|, and price lower|$)"
)
_LIMITED = re.compile(r"(.*), and price lower than ([\d.]+) dollars")
_LISTING = re.compile(r"\[(\S+)\] (.*), (\$[^,]*)")
_BUTTON = re.compile(r"\[(?:clicked )?button_?\]")
_LITTLE = STOP_WORDS | set(re.findall(r"\w+", "am buy find i looking me my need please show some want which"))
TOO_MANY = 0.25
"""Share of an instruction's words that must not be missing: real products say a few in words of their own."""
VAGUE, TOO_DEAR, CURIOUS = 0.3, 0.3, 0.3
"""Shares of the seeds whose mistakes are a search without the options, to open a product that costs too much, and to
read the features of one that lacks an option."""

_stem = lru_cache(maxsize=10_000)(stem)


def words(text: str) -> list[str]:
    """The stems, in order; little words left out."""
    return [_stem(word) for word in re.findall(r"[a-z0-9]+", text.lower()) if word not in _LITTLE]


@dataclass(frozen=True, slots=True)
class Wish:
    """What an instruction asks for. ``kind``: the word for the type of product. ``price``: dollars, at most."""

    kind: str
    words: frozenset[str]
    options: Mapping[str, str]
    price: float


def read_instruction(text: str) -> Wish:
    """``"Find me slim fit jeans with inner pocket with color: red, and size: xl, and price lower than 30.00 dollars"``

    The part before the options may be any sentence: its last word before "with" or "for" is taken for the type.
    """
    text = text.lower()
    limited = _LIMITED.match(text)
    first = _OPTION.search(text)
    ask = text[: first.start()] if first else limited[1] if limited else text
    return Wish(
        kind="".join(words(re.split(r" (?:with|for) ", ask)[0])[-1:]),
        words=frozenset(words(ask)),
        options=dict(_OPTION.findall(text)),
        price=float(limited[2]) if limited else math.inf,
    )


@dataclass(frozen=True, slots=True)
class Offer:
    """``price``: the tag, which may be a range."""

    title: str
    price: str

    @property
    def lowest(self) -> float:
        """Dollars."""
        return float(re.findall(r"\d+(?:\.\d+)?", self.price)[0])


@dataclass(frozen=True, slots=True)
class Sight:
    """What can be read off one page.

    On the search page the ``searches`` that are suggested; on the results ``listed`` [asin -> offer, in order]; on an
    item's page its ``offer`` and ``options`` [name -> values]; on the pages below that what one ``says``.
    """

    place: Literal["search", "results", "item", "sub"]
    searches: tuple[str, ...] = ()
    says: str = ""
    listed: Mapping[str, Offer] = field(default_factory=dict)
    offer: Offer | None = None
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def read_page(observation: str, info: Info) -> Sight:
    """Reads every mode but html. What can be clicked (``info["admissible_actions"]``) tells the pages apart."""
    buttons = {action[len("click[") : -1] for action in info["admissible_actions"] if action.startswith("click[")}
    texts = _texts(observation)
    if pages.NEXT in buttons:
        return Sight("results", listed=dict(_listed(texts, buttons)))
    if pages.PREVIOUS not in buttons:
        return Sight("search", searches=_searches(info))
    if "< Prev" in texts:  # an official page: before that, there are the instruction and other buttons
        del texts[: texts.index("< Prev") + 1]
    if pages.BUY not in buttons:
        return Sight("sub", says=" ".join(texts))
    priced = next(n for n, text in enumerate(texts) if text.lower().startswith("price:"))
    offer = Offer(texts[priced - 1], texts[priced])
    options = _options_by_line(texts[priced + 1 :], buttons) or _options_by_text(texts[: priced - 1], buttons)
    return Sight("item", offer=offer, options=options)


def read_task(observation: str) -> Wish:
    """The wish on an episode's first page. Raises ValueError where there is none to read."""
    texts = _texts(observation)
    for text, following in zip(texts, [*texts[1:], ""], strict=True):
        if text.lower().startswith("instruction:"):
            return read_instruction(text[len("instruction:") :].strip() or following)
    raise ValueError(f"Expected a page with an 'Instruction:' in a text mode, got {observation[:60]!r}.")


def _texts(observation: str) -> list[str]:
    parts = observation.split(pages.SEPARATOR) if pages.SEPARATOR in observation else observation.split("\n")
    return [text for part in parts if (text := _BUTTON.sub("", part).strip())]


def _listed(texts: list[str], buttons: set[str]) -> Iterator[tuple[str, Offer]]:
    """Either "[asin] title, price" in one text, or three texts."""
    for n, text in enumerate(texts):
        if (found := _LISTING.fullmatch(text)) and found[1] in buttons:
            yield found[1], Offer(found[2], found[3])
        elif text.lower() in buttons and texts[n + 2 : n + 3] and texts[n + 2].startswith("$"):
            yield text.lower(), Offer(texts[n + 1], texts[n + 2])


def _options_by_line(lines: list[str], buttons: set[str]) -> dict[str, tuple[str, ...]]:
    """``"color [red|blue]"``, or ``"color=blue [red|blue]"``; official values have bars between spaces."""
    parts = (line.partition(" [") for line in lines)
    options = {name.partition("=")[0]: re.split(r"(?<! )\|(?! )", values[:-1]) for name, _, values in parts}
    return {name: tuple(values) for name, values in options.items() if set(values) <= buttons}


def _options_by_text(texts: list[str], buttons: set[str]) -> dict[str, tuple[str, ...]]:
    """Each value is a text; what is no button names those that follow."""
    options: dict[str, list[str]] = {}
    name = ""
    for text in texts:
        if text in buttons:
            options.setdefault(name, []).append(text)
        else:
            name = text
    return {name: tuple(values) for name, values in options.items()}


def _searches(info: Info) -> tuple[str, ...]:
    return tuple(action for action in info["admissible_actions"] if action.startswith("search["))


class SearchingExpert:
    """An ``Expert`` that knows only what the pages have shown.

    It makes the first search that is suggested, and opens the first offer that it has not tried and that fits by type
    and price. It reads the features where the title leaves a word of the instruction open, goes back where something is
    missing, else chooses the options and buys. With steps left for one purchase only it buys what comes nearest.
    ``too_many``: the share of the instruction's words without which nothing is bought; 0: not one may be missing.

    ``mistake`` is something to play in the place of an action (``Errs``), so that demonstrations show how to go on from
    it. With ``seed`` 0 there is none. Of the others three in ten know the last search that is suggested, which leaves
    the options out: then many an offer lacks one. Three in ten know an offer that costs too much, once; three in ten
    know the features of every product that lacks an option: of these many lack a word, too.
    """

    def __init__(self, step_limit: int = 15, too_many: float = TOO_MANY, seed: int = 0) -> None:
        self._step_limit, self._too_many = step_limit, too_many
        drawn = Random(seed)
        shares = (VAGUE, TOO_DEAR, CURIOUS)
        self._vague, self._careless, self._curious = (bool(seed) and drawn.random() < share for share in shares)

    def begin(self, observation: str, info: Info) -> None:
        """Raises ValueError where the page has no instruction that it can read."""
        self._page = read_page(observation, info)
        self._wish = read_task(observation)
        self._usual: frozenset[str] = frozenset()
        """Words of every title on the results that were seen last."""
        self._steps_left = self._step_limit
        self._last = self._mistake = ""
        self._asin = ""
        """Of the product that was opened last."""
        self._chosen: dict[str, str] = {}
        self._shown: dict[str, set[str]] = {}
        """Asin -> the words read of it."""
        self._features_read: set[str] = set()
        self._refused: dict[str, float] = {}
        """Asin -> what it lacks: 1 for an option or the price, less for words."""

    def act(self, observation: str, info: Info) -> str:
        before, self._page = self._page, read_page(observation, info)
        self._learn(before, self._last)
        self._mistake = self._err(self._page)
        self._last = self._choose(self._page)
        self._steps_left -= 1
        return self._last

    def mistake(self) -> str:
        return self._mistake

    def overrule(self, action: str) -> None:
        """Another action was played."""
        self._last = action

    def _learn(self, before: Sight, last: str) -> None:
        page, clicked = self._page, last[len("click[") : -1]
        if clicked in before.listed:
            self._asin = clicked
        if page.listed:
            self._usual = frozenset.intersection(*(frozenset(words(offer.title)) for offer in page.listed.values()))
        if page.place in ("search", "results"):
            self._chosen.clear()  # as the shop does
        self._chosen |= {name: clicked for name, values in before.options.items() if clicked in values}
        shown = self._shown.setdefault(self._asin, set())
        if page.offer:
            shown.update(words(page.offer.title))
        elif page.place == "sub":
            shown.update(words(page.says))
            if last == FEATURES:
                self._features_read.add(self._asin)

    def _choose(self, page: Sight) -> str:
        if page.offer:
            return self._judge(page.offer, page.options)
        if page.place == "search":
            return page.searches[0]
        return self._open(page.listed) if page.place == "results" else PREVIOUS

    def _err(self, page: Sight) -> str:
        """A mistake that this episode is to show here; "" for none."""
        if page.place == "search":
            return page.searches[-1] if self._vague and len(page.searches) > 1 else ""
        if self._hurried:
            return ""
        if page.place == "item" and self._curious and self._asin not in self._features_read:
            offered = (value in page.options.get(name, ()) for name, value in self._wish.options.items())
            return "" if all(offered) else FEATURES
        return self._too_dear(page.listed) if self._careless else ""

    def _too_dear(self, listed: Mapping[str, Offer]) -> str:
        """Opens the first offer of the wanted type that costs too much, once; "" where there is none."""
        kind = self._kind(listed)
        dear = [asin for asin in listed if listed[asin].lowest > self._wish.price and asin not in self._refused]
        wanted = [asin for asin in dear if not kind or kind in words(listed[asin].title)]
        self._careless = not wanted
        return f"click[{wanted[0]}]" if wanted else ""

    @property
    def _hurried(self) -> bool:
        """There is no time for two more clicks before a purchase: to read on, or to open another offer."""
        return self._steps_left < len(self._wish.options) + 1 + 2

    def _open(self, listed: Mapping[str, Offer]) -> str:
        """On the results: the first untried offer that fits; in a hurry a tried one too, if there is no other."""
        wish, kind = self._wish, self._kind(listed)
        fitting = [
            asin
            for asin, offer in listed.items()
            if (asin not in self._refused or self._hurried)
            and offer.lowest <= wish.price
            and (not kind or kind in words(offer.title))
        ]
        if fitting:
            return f"click[{min(fitting, key=lambda asin: self._refused.get(asin, 0.0))}]"
        return NEXT if listed else BACK

    def _kind(self, listed: Mapping[str, Offer]) -> str:
        """The word for the wanted type; "" where no offer's title has it, so that it cannot choose among them."""
        kind = self._wish.kind
        return kind if any(kind in words(offer.title) for offer in listed.values()) else ""

    @property
    def _too_many_words(self) -> int:
        """A product is left where so many words of the instruction are on none of its pages."""
        return max(1, math.ceil(self._too_many * len(self._wish.words)))

    def _judge(self, offer: Offer, options: Mapping[str, tuple[str, ...]]) -> str:
        """On an item's page: back, read on, choose an option, or buy."""
        wish = self._wish
        if not self._hurried:
            unavailable = [name for name, value in wish.options.items() if value not in options.get(name, ())]
            unseen = len(wish.words - self._shown[self._asin])
            wrong = len(unavailable) + (offer.lowest > wish.price)
            has_read = self._asin in self._features_read
            if wrong or (has_read and unseen >= self._too_many_words):
                self._refused[self._asin] = wrong + unseen / len(wish.words)
                return PREVIOUS
            if unseen and not has_read:
                return FEATURES
        for name, value in wish.options.items():
            if self._chosen.get(name) != value and value in options.get(name, ()):
                return f"click[{value}]"
        return BUY


class KnowingExpert:
    """An ``Expert`` over the episode that ``env`` is playing. It buys exactly what the goal names.

    It makes the first search that brings the product onto the first page: one that the instruction suggests, else its
    title. Nothing pays more than what it buys: of the goals of the official 1000 products, those for which that is
    less than 1.0 (458 of 6910 synthetic ones) pay no more for any other product or options.
    """

    def __init__(self, env: WebShopEnv) -> None:
        self._env = env

    def begin(self, observation: str, info: Info) -> None:
        """Nothing to prepare: the state says it all."""

    def act(self, observation: str, info: Info) -> str:
        shop, state = self._env.simulator, self._env.state
        purchase = self._env.exact_purchase()
        wanted = shop.shelves.numbers[purchase.product.asin]
        if state.place == "search":
            title = f"search[{re.sub(r'[][]', ' ', purchase.product.title)}]"
            searches = [*_searches(info), title]
            return min(searches, key=lambda search: _page_of(wanted, shop.step(state, search)[0], shop))
        if wanted not in state.results:
            return BACK
        if state.place == "results" and (beyond := state.page - _page_of(wanted, state, shop)):
            return PREVIOUS if beyond > 0 else NEXT
        if state.place == "results":
            return f"click[{purchase.product.asin.lower()}]"
        if state.product != wanted or state.place == "sub":
            return PREVIOUS
        targets = shop.page(state).targets
        for value in purchase.options.values():
            if value in targets and state.options.get(str(targets[value])) != value:
                return f"click[{value}]"
        return BUY


def _page_of(product: int, state: State, shop: Simulator) -> int:
    """The page of the results that lists the product; one past the last if none does."""
    found = state.results
    place = found.index(product) if product in found else len(found) + shop.results_per_page
    return place // shop.results_per_page + 1
