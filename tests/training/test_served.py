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
from turnwise.assembly.run import Assembly
from turnwise.config.files import load_config
from turnwise.jobs import train, warmstart
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
    monkeypatch.setattr("turnwise.models.vllm.server.check", lambda url, max_length: None)
    warmstart(load_config("smoke", SHORT))  # a server is started with it
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


def test_a_server_that_is_not_there_or_cannot_have_the_model_is_told_of_before_cloning(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def clones(*given: Any) -> None:
        pytest.fail("it was cloned first")

    monkeypatch.setattr(Assembly, "make_model", clones)
    asked = load_config("smoke", [*SHORT, *SERVED, "warmstart.max_tokens=4001"])
    with pytest.raises(ValueError, match=r"yet to make this run's model, .*`turnwise warmstart"):
        train(asked, tmp_path / "run")
    seen: list[tuple[str, int]] = []

    def gone(url: str, max_length: int) -> None:
        seen.append((url, max_length))
        raise ValueError("no vLLM server answers")

    monkeypatch.setattr("turnwise.models.vllm.server.check", gone)
    with pytest.raises(ValueError, match="no vLLM server answers"):
        train(asked, tmp_path / "run")
    assert seen == [("http://127.0.0.1:1", asked.agent.max_context_tokens)]
    assert not (tmp_path / "run").exists()
