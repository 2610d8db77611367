"""The expert that sees everything: goes straight to what the goal needs.

It chooses one move at a time from the state as it is, so it can take over an episode anywhere. What it wants
next is a ``Move`` of the simulator; the words for it are looked up among the admissible commands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from turnwise.envs.alfworld.simulator import Move, Simulator
from turnwise.envs.alfworld.world import CLEAN, COOL, HOT, NOBODY, TOGGLED
from turnwise.envs.interface import Info

_VERBS = {CLEAN: "clean", HOT: "heat", COOL: "cool"}


class KnowingExpert:
    """An ``Expert`` over the simulator that ``simulator()`` returns now (its environment may restart it)."""

    def __init__(self, simulator: Callable[[], Simulator]) -> None:
        self._simulator = simulator

    def begin(self, observation: str, info: Info) -> None:
        """Nothing to prepare: the state says it all."""

    def act(self, observation: str, info: Info) -> str:
        return next_command(self._simulator())


def next_command(simulator: Simulator) -> str:
    """The next command towards the goal; ``look`` where it cannot be reached."""
    wanted = _light(simulator) if simulator.world.lamps else _place(simulator)
    for command, move in simulator.menu().items():
        if move == wanted:
            return command
    return "look"


def _place(simulator: Simulator) -> Move | None:
    """Towards enough changed objects in one receptacle."""
    world, held = simulator.world, simulator.held
    targets = world.goal_receptacles
    if not targets:
        return None
    target = max(targets, key=lambda r: (len(simulator.counting_in(r)), -_effort(simulator, r)))
    if held in world.goal_things:
        if _lacks_mark(simulator, held):
            verb = _VERBS[world.goal_condition]
            tools = [r for r, use in enumerate(world.appliance) if use == verb]
            tool = _nearest(simulator, tools)
            return None if tool is None else _at(simulator, tool, (verb, held, tool))
        return _into(simulator, target, ("put", held, target))
    if held != NOBODY:
        return _put_down(simulator)
    return _take(simulator, excluding=simulator.counting_in(target))


def _light(simulator: Simulator) -> Move | None:
    """Towards holding the object beside a lamp that is on."""
    held = simulator.held
    if held in simulator.world.goal_things:
        places = [
            (not simulator.condition[lamp] & TOGGLED, _effort(simulator, r), lamp, r)
            for lamp in simulator.world.lamps
            for r, contents in enumerate(simulator.contents)
            if lamp in contents
        ]
        if not places:
            return None
        _, _, lamp, receptacle = min(places)
        return _at(simulator, receptacle, ("use", lamp, 0))
    return _put_down(simulator) if held != NOBODY else _take(simulator)


def _take(simulator: Simulator, excluding: Iterable[int] = ()) -> Move | None:
    """Towards the object that takes the fewest moves to get and to change."""
    world = simulator.world
    choices = [
        (2 * _lacks_mark(simulator, thing) + _effort(simulator, r), thing, r)
        for r, contents in enumerate(simulator.contents)
        for thing in contents
        if thing in world.goal_things and world.things[thing].pickupable and thing not in excluding
    ]
    if not choices:
        return None
    _, thing, receptacle = min(choices)
    return _into(simulator, receptacle, ("take", thing, receptacle))


def _put_down(simulator: Simulator) -> Move | None:
    """Towards empty hands."""
    world, held = simulator.world, simulator.held
    place = _nearest(simulator, [r for r in range(len(world.receptacles)) if world.fits(held, r)])
    return None if place is None else _into(simulator, place, ("put", held, place))


def _lacks_mark(simulator: Simulator, thing: int) -> bool:
    """Whether a thing has yet to be cleaned, heated or cooled for the goal."""
    mark = simulator.world.goal_condition
    return simulator.condition[thing] & mark != mark


def _nearest(simulator: Simulator, receptacles: Iterable[int]) -> int | None:
    return min(receptacles, key=lambda r: _effort(simulator, r), default=None)


def _effort(simulator: Simulator, receptacle: int) -> int:
    """Moves until one can reach into a receptacle."""
    far = simulator.world.location_of[receptacle] != simulator.location
    return far + (not simulator.visible(receptacle))


def _at(simulator: Simulator, receptacle: int, move: Move) -> Move:
    """``move``, or first the way to the receptacle."""
    far = simulator.world.location_of[receptacle] != simulator.location
    return ("go", receptacle, 0) if far else move


def _into(simulator: Simulator, receptacle: int, move: Move) -> Move:
    """``move``, or first the way to the receptacle and opening it."""
    ready = simulator.visible(receptacle)
    return _at(simulator, receptacle, move if ready else ("open", receptacle, 0))
