"""Official ALFWorld game files (``game.tw-pddl``) as ``Game`` records.

A game file is JSON: ``pddl_problem`` (the start state and the goal), ``grammar`` (the wording, and the task
sentence), ``solvable``, and since 2.1.2 ``walkthrough``. The domain is the same in every file, so its rules
are written down once, in ``simulator.py``, and its text is not read.

The ``:init`` section is a flat list of ``(predicate argument ...)``: one regular expression reads it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, cast

from turnwise.envs.alfworld.game import Change, Dialect, Game, Goal, Receptacle, TaskType, Thing

TASK_PREFIX = "Your task is to: "

_ATOM = re.compile(r"\(([\w=]+)((?: [^\s()]+)+)\)")
_TASK = re.compile(r'"task"\s*:\s*\[\s*\{\s*"rhs"\s*:\s*("(?:[^"\\]|\\.)*")')
_COMMENT = re.compile(r";[^\n]*")

# What the two wordings say: how an object is put down, what an arrival names, whether `help` exists.
_WORDINGS: dict[tuple[bool, bool, bool], Dialect] = {
    (True, True, True): "2.1.3",
    (False, False, False): "2.1.1",
}

# The six goals, told apart by the predicates that they name, in the order of the file.
_GOALS: dict[tuple[str, ...], tuple[TaskType, Change | None]] = {
    ("inReceptacle", "objectType", "receptacleType"): ("pick_and_place_simple", None),
    ("cleanable", "objectType", "receptacleType", "isClean", "inReceptacle"): (
        "pick_clean_then_place_in_recep",
        "clean",
    ),
    ("heatable", "objectType", "receptacleType", "isHot", "inReceptacle"): (
        "pick_heat_then_place_in_recep",
        "hot",
    ),
    ("coolable", "objectType", "receptacleType", "isCool", "inReceptacle"): (
        "pick_cool_then_place_in_recep",
        "cool",
    ),
    (
        *("objectType", "receptacleType", "inReceptacle"),
        *("=", "objectType", "receptacleType", "inReceptacle"),
    ): ("pick_two_obj_and_place", None),
    (
        *("objectType", "toggleable", "isToggled", "receptacleAtLocation", "atLocation", "inReceptacle"),
        *("objectType", "holds"),
    ): ("look_at_obj_in_light", None),
}


class GameFileError(ValueError):
    """A game that cannot be read; the message names it and says what to do."""

    def __init__(self, origin: str, trouble: str, advice: str = "") -> None:
        advice = advice or "Delete it and run `alfworld-download` again, or leave it out of the data folder."
        super().__init__(f"{origin} is not a playable ALFWorld text game: {trouble}. {advice}")


class GameText(NamedTuple):
    """What a game file says, before its problem is read. ``origin`` names the file in errors."""

    id: str
    task: str
    dialect: Dialect
    problem: str
    walkthrough: tuple[str, ...] = ()
    solvable: bool = True
    origin: str = ""


def read_game_file(path: Path | str, *, id: str = "") -> GameText:
    """One ``game.tw-pddl``. ``id`` defaults to the last two folders of the path (and the split's, if any)."""
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise GameFileError(str(path), f"it cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise GameFileError(str(path), f"expected JSON, and it breaks off or is damaged ({error})") from error
    for field in ("pddl_problem", "grammar"):
        if not isinstance(data, dict) or not isinstance(data.get(field), str):
            raise GameFileError(str(path), f"expected a JSON object with the text field {field!r}")
    walkthrough = data.get("walkthrough") or ()
    if not isinstance(walkthrough, list | tuple) or not all(isinstance(action, str) for action in walkthrough):
        raise GameFileError(str(path), "expected a 'walkthrough' that is a list of actions")
    dialect, task = read_grammar(data["grammar"], origin=str(path))
    return GameText(
        id=id or "/".join(path.resolve().parts[-4:-1]),
        task=task,
        dialect=dialect,
        problem=data["pddl_problem"],
        walkthrough=tuple(walkthrough),
        solvable=data.get("solvable") is True,
        origin=str(path),
    )


def read_grammar(grammar: str, *, origin: str) -> tuple[Dialect, str]:
    """The dialect, and the sentence after "Your task is to: "."""
    wording = (
        '"move {o} to {r}"' in grammar,
        "You arrive at {r.name}." in grammar,
        "action help" in grammar,
    )
    if wording not in _WORDINGS:
        raise GameFileError(
            origin,
            "expected the wording of release 2.1.1 or 2.1.3, got neither "
            f"(has move, names the place on arrival, has help: {wording})",
        )
    found = _TASK.search(grammar)
    if found is None:
        raise GameFileError(origin, 'expected a "task" rule in its grammar')
    try:
        line: str = json.loads(found.group(1))
    except ValueError as error:
        raise GameFileError(origin, f'its "task" rule is damaged ({error})') from error
    if not line.startswith(TASK_PREFIX):
        raise GameFileError(origin, f"expected a task that begins with {TASK_PREFIX!r}, got {line!r}")
    return _WORDINGS[wording], line.removeprefix(TASK_PREFIX)


def parse_game(text: GameText) -> Game:
    """The start state and goal of a game. Raises GameFileError where they cannot be read."""
    origin = text.origin or text.id
    try:
        return _parse_game(text, origin)
    except GameFileError:
        raise
    except (LookupError, ValueError, TypeError) as error:  # a fact with too few words, say
        raise GameFileError(origin, f"its problem is damaged ({type(error).__name__}: {error})") from error


def _parse_game(text: GameText, origin: str) -> Game:
    init, goal = _sections(text.problem, origin)
    atoms = set(_ATOM.findall(init))
    facts = _Facts(atoms)
    if len(facts.pairs("atLocation")) != 1:
        raise GameFileError(origin, "expected exactly one (atLocation agent place) in its start state")
    return Game(
        id=text.id,
        key=_key(atoms, goal),
        dialect=text.dialect,
        task=text.task,
        start=facts.pairs("atLocation")[0][1],
        receptacles=tuple(facts.receptacles(origin)),
        things=tuple(facts.things()),
        can_contain=frozenset(facts.pairs("canContain")),
        goal=_parse_goal(goal, origin),
        walkthrough=text.walkthrough,
    )


def _sections(problem: str, origin: str) -> tuple[str, str]:
    """The text of ``:init`` and of ``:goal``, without comments."""
    if ";" in problem:
        problem = _COMMENT.sub("", problem)
    start, goal = problem.find("(:init"), problem.find("(:goal")
    if not 0 <= start < goal or problem.count("(") != problem.count(")"):
        raise GameFileError(origin, "expected a whole PDDL problem, (:init ...) then (:goal ...)")
    return problem[start:goal], problem[goal:]


def _key(atoms: Iterable[tuple[str, str]], goal: str) -> str:
    """16 hex digits: sha256 of the sorted distinct start facts and the goal, each with single spaces.

    The problem's name, its comments, its layout, the order of its facts, the wording of the task and the
    dialect do not count: copies of a problem in two releases have one key.
    """
    lines = sorted(name + arguments for name, arguments in atoms)
    lines.append(" ".join(goal.split()))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _parse_goal(goal: str, origin: str) -> Goal:
    atoms = _ATOM.findall(goal)
    shape = tuple(name for name, _ in atoms)
    if shape not in _GOALS:
        outside = {"isSliced", "isReceptacleObject", "inReceptacleObject"} & set(shape)
        if outside:
            raise GameFileError(
                origin,
                f"its goal asks for {', '.join(sorted(outside))}, which the official text set leaves out",
                "Leave games with sliced goals or movable receptacles out.",
            )
        raise GameFileError(origin, f"expected one of the six goals of ALFWorld, got one over {shape}")
    type_, change = _GOALS[shape]
    objects = [arguments.split()[1] for name, arguments in atoms if name == "objectType"]
    receptacles = [arguments.split()[1] for name, arguments in atoms if name == "receptacleType"]
    if type_ == "look_at_obj_in_light":
        return Goal(type_, object_type=objects[1], lamp_type=objects[0])
    if len(set(objects)) != 1 or len(set(receptacles)) != 1:
        raise GameFileError(origin, "expected a goal with one type of object and one type of receptacle")
    count = 2 if type_ == "pick_two_obj_and_place" else 1
    return Goal(type_, objects[0], receptacles[0], change, count)


class _Facts:
    """The start state, by predicate."""

    def __init__(self, atoms: Iterable[tuple[str, str]]) -> None:
        self.arguments: defaultdict[str, list[list[str]]] = defaultdict(list)
        for name, arguments in atoms:
            self.arguments[name].append(arguments.split())

    def all(self, predicate: str) -> set[str]:
        """The first arguments of a predicate."""
        return {arguments[0] for arguments in self.arguments[predicate]}

    def pairs(self, predicate: str) -> list[tuple[str, str]]:
        return cast("list[tuple[str, str]]", [tuple(arguments) for arguments in self.arguments[predicate]])

    def lists(self, predicate: str) -> defaultdict[str, list[str]]:
        """First argument -> its second arguments, sorted."""
        found: defaultdict[str, list[str]] = defaultdict(list)
        for first, second in sorted(self.pairs(predicate)):
            found[first].append(second)
        return found

    def receptacles(self, origin: str) -> Iterable[Receptacle]:
        """Sorted by id. Raises where one has no location: it could be neither reached nor seen."""
        types, locations = dict(self.pairs("receptacleType")), dict(self.pairs("receptacleAtLocation"))
        openable, opened = self.all("openable"), self.all("opened")
        if missing := types.keys() ^ locations.keys():
            raise GameFileError(origin, f"expected a type and a location for receptacle {min(missing)}")
        for id in sorted(types):
            yield Receptacle(id, types[id], locations[id], id in openable, id in opened)

    def things(self) -> Iterable[Thing]:
        """Sorted by id: whatever is said to have a type, a trait or a place, for all of it is numbered."""
        types, locations = dict(self.pairs("objectType")), dict(self.pairs("objectAtLocation"))
        receptacles, outer = self.lists("inReceptacle"), self.lists("inReceptacleObject")
        traits = {field: self.all(predicate) for field, predicate in _TRAITS.items()}
        for id in sorted({*types, *locations, *receptacles, *outer}.union(*traits.values())):
            held_by, inside = receptacles.get(id, ()), outer.get(id, ())
            yield Thing(
                id,
                types.get(id, ""),
                locations.get(id),
                receptacle=held_by[0] if held_by else None,
                inside=inside[0] if inside else None,
                also_in=tuple(held_by[1:]),
                also_inside=tuple(inside[1:]),
                **{field: id in owners for field, owners in traits.items()},
            )


_TRAITS = {
    "pickupable": "pickupable",
    "cleanable": "cleanable",
    "heatable": "heatable",
    "coolable": "coolable",
    "toggleable": "toggleable",
    "sliceable": "sliceable",
    "is_receptacle": "isReceptacleObject",
    "clean": "isClean",
    "hot": "isHot",
    "cool": "isCool",
    "sliced": "isSliced",
    "toggled": "isToggled",
}
