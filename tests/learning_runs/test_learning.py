"""A small policy learns a three-turn world from reward alone; one without credit does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from turnwise.algorithms.common import GroupAdvantage
from turnwise.config.files import parse_config
from turnwise.jobs import Result, train

pytestmark = pytest.mark.long

SETTINGS: dict[str, Any] = {
    "env": {"id": "tests.worlds:tests/Cue-v0"},
    "model": {"hidden_size": 32, "num_layers": 2, "head_dim": 16, "num_heads": 2, "num_kv_heads": 1, "ffn_size": 64},
    "agent": {"max_reply_tokens": 8, "max_context_tokens": 128},
    "warmstart": {
        "split": "train",
        "only_successes": False,
        "noise": 0.0,
        "max_tokens": 350_000,
        "tokenizer_episodes": 60,
    },
    "optimizer": {"lr": 1e-3, "betas": (0.9, 0.99), "weight_decay": 0.0, "num_minibatches": 4},
    "rollout": {"num_tasks": 8, "group_size": 8},
    "eval": {"every": 0, "test_tasks": 128},
    "num_updates": 60,
}


def run(path: Path, algorithm: str, seed: int) -> Result:
    base = {"type": "grpo", "kl_coef": 0.0, "normalize_std": False}
    chosen = base if algorithm == "grpo" else {"type": "epo", "base": base}
    return train(
        parse_config({**SETTINGS, "algorithm": chosen, "rewards": {"invalid_action_penalty": 0.0}, "seed": seed}), path
    )


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNWISE_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(("algorithm", "seed"), [("grpo", 0), ("epo", 0), ("epo", 1), ("epo", 2)])
def test_it_learns(algorithm: str, seed: int, tmp_path: Path) -> None:
    result = run(tmp_path / "run", algorithm, seed)
    before, after = result.before["sampled"].success, result.after["sampled"].success
    assert before is not None
    assert after is not None
    assert before.value < 0.4
    # LoRA leaves the head alone, and the clone's head bounds how sure a policy of this size can get: .7 to .8 a turn,
    # and warm starts of one seed differ in it between commits: what is asked for is a gain.
    assert after.value > before.value + 0.08
    assert result.gain is not None
    assert result.gain.low > 0.0


def test_without_credit_it_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    estimate = GroupAdvantage.estimate
    monkeypatch.setattr(GroupAdvantage, "estimate", lambda self, stream: torch.zeros_like(estimate(self, stream)))
    result = run(tmp_path / "run", "grpo", 0)
    before, after = result.before["sampled"].success, result.after["sampled"].success
    assert before is not None
    assert after is not None
    assert after.value < before.value + 0.05
