"""PettingZoo games as text: a real AEC environment whose observations and actions are strings.

``TextGame(make_game, view)`` does the bookkeeping; a ``TextView`` says how one game reads, in a few lines. Parallel
games are taken too (through PettingZoo's ``parallel_to_aec``): players move in turn, and nobody sees a move of the
round that is still open.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.spaces import Discrete
from pettingzoo import AECEnv, ParallelEnv  # type: ignore[import-untyped]
from pettingzoo.utils.conversions import parallel_to_aec  # type: ignore[import-untyped]

from turnwise.envs.interface import AnyText, Info

Moves = Sequence[tuple[str, str]]
"""What was played, in order: (player, text)."""


class Words(str):
    """A text with the ``dtype`` of its space, which PettingZoo's ``api_test`` compares."""

    dtype = AnyText().dtype


@dataclass(frozen=True, slots=True)
class Sight:
    """What there is to tell one player.

    ``seen`` is the game's own observation; ``legal`` the numbers of the legal actions of a discrete game, empty for a
    player who is not to move. ``history`` holds every move so far: a view of a game with hidden moves must not tell
    all of it.
    """

    player: str
    players: tuple[str, ...]
    seen: Any
    legal: tuple[int, ...]
    history: Moves


class TextView(ABC):
    """How one game reads. ``stake`` is the most that a player can win or lose in a whole game."""

    instructions = ""
    stake = 1.0

    @abstractmethod
    def read(self, sight: Sight) -> str:
        """The observation of a player."""

    @abstractmethod
    def moves(self, sight: Sight) -> Mapping[str, Any]:
        """What the player to move may write -> the action of the game that it stands for. Case does not matter."""


class NumbersView(TextView):
    """Any game with discrete actions, for want of a better view: bare numbers."""

    instructions = "An action is one number of those listed after 'actions'."

    def __init__(self, stake: float = 1.0) -> None:
        self.stake = stake

    def read(self, sight: Sight) -> str:
        seen = sight.seen["observation"] if isinstance(sight.seen, Mapping) else sight.seen
        lines = [" ".join(f"{number:g}" for number in np.ravel(np.asarray(seen, dtype=float)))]
        if sight.legal:
            lines.append("actions " + " ".join(map(str, sight.legal)))
        return "\n".join(lines)

    def moves(self, sight: Sight) -> Mapping[str, int]:
        return {str(number): number for number in sight.legal}


def results(totals: Mapping[str, float], stake: float = 1.0) -> dict[str, Info]:
    """Each player's ``outcome`` ("win" for the highest total alone, "draw" for a shared one, else "loss"), ``success``
    (a win) and ``score``: total reward from [-stake, stake] to [0, 1].
    """
    best = max(totals.values())
    shared = sum(total == best for total in totals.values()) > 1
    found = {}
    for player, total in totals.items():
        outcome = "loss" if total < best else "draw" if shared else "win"
        score = min(max(0.5 + total / (2 * stake), 0.0), 1.0)
        found[player] = {"success": outcome == "win", "score": score, "outcome": outcome}
    return found


class TextGame(AECEnv):  # type: ignore[misc]
    """A PettingZoo game that is read and written.

    ``infos[agent]``: ``admissible_actions`` (empty for who is not to move), ``valid`` (whether the agent's own last
    action was a legal move); after the end also ``success``, ``score`` and ``outcome`` (``results``).

    What is no legal move changes nothing: the player is told and asked again. The ``strikes``-th in a row (1: the
    first) ends the game, and its total becomes the worst there is, -``view.stake``; the others share as much.
    """

    def __init__(self, make_game: Callable[[], Any], view: TextView, strikes: int = 3) -> None:
        super().__init__()
        if strikes < 1:
            raise ValueError(f"strikes must be at least 1 (the first illegal move loses), got {strikes}.")
        self.game = sequential(make_game())
        self.view, self.strikes = view, strikes
        self.instructions, self.stake = view.instructions, view.stake
        self.metadata = {"name": f"text_{self.game}", "render_modes": [], "is_parallelizable": False}
        self.render_mode = None
        self.possible_agents = list(self.game.possible_agents)
        self.observation_spaces = {agent: AnyText() for agent in self.possible_agents}
        self.action_spaces = {agent: AnyText() for agent in self.possible_agents}

    def observation_space(self, agent: str) -> AnyText:
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> AnyText:
        return self.action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        self.game.reset(seed=seed, options=options)
        self.history: list[tuple[str, str]] = []
        self.totals = dict.fromkeys(self.game.agents, 0.0)
        self._cumulative_rewards: dict[str, float] = {}
        self._skip_agent_selection = None
        self._num_illegal = 0
        self._follow()

    def step(self, action: str | None) -> None:
        """Any string; None for a player who is out."""
        agent = self.agent_selection
        if self.over:
            self._was_dead_step(action)
        elif self._is_out(agent):
            self.game.step(action)
            self._follow()
        else:
            self._cumulative_rewards[agent] = 0.0
            self._move(agent, plain(str(action)))

    def observe(self, agent: str) -> Words:
        info = self.infos.get(agent, {})
        lines = [self.view.read(self._sight(agent))]
        if not info.get("valid", True):
            lines.insert(0, "not a legal move")
        if "outcome" in info:
            lines.append({"win": "you win", "loss": "you lose", "draw": "a draw"}[info["outcome"]])
        return Words("\n".join(lines))

    def close(self) -> None:
        self.game.close()

    @property
    def over(self) -> bool:
        return all(map(self._is_out, self.agents))

    def _is_out(self, agent: str) -> bool:
        return bool(self.terminations[agent] or self.truncations[agent])

    def _move(self, agent: str, text: str) -> None:
        if text in self._moves:
            self._num_illegal = 0
            self.history.append((agent, text))
            self.game.step(self._moves[text])
            self._follow()
            return
        self._num_illegal += 1
        rewards = dict.fromkeys(self.agents, 0.0)
        if self._num_illegal >= self.strikes:
            rewards = self._forfeit(agent)
            self.terminations = dict.fromkeys(self.agents, True)
        self._earn(rewards)
        self._tell(offender=agent)
        self._deads_step_first()

    def _forfeit(self, loser: str) -> dict[str, float]:
        """Rewards that bring the loser's total to -stake and leave the others to share +stake."""
        share = self.stake / max(1, len(self.agents) - 1)
        return {each: (-self.stake if each == loser else share) - self.totals[each] for each in self.agents}

    def _follow(self) -> None:
        """Take over where the game now stands."""
        self.agents = list(self.game.agents)
        self.agent_selection = self.game.agent_selection
        self.terminations = {agent: bool(self.game.terminations[agent]) for agent in self.agents}
        self.truncations = {agent: bool(self.game.truncations[agent]) for agent in self.agents}
        self._earn({agent: float(self.game.rewards[agent]) for agent in self.agents})
        to_move = self.agents and not self._is_out(self.agent_selection)
        moves = self.view.moves(self._sight(self.agent_selection)) if to_move else {}
        self._moves: Mapping[str, Any] = {plain(text): move for text, move in moves.items()}
        self._tell()

    def _earn(self, rewards: dict[str, float]) -> None:
        self.rewards = rewards
        for agent, reward in rewards.items():
            self.totals[agent] = self.totals.get(agent, 0.0) + reward
        self._cumulative_rewards = {
            agent: self._cumulative_rewards.get(agent, 0.0) + reward for agent, reward in rewards.items()
        }

    def _tell(self, offender: str | None = None) -> None:
        ends = results(self.totals, self.stake) if self.over else {}
        self.infos: dict[str, Info] = {
            agent: {
                "admissible_actions": list(self._moves) if agent == self.agent_selection and not ends else [],
                "valid": agent != offender,
                **ends.get(agent, {}),
            }
            for agent in self.agents
        }

    def _sight(self, agent: str) -> Sight:
        seen = self.game.observe(agent)
        legal = self._legal(agent, seen) if agent == self.agent_selection and not self.over else ()
        return Sight(agent, tuple(self.possible_agents), seen, legal, self.history)

    def _legal(self, agent: str, seen: Any) -> tuple[int, ...]:
        """Numbers of the legal actions: by the mask in the observation or in ``infos``, else all there are."""
        space = self.game.action_space(agent)
        if not isinstance(space, Discrete):
            return ()
        masked = seen if isinstance(seen, Mapping) else self.game.infos[agent]
        mask = masked.get("action_mask")
        numbers = range(space.n) if mask is None else np.flatnonzero(mask).tolist()
        return tuple(int(space.start) + int(number) for number in numbers)


def sequential(game: Any) -> Any:
    """``game`` as an AEC environment."""
    return parallel_to_aec(game) if isinstance(game, ParallelEnv) else game


def plain(text: str) -> str:
    """Lower case, single spaces, no mark at the end."""
    return " ".join(text.lower().split()).rstrip(".!")
