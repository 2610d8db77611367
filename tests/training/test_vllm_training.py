"""Whole runs that sample with vLLM: proved at every update, and the runs that the own engine would make."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from tests.shards.hosts import Mortal
from tests.training.test_training import TINY
from tests.training.tiny import StopAfter, StopError, timeless
from turnwise.assembly.run import Assembly
from turnwise.config.files import load_config
from turnwise.config.schema import RunConfig
from turnwise.jobs import resume, train
from turnwise.replay.store import TrajectoryReader
from turnwise.runs.directory import RunDirectory
from turnwise.shards.children import Children
from turnwise.shards.connection import Host
from turnwise.training.side import DisagreementError

pytest.importorskip("vllm", reason="vLLM is not installed here: scripts/vllm_env.py makes an environment for it")

from turnwise.models.vllm.local import Local

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_cache")]


VLLM = ("rollout.backend=vllm", "rollout.vllm.cache_gib=0.25")


def config(*settings: str, engine: tuple[str, ...] = VLLM) -> RunConfig:
    return load_config("smoke", [*TINY, "model.head_dim=32", "num_updates=3", *engine, *settings])


def tokens(run: Path) -> list[list[int]]:
    """What each turn of a run's episodes sampled."""
    played = TrajectoryReader(run / "trajectories.jsonl.gz")
    return [turn.action_ids.tolist() for trajectory in played for turn in trajectory.turns]


@pytest.mark.parametrize("lora", ["{rank: 4, alpha: 8}", "null"], ids=["adapters", "all weights"])
def test_a_run_is_that_of_the_own_engine_and_goes_on_where_it_was_stopped(lora: str, tmp_path: Path) -> None:
    given = (f"lora={lora}", "algorithm.base.kl_coef=0", "optimizer.lr=1e-3")
    made = config(*given)
    train(made, tmp_path / "whole")
    lines = timeless(tmp_path / "whole")
    assert all(line["agreement/max_abs"] < 1e-4 for line in lines)
    assert len({line["adapter_hash"] for line in lines}) == 3
    train(config(*given, engine=()), tmp_path / "own")
    same = [a == b for a, b in zip(tokens(tmp_path / "whole"), tokens(tmp_path / "own"), strict=False)]
    assert len(same) > 50
    assert np.mean(same) > 0.99
    with pytest.raises(StopError):
        train(made, tmp_path / "broken", StopAfter(1))
    assert RunDirectory.open(tmp_path / "broken").config().rollout.backend == "vllm"
    resume(tmp_path / "broken")
    assert tokens(tmp_path / "broken") == tokens(tmp_path / "whole")


def test_constrained_replies_are_sampled_and_scored_alike(tmp_path: Path) -> None:
    train(config("agent.constrained=true", "agent.max_reply_tokens=24", "num_updates=2"), tmp_path / "run")
    turns = [turn for t in TrajectoryReader(tmp_path / "run/trajectories.jsonl.gz") for turn in t.turns]
    assert all(turn.valid for turn in turns)
    assert all(line["agreement/max_abs"] < 1e-4 for line in timeless(tmp_path / "run"))


def played_on(host: Host, made: RunConfig, path: Path) -> None:
    """Two updates of a run whose shards are on a host."""
    with closing(Assembly(made, host=host)) as assembly:
        run = RunDirectory.create(path, assembly.settled(), {})
        assembly.make_model(run)
        with closing(assembly.trainer(run)) as trainer:
            for _ in range(2):
                trainer.step()


@pytest.mark.parametrize("ahead", [0, 1])
def test_shards_have_a_vllm_each(ahead: int, tmp_path: Path) -> None:
    """Two processes. One of them is lost, and a new vLLM plays its episodes again."""
    given = ("rollout.shards=2", "rollout.num_slots=6", f"rollout.ahead={ahead}", "num_updates=2")
    mortal = Mortal(Children("peft"), lambda shard, name, at: "during" if (shard, at) == (1, 5) else None)
    with pytest.warns(UserWarning, match="shard 1 was lost"):
        played_on(mortal, config(*given), tmp_path / "theirs")
    assert [name for _, name, _ in mortal.killed] == ["go"]
    played_on(Children("peft"), config(*given, engine=()), tmp_path / "own")
    theirs, ours = tokens(tmp_path / "theirs"), tokens(tmp_path / "own")
    assert len(theirs) > 30
    assert theirs == ours
    lines = RunDirectory.open(tmp_path / "theirs").metrics()
    assert all(line["agreement/max_abs"] < 1e-4 for line in lines if "agreement/max_abs" in line)


def test_a_policy_for_each_role_has_a_vllm_of_its_own(tmp_path: Path) -> None:
    nim = ["env.id=tests.worlds:tests/Nim-v0", "warmstart.split=train", "warmstart.stop_split=validation"]
    train(config(*nim, "game.policies=per_role", "num_updates=2"), tmp_path / "run")
    assert all("," in line["adapter_hash"] for line in timeless(tmp_path / "run"))


def test_weights_that_do_not_arrive_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM takes the new name, and not the new weights."""

    def adapt(core: Local, name: str, folder: Path) -> None:
        if core._adapter is None:
            load(core, name, folder)
        core._llm.set_weight_version(name)

    load = Local.adapt
    monkeypatch.setattr(Local, "adapt", adapt)
    with pytest.raises(DisagreementError, match="probe: the engine says that it plays"):
        train(config("optimizer.lr=1e-2"), tmp_path / "run")
