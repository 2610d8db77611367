"""One place makes a run's objects, each once."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.faults.runs import config
from turnwise.algorithms.registry import build
from turnwise.assembly import players
from turnwise.assembly.policies import load_policies, new_policies
from turnwise.assembly.run import Assembly
from turnwise.assembly.teachers import teacher_of
from turnwise.envs import tasks
from turnwise.envs.settings import EnvConfig
from turnwise.models.settings import LoRAConfig, PretrainedModelConfig
from turnwise.runs.directory import RunDirectory


def test_one_environment_is_made_before_the_first_episode_and_closed(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, closed, panels = list[Any](), list[Any](), list[str]()
    make, close, panel = EnvConfig.make, tasks.close, tasks.panel

    def counted(self: EnvConfig) -> Any:
        made.append(make(self))
        return made[-1]

    def asked(env: Any, split: str) -> Any:
        panels.append(split)
        return panel(env, split)

    monkeypatch.setattr(EnvConfig, "make", counted)
    monkeypatch.setattr("turnwise.assembly.run.close", lambda env: (closed.append(env), close(env))[1])
    monkeypatch.setattr("turnwise.training.tasksets.panel", asked)
    settings = config(model, "eval={every: 1, tasks: 2, test_split: test, test_tasks: 2}")
    with closing(Assembly(settings)) as assembly:
        run = RunDirectory.create(tmp_path / "run", settings, assembly.panels.hashes())
        with closing(assembly.trainer(run)):
            assert len(made) == 1
            assert sorted(panels) == ["test", "train", "validation"], "each panel is opened once"
    assert closed == made


def test_a_runs_models_are_named_for_any_working_directory(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "models").symlink_to(model.parent)
    monkeypatch.chdir(tmp_path)
    name, mine = f"models/{model.name}", "{type: distill, teacher: mine}"
    taught = f"algorithm={{type: siren, base: {{type: distill, teacher: {name}}}}}"
    for given, (path, teacher) in {
        (name, taught): (str(tmp_path / name), str(tmp_path / name)),
        ("smollm2", f"algorithm={mine}"): ("smollm2", "mine"),
    }.items():
        (tmp_path / given[0]).mkdir(exist_ok=True)  # a short name is no folder, also where there is one
        assembly = Assembly(config(Path(given[0]), given[1]))
        monkeypatch.setattr(assembly, "agent", assembly.config.agent, raising=False)
        settled = assembly.settled()
        assert settled.model.path == path  # type: ignore[union-attr]
        algorithm = settled.algorithm.model_dump()
        assert algorithm.get("base", algorithm)["teacher"] == teacher
        run = RunDirectory.create(tmp_path / f"run-{Path(path).name}", settled, {})
        assert RunDirectory.open(run.path).config() == settled
    monkeypatch.chdir(elsewhere)
    run = RunDirectory.open(tmp_path / f"run-{model.name}")
    policies = load_policies(run, [""], samples=False)
    recipe = build(run.config().algorithm, run.config().run_info)
    assert teacher_of(recipe, policies[""]) is not None


def test_the_policies_of_a_game_begin_alike_and_part(model: Path) -> None:
    settings: dict[str, Any] = {"lora": LoRAConfig(rank=2, alpha=4.0), "seed": 0, "device": "cpu"}
    made = new_policies(model, ["first", "second"], model=PretrainedModelConfig(path=str(model)), **settings)
    first, second = made.values()
    assert first.adapter_hash == second.adapter_hash != ""
    with torch.no_grad():
        for tensor in first.parameters():
            tensor += 1.0
    for policy in made.values():
        policy.sync(1)
    assert first.adapter_hash != second.adapter_hash


def test_nothing_is_opened_before_it_is_needed(model: Path) -> None:
    assembly = Assembly(config(model, "env.id=turnwise/Nowhere-v0"))
    assert assembly.config.env.id == "turnwise/Nowhere-v0"
    with pytest.raises(ValueError, match="unknown environment 'turnwise/Nowhere-v0'"):
        _ = assembly.panels
    assembly.close()


def test_a_configuration_is_read_once_from_a_run(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import turnwise.runs.directory as directory

    RunDirectory.create(tmp_path / "run", config(model), {})
    read = list[Any]()
    parse = directory.parse_config
    monkeypatch.setattr(directory, "parse_config", lambda raw: (read.append(raw), parse(raw))[1])
    run = RunDirectory.open(tmp_path / "run")
    assert run.config() == run.config() == config(model)
    assert len(read) == 1


def test_a_run_of_a_later_format_is_refused_by_name(tmp_path: Path, model: Path) -> None:
    RunDirectory.create(tmp_path / "run", config(model), {})
    written = tmp_path / "run" / "run.json"
    written.write_text(written.read_text().replace('"format": 2', '"format": 3'))
    with pytest.raises(ValueError, match="a run of format 3; this version of turnwise reads formats 1 to 2"):
        RunDirectory.open(tmp_path / "run").config()


def test_a_vote_is_refused_in_a_world_without_answers(model: Path) -> None:
    """Before anything is cloned; a world that gives answers may pay by it."""
    vote = "algorithm={type: ear, base: {type: etmr, reward: vote}}"
    with closing(Assembly(config(model, vote))) as assembly, pytest.raises(ValueError, match="end in none that could"):
        assembly.check_sources()
    for settings in ((vote, "env={id: turnwise/Search-v0}"), ("algorithm=etmr",)):
        with closing(Assembly(config(model, *settings))) as assembly:
            assembly.check_sources()


def test_a_threshold_that_would_do_nothing_is_refused_before_anything_is_cloned(model: Path) -> None:
    """The world says by itself which episodes are a success; that of a run's own setting does not."""
    telling = "env={id: 'tests.worlds:tests/Cue-v0', success_threshold: 0.5}"
    paid = ("env={id: 'tests.worlds:tests/Cue-v0'}", "rewards={functions: ['math:hypot'], success_threshold: 1}")
    for settings, name in (((telling,), "env"), (paid, "rewards")):
        told = rf"{name}\.success_threshold=.* would have no effect: tests/Cue-v0 says by itself"
        with closing(Assembly(config(model, *settings))) as assembly, pytest.raises(ValueError, match=told):
            assembly.check_sources()
    with closing(Assembly(config(model))) as assembly:
        assembly.check_sources()


def test_settings_of_games_that_cannot_work_are_refused_before_anything_is_cloned(model: Path) -> None:
    game = "env={id: turnwise/TicTacToe-v0}"
    refused = {
        ("game.opponent=random",): "is a world of one player: leave the game settings out",
        (game, "game.opponent=ranodm"): "unknown agent 'ranodm'. Did you mean 'random'?",
        (game, "game.eval_opponent=ranodm"): "unknown agent 'ranodm'. Did you mean 'random'?",
    }
    for settings, told in refused.items():
        with closing(Assembly(config(model, *settings))) as assembly, pytest.raises(ValueError, match=re.escape(told)):
            assembly.check_sources()
    with closing(Assembly(config(model, game, "game.opponent=self"))) as assembly:
        assembly.check_sources()


def test_a_second_model_that_is_not_there_is_refused_before_anything_is_cloned(model: Path, tmp_path: Path) -> None:
    def second(name: Path) -> Assembly:
        return Assembly(config(model, f"agent.decoding.second.model={name}"))

    told = r"agent\.decoding\.second\.model=.*no model configuration at '.*gone'"
    with closing(second(tmp_path / "gone")) as assembly, pytest.raises(ValueError, match=told):
        assembly.check_sources()
    with closing(second(model)) as assembly:
        assembly.check_sources()
    RunDirectory.create(tmp_path / "run", config(model), {})
    with closing(second(tmp_path / "run")) as assembly:
        assembly.check_sources()


def test_a_ranking_that_cannot_be_used_is_refused_before_anything_is_cloned(model: Path, tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", config(model), {})
    ranked = ["rewards.ranking.model=openai:m", "rewards.ranking.endpoint.base_url=http://127.0.0.1:1/v1"]
    unset = "rewards.ranking.endpoint.key_variable=NO_SUCH_KEY"
    refused = {("algorithm=arpo",): r"rewards\.ranking scores whole groups", ("algorithm=grpo", unset): "NO_SUCH_KEY"}
    for settings, told in refused.items():
        with closing(Assembly(config(model, *ranked, *settings))) as assembly, pytest.raises(ValueError, match=told):
            assembly.check_grader(run)
    with closing(Assembly(config(model, *ranked, "algorithm=grpo"))) as assembly:
        assembly.check_grader(run)


def test_copies_within_replies_are_refused_with_a_vllm_server(model: Path) -> None:
    served = "rollout={backend: vllm, vllm: {url: 'http://127.0.0.1:1'}}"
    with (
        closing(Assembly(config(model, "algorithm=cure", served))) as assembly,
        pytest.raises(ValueError, match="cure begins copies within replies"),
    ):
        assembly.check_sources()
    for settings in (("algorithm=cure",), ("algorithm=arpo", served)):
        with closing(Assembly(config(model, *settings))) as assembly:
            assembly.check_sources()


def test_a_teacher_that_is_not_there_is_refused_before_anything_is_cloned(model: Path, tmp_path: Path) -> None:
    asked = config(model, f"algorithm={{type: distill, teacher: {tmp_path / 'nobody'}}}")
    with closing(Assembly(asked)) as assembly, pytest.raises(ValueError, match=r"teacher .*nobody"):
        assembly.check_sources()


def test_a_name_that_nobody_can_have_is_refused_before_a_hub_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(players, "gguf_of", lambda name: Path("small.gguf") if name == "smollm2" else None)
    for name in ("random", "expert:knowing", "openai:m@http://h", "smollm2", "Qwen/Qwen3-0.6B", "tests"):
        players.check_player(name)
    with pytest.raises(ValueError, match=r"unknown agent 'smolm2'. Did you mean 'smollm2'\?"):
        players.check_player("smolm2")
