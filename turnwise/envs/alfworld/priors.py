"""Where things usually lie: how many objects of a type one receptacle of a type holds, on average.

``priors.json`` was counted with ``count_placements`` over the 3,553 *training* games of the official text set
(release 2.1.3); no evaluation game went into it. The searching expert looks in likely places first, and the
procedural generator (``turnwise.envs.household``) puts things where they usually lie.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib.resources import files
from types import MappingProxyType

from turnwise.envs.alfworld.game import Game

Table = Mapping[str, Mapping[str, float]]
"""object type -> receptacle type -> objects of that type in one such receptacle; names as in displays."""


def display_type(type_name: str) -> str:
    """The word a player reads: ``AppleType -> apple``, ``SinkBasinType -> sinkbasin``."""
    return type_name.removesuffix("Type").lower()


def count_placements(games: Iterable[Game]) -> dict[str, dict[str, float]]:
    """Count ``Table`` over games: objects found / receptacles of the type in games that have the object."""
    found: Counter[tuple[str, str]] = Counter()
    offered: Counter[tuple[str, str]] = Counter()
    for game in games:
        places = {place.id: display_type(place.type) for place in game.receptacles}
        present = {display_type(thing.type) for thing in game.things if thing.receptacle}
        offered.update((kind, place) for kind in present for place in places.values())
        for thing in game.things:
            holders = (*filter(None, [thing.receptacle]), *thing.also_in)
            found.update((display_type(thing.type), places[holder]) for holder in holders)
    table: dict[str, dict[str, float]] = {}
    for (kind, place), count in sorted(found.items()):
        table.setdefault(kind, {})[place] = round(count / offered[kind, place], 4)
    return table


@lru_cache(maxsize=1)
def placement_rates() -> Table:
    """The packaged table, read once."""
    text = files("turnwise.envs.alfworld").joinpath("priors.json").read_text(encoding="utf-8")
    return MappingProxyType(json.loads(text))
