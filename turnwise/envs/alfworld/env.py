"""ALFWorld's text games as a gymnasium environment."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.error import ResetNeeded

from turnwise.envs.alfworld.data import GameSource, open_games
from turnwise.envs.alfworld.game import Game
from turnwise.envs.alfworld.knowing import KnowingExpert
from turnwise.envs.alfworld.simulator import Simulator
from turnwise.envs.alfworld.world import State
from turnwise.envs.interface import AnyText, Expert, Info, Panel

INSTRUCTIONS = """\
An action is one command, written exactly as in the list of admissible actions, in lower case:
  go to <place>, open <place>, close <place>, examine <place or held object>, look, inventory,
  take <object> from <place>, move <object> to <place>, use <object>,
  clean <object> with <place>, heat <object> with <place>, cool <object> with <place>,
  slice <object> with <object>.
Names carry their number: "go to cabinet 3". You hold at most one object; closed places must be opened first.
In games of release 2.1.1, "put <object> in/on <place>" stands for "move <object> to <place>"."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An episode, whole: its game, the state of the world, and how far it is."""

    game: Game
    state: State
    num_steps: int
    step_limit: int
    ended: bool


class ALFWorldEnv(gymnasium.Env[str, str]):
    """One text game at a time: reward 1.0 on the step that reaches the goal, else 0.0.

    ``source`` gives the games; without one, ``open_games(data)`` finds them. ``split`` is where ``reset``
    draws its task unless ``options`` say otherwise: ``{"split": name, "task": index}``. An episode is
    truncated after ``step_limit`` steps (the papers' 50), a count that is part of every snapshot.
    (``gymnasium.make`` keeps the name ``max_episode_steps`` for its own wrapper, which is in none.)

    ``info``: ``admissible_actions`` (sorted), ``success``, ``score`` (0.0 or 1.0), ``valid`` (False after
    "Nothing happens."), ``task_type``, ``task`` (the sentence), ``game`` (its id).
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  (gymnasium's own declaration)
    instructions = INSTRUCTIONS

    def __init__(
        self,
        source: GameSource | None = None,
        data: str | Path | Sequence[str | Path] | None = None,
        split: str = "train",
        step_limit: int = 50,
    ) -> None:
        if step_limit < 1:
            raise ValueError(f"step_limit must be at least 1, got {step_limit}.")
        if source is not None and data is not None:
            raise ValueError("Expected `source` or `data`, got both: `data` only says where to find one.")
        self.observation_space = AnyText()
        self.action_space = AnyText()
        self.source = source if source is not None else open_games(data)
        self.split = split
        self.step_limit = step_limit
        self._loaded: tuple[tuple[str, int], Game] | None = None
        self._simulator: Simulator | None = None
        self._num_steps = 0
        self._step_limit = step_limit
        self._ended = True

    # ------------------------------------------------------------------ gymnasium

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[str, Info]:
        """Start a task: ``options["task"]`` of ``options["split"]``, or one drawn with the env's own rng.

        Raises ValueError for an unknown option, split or task.
        """
        super().reset(seed=seed)
        game = self._choose(dict(options or {}))
        if self._simulator is None or self._simulator.world.game is not game:
            self._simulator = Simulator(game)
        observation = self._simulator.reset()
        self._num_steps = 0
        self._step_limit = self.step_limit
        self._ended = False
        return observation, self._info(self._simulator, valid=True)

    def step(self, action: str) -> tuple[str, float, bool, bool, Info]:
        """Any string is an action; what is not admissible answers "Nothing happens." and counts as a step.

        Raises ResetNeeded before ``reset`` and after the end, TypeError for what is no string.
        """
        simulator = self._simulator
        if simulator is None or self._ended:
            raise ResetNeeded("The episode has not begun or is over: call reset() before step().")
        if not isinstance(action, str):
            raise TypeError(f"An action is a string such as 'look', got {type(action).__name__}: {action!r}.")
        observation, valid = simulator.step(action)
        won = simulator.won
        self._num_steps += 1
        truncated = not won and self._num_steps >= self._step_limit
        self._ended = won or truncated
        return observation, float(won), won, truncated, self._info(simulator, valid)

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
        }

    def _choose(self, options: dict[str, Any]) -> Game:
        split = options.pop("split", self.split)
        index = options.pop("task", None)
        if options:
            raise ValueError(f"Unknown reset options {sorted(options)}: expected 'split' and 'task'.")
        if index is None:
            index = self.np_random.integers(len(self.source.panel(split)))
        try:
            index = operator.index(index)
        except TypeError as error:
            raise ValueError(f"options['task'] is the index of a task, got {index!r}.") from error
        return self._load(split, index)

    def _load(self, split: str, index: int) -> Game:
        """The game of a task; the last one is kept, since a group starts the same task many times."""
        if self._loaded is None or self._loaded[0] != (split, index):
            self._loaded = (split, index), self.source.game(split, index)
        return self._loaded[1]

    # ------------------------------------------------------------------ what else it offers

    def tasks(self, split: str) -> Panel:
        """The fixed panel of a split. Raises ValueError for an unknown one."""
        return self.source.panel(split)

    def snapshot(self) -> Snapshot:
        """The episode. (The generator that draws tasks belongs to the environment and is not part of it.)"""
        if self._simulator is None:
            raise ResetNeeded("There is no episode to copy yet: call reset() before snapshot().")
        simulator = self._simulator
        return Snapshot(simulator.world.game, simulator.snapshot(), self._num_steps, self._step_limit, self._ended)

    def restore(self, snapshot: Snapshot) -> None:
        """Continue the episode of ``snapshot``, whichever environment took it."""
        if self._simulator is None or self._simulator.world.game is not snapshot.game:
            self._simulator = Simulator(snapshot.game)
        self._simulator.restore(snapshot.state)
        self._num_steps = snapshot.num_steps
        self._step_limit = snapshot.step_limit
        self._ended = snapshot.ended

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
            raise ResetNeeded("The expert has no game to look at: call reset() first.")
        return self._simulator
