"""A small house, built by hand, that has every kind of place and thing; and games as official files."""

from __future__ import annotations

from dataclasses import replace

from turnwise.envs.alfworld.game import Dialect, Game, Goal, Receptacle, Thing
from turnwise.envs.alfworld.store import check_index, check_split
from turnwise.envs.interface import Panel
from turnwise.trajectory import Task

ENV_ID = "turnwise/ALFWorld-v0"

# Three places share one spot: both countertops and the sink.
RECEPTACLES = (
    Receptacle("CounterTop_bar_1", "CounterTopType", "loc_bar_1"),
    Receptacle("CounterTop_bar_2", "CounterTopType", "loc_bar_1"),
    Receptacle("Sink_bar_1_bar_SinkBasin", "SinkBasinType", "loc_bar_1"),
    Receptacle("Fridge_bar_1", "FridgeType", "loc_bar_2", openable=True),
    Receptacle("Microwave_bar_1", "MicrowaveType", "loc_bar_3", openable=True),
    Receptacle("Cabinet_bar_1", "CabinetType", "loc_bar_4", openable=True),
    Receptacle("Desk_bar_1", "DeskType", "loc_bar_5"),
)


def _thing(id: str, receptacle: str | None, location: str | None, **traits: object) -> Thing:
    fields = {"pickupable": True, **traits}
    return Thing(id, id.partition("_bar_")[0] + "Type", location, receptacle, **fields)  # type: ignore[arg-type]


THINGS = (
    _thing(
        *("Apple_bar_1", "CounterTop_bar_1", "loc_bar_1"),
        cleanable=True,
        heatable=True,
        coolable=True,
        sliceable=True,
    ),
    _thing("Apple_bar_2", "Fridge_bar_1", "loc_bar_2", heatable=True, coolable=True, cleanable=True, cool=True),
    _thing("Knife_bar_1", "CounterTop_bar_2", "loc_bar_1", cleanable=True),
    _thing("Pan_bar_1", "CounterTop_bar_2", "loc_bar_1", is_receptacle=True, also_in=("Desk_bar_1",)),
    _thing("Spoon_bar_1", "CounterTop_bar_2", "loc_bar_1", inside="Pan_bar_1"),
    _thing("Fork_bar_1", "CounterTop_bar_2", "loc_bar_1", also_inside=("Pan_bar_1",)),
    _thing("DeskLamp_bar_1", "Desk_bar_1", "loc_bar_5", pickupable=False, toggleable=True),
    _thing("CD_bar_1", "Desk_bar_1", "loc_bar_5"),
    _thing("Candle_bar_1", "Cabinet_bar_1", "loc_bar_4", toggleable=True),
    _thing("Roll_bar_1", "Desk_bar_1", "loc_bar_5"),
    _thing("Window_bar_1", None, "loc_bar_6", pickupable=False),
)

CAN_CONTAIN = frozenset(
    (receptacle.type, thing.type)
    for receptacle in RECEPTACLES
    for thing in THINGS
    if thing.type != "RollType"  # like the paper towel roll of official games: it fits nowhere
)

GOALS = {
    "pick": Goal("pick_and_place_simple", "CDType", "CabinetType"),
    "look": Goal("look_at_obj_in_light", "CDType", lamp_type="DeskLampType"),
    "clean": Goal("pick_clean_then_place_in_recep", "AppleType", "CabinetType", "clean"),
    "heat": Goal("pick_heat_then_place_in_recep", "AppleType", "CabinetType", "hot"),
    "cool": Goal("pick_cool_then_place_in_recep", "AppleType", "CabinetType", "cool"),
    "two": Goal("pick_two_obj_and_place", "AppleType", "CabinetType", count=2),
}


def house(goal: str = "pick", dialect: Dialect = "2.1.3") -> Game:
    """The house with one of the six goals."""
    return Game(
        id=f"house/{goal}",
        key=f"{goal}-{dialect}",
        dialect=dialect,
        task=f"do {goal}.",
        start="loc_bar_0",
        receptacles=RECEPTACLES,
        things=THINGS,
        can_contain=CAN_CONTAIN,
        goal=GOALS[goal],
    )


class Houses:
    """A ``GameSource`` of the six goals; ``test`` holds the same houses in reverse order."""

    name = "houses"
    splits: tuple[str, ...] = ("train", "test")

    def games(self, split: str) -> list[Game]:
        games = [replace(house(goal), id=f"{split}/{goal}") for goal in GOALS]
        return games if split == "train" else games[::-1]

    def panel(self, split: str) -> Panel:
        check_split(self, split)
        tasks = [Task(ENV_ID, split, i, game.key, game.goal.type) for i, game in enumerate(self.games(split))]
        return Panel(ENV_ID, split, tuple(tasks))

    def game(self, split: str, index: int) -> Game:
        check_index(self, split, index)
        return self.games(split)[index]


# ---------------------------------------------------------------------- official files, in small

GRAMMAR = {
    "2.1.3": 'grammar :: """{"task": [{"rhs": "Your task is to: TASK"}], '
    '"GotoLocation.feedback": [{"rhs": "You arrive at {r.name}. "}]}"""; '
    'action PutObject { template :: "move {o} to {r}"; } action help { template :: "help"; }',
    "2.1.1": 'grammar :: """{"task": [{"rhs": "Your task is to: TASK"}], '
    '"GotoLocation.feedback": [{"rhs": "You arrive at {lend.name}. "}]}"""; '
    'action PutObject { template :: "put {o} in/on {r}"; }',
}

PROBLEM = """
(define (problem NAME)
(:domain alfred)
(:objects agent1 - agent)
(:init
    (receptacleType Desk_bar_1 DeskType)
    (receptacleAtLocation Desk_bar_1 loc_bar_1)
    (receptacleType Drawer_bar_1 DrawerType)
    (receptacleAtLocation Drawer_bar_1 loc_bar_2)
    (openable Drawer_bar_1)
    (objectType Cup_bar_1 CupType)
    (pickupable Cup_bar_1)
    (isCool Cup_bar_1)
    (objectAtLocation Cup_bar_1 loc_bar_1)
    (inReceptacle Cup_bar_1 Desk_bar_1)
    (inReceptacle Cup_bar_1 Drawer_bar_1)
    (inReceptacleObject Pen_bar_1 Cup_bar_1)
    (objectType Pen_bar_1 PenType)
    (pickupable Egg_bar_1_bar_EggCracked_0)
    (canContain DrawerType CupType)
    (canContain DrawerType CupType)
    (atLocation agent1 loc_bar_0)
)
GOAL)
"""

GOAL_TEXT = """(:goal (and (exists (?r - receptacle) (exists (?o - object)
    (and (inReceptacle ?o ?r) (objectType ?o CupType) (receptacleType ?r DrawerType))))))"""


def game_data(
    name: str = "plan", dialect: Dialect = "2.1.3", goal: str = GOAL_TEXT, task: str = "put a cup in drawer."
) -> dict[str, object]:
    """The content of a ``game.tw-pddl``."""
    return {
        "pddl_domain": "(define (domain alfred))",
        "grammar": GRAMMAR[dialect].replace("TASK", task),
        "pddl_problem": PROBLEM.replace("NAME", name).replace("GOAL", goal),
        "solvable": True,
        "walkthrough": ["take cup 1 from desk 1"],
    }
