"""The random half of the generator: which room, which goal, what lies where.

A room is furnished, a goal is chosen among what the room affords, the objects it needs are placed where such
objects usually lie but never where the goal wants them, and distractors fill the rest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from turnwise.envs.alfworld.game import TaskType
from turnwise.envs.household import rooms
from turnwise.envs.household.rooms import LAMP, TASK_TYPES
from turnwise.envs.household.settings import Settings

T = TypeVar("T")
MAX_TRIES = 200


@dataclass(slots=True)
class Draft:
    """A game before its names."""

    task_type: TaskType
    thing: str
    destination: str | None
    places: list[str]
    """Receptacle types, sorted."""
    things: list[tuple[str, int]] = field(default_factory=list)
    """(object type, index into ``places``), sorted once complete."""
    spots: list[int] = field(default_factory=list)
    """The location of each receptacle, counted from 1."""
    wording: int = 0
    """Which of the two official sentences."""

    @property
    def count(self) -> int:
        return 2 if self.task_type == "pick_two_obj_and_place" else 1

    def key(self) -> str:
        """SHA-256 of the content (everything but the wording of the sentence), 16 hex digits."""
        content = [self.task_type, self.thing, self.destination, self.places, self.spots, self.things]
        return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()[:16]


def draft(seed: int, settings: Settings) -> Draft:
    """The draft of a seed: a pure function. ValueError where the settings leave no room for such a task."""
    if seed < 0:
        raise ValueError(f"A household seed is an integer >= 0, got {seed}.")
    task_type = TASK_TYPES[seed % len(TASK_TYPES)]
    dice = Dice(np.random.default_rng(seed))
    for _ in range(MAX_TRIES):
        made = _attempt(task_type, settings, dice)
        if made is not None:
            made.things.sort()
            made.spots = _spots(len(made.places), settings.shared_spots, dice)
            made.wording = dice.integer((0, 1))
            return made
    raise ValueError(f"No {task_type} game fits {settings}: allow more receptacles, rooms or capacity.")


class Dice:
    """Draws in pure Python from blocks of one numpy generator (a numpy call per draw is ten times slower)."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._block: list[float] = []

    def uniform(self) -> float:
        if not self._block:
            self._block = self._rng.random(128).tolist()
        return self._block.pop()

    def integer(self, bounds: tuple[int, int]) -> int:
        low, high = bounds
        return low + int(self.uniform() * (high - low + 1))

    def choice(self, items: Sequence[T]) -> T:
        return items[int(self.uniform() * len(items))]

    def weighted(self, items: Sequence[T], weights: Iterable[float]) -> T:
        weights = list(weights)
        mark = self.uniform() * sum(weights)
        for item, weight in zip(items, weights, strict=True):
            mark -= weight
            if mark < 0:
                return item
        return items[-1]


def _attempt(task_type: TaskType, settings: Settings, dice: Dice) -> Draft | None:
    """One attempt; None where the room drawn affords no such goal."""
    hosts = [name for name in settings.rooms if name in rooms.HOSTS[task_type]]
    if not hosts:
        raise ValueError(f"{task_type} needs one of the rooms {rooms.HOSTS[task_type]}, got {settings.rooms}.")
    room = rooms.room(dice.choice(hosts), settings.vocabulary, settings.twins)
    places = _furnish(room, settings, dice)
    goal = _choose_goal(task_type, room, places, dice)
    if goal is None:
        return None
    made = Draft(task_type, *goal, places)
    load = [0] * len(places)
    wanted = max(made.count, dice.integer((made.count, max(made.count, settings.copies))))
    if task_type == "look_at_obj_in_light" and not _place(made, LAMP, None, load, settings, dice):
        return None
    if not all(_place(made, made.thing, made.destination, load, settings, dice) for _ in range(wanted)):
        return None
    _distract(made, room, wanted, load, settings, dice)
    return made


def _spots(number: int, shared: float, dice: Dice) -> list[int]:
    """A location for each receptacle; each shares that of the one before it with chance ``shared``."""
    spots: list[int] = []
    for _ in range(number):
        alone = not spots or dice.uniform() >= shared
        spots.append((spots[-1] if spots else 0) + alone)
    return spots


def _furnish(room: rooms.Room, settings: Settings, dice: Dice) -> list[str]:
    """Receptacle types, sorted: one of each that is always there, then more, likely kinds more often."""
    number = dice.integer(settings.receptacles)
    places = list(room.always)[:number]
    left = {kind: most - 1 for kind, most in room.always.items()}
    weights = {kind: float(most) for kind, most in left.items()}
    for kind, (share, most) in room.sometimes.items():
        left[kind], weights[kind] = most, share * (most + 1) / 2
    while len(places) < number:
        open_kinds = [kind for kind, remaining in left.items() if remaining > 0]
        if not open_kinds:
            break
        kind = dice.weighted(open_kinds, [weights[kind] for kind in open_kinds])
        places.append(kind)
        left[kind] -= 1
    return sorted(places)


_SUITABLE = {
    "pick_clean_then_place_in_recep": (rooms.CLEANABLE, "SinkBasin"),
    "pick_heat_then_place_in_recep": (rooms.HEATABLE, "Microwave"),
    "pick_cool_then_place_in_recep": (rooms.COOLABLE, "Fridge"),
}


def _choose_goal(task_type: TaskType, room: rooms.Room, places: list[str], dice: Dice) -> tuple[str, str | None] | None:
    """(object type, destination type), an object type uniformly among those that the room affords."""
    kinds = sorted(set(places))
    suitable, appliance = _SUITABLE.get(task_type, (None, None))
    if appliance is not None and appliance not in kinds:
        return None
    options: list[tuple[str, list[str]]] = []
    for thing in room.objects:
        if suitable is not None and thing not in suitable:
            continue
        if task_type == "look_at_obj_in_light":
            if any(rooms.rate(thing, kind) for kind in kinds):
                options.append((thing, []))
            continue
        starts = {kind for kind in kinds if rooms.rate(thing, kind)}
        ends = [kind for kind in kinds if kind != appliance and thing in rooms.FITS[kind] and starts - {kind}]
        if ends:
            options.append((thing, ends))
    if not options:
        return None
    thing, ends = dice.choice(options)
    return thing, dice.choice(ends) if ends else None


def _place(made: Draft, thing: str, forbidden: str | None, load: list[int], settings: Settings, dice: Dice) -> bool:
    """Put one object where its kind usually lies; False where no receptacle has room for it."""
    weights = [
        0.0 if place == forbidden or load[index] >= settings.capacity else rooms.rate(thing, place)
        for index, place in enumerate(made.places)
    ]
    if not any(weights):
        return False
    index = dice.weighted(range(len(weights)), weights)
    load[index] += 1
    made.things.append((thing, index))
    return True


def _distract(made: Draft, room: rooms.Room, already: int, load: list[int], settings: Settings, dice: Dice) -> None:
    """Fill the room with objects of other types than the wanted one, usual ones more often."""
    left = {kind: settings.copies for kind in room.objects if kind != made.thing}
    for _ in range(dice.integer(settings.objects) - already):
        kinds = [kind for kind, remaining in left.items() if remaining > 0]
        if not kinds:
            return
        kind = dice.weighted(kinds, [room.objects[kind] for kind in kinds])
        left[kind] -= 1 if _place(made, kind, None, load, settings, dice) else left[kind]
