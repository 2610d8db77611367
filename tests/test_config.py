"""A wrong setting is one clear error with the nearest right name; a right one survives the trip to disk."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from turnwise.agents.scratch import ScratchModelConfig
from turnwise.algorithms.recipe import RunInfo
from turnwise.algorithms.registry import build
from turnwise.config import PretrainedModelConfig
from turnwise.configfile import (
    config_folder,
    dump_config,
    load_config,
    override,
    parse_config,
    read_config,
    shipped_configs,
    with_algorithm,
)

BASE: dict[str, Any] = {"warmstart": {}}


@pytest.mark.parametrize("name", shipped_configs())
def test_shipped_configurations_build_and_survive_the_trip_to_disk(name: str) -> None:
    config = load_config(name)
    assert parse_config(yaml.safe_load(dump_config(config))) == config
    info = RunInfo(config.num_updates, config.rollout.group_size, config.seed)
    assert build(config.algorithm, info).checked()
    assert (config_folder() / f"{name}.yaml").read_text().startswith("# "), "the first line says what it is"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["optimizr.lr=1"], "Unknown setting 'optimizr'. Did you mean 'optimizer'?"),
        (["optimizer.lrr=1"], "Unknown setting 'optimizer.lrr'. Did you mean 'optimizer.lr'?"),
        (["lr=1"], "Unknown setting 'lr'. Did you mean 'optimizer.lr'?"),
        (["algorithm=grop"], "Unknown algorithm 'grop'. Did you mean 'grpo'?"),
        (["optimizer.lr=abc"], "optimizer.lr: Input should be a valid number"),
        (["optimizer.lr=-1"], "optimizer.lr: Input should be greater than 0"),
        (["rollout.temperature=0"], "rollout.temperature: Input should be greater than 0"),
        (["agent.window=3"], "agent.context=full does not use it"),
        (["eval.test_split=train"], "would not be of unseen tasks"),
        (["warmstart=null"], "random weights"),
        (["warmstart.stop_split=demonstrations"], "success would be measured on the demonstrations"),
        (["algorithm.base.kl_estimator=k1"], "kl_estimator has no effect"),
        (["lora=null", "algorithm.base.kl_coef=0.1"], "with lora=null there is none"),
        (["rollout.group_size=1"], "GRPO compares attempts at one task"),
        (["warmstart.split=test"], "it must stay unseen"),
        (["warmstart.stop_split=test"], "it must stay unseen"),
        (["agent.max_reply_tokens=600"], "no episode could begin"),
        (["agent.context=window", "agent.on_overflow=restart"], "a window is fresh every turn"),
        (["keep_checkpoint=best", "eval.every=0", "eval.tasks=128"], "nothing would be the best"),
        (["eval.every=0", "eval.tasks=9"], "eval.every=0 never measures"),
        (["warmstart.stop_success=null"], "do nothing without warmstart.stop_success"),
        (["optimizer.betas=[0.9"], "is not a YAML value"),
        (["algorithm.bse=1"], "Did you mean 'algorithm.base'?"),
        (["model.type=nothing"], "does not match any of the expected tags"),
        (["model.layers=3"], "Unknown setting 'model.layers'"),
        (["num_updates"], "is not of the form key.path=value"),
        (["seed.more=1"], "'seed' is a value, not a section"),
    ],
)
def test_errors_name_what_is_wrong_and_what_is_right(settings: list[str], message: str) -> None:
    raw = read_config("household")
    raw["seed"] = 0
    with pytest.raises(ValueError, match=r"\w") as caught:
        parse_config(override(raw, settings))
    assert message in str(caught.value)


def test_unknown_files_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Did you mean 'household'"):
        read_config("houshold")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1")
    with pytest.raises(ValueError, match="not valid YAML"):
        read_config(broken)
    broken.write_text("- 1")
    with pytest.raises(ValueError, match="should hold `key: value` lines"):
        read_config(broken)


def test_overrides_are_yaml_values() -> None:
    made = override(
        BASE, ["optimizer.lr=1e-3", "eval.greedy=false", "optimizer.betas=[0.9, 0.95]", "algorithm.type=grpo"]
    )
    config = parse_config(made)
    assert config.optimizer.lr == 1e-3
    assert config.eval.greedy is False
    assert config.optimizer.betas == (0.9, 0.95)
    assert BASE == {"warmstart": {}}, "the given mapping is not changed"


def test_the_kind_of_model_follows_from_its_settings() -> None:
    assert isinstance(parse_config(override(BASE, ["model.num_layers=2"])).model, ScratchModelConfig)
    assert isinstance(parse_config({"model": {"path": "somewhere"}}).model, PretrainedModelConfig)
    own = load_config("alfworld", ["model.path=somewhere", "model.dtype=bfloat16", "warmstart=null"])
    assert own.model == PretrainedModelConfig(path="somewhere", dtype="bfloat16")


def test_changing_the_algorithm_keeps_the_settings_of_the_base() -> None:
    epo = read_config("household")
    grpo = with_algorithm(epo, "grpo")
    assert grpo["algorithm"]["invalid_action_penalty"] == epo["algorithm"]["base"]["invalid_action_penalty"]
    assert with_algorithm(grpo, "epo")["algorithm"]["base"] == grpo["algorithm"]
    assert load_config("household", algorithm="grpo").algorithm == load_config("household").algorithm.base  # type: ignore[attr-defined]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=6,
    ),
    st.sampled_from(["", "env", "model", "lora", "agent", "warmstart", "algorithm", "optimizer", "eval", "seed"]),
)
def test_any_value_is_accepted_or_refused_with_a_sentence(value: Any, section: str) -> None:
    raw = {**BASE, section: value} if section else value if isinstance(value, dict) else {"x": value}
    with contextlib.suppress(ValueError):  # any other exception would reach the user as a traceback
        parse_config(raw)


def test_an_algorithm_from_outside_is_named_by_its_module() -> None:
    config = load_config("household", ["algorithm.cost=0.02"], algorithm="tests.outside:recipe")
    assert parse_config(yaml.safe_load(dump_config(config))) == config
    assert build(config.algorithm, RunInfo(1, 4)).name == "brisk"
    with pytest.raises(ValueError, match="algorithm"):
        load_config("household", ["algorithm.coast=0.02"], algorithm="tests.outside:recipe")
    with pytest.raises(ValueError, match="cannot be imported"):
        load_config("household", algorithm="tests.outside:nothing")


def test_a_configuration_extends_another(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: household\nrollout:\n  num_tasks: 3\nalgorithm:\n  type: grpo\n")
    made, below = load_config(tmp_path / "mine.yaml"), load_config("household")
    assert made.rollout.num_tasks == 3
    assert made.rollout.group_size == below.rollout.group_size
    assert made.warmstart == below.warmstart
    assert made.algorithm.type == "grpo", "another type starts from its own defaults"  # type: ignore[attr-defined]
    (tmp_path / "lost.yaml").write_text("extends: hausehold\n")
    with pytest.raises(ValueError, match="Did you mean 'household'"):
        load_config(tmp_path / "lost.yaml")


def test_engines_in_processes_are_for_a_cpu() -> None:
    with pytest.raises(ValueError, match=r"rollout\.engines=2 .* leave it at 1"):
        load_config("household", ["device=cuda", "rollout.engines=2"])
