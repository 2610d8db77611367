"""What a player of a game earns in its own moves and in those of the others, move by move."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.spaces import Text

from turnwise.agents.jobs import Job
from turnwise.agents.scripted import play_episode
from turnwise.agents.seating import Scripted, Seating
from turnwise.envs.tasks import make_env, panel
from turnwise.replay.store import TrajectoryReader, TrajectoryWriter
from turnwise.trajectory import Task


class Market(gymnasium.Env[str, str]):
    """Six moves in turn; move n earns the mover 1 + n, and costs the other 0.25."""

    observation_space = Text(100)
    action_space = Text(100)
    players = ("buyer", "seller")

    def role(self, player: str) -> str:
        return player

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.moves = 0
        return "move", {"player": "buyer"}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        mover, other = self.players[self.moves % 2], self.players[1 - self.moves % 2]
        rewards = {mover: 1.0 + self.moves, other: -0.25}
        self.moves += 1
        info: dict[str, Any] = {"player": other, "rewards": rewards}
        if self.moves == 6:
            info |= {"successes": dict.fromkeys(self.players, False), "scores": dict.fromkeys(self.players, 0.0)}
        return "move", rewards[mover], self.moves == 6, False, info


class Silent:
    def begin(self, observation: str, info: dict[str, Any]) -> None:
        pass

    def act(self, observation: str, info: dict[str, Any]) -> str:
        return "go"


def test_every_turn_keeps_what_it_earned_and_gains_what_comes_until_the_next() -> None:
    seating = Seating({"": Scripted("silent", lambda env, seed: Silent())})
    task = Task("market", "train", 0, "market")
    buyer, seller = play_episode(Market(), seating, Job(task))
    # The buyer moves at 0, 2, 4 and pays for 1, 3, 5; the seller moves at 1, 3, 5 and pays for 2, 4, and for 0 before.
    assert buyer.rewards == [1.0 - 0.25, 3.0 - 0.25, 5.0 - 0.25]
    assert seller.rewards == [2.0 - 0.25 - 0.25, 4.0 - 0.25, 6.0]


def test_a_player_that_never_moves_keeps_what_it_was_paid(tmp_path: Path) -> None:
    """The first move is illegal and loses the game, so that the other player wins without a turn."""
    seating = Seating({"": Scripted("silent", lambda env, seed: Silent())})
    env = make_env("turnwise/TicTacToe-v0", strikes=1, opening_moves=0)
    loser, winner = play_episode(env, seating, Job(panel(env, "train")[0]))
    assert (loser.rewards, winner.rewards) == ([-1.0], [])
    assert (loser.total_reward, winner.total_reward) == (-1.0, 1.0)
    assert (loser.turnless_reward, winner.turnless_reward) == (0.0, 1.0)
    assert winner.success
    writer = TrajectoryWriter(tmp_path / "file")
    for update, played in enumerate((loser, winner)):
        writer.append(update, [played])
    assert [t.total_reward for t in TrajectoryReader(tmp_path / "file")] == [-1.0, 1.0]
    lines = list(map(json.loads, gzip.decompress((tmp_path / "file").read_bytes()).splitlines()))
    assert [line["version"] for line in lines if "version" in line][1] == 9
    assert ["turnless_reward" in line for line in lines if "version" not in line] == [False, True]
