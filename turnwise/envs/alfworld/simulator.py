"""The rules of ALFWorld's text games, exact to the letter and without PDDL.

Every sentence, every admissible command and every quirk is that of the official engine (alfworld 0.4.2 on
textworld 1.7.0), against whose recordings ``tests/parity/test_alfworld.py`` holds this module. The quirks:

* ``look`` in the middle of the room, where a game starts, sees "nothing"; only the first text lists the room;
* beside what is faced, ``look`` reports as lying around whatever was taken out of a receptacle here and put
  into another one here, once for each receptacle that it left;
* only a held object can be examined; places at the spot where one stands cannot be gone to;
* ``use`` reaches into closed receptacles and never turns anything off; ``slice`` reaches into closed ones;
* heating needs no open microwave; an object may be in several receptacles, and taking it leaves the others;
* release 2.1.1 reports arrivals with the number of the location ("loc 12").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from turnwise.envs.alfworld.game import Game
from turnwise.envs.alfworld.world import (
    CLEAN,
    COOL,
    HOT,
    NOBODY,
    SLICED,
    TOGGLED,
    Items,
    State,
    World,
    added,
    changed,
    sentence_list,
    without,
)

NOTHING_HAPPENS = "Nothing happens."
WELCOME = "-= Welcome to TextWorld, ALFRED! =-"

# A fixed string of the 2.1.2 and 2.1.3 game files (ALFWorld, MIT).
HELP = """
Available commands:
  look:                             look around your current location
  inventory:                        check your current inventory
  go to (receptacle):               move to a receptacle
  open (receptacle):                open a receptacle
  close (receptacle):               close a receptacle
  take (object) from (receptacle):  take an object from a receptacle
  move (object) to (receptacle):  place an object in or on a receptacle
  examine (something):              examine a receptacle or an object
  use (object):                     use an object
  heat (object) with (receptacle):  heat an object using a receptacle
  clean (object) with (receptacle): clean an object using a receptacle
  cool (object) with (receptacle):  cool an object using a receptacle
  slice (object) with (object):     slice an object using a sharp object
""".lstrip("\n")

# How a held object looks; the first line whose marks it all bears.
_LOOKS = (
    (CLEAN | HOT | SLICED, "hot and clean sliced"),
    (CLEAN | COOL | SLICED, "cool and clean sliced"),
    (CLEAN | SLICED, "clean sliced"),
    (HOT | SLICED, "hot sliced"),
    (COOL | SLICED, "cool sliced"),
    (CLEAN | HOT, "hot and clean"),
    (CLEAN | COOL, "cool and clean"),
    (HOT, "hot"),
    (CLEAN, "clean"),
    (COOL, "cold"),
)

# verb and the numbers of what it acts on (a thing, a receptacle, or both in that order)
Move = tuple[str, int, int]


class Simulator:
    """One game being played. ``won`` says whether the goal holds now."""

    def __init__(self, game: Game | World) -> None:
        self.world = game if isinstance(game, World) else World(game)
        self.restore(self.world.start)

    # ------------------------------------------------------------------ the whole state

    @property
    def key(self) -> tuple[Any, ...]:
        """The values of the state, immutable: cheap enough for every step."""
        return self.location, self.held, self.opened, self.contents, self.removed, self.lying, self.condition

    def snapshot(self) -> State:
        """The state, immutable."""
        return State(*self.key)

    def restore(self, state: State) -> None:
        """Continue from ``state``, which must come from the same game."""
        self.location, self.held, self.opened, self.contents, self.removed, self.lying, self.condition = state
        # What can be done depends on the location, its receptacles and the hands: kept by location and hands,
        # thrown away for a location when something there changes.
        self._menus: list[dict[int, dict[str, Move]]] = [{} for _ in self.lying]
        self.won = self._goal_holds()

    # ------------------------------------------------------------------ playing

    def reset(self) -> str:
        """Back to the start; the first observation."""
        self.restore(self.world.start)
        room = self.world.list_receptacles(range(len(self.contents)))
        return (
            f"{WELCOME}\n\nYou are in the middle of a room. Looking quickly around you, you see {room}.\n\n"
            f"Your task is to: {self.world.game.task}"
        )

    def menu(self) -> dict[str, Move]:
        """The admissible commands in sorted order, with what they do. Do not change it."""
        menus = self._menus[self.location]
        menu = menus.get(self.held)
        if menu is None:
            found = self._moves()
            menu = menus[self.held] = {command: found[command] for command in sorted(found)}
        return menu

    def step(self, command: str) -> tuple[str, bool]:
        """Do ``command``: what the player reads, and whether it was an admissible command."""
        move = self.menu().get(command.strip())
        if move is None:
            return NOTHING_HAPPENS, False
        verb, first, second = move
        text = _DO[verb](self, first, second)
        self.won = self._goal_holds()
        return text, True

    def visible(self, receptacle: int) -> bool:
        """Whether one can see and reach into a receptacle (standing at it)."""
        return self.opened[receptacle] or not self.world.openable[receptacle]

    # ------------------------------------------------------------------ what can be done

    def _moves(self) -> dict[str, Move]:
        world, location, held = self.world, self.location, self.held
        places = world.receptacle_names
        moves: dict[str, Move] = {"look": ("look", 0, 0), "inventory": ("inventory", 0, 0)}
        if world.dialect == "2.1.3":
            moves["help"] = ("help", 0, 0)
        for r, elsewhere in enumerate(world.location_of):
            if elsewhere != location:
                moves[f"go to {places[r]}"] = ("go", r, 0)
        for r in world.here[location]:
            moves[f"examine {places[r]}"] = ("examine place", r, 0)
            if world.openable[r]:
                verb = "close" if self.opened[r] else "open"
                moves[f"{verb} {places[r]}"] = (verb, r, 0)
            for thing in self.contents[r]:
                if world.things[thing].toggleable:
                    moves[f"use {world.thing_names[thing]}"] = ("use", thing, 0)
            if held == NOBODY and self.visible(r):
                for thing in self.contents[r]:
                    if world.things[thing].pickupable:
                        moves[f"take {world.thing_names[thing]} from {places[r]}"] = ("take", thing, r)
        if held != NOBODY:
            self._add_moves_with(held, moves)
        return moves

    def _add_moves_with(self, held: int, moves: dict[str, Move]) -> None:
        """What can be done with the thing in the hand."""
        world = self.world
        name, thing = world.thing_names[held], world.things[held]
        put = f"move {name} to" if world.dialect == "2.1.3" else f"put {name} in/on"
        able = {"clean": thing.cleanable, "heat": thing.heatable, "cool": thing.coolable}
        moves[f"examine {name}"] = ("examine thing", held, 0)
        for r in world.here[self.location]:
            place, verb = world.receptacle_names[r], world.appliance[r]
            if self.visible(r) and world.fits(held, r):
                moves[f"{put} {place}"] = ("put", held, r)
            if verb is not None and able[verb]:
                moves[f"{verb} {name} with {place}"] = (verb, held, r)
        if world.knife[held]:
            for other in self.lying[self.location]:
                if world.things[other].sliceable:
                    moves[f"slice {world.thing_names[other]} with {name}"] = ("slice", other, held)

    # ------------------------------------------------------------------ doing it

    def _look(self, _a: int, _b: int) -> str:
        here = self.world.here[self.location]
        if not here:
            return "You are in the middle of a room. Looking quickly around you, you see nothing."
        faced = sentence_list([self.world.receptacle_names[r] for r in here])
        around = [t for t in self.lying[self.location] for r in here if t in self.removed[r]]
        return f"You are facing the {faced}. Next to it, you see {self.world.list_things(around)}."

    def _inventory(self, _a: int, _b: int) -> str:
        if self.held == NOBODY:
            return "You are not carrying anything."
        return f"You are carrying: a {self.world.thing_names[self.held]}."

    def _help(self, _a: int, _b: int) -> str:
        return HELP

    def _go(self, receptacle: int, _b: int) -> str:
        self.location = self.world.location_of[receptacle]
        arrival = self.world.arrival_names[receptacle]
        return f"You arrive at {arrival}. {self._examine_place(receptacle, 0)}"

    def _examine_place(self, receptacle: int, _b: int) -> str:
        name = self.world.receptacle_names[receptacle]
        if not self.world.openable[receptacle]:
            return f"On the {name}, you see {self.world.list_things(self.contents[receptacle])}."
        if not self.opened[receptacle]:
            return f"The {name} is closed."
        return f"The {name} is open. In it, you see {self.world.list_things(self.contents[receptacle])}."

    def _examine_thing(self, number: int, _b: int) -> str:
        thing, name = self.world.things[number], self.world.thing_names[number]
        if thing.is_receptacle:
            inside = self.world.list_things(self.world.inside(number))
            return f"This is a normal {name}. In it, you see {inside}."
        condition = self.condition[number]
        for marks, word in _LOOKS:
            if condition & marks == marks:
                return f"This is a {word} {name}."
        if thing.toggleable and condition & TOGGLED:
            return f"This {name} is on."
        if thing.sliceable and condition & SLICED:
            return f"This is a sliced {name}."
        return f"There's nothing special about {name}."

    def _open(self, receptacle: int, _b: int) -> str:
        self.opened = changed(self.opened, receptacle, True)
        self._menus[self.location].clear()
        return f"You open the {self.world.receptacle_names[receptacle]}. {self._examine_place(receptacle, 0)}"

    def _close(self, receptacle: int, _b: int) -> str:
        self.opened = changed(self.opened, receptacle, False)
        self._menus[self.location].clear()
        return f"You close the {self.world.receptacle_names[receptacle]}."

    def _take(self, thing: int, receptacle: int) -> str:
        self.held = thing
        self.contents = changed(self.contents, receptacle, without(self.contents[receptacle], thing))
        self.removed = changed(self.removed, receptacle, added(self.removed[receptacle], thing))
        self.lying = changed(self.lying, self.location, without(self.lying[self.location], thing))
        self._menus[self.location].clear()
        name, place = self.world.thing_names[thing], self.world.receptacle_names[receptacle]
        return f"You pick up the {name} from the {place}."

    def _put(self, thing: int, receptacle: int) -> str:
        self.held = NOBODY
        self.contents = changed(self.contents, receptacle, added(self.contents[receptacle], thing))
        self.removed = changed(self.removed, receptacle, without(self.removed[receptacle], thing))
        self.lying = changed(self.lying, self.location, added(self.lying[self.location], thing))
        self._menus[self.location].clear()
        name, place = self.world.thing_names[thing], self.world.receptacle_names[receptacle]
        if self.world.dialect == "2.1.1":
            return f"You put the {name} in/on the {place}."
        return f"You move the {name} to the {place}."

    def _clean(self, thing: int, receptacle: int) -> str:
        self._set_condition(thing, self.condition[thing] | CLEAN)
        return self._used("clean", thing, receptacle)

    def _heat(self, thing: int, receptacle: int) -> str:
        self._set_condition(thing, self.condition[thing] & ~COOL | HOT)
        return self._used("heat", thing, receptacle)

    def _cool(self, thing: int, receptacle: int) -> str:
        self._set_condition(thing, self.condition[thing] & ~HOT | COOL)
        return self._used("cool", thing, receptacle)

    def _set_condition(self, thing: int, condition: int) -> None:
        self.condition = changed(self.condition, thing, condition)

    def _used(self, verb: str, thing: int, receptacle: int) -> str:
        name, place = self.world.thing_names[thing], self.world.receptacle_names[receptacle]
        return f"You {verb} the {name} using the {place}."

    def _use(self, thing: int, _b: int) -> str:
        self._set_condition(thing, self.condition[thing] | TOGGLED)
        return f"You turn on the {self.world.thing_names[thing]}."

    def _slice(self, thing: int, knife: int) -> str:
        self._set_condition(thing, self.condition[thing] | SLICED)
        return f"You sliced the {self.world.thing_names[thing]} with the {self.world.thing_names[knife]}."

    # ------------------------------------------------------------------ the goal

    def _goal_holds(self) -> bool:
        world = self.world
        if world.lamps:
            return self.held in world.goal_things and any(map(self.lit_here, world.lamps))
        count = world.game.goal.count
        return any(len(self.counting_in(r)) >= count for r in world.goal_receptacles)

    def counting_in(self, receptacle: int) -> Items:
        """The things in a receptacle that count towards the goal there."""
        wanted, mark, condition = self.world.goal_things, self.world.goal_condition, self.condition
        return tuple(t for t in self.contents[receptacle] if t in wanted and condition[t] & mark == mark)

    def lit_here(self, lamp: int) -> bool:
        """Whether a lamp was turned on and is in a receptacle here."""
        here = self.world.here[self.location]
        return bool(self.condition[lamp] & TOGGLED) and any(lamp in self.contents[r] for r in here)


_DO: dict[str, Callable[[Simulator, int, int], str]] = {
    "look": Simulator._look,
    "inventory": Simulator._inventory,
    "help": Simulator._help,
    "go": Simulator._go,
    "examine place": Simulator._examine_place,
    "examine thing": Simulator._examine_thing,
    "open": Simulator._open,
    "close": Simulator._close,
    "take": Simulator._take,
    "put": Simulator._put,
    "clean": Simulator._clean,
    "heat": Simulator._heat,
    "cool": Simulator._cool,
    "use": Simulator._use,
    "slice": Simulator._slice,
}
