"""What the shopper is asked for: the official goals, in the official order, with the official prices.

The official engine draws prices and price limits from Python's generator in the order of the products, and shuffles
the goals with seed 233. Seeded alike, the same is drawn here: ``price_seed`` 42 gives the recorded goals.
"""

from __future__ import annotations

import json
import math
import random
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from turnwise.envs.panels import content_key
from turnwise.envs.webshop.data import Product, Request
from turnwise.envs.webshop.store import Shelves
from turnwise.errors import unknown

KINDS = ("synthetic", "human")
PRICE_SEED, SHUFFLE_SEED = 42, 233
NO_LIMIT = 1_000_000.0
_LIMITS = [10.0 * step for step in range(1, 100)]


@dataclass(frozen=True, slots=True)
class Goal:
    """A product to buy. ``options`` map names to values; of a human goal they are values alone.

    ``price_upper``: dollars, ``NO_LIMIT`` where the instruction names none. ``weight``: how often the official
    environment draws the goal, relative to others. ``number``: its place in the official order.
    """

    number: int
    asin: str
    category: str
    query: str
    title: str
    product_category: str
    instruction_text: str
    attributes: tuple[str, ...]
    price_upper: float
    options: Mapping[str, str] | tuple[str, ...]
    weight: float

    @property
    def wanted(self) -> Sequence[Any]:
        """The options as the official reward compares them: (name, value) pairs, or values."""
        return tuple(self.options.items()) if isinstance(self.options, Mapping) else self.options

    @property
    def key(self) -> str:
        """16 hexadecimal digits of the content; the first six are those of the product (``product_key``)."""
        content = [self.instruction_text, self.asin, self.attributes, self.price_upper, self.wanted]
        return product_key(self.title) + content_key(json.dumps(content))[6:]


def product_key(title: str) -> str:
    """Six hexadecimal digits of what the product is: listings of one title are one product."""
    return content_key(" ".join(title.lower().split()))[:6]


def draw_prices(shelves: Shelves, rng: random.Random) -> array[float]:
    """The price of every product in dollars: one within its range, where it has a range."""
    return array("d", (low if math.isnan(high) else rng.uniform(low, high) for low, high in shelves.prices.tolist()))


class Goals(Sequence[Goal]):
    """All goals in the official order; each is made when asked for.

    ``prices`` [products] dollars. ``sorts`` of goals: a product with its instruction and its limit, which is one goal
    for each combination of option values.
    """

    def __init__(
        self, shelves: Shelves, kind: str = "synthetic", price_seed: int = PRICE_SEED, shuffle_seed: int = SHUFFLE_SEED
    ) -> None:
        if kind not in KINDS:
            raise unknown("kind of goals", kind, KINDS)
        self.shelves, self.kind = shelves, kind
        rng = random.Random(price_seed)
        self.prices = draw_prices(shelves, rng)
        self._sorts: list[tuple[int, int, float]] = []  # product, request, price limit
        self._first = array("q")  # of every sort, the number of its first goal
        self._uses: Counter[str] = Counter()  # attribute -> goals that name it
        size = 0
        for product, request, attributes, combinations in self._asked():
            self._sorts.append((product, request, _draw_limit(self.prices[product], rng)))
            self._first.append(size)
            self._uses.update(dict.fromkeys(attributes, 0))
            for attribute in attributes:
                self._uses[attribute] += combinations
            size += combinations
        self._order = array("q", range(size))
        random.Random(shuffle_seed).shuffle(self._order)

    def _asked(self) -> Iterator[tuple[int, int, tuple[str, ...], int]]:
        """(product, request, attributes, combinations of options), in the order of the official engine."""
        if self.kind == "human":
            for number in self.shelves.requested:
                for place, request in enumerate(self.shelves.products[number].requests):
                    if request.attributes:
                        yield number, place, request.attributes, 1
            return
        for number in self.shelves.instructed:
            product = self.shelves.products[number]
            combinations = math.prod(map(len, product.options.values()))
            yield number, 0, product.instruction_attributes, combinations

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return tuple(self._goal(each) for each in range(*number.indices(len(self))))
        if not -len(self) <= number < len(self):
            raise IndexError(f"There are {len(self)} goals, got number {number}.")
        return self._goal(number % len(self))

    def product_keys(self) -> Iterator[str]:
        """The ``product_key`` of every goal, in order; quicker than making the goals."""
        keys = [product_key(self.shelves.products[product].title) for product, *_ in self._sorts]
        return (keys[bisect_right(self._first, place) - 1] for place in self._order)

    def _goal(self, number: int) -> Goal:
        place = self._order[number]
        sort = bisect_right(self._first, place) - 1
        place_of_product, place_of_request, limit = self._sorts[sort]
        product = self.shelves.products[place_of_product]
        if self.kind == "human":
            return self._human(number, product, product.requests[place_of_request], limit)
        return self._synthetic(number, product, place - self._first[sort], limit)

    def _synthetic(self, number: int, product: Product, combination: int, limit: float) -> Goal:
        options: dict[str, str] = {}
        for name in sorted(product.options, reverse=True):  # the last name varies fastest
            combination, place = divmod(combination, len(product.options[name]))
            options[name] = product.options[name][place]
        options = dict(sorted(options.items()))
        chosen = ", and ".join(f"{name}: {value}" for name, value in options.items())
        text = f"{product.instruction}{f' with {chosen}' if chosen else ''}{_limit_text(limit)}"
        attributes = product.instruction_attributes
        weight = sum(1.0 / self._uses[attribute] for attribute in attributes) / len(attributes)
        return _goal(number, product, text, attributes, limit, options, weight)

    def _human(self, number: int, product: Product, request: Request, limit: float) -> Goal:
        text = request.instruction.strip(".") + _limit_text(limit)
        return _goal(number, product, text, request.attributes, limit, request.options, 1.0)


def _goal(
    number: int,
    product: Product,
    text: str,
    attributes: tuple[str, ...],
    limit: float,
    options: Mapping[str, str] | tuple[str, ...],
    weight: float,
) -> Goal:
    return Goal(
        number=number,
        asin=product.asin,
        category=product.category,
        query=product.query,
        title=product.title,
        product_category=product.product_category,
        instruction_text=text,
        attributes=attributes,
        price_upper=limit,
        options=options,
        weight=weight,
    )


def _draw_limit(price: float, rng: random.Random) -> float:
    """The larger of two of the next four multiples of ten dollars above the price."""
    above = [limit for limit in _LIMITS if limit > price][:4]
    return max(rng.sample(above, 2)) if len(above) >= 2 else NO_LIMIT


def _limit_text(limit: float) -> str:
    return "" if limit == NO_LIMIT else f", and price lower than {limit:.2f} dollars"
