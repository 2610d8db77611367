"""Households whose experts demonstrate something of their own: a mistake, or a thought before each action.

They are the worlds of warm starts alone (``warmstart.env`` in configs/learning/empg.yaml and aepo.yaml): the runs play
``turnwise/Household-v0``. They are found as ``households:bench/...`` where this folder is on Python's path: for the
scripts here it is, elsewhere set ``PYTHONPATH=benchmarks/learning``.
"""

from __future__ import annotations

import random

import gymnasium

from turnwise.cloning.demonstrations import ToldExpert
from turnwise.envs.household.env import HouseholdEnv
from turnwise.envs.interface import Expert, Info

HABIT = "inventory"
"""What the mistaken expert says after an arrival: a turn is spent, and nothing is won by it."""

SHARE = 0.97
"""Share of the arrivals after which it does. At 1 a clone does so with a probability of .996: RL hardly ever sees it do
otherwise."""


def arrives(action: str) -> bool:
    """Whether an action is one after which the habit is due."""
    return action.startswith("go to ")


class Mistaken:
    """An expert that plays as another does, but first says ``HABIT`` where it has just arrived, nearly always."""

    def __init__(self, expert: Expert, seed: int) -> None:
        self._expert, self._rng = ToldExpert(expert), random.Random(seed)
        self._arrived = False
        self._held: str | None = None  # what the other expert does next, while the habit is followed

    def begin(self, observation: str, info: Info) -> None: ...

    def act(self, observation: str, info: Info) -> str:
        action, self._held = self._held or self._expert.act(observation, info), None
        arrived, self._arrived = self._arrived, False
        if arrived and self._rng.random() < SHARE:
            self._held = action  # the other expert has seen where it is: what the habit shows, it need not see
            return HABIT
        self._arrived = arrives(action)
        return action

    def overrule(self, action: str) -> None:
        self._held, self._arrived = None, arrives(action)
        self._expert.overrule(action)


class Thoughtful:
    """An expert that tells its task, its last action and what it does now before each of another's actions."""

    def __init__(self, expert: Expert) -> None:
        self._expert = ToldExpert(expert)
        self._task, self._last, self._count = "", "nothing", 0

    def begin(self, observation: str, info: Info) -> None:
        self._task = observation.rpartition("Your task is to: ")[2].strip().rstrip(".")

    def act(self, observation: str, info: Info) -> str:
        action = self._expert.act(observation, info)
        told = f"i must {self._task}. turn {self._count}: i did {self._last}. now i {action}."
        self._went_on(action)
        return f"<think>{told}</think>{action}"

    def overrule(self, action: str) -> None:
        self._last = action
        self._expert.overrule(action)

    def _went_on(self, action: str) -> None:
        self._last, self._count = action, self._count + 1


class MistakenHousehold(HouseholdEnv):
    """``HouseholdEnv`` with the mistaken expert."""

    def expert(self, kind: str = "searching", *, seed: int = 0) -> Expert:
        return Mistaken(super().expert(kind, seed=seed), seed)


class ThoughtfulHousehold(HouseholdEnv):
    """``HouseholdEnv`` with the thoughtful expert; a thought before an action is not heard."""

    def expert(self, kind: str = "searching", *, seed: int = 0) -> Expert:
        return Thoughtful(super().expert(kind, seed=seed))

    def act(self, action: str) -> tuple[str, float, bool, Info]:
        return super().act(action.rpartition("</think>")[2])


for world in (MistakenHousehold, ThoughtfulHousehold):
    gymnasium.register(f"bench/{world.__name__}-v0", entry_point=f"{__name__}:{world.__name__}")
