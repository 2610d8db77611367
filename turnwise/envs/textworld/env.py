"""TextWorld games as a gymnasium environment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gymnasium.error import ResetNeeded

from turnwise.envs.interface import Expert, Info, Panel
from turnwise.envs.textworld.game import Game
from turnwise.envs.textworld.games import Files, GameSource, GeneratedGames, GivenGames
from turnwise.envs.textworld.generation import ENV_ID
from turnwise.envs.world import TaskEnv

INSTRUCTIONS = """\
An action is one command in lower case:
  go north, go south, go east, go west, look, inventory, examine <thing>,
  take <thing>, take <thing> from <place>, drop <thing>, put <thing> on <place>, insert <thing> into <container>,
  open <thing>, close <thing>, unlock <thing> with <key>, lock <thing> with <key>, eat <thing>;
  in cooking games also: cook <food> with <stove, oven or bbq>, slice, chop or dice <food> with <knife>,
  prepare meal, eat meal."""


class TextWorldEnv(TaskEnv):
    """Generated games of one ``kind``, or ``games`` of your own.

    * ``kind``: "coin_collector", "treasure_hunter", "cooking", "simple" or "custom"; ``settings`` are its options in
      ``tw-make`` (``generation.KINDS`` lists them and their defaults). ``num_tasks``: half train, a quarter each
      validation and test. The first use makes them, 1 to 2 CPU seconds for each, and keeps them in the cache.
    * ``games``: a file (.z3, .z5, .z8), a folder, several, or a dict of those by split, instead of ``kind``.
    * ``admissible``: False leaves ``info["admissible_actions"]`` out, for twice the speed.

    Observations are TextWorld's without the banner, the prompt with its status line, the closing question and blank
    lines. An action is one command; commands to the interpreter (save, quit, ...) are not understood.

    The reward is the gain in score as a share of the game's highest; ``info``: ``admissible_actions``, ``success``
    (won), ``score`` (in [0, 1]), ``valid`` (False where the parser did not understand), ``task_type`` (the kind).
    """

    instructions = INSTRUCTIONS

    def __init__(
        self,
        kind: str | None = None,
        settings: Mapping[str, Any] | None = None,
        num_tasks: int = 128,
        games: Files | Mapping[str, Files] | None = None,
        split: str = "train",
        step_limit: int = 50,
        admissible: bool = True,
    ) -> None:
        super().__init__(split, step_limit)
        if games is not None and (kind is not None or settings is not None):
            raise ValueError("Expected `games`, or `kind` and `settings`; got both: given games are not generated.")
        self.source: GameSource
        if games is None:
            self.source = GeneratedGames(kind or "treasure_hunter", settings, num_tasks)
        else:
            self.source = GivenGames(games)
        self._kind = kind or ("treasure_hunter" if games is None else "given")
        self._admissible = admissible
        self._tracked = False
        self._game: Game | None = None
        self._actions: list[str] = []
        self._score = 0.0

    @property
    def splits(self) -> tuple[str, ...]:
        return self.source.splits

    @property
    def sizes(self) -> Mapping[str, int]:
        """Tasks of each split, known without making a game."""
        return self.source.sizes

    def tasks(self, split: str) -> Panel:
        """The fixed panel of a split; may make its games first. Raises ValueError for an unknown or empty one."""
        return self.source.panel(split)

    def begin(self, split: str, index: int) -> tuple[str, Info]:
        path = self.source.path(split, index)
        game = self._game
        if game is None or (game.path, game.tracked) != (path, self._tracked):
            self.close()
            self._game = game = Game(path, admissible=self._admissible, tracked=self._tracked)
        observation = game.reset()
        self._actions, self._score = [], game.score
        return observation, self._info(game, valid=True)

    def act(self, action: str) -> tuple[str, float, bool, Info]:
        game = self._playing()
        observation, valid = game.step(action)
        self._actions.append(action)
        gained, self._score = game.score - self._score, game.score
        return observation, gained, game.won or game.lost, self._info(game, valid)

    def close(self) -> None:
        if self._game is not None:
            self._game.close()
            self._game = None

    def expert(self, kind: str = "knowing", *, seed: int = 0) -> Expert:
        """ "knowing" follows TextWorld's own way to win from wherever the game is; there is no searching one."""
        if kind != "knowing":
            raise ValueError(f"Unknown expert {kind!r} in {ENV_ID}: there is only 'knowing'.")
        return PolicyExpert(self)

    def way_to_win(self) -> list[str]:
        """Commands that win from here; empty where none do. From the first call on, games are played with tracking.

        An episode that began without it is played again up to here.
        """
        if not self._tracked:
            played, self._tracked = self._playing(), True
            self._game = Game(played.path, admissible=self._admissible, tracked=True)
            played.close()
            self._game.reset()
            for action in self._actions:
                self._game.step(action)
        return self._playing().way_to_win

    @property
    def game_file(self) -> Path:
        """The game being played."""
        return self._playing().path

    @property
    def why_no_way(self) -> str:
        """Why ``way_to_win`` is empty."""
        notes = self.game_file.with_suffix(".json")
        if not notes.exists():
            return f"TextWorld's {notes.name}, which holds the walkthrough, is not beside it"
        return "TextWorld knows no way to win it from here"

    def _info(self, game: Game, valid: bool) -> Info:
        info: Info = {"success": game.won, "score": game.score, "valid": valid, "task_type": self._kind}
        if self._admissible and game.commands is not None:
            info["admissible_actions"] = game.commands
        return info

    def _playing(self) -> Game:
        if self._game is None:
            raise ResetNeeded("There is no game yet: call reset() first.")
        return self._game


class PolicyExpert:
    """Plays the next command of TextWorld's way to win, which follows the game whatever is played in between."""

    def __init__(self, env: TextWorldEnv) -> None:
        self._env = env

    def begin(self, observation: str, info: Info) -> None:
        """Raises ValueError where nothing is known that wins from here: there is nothing to demonstrate."""
        if not self._env.way_to_win():
            raise ValueError(f"{self._env.game_file} has no expert: {self._env.why_no_way}.")

    def act(self, observation: str, info: Info) -> str:
        """Once a game is lost beyond repair, by what others played in between, it looks around until the end."""
        return next(iter(self._env.way_to_win()), "look")
