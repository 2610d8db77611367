"""Runs that learn from the stored episodes of another one, and play nothing but measurements."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.faults.runs import assert_same, config, trainer
from tests.faults.test_exact_resume import broken_and_whole
from turnwise.assembly.run import Assembly
from turnwise.config.files import load_config
from turnwise.jobs import train
from turnwise.replay.store import TrajectoryReader
from turnwise.runs.directory import RunDirectory
from turnwise.training.observing import Callback
from turnwise.training.proof import DisagreementError


@pytest.fixture
def played(model: Path, tmp_path: Path) -> Path:
    """A run of two updates, with 16 episodes."""
    made = trainer(config(model, "algorithm=grpo"), tmp_path / "played")
    made.step()
    made.step()
    made.close()
    return tmp_path / "played"


@pytest.mark.parametrize("algorithm", ["oreo", "weighted_cloning"])
def test_a_run_learns_from_a_file_and_resumes_to_the_bit(
    model: Path, tmp_path: Path, played: Path, algorithm: str
) -> None:
    settings = f"algorithm={{type: {algorithm}, episodes: '{played}', batch: 6}}"
    broken, whole = broken_and_whole(config(model, settings), tmp_path)
    assert_same(broken, whole)
    lines = whole.metrics()
    assert [(line["episodes"], line["sampled_tokens"]) for line in lines] == [(0, 0)] * 3
    assert [line["mechanisms/StoredGroups/episodes"] for line in lines] == [6.0] * 3
    assert all(line["optimizer_steps"] == 2 and line["grad_norm"] > 0 for line in lines)
    assert len({line["adapter_hash"] for line in lines}) == 3
    assert list(TrajectoryReader(whole.trajectories_path)) == []


def test_a_budget_of_tokens_that_are_never_sampled_is_refused(model: Path, tmp_path: Path, played: Path) -> None:
    made = config(model, f"algorithm={{type: oreo, episodes: '{played}'}}", "max_sampled_tokens=100")
    run = RunDirectory.create(tmp_path / "run", made, {})
    with pytest.raises(ValueError, match="oreo samples nothing here, so that max_sampled_tokens=100 would never"):
        Assembly(made).trainer(run)


def test_weights_that_are_not_the_samplers_stop_an_offline_run_too(model: Path, tmp_path: Path, played: Path) -> None:
    made = trainer(config(model, f"algorithm={{type: oreo, episodes: '{played}'}}"), tmp_path / "run")
    made.sides[0].agent.adapter_hash = "another"
    with pytest.raises(DisagreementError, match="name: the agent plays as another"):
        made.step()


def test_a_run_is_read_from_anywhere_when_its_source_is_gone(
    model: Path, tmp_path: Path, played: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = config(model, "algorithm={type: oreo, episodes: played}", "num_updates=1")
    monkeypatch.chdir(model)
    made = trainer(asked, tmp_path / "run")
    made.step()
    made.close()
    run = RunDirectory.open(tmp_path / "run")
    assert run.config().algorithm.model_dump()["episodes"] == str(played)
    shutil.rmtree(played)
    resumed = Assembly(run.config()).trainer(run)
    resumed.rewind()
    assert resumed.is_over
    resumed.close()
    missing = RunDirectory.create(tmp_path / "new", run.config(), {})
    with pytest.raises(ValueError, match=r"is not there; expected the folder of a run"):
        Assembly(run.config()).trainer(missing)


def test_a_missing_source_is_told_before_a_model_is_cloned(tmp_path: Path) -> None:
    made = load_config("smoke", [f"algorithm={{type: oreo, episodes: '{tmp_path}/nowhere'}}"])
    assert made.warmstart is not None
    with pytest.raises(ValueError, match=r"nowhere is not there"):
        train(made, tmp_path / "run", Callback())
    assert not (tmp_path / "run").exists()


def test_graders_would_pay_nobody_and_are_refused() -> None:
    for given, named in (
        (["rewards.functions=[my_rewards:exact]"], "rewards.functions"),
        (["rewards.functions=[my_rewards:exact]", "rewards.world=0.5"], "rewards.world, rewards.functions"),
        (["rewards.ranking={model: openai:some}"], "rewards.ranking"),
    ):
        with pytest.raises(ValueError, match=rf"{named}: graders pay episodes that are played.*`turnwise rejudge`"):
            load_config("smoke", ["algorithm={type: oreo, episodes: played}", *given])
        load_config("smoke", ["algorithm=oreo", *given])


@pytest.mark.parametrize("policies", ["per_role", "per_player"])
def test_several_policies_would_learn_from_each_others_replies(policies: str) -> None:
    with pytest.raises(ValueError, match=f"game.policies={policies} trains several policies"):
        load_config("smoke", ["algorithm={type: oreo, episodes: played}", f"game.policies={policies}"])
    load_config("smoke", ["algorithm={type: oreo, episodes: played}", "game.policies=shared"])
    load_config("smoke", ["algorithm=oreo", f"game.policies={policies}"])
