"""TextArena's games (textarena 0.7.4, Guertler et al. 2025, arXiv:2504.11442) as gymnasium environments.

    gymnasium.make("turnwise/TextArena-v0", name="TowerOfHanoi-v0")
    gymnasium.make("turnwise/TextArena-v0", name="TicTacToe-v0", num_players=2)

An observation is what a player has been told since its last turn. (The package's own wrappers repeat the whole game at
every turn, and go on with the last game's text after ``reset``.) Actions are written ``[4]``; brackets are added where
an action has none. TextArena draws from the global generators: each environment keeps its own (``OwnGenerators``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import gymnasium
from gymnasium.error import ResetNeeded

from turnwise.envs.adapters.generators import OwnGenerators
from turnwise.envs.interface import AnyText, Info
from turnwise.errors import unknown

_GAME = -1  # who speaks when the game does


def make(name: str, num_players: int = 1, step_limit: int = 200, **settings: Any) -> TextArenaEnv:
    """A game by its TextArena id; ``settings`` go to it, over its own. Raises ValueError for an unknown one."""
    kind = TextArenaEnv if num_players == 1 else TextArenaGame
    return kind(name, num_players, step_limit, **settings)


class TextArenaEnv(gymnasium.Env[str, str]):
    """A game of one player. Its reward comes at the end, in [-1, 1]: success is 1, the score what is above 0 of it.

    ``valid`` is False after a move that the game refused; the second one in a row loses. Truncated after
    ``step_limit`` steps.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  (gymnasium's own declaration)
    instructions = "Answer with one move, written as the game shows it, such as [4]."

    def __init__(self, name: str, num_players: int, step_limit: int, **settings: Any) -> None:
        self.observation_space = AnyText()
        self.action_space = AnyText()
        self.name, self.num_players, self.step_limit = name, num_players, step_limit
        self._generators = OwnGenerators()
        self._settings = settings
        self._sit_down()
        self._over = True

    def _sit_down(self) -> None:
        """A new game: some keep more than their ``reset`` restores (the order of a deck)."""
        self._game = self._make(self._settings)
        self._table = self._game
        while hasattr(self._table, "env"):  # below the wrappers: what was said, piece by piece
            self._table = self._table.env

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, Info]:
        super().reset(seed=seed)
        drawn = int(self.np_random.integers(2**31))
        self._generators.seed(drawn)
        self._sit_down()
        try:
            with self._apart():
                self._game.reset(num_players=self.num_players, seed=drawn)
        except AssertionError as error:
            raise ValueError(f"{self.name} is not a game of {self.num_players}; set num_players ({error})") from error
        self._num_steps, self._over = 0, False
        return self._heard(), self._told({}, False, True)

    def step(self, action: str) -> tuple[str, float, bool, bool, Info]:
        if self._over:
            raise ResetNeeded("The game has not begun or is over: call reset() before step().")
        player = int(self._table.state.current_player_id)
        with self._apart():
            over, _ = self._game.step(action if "[" in action or "]" in action else f"[{action}]")
        rewards: dict[int, float] = self._table.state.rewards or {} if over else {}
        blamed = self._table.state.game_info[player].get("invalid_move", False) if over else self._refused()
        self._num_steps += 1
        truncated = not over and self._num_steps >= self.step_limit
        self._over = over or truncated
        info = self._told(rewards, self._over, not blamed)
        return self._heard(), float(rewards.get(player, 0.0)), bool(over), truncated, info

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """Around everything that is the package's: with our own generators, and without what some games print."""
        with self._generators, redirect_stdout(None):
            yield

    def _heard(self) -> str:
        """What the player to move has not read yet, its own moves left out."""
        with self._apart():
            player, said = self._table.get_observation()
        names = self._table.state.role_mapping
        lines = [
            message.strip("\n") if who == _GAME else f"[{names.get(who, f'Player {who}')}] {message.strip()}"
            for who, message, kind in said
            if who != player
            and not (who == _GAME and kind.name == "PLAYER_ACTION")  # some games echo in their own name
        ]
        return "\n".join(lines)

    def _refused(self) -> bool:
        """The state counts the refused moves of the player to move; kinds without the counter refuse none."""
        return bool(getattr(self._table.state, "error_count", 0))

    def _told(self, rewards: dict[int, float], over: bool, valid: bool) -> Info:
        reward = float(rewards.get(0, 0.0))
        return {"valid": valid, "success": reward >= 1.0, "score": min(1.0, max(0.0, reward))}

    def _make(self, settings: dict[str, Any]) -> Any:
        try:
            with self._apart():
                import textarena
                from textarena.envs.registration import ENV_REGISTRY
        except ImportError as error:
            raise ValueError(f"TextArena's games need its package: pip install textarena ({error})") from error
        if self.name not in ENV_REGISTRY:
            raise unknown("TextArena game", self.name, ENV_REGISTRY)
        try:
            with self._apart():
                return textarena.make(self.name, **settings)
        except Exception as error:  # games whose word lists or services cannot be reached fail in many ways
            raise ValueError(f"TextArena cannot make {self.name!r}: {type(error).__name__}: {error}") from error


class TextArenaGame(TextArenaEnv):
    """A game of several players as one stream of turns (``interface.HasPlayers``).

    Rewards are -1, 0 and 1: success is above 0, the score (reward + 1) / 2. A game cut short is no success, and half
    a score, for everybody.
    """

    def __init__(self, name: str, num_players: int, step_limit: int, **settings: Any) -> None:
        super().__init__(name, num_players, step_limit, **settings)
        self.players = tuple(f"player_{seat}" for seat in range(num_players))

    def role(self, player: str) -> str:
        """All are alike. Raises ValueError for an unknown player."""
        if player not in self.players:
            raise unknown("player", player, self.players)
        return "player"

    def _told(self, rewards: dict[int, float], over: bool, valid: bool) -> Info:
        earned = {player: float(rewards.get(seat, 0.0)) for seat, player in enumerate(self.players)}
        info: Info = {"valid": valid, "rewards": earned, "player": self.players[self._table.state.current_player_id]}
        if over:
            info["successes"] = {player: reward > 0 for player, reward in earned.items()}
            info["scores"] = {player: min(1.0, max(0.0, (reward + 1) / 2)) for player, reward in earned.items()}
        return info
