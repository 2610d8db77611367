"""Tools of your own: a class with typed methods, of which each episode has an instance, and a reward function.

    cd examples
    turnwise train --tools shop:TOOLS --tasks shop.jsonl --reward shop:score                        a new small model
    turnwise train --tools shop:TOOLS --tasks shop.jsonl --reward shop:score model.path=Qwen/Qwen3-0.6B

``python shop.py`` writes the tasks, shop.jsonl. Each has a demonstration, from which a new model is cloned; a model
that can already call tools needs none.
"""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path
from typing import Any

BRANDS = ("Aro", "Belk", "Cori", "Dunn", "Elmo")
KINDS = [
    f"{colour} {thing}" for colour in ("red", "blue", "green", "white") for thing in ("mug", "plate", "bowl", "jar")
]
STOCK = {kind: f"{BRANDS[n % len(BRANDS)]} {kind}" for n, kind in enumerate(KINDS)}


class Shop:
    """A shop with a cart."""

    def __init__(self, task: dict[str, Any]) -> None:
        self.cart: list[str] = []

    def find(self, query: str, limit: int = 3) -> list[str]:
        """Search the shop."""
        return [name for name in STOCK.values() if query in name][:limit]

    def add(self, name: str) -> str:
        """Put a thing into the cart."""
        if name not in STOCK.values():
            raise KeyError(name)  # the model reads it, as it does any exception
        self.cart.append(name)
        return f"{len(self.cart)} in the cart"


def score(task: dict[str, Any], shop: Shop, reply: str) -> float:
    """1 where the cart holds what was wanted and nothing else."""
    return float(sorted(shop.cart) == sorted(task["want"]))


TOOLS = Shop


def row(kinds: tuple[str, ...]) -> dict[str, Any]:
    want = [STOCK[kind] for kind in kinds]
    found = [{"name": "find", "arguments": {"query": kind}} for kind in kinds]
    bought = [{"name": "add", "arguments": {"name": name}} for name in want]
    question = f"Please buy a {' and a '.join(kinds)}."
    return {"question": question, "want": want, "demonstration": [{"calls": found}, {"calls": bought}, "Done."]}


if __name__ == "__main__":
    rows = [row(kinds) for num in (1, 2) for kinds in permutations(KINDS, num)]
    Path("shop.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
