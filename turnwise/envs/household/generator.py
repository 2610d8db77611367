"""Household games by the million: ``generate(seed, settings)`` is a pure function, solvable by construction.

``draft`` draws what is where; this file names it as the official engine would, writes the task sentence and a
walkthrough. The task type is ``seed % 6``: any six consecutive seeds hold all six types.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from turnwise.envs.alfworld.game import Change, Game, Goal, Receptacle, TaskType, Thing
from turnwise.envs.household import rooms
from turnwise.envs.household.draft import Draft, draft
from turnwise.envs.household.rooms import LAMP
from turnwise.envs.household.settings import PRESETS, Settings, settings_for

__all__ = ["PRESETS", "Settings", "build", "draft", "generate", "settings_for"]

START = "loc_bar_00"
CHANGES: dict[TaskType, tuple[Change, str]] = {
    "pick_clean_then_place_in_recep": ("clean", "clean"),
    "pick_heat_then_place_in_recep": ("hot", "heat"),
    "pick_cool_then_place_in_recep": ("cool", "cool"),
}
"""Task type -> (what the object must become, the verb that makes it so)."""
WORDINGS: dict[TaskType, tuple[str, str]] = {
    "pick_and_place_simple": ("put some {o} on {r}.", "put a {o} in {r}."),
    "look_at_obj_in_light": ("look at {o} under the {r}.", "examine the {o} with the {r}."),
    "pick_clean_then_place_in_recep": ("put a clean {o} in {r}.", "clean some {o} and put it in {r}."),
    "pick_heat_then_place_in_recep": ("put a hot {o} in {r}.", "heat some {o} and put it in {r}."),
    "pick_cool_then_place_in_recep": ("put a cool {o} in {r}.", "cool some {o} and put it in {r}."),
    "pick_two_obj_and_place": ("put two {o} in {r}.", "find two {o} and put them in {r}."),
}
"""The official sentences, both of them, by task type."""


def generate(seed: int, settings: Settings | str = "easy") -> Game:
    """The game of a seed (an integer >= 0; its remainder by 6 is the task type)."""
    return build(draft(seed, settings_for(settings)))


def build(made: Draft) -> Game:
    """Names, locations, goal, sentence and walkthrough of a draft."""
    receptacles = tuple(
        Receptacle(_id(kind, number), kind + "Type", f"loc_bar_{spot:02d}", kind in rooms.OPENABLE)
        for (kind, number), spot in zip(_number(made.places), made.spots, strict=True)
    )
    kinds = [kind for kind, _ in made.things]
    things = tuple(
        _thing(kind, number, receptacles[index])
        for (kind, number), (_, index) in zip(_number(kinds), made.things, strict=True)
    )
    key = made.key()
    words = {"o": made.thing.lower(), "r": (made.destination or LAMP).lower()}
    return Game(
        id=f"household/{made.task_type}/{key}",
        key=key,
        dialect="2.1.3",
        task=WORDINGS[made.task_type][made.wording].format(**words),
        start=START,
        receptacles=receptacles,
        things=things,
        can_contain=_can_contain(frozenset(made.places), frozenset(kinds)),
        goal=_goal(made),
        walkthrough=_Route(made).commands(),
    )


def _goal(made: Draft) -> Goal:
    destination = None if made.destination is None else made.destination + "Type"
    change = CHANGES[made.task_type][0] if made.task_type in CHANGES else None
    lamp = LAMP + "Type" if made.task_type == "look_at_obj_in_light" else None
    return Goal(made.task_type, made.thing + "Type", destination, change, made.count, lamp)


def _number(kinds: Sequence[str]) -> list[tuple[str, int]]:
    """``[Bed, Drawer, Drawer] -> [(Bed, 1), (Drawer, 1), (Drawer, 2)]``: the order of ids within a type."""
    seen: dict[str, int] = {}
    numbered = []
    for kind in kinds:
        seen[kind] = seen.get(kind, 0) + 1
        numbered.append((kind, seen[kind]))
    return numbered


def _display_names(kinds: Sequence[str]) -> list[str]:
    """What a player reads: the first id of a type carries the highest number (as in the official engine)."""
    totals = Counter(kinds)
    return [f"{kind.lower()} {totals[kind] - number + 1}" for kind, number in _number(kinds)]


@lru_cache(maxsize=1024)
def _id(kind: str, number: int) -> str:
    """An official-looking symbol; the engine derives ``sinkbasin`` from ``Sink_bar_.._bar_SinkBasin``."""
    if kind.endswith("Basin"):
        return f"{kind.removesuffix('Basin')}_bar_{number:02d}_bar_{kind}"
    return f"{kind}_bar_{number:02d}"


def _thing(kind: str, number: int, place: Receptacle) -> Thing:
    return Thing(
        id=_id(kind, number),
        type=kind + "Type",
        location=place.location,
        receptacle=place.id,
        pickupable=kind != LAMP,
        cleanable=kind in rooms.CLEANABLE,
        heatable=kind in rooms.HEATABLE,
        coolable=kind in rooms.COOLABLE,
        toggleable=kind == LAMP,
        sliceable=kind in rooms.SLICEABLE,
        is_receptacle=kind in rooms.HOLLOW,
    )


@lru_cache(maxsize=8192)
def _can_contain(places: frozenset[str], things: frozenset[str]) -> frozenset[tuple[str, str]]:
    return frozenset(
        (place + "Type", thing + "Type") for place in places for thing in rooms.FITS[place] if thing in things
    )


class _Route:
    """Collects the commands that win for someone who knows where everything is."""

    def __init__(self, made: Draft) -> None:
        self.made = made
        self.names = _display_names(made.places)
        self.spot = 0
        self.opened: set[int] = set()
        self.done: list[str] = []

    def commands(self) -> tuple[str, ...]:
        made = self.made
        names = _display_names([kind for kind, _ in made.things])
        wanted = [(name, at) for name, (kind, at) in zip(names, made.things, strict=True) if kind == made.thing]
        if made.destination is None:
            self._take(*wanted[0])
            self._visit(next(at for kind, at in made.things if kind == LAMP), inside=False)
            return (*self.done, f"use {LAMP.lower()} 1")
        destination = made.places.index(made.destination)
        for name, at in wanted[: made.count]:
            self._take(name, at)
            self._change(name)
            self._visit(destination)
            self.done.append(f"move {name} to {self.names[destination]}")
        return tuple(self.done)

    def _take(self, name: str, at: int) -> None:
        self._visit(at)
        self.done.append(f"take {name} from {self.names[at]}")

    def _change(self, name: str) -> None:
        if self.made.task_type not in CHANGES:
            return
        verb = CHANGES[self.made.task_type][1]
        appliance = self.made.places.index(rooms.APPLIANCES[verb])
        self._visit(appliance, inside=False)
        self.done.append(f"{verb} {name} with {self.names[appliance]}")

    def _visit(self, at: int, *, inside: bool = True) -> None:
        """Go there unless it is in reach already; open it once where its inside is needed."""
        if self.made.spots[at] != self.spot:
            self.done.append(f"go to {self.names[at]}")
            self.spot = self.made.spots[at]
        if inside and self.made.places[at] in rooms.OPENABLE and at not in self.opened:
            self.done.append(f"open {self.names[at]}")
            self.opened.add(at)
