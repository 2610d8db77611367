"""Worlds that raise, hang or die: episodes are retried and counted, worlds replaced, and a run of faults stops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from turnwise.config.files import load_config
from turnwise.config.schema import RunConfig
from turnwise.envs.settings import EnvConfig
from turnwise.evaluation.evaluate import evaluate
from turnwise.jobs import train
from turnwise.runs.directory import RunDirectory
from turnwise.training.trainer import CollectionError


def config(model: Path, way: str, marks: Path, times: int, *settings: str) -> RunConfig:
    marks.mkdir()
    fixed = [
        "env.id=tests.worlds:tests/Moody-v0",
        f"env.kwargs={{way: {way}, marks: {marks}, times: {times}}}",
        "env.success_threshold=0.5",
        f"model.path={model}",
        "warmstart=null",
        "agent.max_reply_tokens=4",
        "rollout.num_tasks=2",
        "rollout.group_size=2",
        "rollout.num_slots=2",
        "eval.every=0",
        "eval.tasks=128",
        "eval.test_split=null",
        "num_updates=2",
        "algorithm.base.drop_uniform_groups=false",
    ]
    return load_config("smoke", [*fixed, *settings])


@pytest.mark.parametrize("way", ["raise", "hang", "die"])
def test_training_goes_on_past_a_world_that_fails_once(model: Path, tmp_path: Path, way: str) -> None:
    made = config(model, way, tmp_path / "marks", 1, "env.process=true", "env.step_timeout_s=1")
    train(made, tmp_path / "run")
    assert counted(tmp_path / "run") == [(4, 0, 1), (4, 0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["raise", "hang", "die"])
def test_and_past_one_that_fails_when_an_episode_begins(model: Path, tmp_path: Path, way: str) -> None:
    limit = "env.reset_timeout_s=30"  # the start of a process counts too, and this machine may be busy
    unready = ["env.id=tests.faults.worlds:tests/Unready-v0", "env.process=true", limit]
    train(config(model, way, tmp_path / "marks", 1, *unready), tmp_path / "run")
    assert counted(tmp_path / "run") == ([(4, 0, 0), (4, 0, 0)] if way == "die" else [(4, 0, 1), (4, 0, 1)])


def counted(run: Path) -> list[tuple[int, int, int]]:
    """Episodes, those that failed twice, and the failures so far, update by update."""
    return [(line["episodes"], line["errors"], line["failures"]) for line in RunDirectory.open(run).metrics()]


def test_an_episode_that_fails_twice_is_left_out_of_its_group(model: Path, tmp_path: Path) -> None:
    train(config(model, "raise", tmp_path / "marks", 2, "rollout.num_slots=1"), tmp_path / "run")
    assert counted(tmp_path / "run") == [(3, 1, 2), (4, 0, 2)]


def test_too_many_failures_stop_the_run(model: Path, tmp_path: Path) -> None:
    expected = r"4 of 4 episodes of update 0 failed twice .*the simulator is unwell.*max_error_share=0\.25"
    with pytest.raises(CollectionError, match=expected):
        train(config(model, "raise", tmp_path / "marks", 100), tmp_path / "run")


def test_a_score_out_of_its_range_is_refused_by_the_worlds_name(model: Path, tmp_path: Path) -> None:
    room = EnvConfig(id="tests.envs.test_offers:offers/Room-v0", kwargs={"info": {"score": 50}})
    made = config(model, "raise", tmp_path / "marks", 0).model_copy(update={"env": room})
    refused = r"offers/Room-v0 returned info\['score'\] 50; expected a number in \[0, 1\]"
    with pytest.raises(CollectionError, match=refused):
        train(made, tmp_path / "run")
    with pytest.raises(ValueError, match=refused):
        evaluate(model, env=room.id, env_kwargs=room.kwargs, tasks=2, agent={"max_reply_tokens": 4})


def in_room(model: Path, folder: Path, kwargs: dict[str, Any], *settings: str) -> RunConfig:
    room = EnvConfig(id="tests.envs.test_offers:offers/Room-v0", kwargs=kwargs)
    return config(model, "raise", folder / "marks", 0, *settings).model_copy(update={"env": room})


def test_keys_of_info_that_are_the_worlds_own_do_not_stop_a_run(model: Path, tmp_path: Path) -> None:
    own = {"sampling": "uniform", "ignored": 3, "tools": ["hammer"], "after": "noon"}
    train(in_room(model, tmp_path, {"info": own}), tmp_path / "run")
    assert counted(tmp_path / "run") == [(4, 0, 0), (4, 0, 0)]


def test_a_first_prompt_that_never_fits_is_told_with_the_limit(model: Path, tmp_path: Path) -> None:
    long = {"own": {"instructions": "Look at the mug. " * 40}}
    made = in_room(model, tmp_path, long, "agent.instructions=true", "agent.max_context_tokens=64")
    with pytest.raises(CollectionError, match=r"no first prompt fits into the context: raise agent\.max_con"):
        train(made, tmp_path / "run")


def test_limits_need_a_process(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"env\.step_timeout_s can only be kept with env\.process=true"):
        config(model, "hang", tmp_path / "marks", 1, "env.step_timeout_s=1")


def test_a_world_whose_package_is_missing_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from turnwise.envs.tasks import make_env

    hidden: Any = None
    monkeypatch.setitem(sys.modules, "scienceworld", hidden)
    monkeypatch.delitem(sys.modules, "scienceworld.constants", raising=False)
    with pytest.raises(ValueError, match=r'pip install -e "\.\[envs\]"'):
        make_env("turnwise/ScienceWorld-v0").reset(seed=0)
