"""A game of several players as one stream of turns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gymnasium.error import ResetNeeded

from turnwise.envs.games.adapter import results
from turnwise.envs.games.catalogue import as_text, kind_of
from turnwise.envs.games.experts import PolicyExpert
from turnwise.envs.games.starts import Start, starts
from turnwise.envs.interface import Expert, Info, Panel, are_names
from turnwise.envs.world import SnapshotEnv
from turnwise.errors import unknown


@dataclass(frozen=True, slots=True)
class Record:
    """A game as the moves that led to ``observation``: played again, they lead there again."""

    start: Start
    actions: tuple[str, ...]
    observation: str


class GameEnv(SnapshotEnv):
    """Each observation is for ``info["player"]``, whose action the next ``step`` takes (``interface.HasPlayers``).

    ``game``: "tictactoe", "connect_four", "leduc", "rps", "negotiation", or a factory of a PettingZoo environment,
    AEC or parallel: one of texts (``TextGame`` with a view of your own), or with discrete actions, which are then
    bare numbers. ``settings`` go to it: ``rounds`` (rps, negotiation), ``chat`` (negotiation), ``strikes`` (the
    others: illegal moves in a row that lose the game). ``opening_moves``: random moves before the first turn, on
    boards; 2 in tic-tac-toe and 4 in connect four, unless you say otherwise.

    ``step`` returns the reward of the player who acted; ``info["rewards"]`` has everybody's, of this step.
    ``info``: also ``admissible_actions``, ``valid``, ``task_type`` (the game). After the end ``player`` and the
    observation are those of the player who acted last, and there are ``successes``, ``scores`` and ``outcome``
    ("win", "draw", "loss") of every player: a success is to win, in a negotiation to have a deal; scores are the
    total reward, as a share of what can be won (1) or lost (0). A game that ``step_limit`` cuts is judged by the
    rewards so far; a game whose rounds are over has terminated. ``joint_share`` of a negotiation: the points of both,
    of the most there could have been. There is no ``success`` of the episode as such: it is a matter of who asks.
    """

    def __init__(
        self,
        game: str | Callable[..., Any] = "tictactoe",
        split: str = "train",
        step_limit: int = 200,
        opening_moves: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(split, step_limit)
        self.kind = kind_of(game)
        self.kind.check(settings)
        self.game = as_text(self.kind.make(**settings))
        self.starts = starts(self.kind, settings, opening_moves)
        if not are_names(list(self.game.possible_agents)):
            raise ValueError(
                f"{self.kind.name} has the agents {self.game.possible_agents!r}: expected texts, such as 'player_0'"
            )
        self.players: tuple[str, ...] = tuple(self.game.possible_agents)
        self.instructions = getattr(self.game, "instructions", "")
        self._start: Start | None = None
        self._actions: list[str] = []

    @property
    def splits(self) -> tuple[str, ...]:
        return self.starts.splits

    def tasks(self, split: str) -> Panel:
        """The fixed panel of a split (``starts``). Raises ValueError for an unknown one."""
        return self.starts.panel(split)

    def role(self, player: str) -> str:
        """PettingZoo's names are a role and a number: "adversary_0". Raises ValueError for an unknown player."""
        if player not in self.players:
            raise unknown("player", player, self.players)
        return player.rstrip("0123456789").rstrip("_") or player

    def begin(self, split: str, index: int) -> tuple[str, Info]:
        return self._begin(self.starts.content(split, index))

    def _begin(self, start: Start) -> tuple[str, Info]:
        self.game.reset(seed=start.seed)
        for move in start.opening:
            self.game.step(move)
        self._start, self._actions = start, []
        self._totals = dict.fromkeys(self.players, 0.0)
        return self._look(self.game.agent_selection, dict.fromkeys(self.players, 0.0))

    def act(self, action: str) -> tuple[str, float, bool, Info]:
        game, actor = self.game, self.game.agent_selection
        self._actions.append(action)
        game.step(action)
        valid = bool(game.infos.get(actor, {}).get("valid", True))
        rewards = {player: float(game.rewards.get(player, 0.0)) for player in self.players}
        while self._is_out(game.agent_selection) and not self._over:
            leaving = game.agent_selection
            game.step(None)  # a player who is out leaves the table; nobody earns by that
            if leaving in game.agents:
                raise RuntimeError(
                    f"{self.kind.name}: {leaving!r} is out and did not leave the game by its next step. Let step() "
                    "return self._was_dead_step(action) where the agent is terminated or truncated"
                )
        for player, reward in rewards.items():
            self._totals[player] += reward
        over = self._over
        observation, info = self._look(actor if over else game.agent_selection, rewards, valid)
        if over or self._num_steps + 1 >= self._step_limit:
            info |= self._judged()
        return observation, rewards[actor], over, info

    def save(self) -> Record:
        if self._start is None:
            raise ResetNeeded("There is no game yet: call reset() first.")
        return Record(self._start, tuple(self._actions), self._observation)

    def load(self, state: Record) -> None:
        """Play the moves again. Raises ValueError where they lead elsewhere: in another game, or in one whose chance
        is not decided by its seed.
        """
        observation, _ = self._begin(state.start)
        for action in state.actions:
            observation, *_ = self.act(action)
        if observation != state.observation:
            self._start, self._ended = None, True
            raise ValueError(
                f"The snapshot is of another game than {self.kind.name!r} with these settings, or the game does not "
                f"repeat itself for the same seed: expected {state.observation!r}, got {observation!r}."
            )

    def expert(self, kind: str = "searching", *, seed: int = 0) -> Expert:
        """Plays for whoever is to move. On boards both kinds are the same; only "negotiation" has another "knowing"
        one. Raises ValueError where the game has none.
        """
        if not self.kind.experts:
            raise ValueError(f"The game {self.kind.name!r} has no expert.")
        if kind not in self.kind.experts:
            raise unknown("expert", kind, self.kind.experts, f"the game {self.kind.name!r}")
        return PolicyExpert(self.kind.experts[kind](lambda: self.game), seed)

    @property
    def _over(self) -> bool:
        return all(map(self._is_out, self.game.agents))

    def _is_out(self, player: str) -> bool:
        return bool(self.game.terminations.get(player) or self.game.truncations.get(player))

    def _look(self, player: str, rewards: dict[str, float], valid: bool = True) -> tuple[str, Info]:
        self._observation = str(self.game.observe(player))
        info: Info = {
            "player": player,
            "rewards": rewards,
            "valid": valid,
            "task_type": self.kind.name,
        }
        admissible = self.game.infos.get(player, {}).get("admissible_actions")
        if admissible is not None:
            info["admissible_actions"] = admissible
        return self._observation, info

    def _judged(self) -> Info:
        """Everybody's results: the game's own where it tells them, else by total reward."""
        judged = results(self._totals, getattr(self.game, "stake", 1.0))
        for player, own in self.game.infos.items():
            judged[player] |= own
        found: Info = {
            name: {player: result[key] for player, result in judged.items()}
            for name, key in (("successes", "success"), ("scores", "score"), ("outcome", "outcome"))
        }
        joint = [result["joint_share"] for result in judged.values() if "joint_share" in result]
        return found | {"joint_share": joint[0]} if joint else found
