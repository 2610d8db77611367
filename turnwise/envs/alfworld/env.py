"""ALFWorld's text games as a gymnasium environment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gymnasium.error import ResetNeeded

from turnwise.envs.alfworld.data import GameSource, open_games
from turnwise.envs.alfworld.game import Game
from turnwise.envs.alfworld.knowing import KnowingExpert
from turnwise.envs.alfworld.simulator import Simulator
from turnwise.envs.alfworld.store import StoredGames
from turnwise.envs.alfworld.world import State
from turnwise.envs.interface import Expert, Info, Panel
from turnwise.envs.world import SnapshotEnv

INSTRUCTIONS = """\
An action is one command, written exactly as in the list of admissible actions, in lower case:
  go to <place>, open <place>, close <place>, examine <place or held object>, look, inventory,
  take <object> from <place>, move <object> to <place>, use <object>,
  clean <object> with <place>, heat <object> with <place>, cool <object> with <place>,
  slice <object> with <object>.
Names carry their number: "go to cabinet 3". You hold at most one object; closed places must be opened first.
In games of release 2.1.1, "put <object> in/on <place>" stands for "move <object> to <place>"."""


class ALFWorldEnv(SnapshotEnv):
    """One text game at a time: reward 1.0 on the step that reaches the goal, else 0.0.

    ``source`` gives the games; without one, ``open_games(data)`` finds them. ``step_limit``: the papers' 50.

    ``info``: ``admissible_actions`` (sorted), ``success``, ``score`` (0.0 or 1.0), ``valid`` (False after
    "Nothing happens."), ``task_type``, ``task`` (the sentence), ``game`` (its id), ``state_key`` (of all that changes;
    many states answer with the same text).
    """

    instructions = INSTRUCTIONS

    def __init__(
        self,
        source: GameSource | None = None,
        data: str | Path | Sequence[str | Path] | None = None,
        split: str = "train",
        step_limit: int = 50,
    ) -> None:
        super().__init__(split, step_limit)
        if source is not None and data is not None:
            raise ValueError("Expected `source` or `data`, got both: `data` only says where to find one.")
        self.source = source if source is not None else open_games(data)
        self._loaded: tuple[tuple[str, int], Game] | None = None
        self._simulator: Simulator | None = None

    @property
    def splits(self) -> tuple[str, ...]:
        return self.source.splits

    def tasks(self, split: str) -> Panel:
        """The fixed panel of a split. Raises ValueError for an unknown one; says what of a folder is left out of it."""
        if isinstance(self.source, StoredGames):
            self.source.say_what_is_left_out(split)
        return self.source.panel(split)

    def _size(self, split: str) -> int:
        return len(self.source.panel(split))  # every reset asks: nothing is said there

    def begin(self, split: str, index: int) -> tuple[str, Info]:
        if self._loaded is None or self._loaded[0] != (split, index):  # a group starts the same task many times
            self._loaded = (split, index), self.source.game(split, index)
        simulator = self._simulator_for(self._loaded[1])
        return simulator.reset(), self._info(simulator, valid=True)

    def act(self, action: str) -> tuple[str, float, bool, Info]:
        """What is not admissible answers "Nothing happens." and counts as a step."""
        simulator = self._playing()
        observation, valid = simulator.step(action)
        return observation, float(simulator.won), simulator.won, self._info(simulator, valid)

    def save(self) -> tuple[Game, State]:
        simulator = self._playing()
        return simulator.world.game, simulator.snapshot()

    def load(self, state: tuple[Game, State]) -> None:
        game, world = state
        self._simulator_for(game).restore(world)

    def _simulator_for(self, game: Game) -> Simulator:
        if self._simulator is None or self._simulator.world.game is not game:
            self._simulator = Simulator(game)
        return self._simulator

    def _info(self, simulator: Simulator, valid: bool) -> Info:
        game, won = simulator.world.game, simulator.won
        return {
            "admissible_actions": list(simulator.menu()),
            "success": won,
            "score": float(won),
            "valid": valid,
            "task_type": game.goal.type,
            "task": game.task,
            "game": game.id,
            "state_key": simulator.key,
        }

    def expert(self, kind: str = "searching", *, seed: int = 0) -> Expert:
        """ "knowing" sees the state and goes straight; "searching" reads the text only."""
        if kind == "knowing":
            return KnowingExpert(self._playing)
        if kind == "searching":
            from turnwise.envs.alfworld.searching import SearchingExpert

            return SearchingExpert(seed=seed)
        raise ValueError(f"Unknown expert {kind!r}: expected 'knowing' or 'searching'.")

    def _playing(self) -> Simulator:
        if self._simulator is None:
            raise ResetNeeded("There is no game yet: call reset() first.")
        return self._simulator
