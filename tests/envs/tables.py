"""Tables for the tests of games: players, whole games, matches."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest

import turnwise.envs  # noqa: F401  (registers the environments)
from turnwise.envs.games import catalogue
from turnwise.envs.games.env import GameEnv
from turnwise.envs.interface import Info


def _why_classic_is_missing() -> str:
    try:
        catalogue.classic("rlcard_envs.leduc_holdem")
    except ValueError as error:
        return str(error)
    return ""


_MISSING = _why_classic_is_missing()
classic = pytest.mark.skipif(bool(_MISSING), reason=_MISSING or "installed")
CLASSIC = [pytest.param(name, marks=classic) for name in ("tictactoe", "connect_four", "leduc", "rps")]
ALL = [*CLASSIC, "negotiation"]
IDS = [
    *(pytest.param(name, marks=classic) for name in ("TicTacToe", "ConnectFour", "LeducHoldem", "RockPaperScissors")),
    "Negotiation",
]
DOCUMENTED_KEYS = {"player", "rewards", "valid", "task_type", "admissible_actions"}

Player = Callable[[str, Info], str]


def random_player(seed: int, illegal: float = 0.0) -> Player:
    """A random player; a share of its actions is ``illegal``."""
    rng = random.Random(seed)
    return lambda observation, info: "?" if rng.random() < illegal else rng.choice(info["admissible_actions"])


def play(env: GameEnv, task: int, players: dict[str, Player], split: str = "train") -> list[Info]:
    """Every ``info`` of one game."""
    observation, info = env.reset(options={"split": split, "task": task})
    record, over = [info], False
    while not over:
        observation, reward, terminated, truncated, info = env.step(players[info["player"]](observation, info))
        assert reward == info["rewards"][env.players[0]] or reward == info["rewards"][env.players[1]]
        record.append(info)
        over = terminated or truncated
    return record


def match(env: GameEnv, first: Player, second: Player, num_games: int) -> tuple[Counter[str], float]:
    """(outcomes, mean reward) of ``first``, who changes seats after every game."""
    outcomes, total = Counter[str](), 0.0
    for game in range(num_games):
        one, other = env.players if game % 2 == 0 else env.players[::-1]
        record = play(env, game // 2, {one: first, other: second})
        outcomes[record[-1]["outcome"][one]] += 1
        total += sum(info["rewards"][one] for info in record)
    return outcomes, total / num_games
