"""PEAR and FunRL act in a shipped world, in runs whose replies have thoughts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.runs import config, trainer
from turnwise.replay.store import TrajectoryReader

THINKING = [
    "env={id: turnwise/TicTacToe-v0}",  # legal moves win about half of the games
    "agent.constrained=true",
    "agent.thought_tokens=4",
    "agent.max_reply_tokens=32",
    "agent.max_context_tokens=1024",
    "rollout.group_size=8",
]


@pytest.mark.parametrize(
    ("algorithm", "counter"), [("pear", "ThoughtPenalty/penalised_share"), ("funrl", "ThoughtBonus/raised_share")]
)
def test_thoughts_are_paid_for_in_a_shipped_world(model: Path, tmp_path: Path, algorithm: str, counter: str) -> None:
    """A model of random weights, which thinks four tokens before each move; without thoughts nothing is paid."""
    thinking = trainer(config(model, *THINKING, f"algorithm={algorithm}"), tmp_path / "thinking")
    found = [thinking.step() for _ in range(2)]
    assert all(0 < line[f"mechanisms/{counter}"] <= 1 for line in found)
    for trajectory in TrajectoryReader(thinking.run.trajectories_path):
        for turn in trajectory.turns:
            assert 4 < turn.thought_tokens < len(turn.action_ids)
            assert turn.valid
    plain = trainer(config(model, *THINKING, "agent.thought_tokens=0", f"algorithm={algorithm}"), tmp_path / "plain")
    assert plain.step()[f"mechanisms/{counter}"] == 0
