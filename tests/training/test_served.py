"""Runs whose engine holds weights of its own: it is the one that plays, and it is asked before anything is measured.

The server is one of this process, with a model as transformers computes it, and no cache.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.vllm.test_engine import Recomputing
from tests.training.test_training import TINY
from turnwise.config.files import load_config
from turnwise.jobs import train
from turnwise.models.policy import Policy
from turnwise.models.vllm.engine import VllmEngine
from turnwise.replay.store import TrajectoryReader
from turnwise.training.side import DisagreementError

pytestmark = pytest.mark.usefixtures("shared_cache")

SERVED = ("rollout.backend=vllm", "rollout.vllm.url=http://127.0.0.1:1")
SHORT = [
    *(*TINY, "agent.max_turns=2", "agent.max_reply_tokens=4", "rollout.group_size=2", "num_updates=1"),
    *("warmstart.max_tokens=4000", "eval.every=0", "eval.tasks=128", "eval.test_tasks=1"),
]


class Server:
    """Servers that a run asks for; ``moved`` is how far the base model of one is from the run's."""

    moved = 0.0

    def __init__(self) -> None:
        self.engines: list[VllmEngine] = []

    def __call__(self, policy: Policy, url: str, **limits: Any) -> VllmEngine:
        core = Recomputing(policy)
        core.processes = False
        core.model = copy.deepcopy(core.model)
        with torch.no_grad():
            core.model.get_input_embeddings().weight.mul_(1.0 + self.moved)
        self.engines.append(VllmEngine(core, **limits))
        self.engines[-1].hold(policy)
        return self.engines[-1]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()
    monkeypatch.setattr("turnwise.models.vllm.server.served_engine", made)
    return made


def replies(run: Path) -> list[list[int]]:
    return [turn.action_ids.tolist() for t in TrajectoryReader(run / "trajectories.jsonl.gz") for turn in t.turns]


def test_the_engine_of_the_configuration_is_the_one_that_plays(server: Server, tmp_path: Path) -> None:
    train(load_config("smoke", [*SHORT, *SERVED]), tmp_path / "served")
    train(load_config("smoke", SHORT), tmp_path / "own")
    (engine,) = server.engines
    found = replies(tmp_path / "served")
    assert found == replies(tmp_path / "own")
    assert engine.counts.sampled_tokens >= sum(map(len, found))


def test_another_base_model_is_found_before_anything_is_measured(server: Server, tmp_path: Path) -> None:
    server.moved = 0.1
    with pytest.raises(
        DisagreementError, match=r"does not have .*, in the run's precision, as its base model: probe: "
    ):
        train(load_config("smoke", [*SHORT, *SERVED]), tmp_path / "run")
    assert not (tmp_path / "run").exists()
