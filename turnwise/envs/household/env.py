"""Procedural household games: ALFWorld's rules and sentences without its data, in three sizes."""

from __future__ import annotations

from turnwise.envs.alfworld.env import INSTRUCTIONS, ALFWorldEnv
from turnwise.envs.household.panels import GeneratedGames
from turnwise.envs.household.settings import Settings


class HouseholdEnv(ALFWorldEnv):
    """``ALFWorldEnv`` on generated games; reward, ``info`` and capabilities are the same.

    ``difficulty``: "easy" (5 to 6 receptacles, 16 steps; small enough for a model trained from nothing
    within minutes), "medium", "hard" (like the official rooms, 50 steps), or a ``Settings`` of your own.
    ``step_limit`` defaults to the difficulty's. Splits: ``train`` and ``demonstrations`` (100,000
    tasks each), ``validation`` (256), ``test`` (512); no game is in two of them. All six task types take
    turns, so the first 256 tasks of any split are a balanced panel too.
    """

    instructions = INSTRUCTIONS.rsplit("\n", 1)[0]  # its last line is about an older release of ALFWorld

    def __init__(
        self,
        difficulty: str | Settings = "easy",
        split: str = "train",
        step_limit: int | None = None,
    ) -> None:
        games = GeneratedGames(difficulty)
        limit = games.settings.step_limit if step_limit is None else step_limit
        super().__init__(source=games, split=split, step_limit=limit)
        self.difficulty = difficulty
        self.sizes = games.generated.sizes
