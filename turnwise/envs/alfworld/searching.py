"""An expert that sees only what a player sees: it reads the text, looks in likely places first and remembers.

``Belief`` turns observations into what is known, ``SearchingExpert`` turns what is known into a command. The
policy is simple on purpose, because small models learn it from demonstrations: receptacles are searched in a
fixed order (likely types first, within a likelihood class as listed in the first observation), the first
object found is taken, and every decision follows from what the text has shown. It re-plans on every turn, so
it recovers from noise, and from commands that somebody else chose.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from turnwise.envs.alfworld.priors import placement_rates

_THING = r"(?P<thing>[a-z]+)"
_AT = r"(?:in|on) (?P<place>[a-z]+)"
_TASKS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("look", re.compile(rf"look at {_THING} under the (?P<place>[a-z]+)")),
    ("look", re.compile(rf"examine the {_THING} with the (?P<place>[a-z]+)")),
    ("two", re.compile(rf"put two {_THING} {_AT}")),
    ("two", re.compile(rf"find two {_THING} and put them {_AT}")),
    ("clean", re.compile(rf"put a clean {_THING} {_AT}")),
    ("clean", re.compile(rf"clean some {_THING} and put it {_AT}")),
    ("heat", re.compile(rf"put a hot {_THING} {_AT}")),
    ("heat", re.compile(rf"heat some {_THING} and put it {_AT}")),
    ("cool", re.compile(rf"put a cool {_THING} {_AT}")),
    ("cool", re.compile(rf"cool some {_THING} and put it {_AT}")),
    ("pick", re.compile(rf"put (?:a|some) {_THING} {_AT}")),
)
APPLIANCES = {"clean": "sinkbasin", "heat": "microwave", "cool": "fridge"}
_UNDOES = {"heat": "cool", "cool": "heat"}
_OPENABLE = frozenset({"cabinet", "drawer", "fridge", "microwave", "safe"})

_NAME = r"([a-z]+ \d+)"
_INTRO = re.compile(r"Looking quickly around you, you see (.*?)\.", re.DOTALL)
_SEEN = re.compile(rf"(?:On the {_NAME}|The {_NAME} is open\. In it), you see ([^.]*)\.")
_CLOSED = re.compile(rf"The {_NAME} is closed\.|You close the {_NAME}\.")
_TOOK = re.compile(rf"You pick up the {_NAME} from the {_NAME}\.")
_PLACED = re.compile(rf"You (?:move|put) the {_NAME} (?:to|in/on) the {_NAME}\.")
_CHANGED = re.compile(rf"You (clean|heat|cool) the {_NAME} using the {_NAME}\.")
_CARRYING = re.compile(rf"You are carrying: a {_NAME}\.")
_FACING = re.compile(r"You are facing the (.*?)\. Next to it")
_ITEM = re.compile(rf"\ba {_NAME}")
_PLACE = re.compile(rf"\b{_NAME}")


def base(name: str) -> str:
    """``"cabinet 3" -> "cabinet"``."""
    return name.partition(" ")[0]


@dataclass(frozen=True, slots=True)
class Wish:
    """What the task sentence asks for. ``verb`` is pick, two, look, clean, heat or cool; ``place`` is a
    receptacle type, or the lamp type for ``look``."""

    verb: str
    thing: str
    place: str


def read_task(sentence: str) -> Wish:
    """Parse any of the official wordings; ValueError for other sentences."""
    text = sentence.lower()
    for verb, pattern in _TASKS:
        if found := pattern.search(text):
            return Wish(verb, found["thing"], found["place"])
    raise ValueError(f"Cannot read the task {sentence!r}: expected an ALFWorld wording like 'put a mug in desk.'.")


@dataclass(slots=True)
class Belief:
    """What the observations so far have shown. ``places`` keeps the order of the first observation."""

    places: list[str] = field(default_factory=list)
    contents: dict[str, list[str]] = field(default_factory=dict)
    """Receptacle -> objects last seen in it; absent while unseen."""
    closed: set[str] = field(default_factory=set)
    here: str | None = None
    beside: dict[str, set[str]] = field(default_factory=dict)
    """Receptacles that share a spot: all of them are in reach from any of them."""
    held: str | None = None
    changes: dict[str, set[str]] = field(default_factory=dict)
    refused: set[tuple[str, str]] = field(default_factory=set)
    """(object type, receptacle) pairs that a move failed on."""
    doubts: list[str] = field(default_factory=list)
    """What to ask, the last one first, after a surprise: ``inventory``, ``look``."""

    def in_reach(self, place: str) -> bool:
        if self.here is None:
            return False
        return place == self.here or place in self.beside.get(self.here, ())

    def join(self, places: Iterable[str]) -> None:
        """These receptacles stand at the same spot."""
        spot = set(places)
        for place in tuple(spot):
            spot |= self.beside.get(place, set())
        self.beside.update(dict.fromkeys(spot, spot))

    def read(self, observation: str, last: str) -> None:
        """Take in one observation; ``last`` is the command before it (used only to explain a failure)."""
        if observation.startswith("Nothing happens"):
            self._explain(last)
            return
        if found := _SEEN.search(observation):
            place = found[1] or found[2]
            self.contents[place] = _ITEM.findall(found[3])
            self.closed.discard(place)
            self._stand_at(place, observation)
        elif found := _CLOSED.search(observation):
            place = found[1] or found[2]
            self.closed.add(place)
            self._stand_at(place, observation)
        elif found := _TOOK.search(observation):
            self.held = found[1]
            self.contents[found[2]] = [thing for thing in self.contents.get(found[2], []) if thing != found[1]]
            self._stand_at(found[2], observation)
        elif found := _PLACED.search(observation):
            self.held = None
            if found[2] in self.contents:
                self.contents[found[2]].append(found[1])
            self._stand_at(found[2], observation)
        elif found := _CHANGED.search(observation):
            done = self.changes.setdefault(found[2], set())
            done.discard(_UNDOES.get(found[1], ""))
            done.add(found[1])
            self.held = found[2]
            self._stand_at(found[3], observation)
        elif found := _CARRYING.search(observation):
            self.held = found[1]
        elif observation.startswith("You are not carrying"):
            self.held = None
        elif found := _FACING.search(observation):
            self._face(_PLACE.findall(found[1]))

    def _face(self, places: list[str]) -> None:
        self.join(places)
        self.here = places[0]
        self.places.extend(place for place in places if place not in self.places)

    def _stand_at(self, place: str, observation: str) -> None:
        """An interaction with ``place`` proves that it is in reach."""
        if observation.startswith("You arrive"):
            self._detach(place)  # one does not arrive at what is in reach: any such belief was wrong
            self.here = place
        elif not self.in_reach(place):
            self.here = place
        if place not in self.places:
            self.places.append(place)

    def _explain(self, last: str) -> None:
        """Why did ``last`` do nothing? A place that cannot be gone to is at this spot already."""
        if not last:
            return
        words = last.split()
        target = " ".join(words[-2:])
        if last.startswith("go to "):
            if self.here is None:
                self.here = target
            elif target in self.places:
                self.join((self.here, target))
            return
        if last.startswith(("move ", "put ")):
            self.refused.add((words[1], target))
        self.contents.pop(target, None)
        self._detach(target)
        self.doubts = ["inventory"]

    def _detach(self, place: str) -> None:
        """It was not in reach after all (somebody else's command may have failed, not ours)."""
        if self.here is None or place == self.here or not self.in_reach(place):
            return
        self.beside[self.here] = self.beside[self.here] - {place}
        for other in self.beside[self.here]:
            self.beside[other] = self.beside[self.here]
        del self.beside[place]


class SearchingExpert:
    """Plays by the text alone.

    ``noise`` is the chance of a uniformly random admissible command instead (``noisy`` tells whether the last
    one was; a cloner may mask those). ``shuffle`` permutes, per episode, the search order within a class of
    equally likely receptacles. ``info`` serves the noise and the wording of ``put``; where an episode is
    joined in the middle, ``info["task"]`` and the listed ``go to`` commands replace the first observation.
    """

    def __init__(self, *, seed: int = 0, noise: float = 0.0, shuffle: bool = False) -> None:
        if not 0.0 <= noise <= 1.0:
            raise ValueError(f"noise is a probability in [0, 1], got {noise}.")
        self.noise, self.shuffle = noise, shuffle
        self.noisy = False
        self._rng = np.random.default_rng(seed)

    def begin(self, observation: str, info: dict[str, Any]) -> None:
        """Forget everything and read the room and the task."""
        _, marker, sentence = observation.partition("Your task is to: ")
        self.wish = read_task(sentence if marker else str(info.get("task", "")))
        self.belief = Belief()
        if marker and (found := _INTRO.search(observation)):
            self.belief.places = _ITEM.findall(found[1])
        else:
            commands = info.get("admissible_actions", ())
            self.belief.places = [command[6:] for command in commands if command.startswith("go to ")]
            self.belief.doubts = ["look", "inventory"]
        self._last = ""
        self._put = "put {} in/on {}" if "put" in self._verbs(info) else "move {} to {}"
        self._orders: dict[str, list[str]] = {}

    def act(self, observation: str, info: dict[str, Any]) -> str:
        """The next command."""
        self.belief.read(observation, self._last)
        if observation.startswith("You arrive at loc "):  # only the older dialect names the spot
            self._put = "put {} in/on {}"
        admissible = info.get("admissible_actions", ())
        self.noisy = bool(self.noise and admissible and self._rng.random() < self.noise)
        if self.noisy:
            self._last = str(admissible[int(self._rng.integers(len(admissible)))])
        elif self.belief.doubts:
            self._last = self.belief.doubts.pop()
        else:
            self._last = self._plan(info)
        return self._last

    def overrule(self, action: str) -> None:
        """Another command was played: if it does nothing, that is no news about the expert's own."""
        self._last = ""

    @staticmethod
    def _verbs(info: dict[str, Any]) -> set[str]:
        return {base(command) for command in info.get("admissible_actions", ())}

    def _plan(self, info: dict[str, Any]) -> str:
        held = self.belief.held
        if held is None:
            return self._fetch()
        if base(held) != self.wish.thing:
            return self._put_down(held, info)
        if self.wish.verb == "look":
            return self._light()
        if self.wish.verb in APPLIANCES and self.wish.verb not in self.belief.changes.get(held, ()):
            return self._change(held)
        return self._deliver(held, info)

    # -- the five things to do --------------------------------------------------------------------------

    def _fetch(self) -> str:
        """Empty hands: take the first wanted object known of, else look in the next place."""
        known, spared = self.belief.contents, None
        if self.wish.verb == "two":
            spared = self._destination()
        for place in self.belief.places:
            for thing in known.get(place, ()):
                if base(thing) == self.wish.thing and place != spared:
                    return self._reach(place) or f"take {thing} from {place}"
        return self._search(self.wish.thing)

    def _light(self) -> str:
        """Holding the object: go to the lamp, if need be find it, and turn it on."""
        for place in self.belief.places:
            for thing in self.belief.contents.get(place, ()):
                if base(thing) == self.wish.place:
                    return self._reach(place, inside=False) or f"use {thing}"
        return self._search(self.wish.place)

    def _change(self, held: str) -> str:
        appliance = next((place for place in self._of_type(APPLIANCES[self.wish.verb])), None)
        if appliance is None:
            return "look"
        return self._reach(appliance, inside=False) or f"{self.wish.verb} {held} with {appliance}"

    def _deliver(self, held: str, info: dict[str, Any]) -> str:
        place = self._destination()
        if place is None:
            return "look"
        return self._reach(place) or self._put_command(held, place, info)

    def _put_down(self, held: str, info: dict[str, Any]) -> str:
        """A wrong object in hand: leave it in reach, else in a place where its kind is at home."""
        allowed = [place for place in self.belief.places if (base(held), place) not in self.belief.refused]
        if not allowed:
            self.belief.refused.clear()
            allowed = self.belief.places
        rates = placement_rates().get(base(held), {})

        def preference(place: str) -> tuple[bool, bool, bool]:
            here = self.belief.in_reach(place)
            return (here, here and place not in self.belief.closed, base(place) in rates)

        place = max(allowed, key=preference, default=None)
        if place is None:
            return "look"
        return self._reach(place) or self._put_command(held, place, info)

    # -- parts of them ----------------------------------------------------------------------------------

    def _of_type(self, kind: str) -> list[str]:
        """Receptacles of a type: those in reach first, else as listed."""
        found = [place for place in self.belief.places if base(place) == kind]
        return sorted(found, key=lambda place: not self.belief.in_reach(place))

    def _destination(self) -> str | None:
        """Where to deliver: for two objects the receptacle that already holds one."""
        places = [
            place for place in self._of_type(self.wish.place) if (self.wish.thing, place) not in self.belief.refused
        ] or self._of_type(self.wish.place)
        if self.wish.verb != "two":
            return places[0] if places else None

        def already(place: str) -> int:
            return sum(base(thing) == self.wish.thing for thing in self.belief.contents.get(place, ()))

        return max(places, key=already, default=None)

    def _reach(self, place: str, *, inside: bool = True) -> str | None:
        """The command that brings ``place`` (``inside``: its contents) nearer; None when it is in reach."""
        if not self.belief.in_reach(place):
            return f"go to {place}"
        if inside and place in self.belief.closed:
            return f"open {place}"
        if inside and place not in self.belief.contents:
            return f"examine {place}"
        return None

    def _search(self, kind: str) -> str:
        """Look into the next place that has not been seen; when all have, look again everywhere."""
        order = self._orders.get(kind) or self._order(kind)
        place = next((place for place in order if place not in self.belief.contents), None)
        if place is None:
            self.belief.contents.clear()
            order = self._order(kind)
            place = order[0] if order else None
        if place is None:
            return "look"
        return self._reach(place) or f"examine {place}"

    def _order(self, kind: str) -> list[str]:
        """Receptacles by likelihood per turn spent, in classes a factor of three wide, then as listed."""
        rates = placement_rates().get(kind, {})
        ruled_out = self.wish.place if self.wish.verb == "pick" else None  # there, the task would be done already

        def unlikely(place: str) -> int:
            if base(place) == ruled_out:
                return 99
            rate = rates.get(base(place), 0.0) / (2 if base(place) in _OPENABLE else 1)
            return -math.floor(math.log(max(rate, 1e-4), 3))

        places = list(self.belief.places)
        if self.shuffle:
            places = [places[index] for index in self._rng.permutation(len(places))]
        self._orders[kind] = sorted(places, key=unlikely)
        return self._orders[kind]

    def _put_command(self, held: str, place: str, info: dict[str, Any]) -> str:
        verbs = self._verbs(info)
        if verbs & {"put", "move"}:
            self._put = "put {} in/on {}" if "put" in verbs else "move {} to {}"
        return self._put.format(held, place)
