"""Tiny real runs for the fault suite: a random Qwen3 model of two layers in worlds of three turns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from turnwise.assembly.run import Assembly
from turnwise.config.files import load_config
from turnwise.config.schema import RunConfig
from turnwise.replay.codec import to_record
from turnwise.replay.store import TrajectoryReader
from turnwise.runs.directory import RunDirectory
from turnwise.training.trainer import Trainer

SETTINGS = [
    "env.id=tests.faults.worlds:tests/Lottery-v0",
    "env.success_threshold=0.5",
    "warmstart=null",
    "lora.rank=4",
    "agent.max_reply_tokens=4",
    "agent.max_context_tokens=256",
    "rollout.num_tasks=2",
    "rollout.group_size=4",
    "rollout.num_slots=8",
    "eval.every=0",
    "eval.tasks=128",
    "eval.test_split=null",
    "optimizer.num_minibatches=2",
    "optimizer.lr=1e-2",
    "num_updates=4",
    "checkpoint_every=1",
]


def config(model: Path, *settings: str) -> RunConfig:
    return load_config("smoke", [*SETTINGS, f"model.path={model}", *settings])


def trainer(config: RunConfig, path: Path) -> Trainer:
    """A trainer of a new run, or of the one that is there as it was at its newest checkpoint."""
    torch.set_num_threads(config.threads)
    fresh = not (path / "config.yaml").exists()
    run = RunDirectory.create(path, config, {}) if fresh else RunDirectory.open(path)
    made = Assembly(config).trainer(run)
    made.save() if fresh else made.rewind()
    return made


def timeless(found: Any) -> Any:
    """JSON without what was read off a clock."""
    if isinstance(found, dict):
        return {k: timeless(v) for k, v in found.items() if k != "seconds" and not k.endswith("_s")}
    return list(map(timeless, found)) if isinstance(found, list) else found


def assert_same(ours: RunDirectory, theirs: RunDirectory) -> None:
    """Metrics, state, tensors and episodes of two runs, to the bit."""
    a, b = ours.load("last"), theirs.load("last")
    assert timeless(ours.metrics()) == timeless(theirs.metrics())
    assert timeless([a.update, a.best, a.state]) == timeless([b.update, b.best, b.state])
    assert a.tensors.keys() == b.tensors.keys()
    assert all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)
    played = [list(TrajectoryReader(run.trajectories_path)) for run in (ours, theirs)]
    assert timeless([to_record(t) for t in played[0]]) == timeless([to_record(t) for t in played[1]])
