"""One household game: everything that is true when it starts, and what must become true.

The same record comes from an official game file (``pddl.py``) and from the procedural generator
(``turnwise.envs.household``); the simulator plays either. Types are spelled as in the official files, with
their suffix: ``AppleType``, ``CabinetType``. Ids are the official symbols; display names derive from them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Dialect = Literal["2.1.1", "2.1.3"]
Change = Literal["hot", "cool", "clean"]
TaskType = Literal[
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
]


@dataclass(frozen=True, slots=True)
class Receptacle:
    """A place that holds objects: cabinet, fridge, desk. It never moves."""

    id: str
    type: str
    location: str
    openable: bool = False
    opened: bool = False


@dataclass(frozen=True, slots=True)
class Thing:
    """An object. ``receptacle`` is None for fixtures (windows, blinds); ``inside`` names an outer object.

    Official games hold objects that are in up to four receptacles at once (a pan on two stove burners), at
    different locations even: ``also_in`` names the others, ``also_inside`` further outer objects. ``type`` is
    ``""`` where the file gives none (two cracked eggs).
    """

    id: str
    type: str
    location: str | None
    receptacle: str | None = None
    inside: str | None = None
    pickupable: bool = False
    cleanable: bool = False
    heatable: bool = False
    coolable: bool = False
    toggleable: bool = False
    sliceable: bool = False
    is_receptacle: bool = False
    clean: bool = False
    hot: bool = False
    cool: bool = False
    sliced: bool = False
    toggled: bool = False
    also_in: tuple[str, ...] = ()
    also_inside: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Goal:
    """What ends the game: ``count`` distinct objects of ``object_type``, each ``change``d, in one receptacle
    of ``receptacle_type``; for ``look_at_obj_in_light``: holding one beside a lamp of ``lamp_type`` that is
    on.
    """

    type: TaskType
    object_type: str
    receptacle_type: str | None = None
    change: Change | None = None
    count: int = 1
    lamp_type: str | None = None


@dataclass(frozen=True, slots=True)
class Game:
    """A start state. ``key`` is the hash of its content, ``task`` the sentence after "Your task is to: "."""

    id: str
    key: str
    dialect: Dialect
    task: str
    start: str
    receptacles: tuple[Receptacle, ...]
    things: tuple[Thing, ...]
    can_contain: frozenset[tuple[str, str]]
    goal: Goal
    walkthrough: tuple[str, ...] = field(default=())
