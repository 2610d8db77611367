"""Shards that ask one vLLM server, each with an adapter of its own there; here the server plays by our own engine."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.faults.runs import config as faults_config
from tests.models.vllm.standin import standing_in
from tests.shards.hosts import Here, Mortal
from tests.shards.plays import policy_of
from turnwise.agents.jobs import Job
from turnwise.assembly.collecting import TRAIN
from turnwise.assembly.run import Assembly
from turnwise.assembly.shards import shards_of
from turnwise.config.schema import RunConfig
from turnwise.models.drawing import Sampling
from turnwise.replay.store import TrajectoryReader
from turnwise.runs.directory import RunDirectory
from turnwise.shards.connection import Host
from turnwise.shards.rollouts import ShardedCollector
from turnwise.training.proof import DisagreementError
from turnwise.trajectory import Task

TWO = ("rollout.shards=2", "num_updates=2", "eval.every=0", "rollout.temperature=0.7")


def played(made: RunConfig, path: Path, host: Host) -> RunDirectory:
    """A run of two updates, its shards on a host."""
    assembly = Assembly(made, host=host)
    run = RunDirectory.create(path, assembly.settled(), {})
    trainer = assembly.trainer(run)
    try:
        for _ in range(2):
            trainer.step()
    finally:
        trainer.close()
        assembly.close()
    return run


def served(model: Path, url: str) -> RunConfig:
    return faults_config(model, *TWO, "rollout.backend=vllm", f"rollout.vllm.url={url}")


def test_shards_play_by_a_server_what_they_play_by_the_own_engine(model: Path, tmp_path: Path) -> None:
    """One shard is lost: the new one has the server load its weights again, under another name."""
    own = played(faults_config(model, *TWO), tmp_path / "own", Here())
    mortal = Mortal(Here(), lambda shard, name, at: "during" if (shard, at) == (1, 4) else None)
    with standing_in(model) as (server, url), pytest.warns(UserWarning, match="shard 1 was lost"):
        found = played(served(model, url), tmp_path / "served", mortal)
    assert [name for _, name, _ in mortal.killed] == ["go"]
    ours, theirs = (list(TrajectoryReader(run.trajectories_path)) for run in (own, found))
    assert len(theirs) == 2 * 8
    for first, second in zip(ours, theirs, strict=True):
        assert first.episode == second.episode
        for a, b in zip(first.turns, second.turns, strict=True):
            assert a.action_ids.tolist() == b.action_ids.tolist()
            np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-4)
    assert len({name.partition("-")[0] for name in server.known}) == 3, "weights before, between and after the updates"
    assert len(set(server.known)) == len(server.known)
    begun = server.known[0].partition("-")[0]
    players = [name for name in server.asked if name.startswith(begun)]
    assert len(players) == 1 + 2 + 1, "the main process, each shard, and the one that took a shard's place"


def test_weights_arrive_after_a_session_that_was_broken_off_with_replies_in_progress(model: Path) -> None:
    """As where an update did not fit into memory while the next one was played ahead."""
    tasks = [Task("tests/Lottery-v0", "train", index, str(index)) for index in range(2)]
    with standing_in(model) as (_, url):
        made = served(model, url)
        policy = policy_of(made, model)
        shards = shards_of(made.model_dump(mode="json"), str(model), (), {"": policy}, Here())
        with closing(ShardedCollector(shards, TRAIN)) as collector:
            left = collector.rollouts(Sampling(0.7, max_tokens=4), 0)
            for task in tasks:
                left.start(task, 0)
            with closing(left.events()) as events:
                next(events)
            with torch.no_grad():
                next(policy.parameters()).add_(0.01)
            policy.sync(1)
            jobs = [Job(task, key=1) for task in tasks]
            played = collector.collect(jobs, Sampling(0.7, max_tokens=4))
    assert [(t.policy_version, len(t.turns)) for t in played] == [(1, 3), (1, 3)]


def test_a_shard_whose_weights_do_not_arrive_is_found(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The main process is probed when the run begins, before any of its adapters has learned; then shards are."""
    with standing_in(model) as (server, url):
        loads = server._load

        def load(name: str, folder: Path) -> tuple[int, object]:
            server.stale = len({known.partition("-")[0] for known in [*server.known, name]}) > 1
            return loads(name, folder)

        monkeypatch.setattr(server, "_load", load)
        monkeypatch.setattr("turnwise.training.side.prove", lambda *given: None)  # that of the main process
        with pytest.raises(DisagreementError, match=r"shard \d does not hold one policy: probe: the engine says"):
            played(served(model, url), tmp_path / "run", Here())
