"""What never changes during a game: names, places, what fits where, and what counts as the goal.

Receptacles and things are numbered in the order of their lower-case ids, because that is the order in which
the official text lists them; everything below is indexed by those numbers.
"""

from __future__ import annotations

from bisect import insort
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple, TypeVar

from turnwise.envs.alfworld.game import Game

CLEAN, HOT, COOL, SLICED, TOGGLED = 1, 2, 4, 8, 16
NOBODY = -1  # the number of no thing: empty hands

APPLIANCES = {
    "SinkType": "clean",
    "SinkBasinType": "clean",
    "MicrowaveType": "heat",
    "FridgeType": "cool",
}
KNIVES = {"KnifeType", "ButterKnifeType"}

Items = tuple[int, ...]
_T = TypeVar("_T")


class State(NamedTuple):
    """Everything that changes, immutable. Tuples of things are sorted; they are shared between states."""

    location: int
    held: int
    opened: tuple[bool, ...]  # by receptacle
    contents: tuple[Items, ...]  # by receptacle: the things in it
    removed: tuple[Items, ...]  # by receptacle: the things last taken from it (and not put back)
    lying: tuple[Items, ...]  # by location: the things that are at it, in whatever receptacle
    condition: tuple[int, ...]  # by thing: CLEAN | HOT | COOL | SLICED | TOGGLED


class World:
    """A game, prepared for play. Raises ValueError where the record contradicts itself."""

    def __init__(self, game: Game) -> None:
        self.game = game
        self.dialect = game.dialect
        self.receptacles = sorted(game.receptacles, key=lambda receptacle: receptacle.id.lower())
        self.things = sorted(game.things, key=lambda thing: thing.id.lower())
        self._set_names()
        self._set_places()
        self._set_goal()
        self.start = self._start_state()

    def _set_names(self) -> None:
        game = self.game
        locations = {game.start, *(receptacle.location for receptacle in self.receptacles)}
        locations |= {thing.location for thing in self.things if thing.location is not None}
        self.locations = sorted(locations, key=str.lower)
        ids = [*(receptacle.id for receptacle in self.receptacles), *(thing.id for thing in self.things)]
        names = display_names([*ids, *self.locations])
        self.receptacle_names = [names[receptacle.id] for receptacle in self.receptacles]
        self.thing_names = [names[thing.id] for thing in self.things]
        # The older grammar means to name the place and names its location instead.
        self.arrival_names = [
            names[receptacle.location] if game.dialect == "2.1.1" else names[receptacle.id]
            for receptacle in self.receptacles
        ]

    def _set_places(self) -> None:
        number = {location: i for i, location in enumerate(self.locations)}
        self.location_of = [number[receptacle.location] for receptacle in self.receptacles]
        self.here: list[Items] = [
            tuple(r for r, place in enumerate(self.location_of) if place == location)
            for location in range(len(self.locations))
        ]
        self.openable = [receptacle.openable for receptacle in self.receptacles]
        self.appliance = [APPLIANCES.get(receptacle.type) for receptacle in self.receptacles]
        self.knife = [thing.type in KNIVES for thing in self.things]
        fitting: defaultdict[str, set[str]] = defaultdict(set)
        for receptacle_type, thing_type in self.game.can_contain:
            fitting[receptacle_type].add(thing_type)
        self.fitting_types = [fitting[receptacle.type] for receptacle in self.receptacles]

    def _set_goal(self) -> None:
        """``goal_things`` in ``goal_receptacles`` may meet the goal; ``goal_condition`` is the mark asked."""
        goal = self.game.goal
        trait = {"clean": "cleanable", "hot": "heatable", "cool": "coolable"}.get(goal.change or "")
        self.goal_things = frozenset(
            t
            for t, thing in enumerate(self.things)
            if thing.type == goal.object_type and (trait is None or getattr(thing, trait))
        )
        self.goal_receptacles = tuple(
            r for r, receptacle in enumerate(self.receptacles) if receptacle.type == goal.receptacle_type
        )
        self.goal_condition = {"clean": CLEAN, "hot": HOT, "cool": COOL}.get(goal.change or "", 0)
        self.lamps = tuple(
            t for t, thing in enumerate(self.things) if thing.type == goal.lamp_type and thing.toggleable
        )

    def _start_state(self) -> State:
        receptacle_number = {receptacle.id: r for r, receptacle in enumerate(self.receptacles)}
        location_number = {location: i for i, location in enumerate(self.locations)}
        contents: list[list[int]] = [[] for _ in self.receptacles]
        lying: list[list[int]] = [[] for _ in self.locations]
        for t, thing in enumerate(self.things):
            for id in (*filter(None, [thing.receptacle]), *thing.also_in):
                if id not in receptacle_number:
                    raise ValueError(f"{self.game.id}: {thing.id} is in {id}, which is not one of its receptacles")
                contents[receptacle_number[id]].append(t)
            if thing.location is not None:
                lying[location_number[thing.location]].append(t)
        return State(
            location=location_number[self.game.start],
            held=NOBODY,
            opened=tuple(receptacle.opened for receptacle in self.receptacles),
            contents=tuple(map(tuple, contents)),
            removed=((),) * len(self.receptacles),
            lying=tuple(map(tuple, lying)),
            condition=tuple(
                CLEAN * thing.clean
                | HOT * thing.hot
                | COOL * thing.cool
                | SLICED * thing.sliced
                | TOGGLED * thing.toggled
                for thing in self.things
            ),
        )

    def fits(self, thing: int, receptacle: int) -> bool:
        return self.things[thing].type in self.fitting_types[receptacle]

    def inside(self, outer: int) -> list[int]:
        """The things inside a thing that holds others (a cup in a pan). They never leave it: only told."""
        id = self.things[outer].id
        return [t for t, thing in enumerate(self.things) if thing.inside == id or id in thing.also_inside]

    def list_receptacles(self, numbers: Iterable[int]) -> str:
        return sentence_list([f"a {self.receptacle_names[r]}" for r in numbers])

    def list_things(self, numbers: Iterable[int]) -> str:
        return sentence_list([f"a {self.thing_names[t]}" for t in numbers])


def display_names(ids: Iterable[str]) -> dict[str, str]:
    """Symbol -> what the player reads: "cabinet 3".

    Symbols are counted per word before ``_bar_`` (with "basin" where the symbol has it); in sorted order of
    the lower-case symbols the numbers run downwards, so the first gets the highest.
    """
    words: dict[str, str] = {}
    count: defaultdict[str, int] = defaultdict(int)
    for id in sorted(ids, key=str.lower):
        word, bar, _ = id.lower().partition("_bar_")
        word += "basin" if bar and "basin" in id.lower() else ""
        words[id] = word
        count[word] += 1
    names = {}
    for id, word in words.items():
        names[id] = f"{word} {count[word]}"
        count[word] -= 1
    return names


def sentence_list(names: list[str]) -> str:
    """ "nothing", "a cup 1", "a cup 1, and a pan 1": the comma is there even for two."""
    if len(names) < 2:
        return names[0] if names else "nothing"
    return f"{', '.join(names[:-1])}, and {names[-1]}"


def added(items: Items, item: int) -> Items:
    """``items`` (sorted) with ``item``."""
    if item in items:
        return items
    longer = list(items)
    insort(longer, item)
    return tuple(longer)


def changed(values: tuple[_T, ...], at: int, value: _T) -> tuple[_T, ...]:
    """``values`` with another one at this place."""
    return *values[:at], value, *values[at + 1 :]


def without(items: Items, item: int) -> Items:
    return tuple(other for other in items if other != item)
