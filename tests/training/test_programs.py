"""Programs in training: their runs repeat to the bit and resume, and sampler and learner agree on every token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.models import chatting_folder
from tests.training.tiny import StopAfter, StopError, timeless
from turnwise.config.files import load_config
from turnwise.config.schema import RunConfig
from turnwise.jobs import resume, train
from turnwise.replay.store import TrajectoryReader
from turnwise.runs.directory import RunDirectory


def config(model: Path, *settings: str) -> RunConfig:
    tasks = [{"question": f"What is in cabinet {number}?"} for number in range(60)]
    return load_config(
        None,
        [
            f"model.path={model}",
            "env.kwargs.run=tests.envs.programs.agents:trained",
            f"env.kwargs.tasks={json.dumps(tasks)}",
            "agent.max_reply_tokens=8",
            "agent.max_context_tokens=256",
            "rollout.num_tasks=3",
            "rollout.group_size=4",
            "rollout.num_slots=6",
            "rollout.env_threads=6",
            "eval.every=0",
            "eval.test_split=null",
            "num_updates=3",
            "checkpoint_every=1",
            "optimizer.lr=1e-2",
            "threads=1",
            *settings,
        ],
        env="turnwise/Program-v0",
        algorithm="grpo",
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chatting_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    path = tmp_path_factory.mktemp("runs") / "whole"
    train(config(model), path)
    return path


def test_a_program_trains_and_every_token_is_proven(whole: Path) -> None:
    lines = timeless(whole)
    assert all(line["agreement/max_abs"] <= 1e-4 and line["grad_norm"] > 0 for line in lines)
    assert all(line["errors"] == 0 and line["turns"] == 4 for line in lines)
    assert [line["gateway/ignored_sampling"] for line in lines] == [12] * 3, "one in each of 12 episodes"
    for each in TrajectoryReader(whole / "trajectories.jsonl.gz"):
        assert [turn.continues for turn in each.turns] == [False, True, False, False]
        assert len(each.turns[1].action_ids) <= 5
        helper = each.turns[2].processing
        assert helper is not None
        assert helper.temperatures.tolist() == pytest.approx([0.7] * len(each.turns[2].action_ids))
        main = [
            token for turn in each.turns[:2] for ids in (turn.prompt_ids, turn.action_ids) for token in ids.tolist()
        ]
        assert each.turns[3].prompt_ids.tolist()[: len(main)] == main


def test_a_run_in_fixed_order_repeats_to_the_bit_and_resumes(whole: Path, model: Path, tmp_path: Path) -> None:
    broken, stages = tmp_path / "broken", list[str]()

    class Told(StopAfter):
        def stage(self, name: str) -> None:
            stages.append(name)

    with pytest.raises(StopError):
        train(config(model), broken, Told(2))
    assert stages == ["train"], "without a test panel nothing is measured"
    resume(broken)
    assert timeless(broken) == timeless(whole)
    ours, theirs = (RunDirectory.open(path).load("last") for path in (broken, whole))
    assert all(torch.equal(ours.tensors[name], theirs.tensors[name]) for name in ours.tensors)


def test_replies_in_a_form_train_are_proven_and_resume(model: Path, tmp_path: Path) -> None:
    """JSON by a schema and a named function."""
    pytest.importorskip("llguidance")
    settings = ("env.kwargs.run=tests.envs.programs.agents:formed", "agent.max_reply_tokens=120")
    settings += ("agent.max_context_tokens=512", "rollout.num_tasks=2", "num_updates=2")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(config(model, *settings), whole)
    lines = timeless(whole)
    assert all(line["agreement/max_abs"] <= 1e-5 and line["errors"] == 0 for line in lines)
    turns = [turn for each in TrajectoryReader(whole / "trajectories.jsonl.gz") for turn in each.turns]
    assert all(turn.valid and turn.processing is not None for turn in turns)
    choices = [sum(abs(count) > 1 for count in turn.processing.counts) for turn in turns if turn.processing]
    assert max(choices) < 24, "most of a reply is decided by its form"
    with pytest.raises(StopError):
        train(config(model, *settings), broken, StopAfter(1))
    resume(broken)
    assert timeless(broken) == lines
