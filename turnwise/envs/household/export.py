"""Write a generated game as an official ALFWorld game file.

The PDDL domain and the text grammar belong to the ``alfworld`` package (MIT) and are read from it where it is
installed; turnwise ships neither. The written file plays in the official engine as it plays here.
"""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path

from turnwise.envs.alfworld.game import Game, Goal, Thing
from turnwise.envs.household import rooms


def export_game(game: Game, folder: Path | str, *, domain: str | None = None, grammar: str | None = None) -> Path:
    """Write ``game.tw-pddl`` and ``traj_data.json`` into ``folder`` (made if need be); the game file's path.

    ``domain`` is the text of ``alfred.pddl`` and ``grammar`` that of ``alfred.twl2``; by default both come
    from the installed ``alfworld`` package. Raises ModuleNotFoundError where neither is at hand.
    """
    if domain is None or grammar is None:
        found_domain, found_grammar = official_texts()
        domain, grammar = domain or found_domain, grammar or found_grammar
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "pddl_domain": domain,
        "grammar": with_task(grammar, game.task),
        "pddl_problem": problem_text(game),
        "solvable": True,
        "walkthrough": list(game.walkthrough),
    }
    (folder / "traj_data.json").write_text(json.dumps({"task_type": game.goal.type}), encoding="utf-8")
    path = folder / "game.tw-pddl"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def official_texts() -> tuple[str, str]:
    """(domain, grammar) of the installed ``alfworld`` package, without importing it."""
    spec = find_spec("alfworld")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "export_game needs alfred.pddl and alfred.twl2 from the alfworld package, which is not "
            'installed: pip install -e ".[official]", or pass domain= and grammar=.'
        )
    data = Path(spec.origin).parent / "data"
    return (data / "alfred.pddl").read_text("utf-8"), (data / "alfred.twl2").read_text("utf-8")


def with_task(grammar: str, sentence: str) -> str:
    """The grammar with its task line replaced: the rule named ``task``, whatever its text was."""
    line = json.dumps(f"Your task is to: {sentence}")
    text, count = re.subn(r'("task"\s*:\s*\[\s*\{\s*"rhs"\s*:\s*)"[^"]*"', lambda found: found[1] + line, grammar)
    if count != 1:
        raise ValueError(f'The grammar holds {count} rules of the form "task": [{{"rhs": "..."}}]; expected one.')
    return text


def problem_text(game: Game) -> str:
    """The start state and the goal in PDDL, with the official predicates."""
    facts = [f"atLocation agent1 {game.start}"]
    for place in game.receptacles:
        facts += [
            f"receptacleType {place.id} {place.type}",
            f"receptacleAtLocation {place.id} {place.location}",
        ]
        facts += [f"openable {place.id}"] * place.openable + [f"opened {place.id}"] * place.opened
    for thing in game.things:
        facts += _thing_facts(thing)
    facts += [f"canContain {place} {thing}" for place, thing in sorted(game.can_contain)]
    body = "\n".join(f"        ({fact})" for fact in facts)
    objects = "\n".join(f"        {name} - {kind}" for name, kind in _symbols(game))
    return (
        f"\n(define (problem plan_{game.key})\n(:domain alfred)\n(:objects\n{objects}\n)\n"
        f"(:init\n{body}\n)\n(:goal\n    (and\n{_goal_text(game.goal)}\n    )\n)\n)\n"
    )


def _thing_facts(thing: Thing) -> list[str]:
    facts = [f"objectType {thing.id} {thing.type}"]
    if thing.receptacle is not None:
        facts.append(f"inReceptacle {thing.id} {thing.receptacle}")
    if thing.location is not None:
        facts.append(f"objectAtLocation {thing.id} {thing.location}")
    facts += [f"inReceptacle {thing.id} {place}" for place in thing.also_in]
    if thing.inside is not None:
        facts.append(f"inReceptacleObject {thing.id} {thing.inside}")
    facts += [f"inReceptacleObject {thing.id} {outer}" for outer in thing.also_inside]
    flags = {
        "pickupable": thing.pickupable,
        "cleanable": thing.cleanable,
        "heatable": thing.heatable,
        "coolable": thing.coolable,
        "toggleable": thing.toggleable,
        "sliceable": thing.sliceable,
        "isReceptacleObject": thing.is_receptacle,
        "isClean": thing.clean,
        "isHot": thing.hot,
        "isCool": thing.cool,
        "isSliced": thing.sliced,
        "isToggled": thing.toggled,
    }
    return facts + [f"{name} {thing.id}" for name, holds in flags.items() if holds]


def _symbols(game: Game) -> list[tuple[str, str]]:
    """Every symbol with its PDDL type; the domain also names types that a game may lack (knives, sinks)."""
    places = {place.type for place in game.receptacles}
    places |= {kind + "Type" for kind in rooms.FITS}
    things = {thing.type for thing in game.things} | {"SinkType"}
    things |= {kind + "Type" for room in rooms.ROOMS.values() for kind in room.objects}
    spots = {game.start, *(place.location for place in game.receptacles)}
    spots |= {thing.location for thing in game.things if thing.location is not None}
    return (
        [("agent1", "agent")]
        + [(name, "otype") for name in sorted(things - places)]
        + [(name, "rtype") for name in sorted(places)]
        + [(thing.id, "object") for thing in game.things]
        + [(place.id, "receptacle") for place in game.receptacles]
        + [(spot, "location") for spot in sorted(spots)]
    )


_CHANGED = {"clean": ("cleanable", "isClean"), "hot": ("heatable", "isHot"), "cool": ("coolable", "isCool")}


def _goal_text(goal: Goal) -> str:
    """The goal in the official shapes: a lamp that is on, one object, or two distinct ones."""
    if goal.lamp_type is not None:
        return (
            "        (exists (?ot - object ?r - receptacle ?a - agent ?l - location)\n"
            f"            (and (objectType ?ot {goal.lamp_type}) (toggleable ?ot) (isToggled ?ot)\n"
            "                (receptacleAtLocation ?r ?l) (atLocation ?a ?l) (inReceptacle ?ot ?r)))\n"
            "        (exists (?o - object ?a - agent)\n"
            f"            (and (objectType ?o {goal.object_type}) (holds ?a ?o)))"
        )

    # The order of the predicates is that of the official files, which readers may rely on.
    types = f"(objectType {{o}} {goal.object_type}) (receptacleType ?r {goal.receptacle_type})"
    if goal.count == 2:
        one = types + " (inReceptacle {o} ?r)"
        second = f"(exists (?o2 - object) (and (not (= ?o1 ?o2)) {one.format(o='?o2')}))"
        inner = f"(exists (?o1 - object) (and {one.format(o='?o1')} {second}))"
    elif goal.change is None:
        inner = f"(exists (?o - object) (and (inReceptacle ?o ?r) {types.format(o='?o')}))"
    else:
        able, done = _CHANGED[goal.change]
        parts = f"({able} ?o) {types.format(o='?o')} ({done} ?o) (inReceptacle ?o ?r)"
        inner = f"(exists (?o - object) (and {parts}))"
    return f"        (exists (?r - receptacle) {inner})"
