"""A run settles how many examples its agent is shown, keeps them, and plays with them wherever it is loaded."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

import turnwise
from tests.faults.runs import config
from tests.models import chatting_folder
from turnwise.agents.opening import read_examples
from turnwise.agents.prompts import AgentConfig
from turnwise.assembly.agent_files import agent_settings, describe_agent
from turnwise.assembly.players import players
from turnwise.assembly.run import Assembly
from turnwise.config.files import load_config
from turnwise.envs.tasks import make_env
from turnwise.models.settings import ORIGIN_FILE
from turnwise.runs.directory import RunDirectory

SEARCH = ("env.id=turnwise/Search-v0", "env.success_threshold=null", "agent.max_context_tokens=4096", "num_updates=1")


@pytest.fixture
def run(tmp_path: Path, model: Path) -> RunDirectory:
    with closing(Assembly(config(model, *SEARCH))) as assembly:
        made = RunDirectory.create(tmp_path / "run", assembly.settled(), {})
        with closing(assembly.trainer(made)) as trainer:
            assert trainer.sides[0].agent.examples == assembly.examples
            trainer.save()
    return made


def test_a_run_keeps_its_examples(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run.config().agent.examples == 2
    stored = read_examples(run.path)
    assert stored is not None
    assert len(stored) == 2
    monkeypatch.setattr("turnwise.assembly.run.examples_for", lambda *_, **__: ())  # as if they were made otherwise now
    with closing(Assembly(run.config())) as assembly, closing(assembly.trainer(run)) as trainer:
        assert trainer.sides[0].agent.examples == stored
    world = make_env("turnwise/Search-v0")
    assert players(run.path, world, num_slots=2, checkpoint=0)[""].examples == stored  # type: ignore[union-attr]
    agent = turnwise.Agent.load(run.path, checkpoint=0, num_episodes=1)
    assert agent._model.examples == stored
    observation, info = world.reset(seed=0)
    agent.reset(seed=0)
    agent.act(observation, info)
    assert (
        agent._model.chat.messages(agent._seat.turns[0].prompt_ids, fresh=True)[1]
        == f"<action>{stored[0].actions[0]}</action>"
    )
    others: Any = players(run.path, world, num_slots=2, checkpoint=0, agent={"examples": 1})[""]
    assert len(others.examples) == 1


def test_a_run_from_before_there_were_examples_has_none(run: RunDirectory) -> None:
    written = run.path / "config.yaml"
    raw = yaml.safe_load(written.read_text())
    for name in ("examples", "examples_split", "examples_seed"):
        del raw["agent"][name]
    written.write_text(yaml.safe_dump(raw))
    assert RunDirectory.open(run.path).config().agent.examples == 0


def test_only_a_model_that_has_seen_nothing_gets_them_unasked(model: Path, tmp_path: Path) -> None:
    def shown(*settings: str, path: Path = model) -> int:
        with closing(Assembly(config(path, *SEARCH, *settings))) as assembly:
            return len(assembly.examples)

    assert shown() == 2
    assert shown("agent.examples=0") == 0
    assert shown("warmstart={}") == 0
    assert shown("warmstart={}", "agent.examples=1") == 1
    assert shown("env.id=tests.worlds:tests/Echo-v0") == 0
    with pytest.raises(ValueError, match=r"agent.examples=1: .* has no expert"):
        shown("env.id=tests.worlds:tests/Echo-v0", "agent.examples=1")
    with pytest.raises(ValueError, match=r"is measured, and agent.examples shows how it is solved"):
        shown("agent.examples_split=test", "agent.examples=2", "eval={every: 0, test_tasks: 512}")
    cloned = tmp_path / "cloned"
    shutil.copytree(model, cloned)
    (cloned / ORIGIN_FILE).write_text('{"from_scratch": false}')
    assert shown(path=cloned) == 0


def test_examples_without_room_are_refused_before_training(model: Path, tmp_path: Path) -> None:
    with closing(Assembly(config(model, *SEARCH, "agent.max_context_tokens=300"))) as assembly:
        made = RunDirectory.create(tmp_path / "run", assembly.settled(), {})
        with pytest.raises(ValueError, match=r"agent.examples=2: the examples take"):
            assembly.trainer(made)


def test_an_exported_model_brings_its_examples(run: RunDirectory, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    world = make_env("turnwise/Search-v0")
    fresh: Any = players(folder, world, num_slots=1, agent={"examples_seed": 1})[""]
    stored = read_examples(run.path) or ()
    assert len(fresh.examples) == 2
    assert fresh.examples != stored
    describe_agent(folder, run.config().agent, stored)
    kept: Any = players(folder, world, num_slots=1)[""]
    assert kept.examples == stored
    assert len(turnwise.Agent.load(folder, num_episodes=1)._model.examples) == 2
    (folder / "examples.json").unlink()
    with pytest.raises(ValueError, match=r"agent.examples=2: say of which world, with Agent.load\(..., env=...\)"):
        turnwise.Agent.load(folder, num_episodes=1)
    assert len(turnwise.Agent.load(folder, num_episodes=1, env="turnwise/Search-v0")._model.examples) == 2


def test_examples_leave_the_key_of_a_clone_alone(model: Path) -> None:
    with closing(Assembly(config(model, *SEARCH, "warmstart={}"))) as assembly:
        plain = assembly.warmstart.cloning
    with closing(Assembly(config(model, *SEARCH, "warmstart={}", "agent.examples=0"))) as assembly:
        assert assembly.warmstart.cloning.key == plain.key
    with closing(Assembly(config(model, *SEARCH, "warmstart={}", "agent.examples=1"))) as assembly:
        assert assembly.warmstart.cloning.key != plain.key


def test_a_world_in_roles_is_played_in_roles_unless_told_otherwise(tmp_path: Path) -> None:
    folder, name = chatting_folder(tmp_path / "model"), "openai:m@http://127.0.0.1:9/v1"
    world, other = make_env("turnwise/SQL-v0"), make_env("turnwise/Search-v0")
    short = {"max_context_tokens": 128, "max_reply_tokens": 8}
    agents: list[Any] = [
        players(folder, world, num_slots=1, agent=short)[""].config,  # type: ignore[union-attr]
        players(name, world, num_slots=1)[""].make.settings,  # type: ignore[union-attr]
    ]
    for settings in agents:
        assert (settings.context, settings.action_format, settings.show_admissible) == ("roles", "calls", False)
    assert [agent_settings(folder, None, given, True).context for given in ({"context": "full"}, {})] == [
        "full",
        "roles",
    ]
    assert agent_settings(folder, None, {"action_format": "tags"}, True).context == "full"
    asked: Any = players(name, other, num_slots=1)[""]
    assert asked.make.settings.context == "full"


def test_a_folder_and_an_endpoint_have_the_same_usual_settings(model: Path, tmp_path: Path) -> None:
    usual = agent_settings(model, None, {})
    assert (usual.action_format, usual.instructions, usual.show_admissible) == ("tags", True, True)
    assert (usual.admissible_format, usual.max_reply_tokens, usual.max_context_tokens) == ("lines", 256, 8192)
    assert usual == load_config("search", [f"model.path={model}"]).agent
    made: Any = players("openai:m@http://127.0.0.1:9/v1", make_env("turnwise/Search-v0"), num_slots=1)[""]
    assert made.make.settings == usual
    assert len(made.make.examples) == 2
    assert agent_settings(model, None, {"action_format": "plain"}).max_reply_tokens == 48
    assert agent_settings(model, None, {"action_format": "plain", "max_reply_tokens": 9}).max_reply_tokens == 9
    ours = tmp_path / "ours"
    ours.mkdir()
    (ours / ORIGIN_FILE).write_text('{"from_scratch": true}')
    assert agent_settings(ours, None, {}) == AgentConfig()
    (ours / "agent.json").write_text('{"action_format": "tags"}')  # as an earlier version wrote it
    assert agent_settings(ours, None, {}) == AgentConfig(action_format="tags", examples=0)


def test_a_folder_keeps_the_methods_of_decoding_that_are_not_changed(tmp_path: Path) -> None:
    methods = {"mirostat": {"target": 1.5, "rate": 0.2}, "floor": {"probability": 0.01}}
    saved = AgentConfig(decoding=methods)  # type: ignore[arg-type]
    describe_agent(tmp_path, saved, ())
    for trained in (None, saved):  # an exported folder, and a run
        found = agent_settings(tmp_path, trained, {"decoding": {"mirostat": {"target": 3.0}}}).decoding
        assert found.mirostat is not None
        assert (found.mirostat.target, found.mirostat.rate) == (3.0, 0.2)
        assert found.floor == saved.decoding.floor
        assert agent_settings(tmp_path, trained, {"decoding": {"floor": None}}).decoding.names == [
            "agent.decoding.mirostat"
        ]
