"""A wrong setting is one clear error with the nearest right name; a right one survives the trip to disk."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from turnwise.algorithms.drbot import DrBoTConfig
from turnwise.algorithms.drgrpo import DrGRPOConfig
from turnwise.algorithms.epo import EPOConfig
from turnwise.algorithms.gigpo import GiGPOConfig
from turnwise.algorithms.grpo import GRPOConfig
from turnwise.algorithms.registry import build
from turnwise.algorithms.spear import CovarianceSettings, SPEARConfig
from turnwise.cloning.settings import WarmstartConfig
from turnwise.config.files import (
    config_folder,
    dump_config,
    load_config,
    override,
    parse_config,
    read_config,
    shipped_configs,
    with_algorithm,
)
from turnwise.config.overrides import beside
from turnwise.config.sections import EvalConfig
from turnwise.learning.settings import OptimizerConfig, RunInfo
from turnwise.models.settings import ORIGIN_FILE, PretrainedModelConfig, ScratchModelConfig

BASE: dict[str, Any] = {"warmstart": {}}


@pytest.mark.parametrize("name", shipped_configs())
def test_shipped_configurations_build_and_survive_the_trip_to_disk(name: str) -> None:
    config = load_config(name)
    assert parse_config(yaml.safe_load(dump_config(config))) == config
    assert build(config.algorithm, config.run_info).checked()
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
        (["rollout.temperature=0"], "rollout.temperature: Input should be greater than or equal to 0.001"),
        (["agent.window=3"], "agent.context=full does not use it"),
        (["eval.test_split=train"], "would not be of unseen tasks"),
        (["warmstart=null"], "random weights"),
        (["warmstart.stop_split=demonstrations"], "success would be measured on the demonstrations"),
        (["algorithm.base.kl_estimator=k1", "algorithm.base.kl_coef=0"], "kl_estimator has no effect"),
        (["rollout.group_size=1"], "GRPO compares attempts at one task"),
        (["warmstart.split=test"], "it must stay unseen"),
        (["warmstart.stop_split=test"], "it must stay unseen"),
        (["agent.max_reply_tokens=600"], "no episode could begin"),
        (["agent.context=window", "agent.on_overflow=restart"], "a window is fresh every turn"),
        (["keep_checkpoint=best", "eval.every=0", "eval.tasks=128"], "nothing would be the best"),
        (["eval.every=0", "eval.tasks=9"], "eval.every=0 never measures"),
        (["warmstart.stop_success=null"], "do nothing without warmstart.stop_success"),
        (["algorithm.base.reward_scale=10"], "has moved: rewards are the run's. Set rewards.scale"),
        (["algorithm={type: grpo, invalid_action_penalty: 0.1}"], "Set rewards.invalid_action_penalty"),
        (["algorithm.clip_low=0.1"], "Did you mean 'algorithm.base.clip_low'?"),
        (["algorithm.type=gigpo", "algorithm.stepcoef=1"], "Did you mean 'algorithm.step_coef'?"),
        (["rewards.penalty=1"], "Unknown setting 'rewards.penalty'"),
        (["optimizer.betas=[0.9"], "is not a YAML value"),
        (["algorithm.bse=1"], "Did you mean 'algorithm.base'?"),
        (["model.type=nothing"], "does not match any of the expected tags"),
        (["model.layers=3"], "Unknown setting 'model.layers'"),
        (["num_updates"], "is not of the form key.path=value"),
        (["seed.more=1"], "'seed' is a value, not a section"),
        (["scratch.optimizer.lr=1"], "Unknown setting 'scratch'"),
        (["algorithm=..:recipe"], "is not of the form module:recipe"),
        (["rollout=4"], "rollout is a section of settings, rollout.NAME=VALUE; got 4"),
        (["algorithm=spear", "algorithm.fresh_clip.low=5"], "low < high is what a token is drawn between"),
    ],
)
def test_errors_name_what_is_wrong_and_what_is_right(settings: list[str], message: str) -> None:
    raw = read_config("cloned")
    raw["seed"] = 0
    with pytest.raises(ValueError, match=r"\w") as caught:
        parse_config(override(raw, settings))
    assert message in str(caught.value)


def test_unknown_files_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no configuration 'houshold'\. Did you mean 'household'"):
        read_config("houshold")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1")
    with pytest.raises(ValueError, match="not valid YAML"):
        read_config(broken)
    broken.write_text("- 1")
    with pytest.raises(ValueError, match="should hold `key: value` lines"):
        read_config(broken)
    with pytest.raises(ValueError, match=r"there is no file '.*brokn.yaml'. Did you mean '.*broken.yaml'\?"):
        read_config(tmp_path / "brokn.yaml")
    with pytest.raises(ValueError, match=r"there is no file '.*nowhere/a.yaml'.$"):
        read_config(tmp_path / "nowhere" / "a.yaml")


def test_a_name_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    """YAML would keep the last one without a word."""
    twice = tmp_path / "twice.yaml"
    twice.write_text("rollout:\n  num_tasks: 4\nseed: 1\nrollout:\n  group_size: 2\n")
    with pytest.raises(ValueError, match=r"not valid YAML: 'rollout' is there twice\s+in .*line 4"):
        read_config(twice)
    twice.write_text("a: &a {seed: 1}\nb: {<<: *a, seed: 2}\nc: {seed: 3}\n")
    assert read_config(twice) == {"a": {"seed": 1}, "b": {"seed": 2}, "c": {"seed": 3}}


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


def test_choosing_an_algorithm_is_choosing_it_whole() -> None:
    """A section for another algorithm goes, one for the same stays."""
    raw = {"algorithm": {"type": "gigpo", "step_coef": 0.5}}
    assert with_algorithm(raw, "grpo")["algorithm"] == {"type": "grpo"}
    assert with_algorithm(raw, "gigpo")["algorithm"] == raw["algorithm"]
    assert load_config("household", algorithm="grpo").algorithm == GRPOConfig()
    assert load_config("household", ["algorithm=grpo"]).algorithm == GRPOConfig()
    assert load_config("alfworld-rl", ["algorithm.type=gigpo"]).algorithm != GiGPOConfig(), "this file is for GiGPO"
    assert load_config("alfworld-rl", ["algorithm.type=grpo"]).algorithm == GRPOConfig()


def test_one_nested_setting_keeps_its_neighbours() -> None:
    spear = load_config("household", ["algorithm={type: spear}", "algorithm.replay_clip.share=0.05"]).algorithm
    assert spear.replay_clip == CovarianceSettings(share=0.05, low=0.2, high=6.0)  # type: ignore[attr-defined]
    drbot = load_config("cloned", ["algorithm.base.clip_low=0.1", "algorithm.type=drbot"]).algorithm
    assert drbot == DrBoTConfig(base=DrGRPOConfig(clip_low=0.1, clip_high=0.28))
    other = load_config("cloned", ["algorithm.base.type=drbot"]).algorithm
    assert other == EPOConfig(base=DrBoTConfig()), "another base comes with its own defaults"
    deep = load_config("household", ["algorithm.type=spear", "algorithm.base.base.kl_coef=0.1"]).algorithm
    assert deep.base.base == DrGRPOConfig(kl_coef=0.1, clip_high=0.28)  # type: ignore[attr-defined]


def test_a_section_without_a_type_is_of_the_algorithm_that_is_there(tmp_path: Path) -> None:
    """In a file and on the command line, at every depth; where another is chosen it goes with the one it was for."""
    assert load_config("alfworld-rl", ["algorithm={gamma: 0.5}"]).algorithm == GiGPOConfig(gamma=0.5)
    words = ["algorithm=spear", "algorithm.base=gigpo", "algorithm.base={gamma: 0.5}"]
    assert load_config("household", words).algorithm == SPEARConfig(base=GiGPOConfig(gamma=0.5))
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: cloned\nalgorithm: {entropy_coef: 0.1, base: {clip_high: 0.5}}\n")
    own = EPOConfig(entropy_coef=0.1, base=GRPOConfig(drop_uniform_groups=False, clip_high=0.5))
    assert load_config(mine).algorithm == load_config(mine, algorithm="epo").algorithm == own
    assert load_config(mine, ["algorithm=epo"]).algorithm == own
    assert (
        load_config(mine, ["algorithm=grpo"]).algorithm == load_config(mine, algorithm="grpo").algorithm == GRPOConfig()
    )
    assert load_config(mine, ["algorithm.base=gigpo"]).algorithm == EPOConfig(entropy_coef=0.1, base=GiGPOConfig())
    deep = tmp_path / "deep.yaml"
    deep.write_text("extends: household\nalgorithm: {type: spear, base: {base: {clip_low: 0.1}}}\n")
    assert load_config(deep, ["algorithm.base=grpo"]).algorithm == SPEARConfig(base=GRPOConfig())
    for base in ("drbot", "{type: drbot}"):  # a file over it that names the base that is there
        over = tmp_path / "over.yaml"
        over.write_text(f"extends: {deep}\nalgorithm: {{base: {base}}}\n")
        assert load_config(over).algorithm == load_config(deep).algorithm


def test_a_base_is_the_same_by_its_name_and_by_a_section(tmp_path: Path) -> None:
    """In a file, on the command line and in Python: with the defaults that the algorithm gives it."""
    mine = tmp_path / "mine.yaml"
    for name, base, whole in (("drbot", "drgrpo", DrBoTConfig()), ("epo", "grpo", EPOConfig())):
        for written in (base, f"{{type: {base}}}"):
            mine.write_text(f"extends: household\nalgorithm: {{type: {name}, base: {written}}}\n")
            assert load_config(mine).algorithm == whole
            assert load_config("household", [f"algorithm.base={written}"], algorithm=name).algorithm == whole
        assert type(whole)(base=base) == whole  # type: ignore[arg-type]


def test_two_names_for_one_algorithm_are_refused() -> None:
    with pytest.raises(ValueError, match="two algorithms are asked for, 'spear' by name and 'grpo' by a setting"):
        load_config("household", ["algorithm=grpo"], algorithm="spear")
    assert load_config("household", ["algorithm=spear"], algorithm="spear").algorithm == SPEARConfig()


def test_two_names_for_one_world_are_refused() -> None:
    cue = "turnwise/Wordle-v0"
    for other in (["env.id=turnwise/Sokoban-v0"], ["env={id: turnwise/Sokoban-v0}"]):
        with pytest.raises(
            ValueError, match="two worlds are asked for, 'turnwise/Wordle-v0' by name and 'turnwise/Sokoban"
        ):
            load_config("smoke", other, env=cue)
    for same in ([f"env.id={cue}"], ["env={success_threshold: 0.5}"]):
        assert load_config("smoke", same, env=cue).env.id == cue


def test_an_option_and_a_setting_may_say_the_same() -> None:
    """And what an option says stays where a setting would drop it with its section."""
    assert beside(["seed=3"], ["num_updates=2", "seed=3"]) == ["seed=3", "num_updates=2", "seed=3"]
    assert beside(["model.path=a"], ["model.dtype=float32", "lora=null"])
    for settings in (["seed=4"], ["seed=3", "seed=4"], ["seed=null"]):
        with pytest.raises(
            ValueError, match=r"two values of seed are asked for, 3 by an option and (4|null) by a setting"
        ):
            beside(["seed=3"], settings)
    with pytest.raises(ValueError, match=r'two values of model\.path are asked for, "a" by an argument'):
        beside(["model.path=a"], ["model={dtype: float32}"], by="an argument")


def test_an_algorithm_section_that_is_none_is_refused_or_replaced(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    for wrong in ("3", "[grpo]", "null"):
        mine.write_text(f"extends: household\nalgorithm: {wrong}\n")
        with pytest.raises(ValueError, match="algorithm is a name, such as grpo or epo"):
            load_config(mine)
        assert load_config(mine, algorithm="grpo").algorithm == GRPOConfig()


def test_what_was_set_of_a_small_model_is_not_dropped_with_it() -> None:
    with pytest.raises(ValueError, match=r"Unknown setting 'model\.hidden_size'"):
        load_config("household", ["model.hidden_size=64", "model.path=somewhere"])


def test_another_type_keeps_what_was_given_for_it() -> None:
    """Wherever it stands on the line; the later of two settings of one name wins."""
    words = ["algorithm.base.clip_low=0.1", "algorithm.base.type=drgrpo", "algorithm.type=epo", "eval.tasks=7"]
    made = load_config("alfworld-rl", words)
    assert made == load_config("alfworld-rl", words[::-1])
    assert made.algorithm == EPOConfig(base=DrGRPOConfig(clip_low=0.1))
    spear = load_config("household", ["algorithm.tolerance=3", "algorithm=spear", "algorithm.base=grpo"]).algorithm
    assert (spear.tolerance, spear.base) == (3, GRPOConfig())  # type: ignore[attr-defined]
    last = load_config("household", ["algorithm.base.clip_low=0.1", "algorithm={type: grpo}", "seed=1", "seed=2"])
    assert (last.algorithm, last.seed) == (GRPOConfig(), 2)


def test_what_a_shipped_file_sets_and_a_run_does_not_use_is_no_error(tmp_path: Path) -> None:
    """Set means set by the user: on the command line, or in a file of theirs."""
    for name in ("household", config_folder() / "household.yaml"):
        assert load_config(name, ["eval.every=0"]).eval.tasks == EvalConfig().tasks
    clone = load_config("household", ["warmstart.stop_success=null"]).warmstart
    assert clone is not None
    assert clone.check_every == WarmstartConfig().check_every
    assert load_config("alfworld-rl", ["algorithm.drop_uniform_groups=false"]).algorithm.max_tries == 1  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="max_tries replaces uniform groups"):
        load_config("alfworld-rl", ["algorithm.drop_uniform_groups=false", "algorithm.max_tries=3"])
    (tmp_path / "mine.yaml").write_text("extends: household\neval: {tasks: 9}\n")
    with pytest.raises(ValueError, match=r"eval\.every=0 never measures"):
        load_config(tmp_path / "mine.yaml", ["eval.every=0"])


def test_a_model_that_is_brought_gets_no_settings_of_a_small_one(tmp_path: Path) -> None:
    """Files say what holds for a model from nothing, and what for one that is brought."""
    for name in shipped_configs():
        if name.endswith("-smollm2") or name.startswith("papers/"):  # for models that are brought
            continue
        brought, own = load_config(name, ["model.path=somewhere"]), load_config(name)
        assert brought.model == PretrainedModelConfig(path="somewhere")
        assert (brought.optimizer.lr, brought.warmstart, brought.agent.instructions) == (1e-5, None, True)
        if own.agent.context == "roles":
            assert (brought.agent.action_format, brought.agent.show_admissible) == ("calls", False)
            assert brought.agent.max_reply_tokens == 512 > own.agent.max_reply_tokens
            continue
        assert (brought.agent.action_format, brought.agent.show_admissible) == ("tags", True)
        assert brought.agent.admissible_format == "lines"
        assert brought.agent.max_reply_tokens == 256 > own.agent.max_reply_tokens
        plain = load_config(name, ["model.path=somewhere", "agent.action_format=plain"])
        assert plain.agent.max_reply_tokens == 48 != own.agent.max_reply_tokens
        assert brought.optimizer.betas == OptimizerConfig().betas
        assert (brought.env, brought.eval.test_split) == (own.env, own.eval.test_split)
    cloned = tmp_path / "cloned"
    cloned.mkdir()
    (cloned / ORIGIN_FILE).write_text('{"from_scratch": true}')
    ours = load_config("alfworld-rl", [f"model.path={cloned}"])
    assert ours.agent == load_config("alfworld-rl").agent, "a small model of ours keeps them"
    (cloned / ORIGIN_FILE).write_text('{"from_scratch": false}')
    assert load_config("alfworld-rl", [f"model.path={cloned}"]).agent.instructions


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


def test_settings_from_outside_may_extend_a_built_in_class() -> None:
    config = load_config("household", ["algorithm.haste=2", "algorithm.clip_low=0.1"], algorithm="tests.outside:hasty")
    assert parse_config(yaml.safe_load(dump_config(config))) == config
    assert (config.algorithm.type, config.algorithm.haste) == ("tests.outside:hasty", 2.0)  # type: ignore[attr-defined]
    assert build(config.algorithm, RunInfo(1, 4)).name == "hasty"


def test_a_setting_at_a_value_without_effect_is_no_contradiction() -> None:
    settings = ["algorithm.drop_uniform_groups=false", "algorithm.max_tries=1"]
    assert load_config("household", settings, algorithm="dapo").algorithm.max_tries == 1  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="max_tries replaces uniform groups"):
        load_config("household", [settings[0], "algorithm.max_tries=3"], algorithm="dapo")


def test_a_configuration_extends_another(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: household\nrollout:\n  num_tasks: 3\nalgorithm:\n  type: grpo\n")
    made, below = load_config(tmp_path / "mine.yaml"), load_config("household")
    assert made.rollout.num_tasks == 3
    assert made.rollout.group_size == below.rollout.group_size
    assert made.warmstart == below.warmstart
    assert made.algorithm.type == "grpo", "another type starts from its own defaults"  # type: ignore[attr-defined]
    (tmp_path / "lost.yaml").write_text("extends: hausehold\n")
    with pytest.raises(ValueError, match=r"no configuration .hausehold.\. Did you mean .household."):
        load_config(tmp_path / "lost.yaml")


def test_shards_and_where_they_are_fit_each_other() -> None:
    with pytest.raises(ValueError, match=r"rollout\.engines has moved: .* Set rollout\.shards"):
        load_config("household", ["rollout.engines=2"])
    with pytest.raises(ValueError, match=r"rollout\.shards=2 .* leave it at 1, or .* ray\.gpus_per_shard=1"):
        load_config("household", ["device=cuda", "rollout.shards=2"])
    with pytest.raises(ValueError, match=r"shards would sample on CPUs: set ray\.gpus_per_shard=1"):
        load_config("household", ["device=cuda", "ray.address=local"])
    load_config("household", ["device=cuda", "rollout.shards=2", "ray.gpus_per_shard=1"])
    with pytest.raises(ValueError, match=r"rollout\.num_slots=2 leaves a shard of rollout\.shards=3 without a slot"):
        load_config("household", ["rollout.num_slots=2", "rollout.shards=3"])
    for shards in ("rollout.shards=2", "ray.address=local"):
        with pytest.raises(
            ValueError, match=r"rollout\.env_order=free never repeats.* leave rollout\.env_order at fixed"
        ):
            load_config("household", ["rollout.env_order=free", shards])
    load_config("household", ["rollout.env_order=free"])
    for unused in ("rollout.shard_timeout_s=5", "rollout.shard_losses=1"):
        with pytest.raises(ValueError, match=r"is for rollout\.shards of 2 or more, rollout\.ahead, or ray"):
            load_config("household", [unused])
        load_config("household", [unused, "ray.address=local"])
        load_config("household", [unused, "rollout.ahead=1"])
    with pytest.raises(ValueError, match=r"rollout\.packed_weights=true .* device=cuda: leave it at auto"):
        load_config("household", ["rollout.packed_weights=true", "device=cuda"])
    for asked in ("auto", "true", "false"):
        load_config("household", [f"rollout.packed_weights={asked}"])


@pytest.mark.parametrize("others", [[], ["rollout.env_threads=4", "rollout.env_order=free"]])
def test_a_share_of_waiting_episodes_that_decides_nothing_is_refused(others: list[str]) -> None:
    with pytest.raises(ValueError, match=r"env_waiting_share=0\.25 is for worlds in threads"):
        load_config("household", ["rollout.env_waiting_share=0.25", *others])
    found = load_config("household", ["rollout.env_waiting_share=0.25", "rollout.env_threads=4"])
    assert found.rollout.env_waiting_share == 0.25
