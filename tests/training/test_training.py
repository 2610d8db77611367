"""The loop on a tiny model: runs are reproducible, resumable, guarded, and complete on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import turnwise
from tests.training.tiny import MODEL, StopAfter, StopError, timeless
from turnwise.assembly.policies import load_policies
from turnwise.assembly.run import Assembly
from turnwise.config.files import load_config
from turnwise.config.schema import RunConfig
from turnwise.envs.interface import Panel
from turnwise.evaluation.evaluate import evaluate
from turnwise.evaluation.report import Report
from turnwise.jobs import export, resume, train, warmstart
from turnwise.replay.store import TrajectoryReader
from turnwise.runs.directory import RunDirectory
from turnwise.training.observing import Callback
from turnwise.training.side import DisagreementError
from turnwise.training.tasksets import TaskOrder, prove_disjoint
from turnwise.training.trainer import CollectionError, Trainer
from turnwise.trajectory import Task

TINY = [
    *(*MODEL, "agent.max_turns=6"),
    "warmstart.max_tokens=20000",
    "rollout.num_tasks=2",
    "rollout.group_size=3",
    "eval.every=2",
    "eval.tasks=4",
    "eval.test_tasks=6",
    "num_updates=4",
    "checkpoint_every=1",
    "optimizer.num_minibatches=2",
    "algorithm.base.drop_uniform_groups=false",
]


pytestmark = pytest.mark.usefixtures("shared_cache")


def config(*settings: str) -> RunConfig:
    return load_config("smoke", [*TINY, *settings])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken run of four updates."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    train(config(), path)
    return path


def test_a_run_is_complete_on_disk(whole: Path) -> None:
    names = {path.name for path in whole.iterdir()}
    assert names == {
        "config.yaml",
        "run.json",
        "model",
        "metrics.jsonl",
        "trajectories.jsonl.gz",
        "checkpoints",
        "evaluation.json",
    }
    stored = RunDirectory.open(whole).config()
    assert stored.agent.examples == 0, "what the configuration leaves open is settled"
    assert stored.rollout.backend == "own"
    assert stored.model_copy(update={"agent": config().agent, "rollout": config().rollout}) == config()
    lines = timeless(whole)
    assert [line["update"] for line in lines] == [0, 1, 2, 3]
    assert all(line["agreement/max_abs"] <= 1e-4 and line["agreement/num_tokens"] > 0 for line in lines)
    assert ["eval_success" in line for line in lines] == [False, True, False, True]
    assert all(("eval_interval" in line) == ("eval_success" in line) for line in lines)
    measured = json.loads((whole / "evaluation.json").read_text())
    assert set(measured) == {"before", "after", "gain", "seconds", "cpu_seconds"}
    assert measured["before"]["sampled"]["panel_hash"] == measured["after"]["sampled"]["panel_hash"]
    assert len(measured["after"]["greedy"]["outcomes"]) == 6
    stored = list(TrajectoryReader(whole / "trajectories.jsonl.gz"))
    assert len(stored) == 4 * 2 * 3
    assert len({t.adapter_hash for t in stored}) == len({t.policy_version for t in stored}) == 4
    assert not [path for path in whole.rglob("*") if path.suffix in (".bin", ".pt", ".pkl")], "no pickle anywhere"


def test_a_run_without_updates_is_measured_once(tmp_path: Path) -> None:
    """Such as alfworld-long, which ends with its warm start."""

    found = list[str]()

    class Reports(Callback):
        def report(self, report: Report) -> None:
            found.append(report.name)

    little = ("num_updates=0", "eval={every: 0, test_tasks: 2}", "warmstart.max_tokens=2000", "agent.max_turns=2")
    result = train(load_config("smoke", [*MODEL, *little]), tmp_path / "run", Reports())
    assert found == ["sampled", "greedy"]
    stored = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert stored["after"] == stored["before"]
    assert not result.trained
    assert (result.gain, stored["gain"]) == (None, None), "one measurement is no gain of 0"


def test_the_same_seed_gives_the_same_run(whole: Path, tmp_path: Path) -> None:
    train(config(), tmp_path / "again")
    assert timeless(tmp_path / "again") == timeless(whole)


@pytest.mark.parametrize("crash", [1, 3])
def test_resuming_repeats_the_unbroken_run_to_the_bit(whole: Path, tmp_path: Path, crash: int) -> None:
    broken = tmp_path / "broken"
    with pytest.raises(StopError):
        train(config(), broken, StopAfter(crash))
    resume(broken)
    assert timeless(broken) == timeless(whole)
    ours, theirs = RunDirectory.open(broken).load("last"), RunDirectory.open(whole).load("last")
    assert ours.state == theirs.state
    assert ours.tensors.keys() == theirs.tensors.keys()
    assert all(torch.equal(ours.tensors[name], theirs.tensors[name]) for name in ours.tensors)
    name = "trajectories.jsonl.gz"

    def episodes(path: Path) -> list[Any]:
        return [(t.episode, t.adapter_hash, [turn.action for turn in t.turns]) for t in TrajectoryReader(path / name)]

    assert episodes(broken) == episodes(whole)


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(whole: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    with pytest.raises(StopError):
        train(config(), broken, StopAfter(2))
    checkpoints = RunDirectory.open(broken).checkpoints
    assert checkpoints.updates() == [1, 0]
    tensors = checkpoints.folder(1) / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-4] + b"\0\1\2\3")
    with pytest.warns(UserWarning, match=r"update-00001 is damaged: tensors.* checksum. The one of update 0 is used"):
        resume(broken)
    assert timeless(broken) == timeless(whole)


def test_runs_that_are_not_there_or_are_there_already(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a folder with config\.yaml"):
        resume(tmp_path / "nothing")
    with pytest.raises(ValueError, match="already holds a run"):
        train(config(), whole)
    with pytest.raises(ValueError, match="Did you mean 'turnwise/Household-v0'"):
        train(config("env.id=turnwise/Hausehold-v0"), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def trainer(path: Path, *settings: str) -> Trainer:
    made = config(*settings)
    run = RunDirectory.create(path, made, {})
    import shutil

    shutil.copytree(warmstart(made), run.model_path)
    return Assembly(made).trainer(run)


def test_a_sampler_with_other_weights_stops_the_run(tmp_path: Path) -> None:
    made = trainer(tmp_path / "run")
    made.step()
    _, target = next(iter(made.sides[0].policy._copy.layers.values()))
    with torch.no_grad():
        target.weight.add_(0.05)  # the sampler drifts away from what its hash says
    with pytest.raises(DisagreementError, match="disagree on the log-probs"):
        made.step()


def test_a_sampler_that_was_not_synchronised_stops_the_run(tmp_path: Path) -> None:
    made = trainer(tmp_path / "run")
    made.sides[0].agent.adapter_hash = "stale"
    with pytest.raises(DisagreementError, match="not synchronised"):
        made.step()


def test_an_update_s_tasks_differ_and_each_pass_is_in_a_new_order() -> None:
    order = TaskOrder([Task("env", "train", i, str(i)) for i in range(5)], num=2, seed=0)
    drawn = [[task.index for task in order.tasks(update)] for update in range(8)]
    passes = [drawn[i] + drawn[i + 1] for i in range(0, 8, 2)]
    assert all(len(set(each)) == 4 for each in passes)
    assert len({tuple(each) for each in passes}) > 1


def test_too_few_tasks_and_unlearnable_rollouts_are_refused(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 256 tasks, fewer than"):
        train(config("env.split=validation", "eval.every=0", "eval.tasks=128", "rollout.num_tasks=300"), tmp_path / "a")
    with pytest.raises(ValueError, match="nothing that is to be cloned fits into the context"):
        train(config("agent.max_context_tokens=40"), tmp_path / "b")
    short = [f"model={{path: {whole / 'model'}}}", "warmstart=null", "agent.max_context_tokens=40"]
    with pytest.raises(CollectionError, match="no episode could begin, since no first prompt fits"):
        train(config(*short), tmp_path / "c")
    assert not list(tmp_path.iterdir())


def test_what_is_refused_before_the_first_checkpoint_leaves_no_folder(tmp_path: Path) -> None:
    nothing = [f"model={{path: {tmp_path / 'nothing'}}}", "warmstart=null"]
    for number in range(2):
        (tmp_path / "1").mkdir(exist_ok=True)  # an empty folder that was there is no hindrance
        with pytest.raises(ValueError, match="no run and no model at"):
            train(config(*nothing), tmp_path / str(number))
    assert not list(tmp_path.iterdir())


def test_a_crash_before_the_first_checkpoint_keeps_the_folder(tmp_path: Path) -> None:
    """Such a run begins again with ``--resume``: here whoever looked on failed, as a user's callback may."""

    class Failing(Callback):
        def stage(self, name: str) -> None:
            raise StopError

    with pytest.raises(StopError):
        train(config(), tmp_path / "run", Failing())
    assert (tmp_path / "run" / "config.yaml").is_file()


def test_overlapping_panels_are_refused() -> None:
    def tasks(split: str, *keys: str) -> Panel:
        return Panel("env", split, tuple(Task("env", split, i, key) for i, key in enumerate(keys)))

    prove_disjoint([tasks("train", "a", "b")], [tasks("validation", "c"), tasks("test", "d")])
    with pytest.raises(ValueError, match="task b is also a training task"):
        prove_disjoint([tasks("demonstrations", "a"), tasks("train", "a", "b")], [tasks("test", "b")])
    with pytest.raises(ValueError, match="panels must be disjoint"):
        prove_disjoint([tasks("train", "a")], [tasks("validation", "c"), tasks("test", "c")])


def test_evaluation_of_a_run_repeats_the_run_s_own(whole: Path, tmp_path: Path) -> None:
    measured = json.loads((whole / "evaluation.json").read_text())["after"]["sampled"]
    again = evaluate(whole)
    assert again.panel_hash == measured["panel_hash"]
    assert [list(task) for task in again.outcomes] == measured["outcomes"]
    assert again.mean_turns == measured["mean_turns"]
    merged = export(whole, tmp_path / "merged")
    elsewhere = evaluate(merged, env="turnwise/Household-v0", tasks=6)
    assert elsewhere.outcomes == again.outcomes
    assert elsewhere.mean_action_tokens == again.mean_action_tokens
    export(whole, tmp_path / "adapter", adapter=True)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    with pytest.raises(ValueError, match="is not an empty folder"):
        export(whole, merged)


def test_update_0_is_what_a_run_began_with(whole: Path) -> None:
    """Also where its checkpoint was removed."""
    run = RunDirectory.open(whole)
    assert 0 not in run.checkpoints.updates()
    (began,) = load_policies(run, [""], 0).values()
    first = next(iter(TrajectoryReader(run.trajectories_path)))
    assert began.adapter_hash == first.adapter_hash
    assert began.adapter_hash != next(iter(load_policies(run, [""], "last").values())).adapter_hash
    with pytest.raises(ValueError, match="has no checkpoint of update 1"):
        load_policies(run, [""], 1)


def test_a_warm_start_is_copied_to_where_it_is_asked_for(whole: Path, tmp_path: Path) -> None:
    """And a second cloning may begin with it, in another world."""
    folder = warmstart(config(), to=tmp_path / "model")
    before = json.loads((whole / "evaluation.json").read_text())["before"]["sampled"]
    assert [list(task) for task in evaluate(folder, env="turnwise/Household-v0", tasks=6).outcomes] == before[
        "outcomes"
    ]
    with pytest.raises(ValueError, match="warmstart writes a new one"):
        warmstart(config(), to=folder)
    more = load_config("default", ["env.id=turnwise/FrozenLake-v0", f"model.path={folder}", "warmstart.max_tokens=400"])
    assert (warmstart(more, to=tmp_path / "more") / "model.safetensors").is_file()


def test_several_samples_give_pass_at_k(whole: Path) -> None:
    report = turnwise.evaluate("expert", env="turnwise/Household-v0", tasks=6, samples=4)
    assert report.pass_at == {1: 1.0, 2: 1.0, 4: 1.0}
    assert report.success is not None
    assert report.success.value == 1.0
    assert evaluate(whole, tasks=2, samples=2, temperature=0.7, top_p=0.9).samples == 2
    assert evaluate(whole, tasks=2, agent={"max_reply_tokens": 1}).mean_action_tokens <= 16
    with pytest.raises(ValueError, match=r"Did you mean 'agent\.context'"):
        evaluate(whole, agent={"contxt": "full"})


def test_grpo_without_lora_and_with_a_windowed_context(tmp_path: Path) -> None:
    settings = [
        "algorithm={type: grpo, kl_coef: 0, drop_uniform_groups: false}",
        "lora=null",
        "agent.context=window",
        "num_updates=1",
    ]
    result = train(config(*settings), tmp_path / "run")
    (line,) = timeless(result.path)
    assert line["num_rows"] > line["num_trajectories"]
    assert line["agreement/max_abs"] <= 1e-4


def test_a_third_party_s_world_trains_without_any_change(tmp_path: Path, whole: Path) -> None:
    settings = [
        "env={id: 'tests.worlds:tests/Echo-v0', success_threshold: 0.5}",
        f"model={{path: {whole / 'model'}}}",
        "warmstart=null",
        "algorithm={type: grpo}",
        "num_updates=1",
    ]
    result = train(config(*settings), tmp_path / "run")
    success = result.after["sampled"].success
    assert success is not None
    assert success.value == 1.0
    assert result.gain is not None
    assert result.gain.value == 0.0
