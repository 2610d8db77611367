"""Runs of a steered policy: the proof, what is recorded, a resume, shards and ranks, and what is refused by name."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from tests.faults.runs import assert_same, config, trainer
from turnwise.agents.decoding import STEERING_FILE, DecodingConfig, FloorConfig
from turnwise.assembly.agent_files import agent_settings, with_decoding_from_anywhere
from turnwise.assembly.frozen import frozen_policy
from turnwise.assembly.players import model_agent
from turnwise.assembly.run import Assembly
from turnwise.assembly.settling import sampling_of
from turnwise.assembly.steering import keep_vector
from turnwise.assembly.warmstart import WarmStart
from turnwise.cli import app
from turnwise.config.files import load_config
from turnwise.evaluation.contenders import settings_of
from turnwise.evaluation.evaluate import evaluate
from turnwise.jobs import export, warmstart
from turnwise.models.policy import Policy
from turnwise.models.steering import Steering, put
from turnwise.replay.store import TrajectoryReader
from turnwise.runs.directory import RunDirectory
from turnwise.training.side import DisagreementError


@pytest.fixture
def vector(tmp_path: Path) -> Path:
    """A steering vector for the tiny model."""
    direction = torch.randn(32, generator=torch.Generator().manual_seed(3))
    Steering(0, direction, 1.0, 9).save(tmp_path / "v.safetensors")
    return tmp_path / "v.safetensors"


def steered(model: Path, vector: Path, *more: str) -> Any:
    return config(model, f"agent.decoding.steering={{file: {vector}, strength: 8}}", *more)


def names(run: Any) -> set[str]:
    return {trajectory.adapter_hash for trajectory in TrajectoryReader(run.trajectories_path)}


def test_a_steered_run_is_proven_counted_and_resumed_to_the_bit(model: Path, vector: Path, tmp_path: Path) -> None:
    asked = steered(model, vector, "num_updates=3")
    whole = trainer(asked, tmp_path / "whole")
    for _ in range(3):
        whole.step()
    for line in whole.run.metrics():
        assert line["decoding/steering_share"] == 1
        assert line["decoding/tokens"] == line["sampled_tokens"]
        assert line["agreement/max_abs"] < 1e-5
    plain = trainer(config(model, "num_updates=3"), tmp_path / "plain")
    plain.step()
    assert len(names(whole.run)) == 3
    assert names(plain.run).isdisjoint(names(whole.run)), "episodes tell by which policy they were sampled"
    broken = trainer(asked, tmp_path / "broken")
    broken.step()
    again = trainer(asked, tmp_path / "broken")
    for _ in range(2):
        again.step()
    assert_same(again.run, whole.run)


def test_a_sampler_without_the_vector_is_found_out(model: Path, vector: Path, tmp_path: Path) -> None:
    made = trainer(steered(model, vector), tmp_path / "run")
    put(made.sides[0].policy.sampler, None)
    with pytest.raises(DisagreementError, match="sampler and learner disagree"):
        made.step()


def kept(run: Path) -> str:
    found = RunDirectory.open(run).config().agent.decoding.steering
    assert found is not None
    return found.file


def test_a_run_is_steered_by_its_own_copy_of_the_vector_alone(model: Path, vector: Path, tmp_path: Path) -> None:
    asked = steered(model, vector, "num_updates=2")
    made = trainer(asked, tmp_path / "run")
    made.step()
    made.save()
    Steering(0, torch.ones(32), 1.0, 9).save(vector)
    trainer(asked, tmp_path / "run")  # rewinds: the copy is what it was
    trainer(steered(model, vector, "num_updates=2"), tmp_path / "other")
    settings = [settings_of(RunDirectory.open(tmp_path / name).config().model_dump()) for name in ("run", "other")]
    (tmp_path / "run").rename(tmp_path / "moved")
    copy = tmp_path / "moved" / STEERING_FILE
    assert kept(tmp_path / "moved") == str(copy)
    evaluate(tmp_path / "moved", out=tmp_path / "e.json", checkpoint="last", tasks=2, split="train")
    played = {t.adapter_hash for t in TrajectoryReader(tmp_path / "e.trajectories.jsonl.gz")}
    assert played == {made.sides[0].policy.adapter_hash}, "the policy that was trained"
    assert settings[0] != settings[1], "another vector is another method"
    (tmp_path / "other" / STEERING_FILE).write_bytes(copy.read_bytes())
    assert settings[0] == settings_of(RunDirectory.open(tmp_path / "other").config().model_dump()), "not so its place"
    Steering(0, torch.ones(32), 1.0, 9).save(copy)
    with pytest.raises(ValueError, match=r"does not restore the weights .*agent\.decoding\.steering"):
        trainer(asked, tmp_path / "moved")
    copy.unlink()
    with pytest.raises(ValueError, match="does not restore the weights"):
        trainer(asked, tmp_path / "moved")  # of an earlier version: the file that is named is now another
    assert not copy.exists(), "which is not kept as if the run had begun with it"


def test_a_process_that_dies_leaves_no_cut_copy_of_the_vector(
    vector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(handle: int) -> None:
        raise OSError(28, "No space left on device")

    decoding = DecodingConfig.model_validate({"steering": {"file": str(vector)}})
    folder = tmp_path / "run"
    folder.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", dies)  # before the file has its name
        with pytest.raises(OSError, match="No space left"):
            keep_vector(decoding, folder)
    assert not list(folder.iterdir())
    keep_vector(decoding, folder)
    assert [file.name for file in folder.iterdir()] == [STEERING_FILE]
    assert (folder / STEERING_FILE).read_bytes() == vector.read_bytes()


def test_what_leaves_a_steered_run_says_that_it_is_not_steered(model: Path, vector: Path, tmp_path: Path) -> None:
    made = trainer(steered(model, vector, "num_updates=1"), tmp_path / "run")
    out, run = tmp_path / "out", str(made.run.path)
    with pytest.warns(UserWarning, match=r"steered policy, .*steering\.safetensors beside them"):
        export(run, out)
    vector.unlink()
    stored = json.loads((out / "agent.json").read_text())["decoding"]["steering"]
    assert stored == {"file": STEERING_FILE, "strength": 8.0}, "for any place of the folder"
    found = agent_settings(out, None, {}).decoding.steering
    assert found is not None
    assert found.file == str(out / STEERING_FILE)
    assert torch.equal(Steering.read(found.file).direction, Steering.read(kept(made.run.path)).direction)
    match = r" was trained while it was steered \(by .*steering\.safetensors\), and is not steered here"
    for name in (run, str(out)):
        with pytest.warns(UserWarning, match="a teacher" + match):
            frozen_policy(name, "a teacher", made.sides[0].policy)
    with pytest.warns(UserWarning, match=r"model\.path=.*" + match):
        trainer(config(out), tmp_path / "plain")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        trainer(steered(out, out / STEERING_FILE), tmp_path / "again")
        frozen_policy(str(model), "a teacher", made.sides[0].policy)
    (made.run.path / STEERING_FILE).unlink()
    with pytest.raises(ValueError, match="is no steering vector"):
        export(run, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_clone_of_a_steered_runs_settings_is_not_steered(
    model: Path, vector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WarmStart, "make", lambda *_, **__: model)
    asked = load_config("smoke", [f"agent.decoding.steering.file={vector}", "agent.decoding.floor.temperature=1.5"])
    folder = warmstart(asked, to=tmp_path / "clone")
    assert agent_settings(folder, None, {}).decoding == DecodingConfig(floor=FloorConfig(temperature=1.5))
    assert not (folder / STEERING_FILE).exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        ["rollout.shards=2"],
        ["learner.ranks=2"],
        ["learner.ranks=2", "learner.parallel=fsdp2"],
        ["rollout.ahead=1", "rollout.shards=2"],
    ],
)
def test_every_process_is_steered(model: Path, vector: Path, tmp_path: Path, more: list[str]) -> None:
    made = trainer(steered(model, vector, "num_updates=2", *more), tmp_path / "run")
    try:
        for _ in range(2):
            line = made.step()
        assert line["decoding/steering_share"] == 1
        assert line["agreement/max_abs"] < 1e-5
    finally:
        made.close()
        made.sides[0].leader.close()  # ends the other ranks


def test_what_cannot_be_steered_is_refused_by_name(model: Path, vector: Path, tmp_path: Path) -> None:
    asked = steered(model, vector)
    backend, why = sampling_of(asked)
    assert backend == "own"
    assert why.startswith("agent.decoding.steering works in our own engine")
    match = r"agent\.decoding\.steering changes the states within the model.*rollout\.backend=own"
    with pytest.raises(ValueError, match=match):
        steered(model, vector, "rollout.backend=vllm")
    with pytest.raises(ValueError, match=match):
        model_agent(Policy.load(model, lora=None), asked.agent, num_slots=1, backend="vllm")
    with pytest.raises(ValueError, match=r"gone is no steering vector"):
        trainer(steered(model, tmp_path / "gone"), tmp_path / "run")
    with pytest.raises(ValueError, match=r"agent\.decoding: an endpoint's server samples by itself"):
        evaluate("openai:m", env="turnwise/Household-v0", agent={"decoding": {"steering": {"file": str(vector)}}})


def test_a_clone_is_the_same_with_and_without_a_vector(vector: Path) -> None:
    """It is made before anything is steered, and the vector may be fitted to it."""
    plain = load_config("smoke")
    asked = load_config("smoke", [f"agent.decoding.steering.file={vector}"])
    hot = load_config("smoke", ["agent.decoding.floor.temperature=1.5"])
    keys = [Assembly(each).warmstart.cloning.key for each in (plain, asked, hot)]
    assert keys[0] == keys[1] != keys[2]


def test_a_vector_has_a_name_for_any_working_directory(
    vector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    agent = load_config("smoke", ["agent.decoding.steering.file=v.safetensors"]).agent
    found = with_decoding_from_anywhere(agent).decoding.steering
    assert found is not None
    assert found.file == str(vector)


def test_a_vector_is_fitted_to_a_run_and_an_evaluation_takes_it(model: Path, tmp_path: Path) -> None:
    made = trainer(config(model, "num_updates=1"), tmp_path / "run")
    made.step()
    made.save()
    file, run = tmp_path / "new" / "v.safetensors", str(made.run.path)
    done = CliRunner().invoke(app, ["steering", run, "--to", str(file), "--contexts", "12"])
    assert done.exit_code == 0, done.output
    found = Steering.read(file)
    assert (found.layer, found.contexts) == (0, 12)
    assert f"steering vector: {file} (layer 0 of 2, 12 contexts" in done.output
    for wrong, match in (
        (["--checkpoint", "then"], "expected last, best or the number"),
        (["--layer", "1", "--to", str(tmp_path / "x")], "layer 1 cannot be steered"),
        (["--layer", "1"], f"{file} exists"),  # said before the model is loaded
        (["--to", str(file / "v")], f"since {file} is no folder"),
    ):
        failed = CliRunner().invoke(app, ["steering", run, "--to", str(file), *wrong])
        assert match in str(failed.exception)
    asked: dict[str, Any] = {"tasks": 2, "split": "train"}
    steered = {"decoding": {"steering": {"file": str(file), "strength": 5.0}}}
    evaluate(made.run.path, agent=steered, out=tmp_path / "e.json", **asked)
    evaluate(made.run.path, out=tmp_path / "p.json", **asked)
    with_it, without = (
        {t.adapter_hash for t in TrajectoryReader(tmp_path / f"{name}.trajectories.jsonl.gz")} for name in "ep"
    )
    assert with_it.isdisjoint(without)


def test_a_vector_is_fitted_to_the_latest_episodes_before_the_checkpoint(
    model: Path, vector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trainer(config(model, "num_updates=3"), tmp_path / "run")
    for _ in range(3):
        made.step()
        made.save()
    seen = list[int]()

    def fit(model: Any, episodes: Any, *_: Any) -> Steering:
        seen[:] = list(dict.fromkeys(t.policy_version for t in episodes))
        return Steering.read(vector)

    monkeypatch.setattr("turnwise.assembly.steering.fit", fit)
    for more, expected in (
        ([], [2, 1, 0]),
        (["--checkpoint", "0"], [0]),
        (["--updates", "1:"], [1, 2]),
    ):
        to = tmp_path / f"{len(list(tmp_path.iterdir()))}.safetensors"
        done = CliRunner().invoke(app, ["steering", str(made.run.path), "--to", str(to), *more])
        assert done.exit_code == 0, done.output
        assert seen == expected
    steered_run = trainer(steered(model, vector), tmp_path / "steered").run
    failed = CliRunner().invoke(app, ["steering", str(steered_run.path), "--to", str(tmp_path / "no")])
    assert "is itself steered" in str(failed.exception)
