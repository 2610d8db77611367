"""Configurations of runs made before rewards were the run's own are read in today's terms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from turnwise.algorithms.aepo import AEPOConfig
from turnwise.algorithms.grpo import GRPOConfig
from turnwise.config.files import dump_config, load_config, parse_config
from turnwise.runs.directory import RunDirectory
from turnwise.runs.translating import translated

SURROGATE = {"kl_coef": 0.02, "kl_estimator": "k3", "ratio_denominator": "behaviour", "importance_cap": 2.0}
REWARDS = {"reward_scale": 10.0, "invalid_action_penalty": 0.1}
CLIP = {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": 3.0, "aggregation": "token-mean", "aggregation_constant": None}
GROUPS = {"group_stats": "trajectories", "singleton": "zero", "drop_uniform_groups": True, "max_tries": 1}


def before(algorithm: dict[str, Any]) -> dict[str, Any]:
    """A stored configuration as version 0.1.0 wrote it."""
    raw: dict[str, Any] = yaml.safe_load(dump_config(load_config("household")))
    del raw["rewards"]
    return {**raw, "algorithm": algorithm}


def grpo(**changes: Any) -> dict[str, Any]:
    return {"type": "grpo", **SURROGATE, **REWARDS, **CLIP, **GROUPS, "normalize_std": True, "std_eps": 1e-6, **changes}


def test_rewards_become_the_runs() -> None:
    made = parse_config(translated(before(grpo())))
    assert (made.rewards.scale, made.rewards.invalid_action_penalty) == (10.0, pytest.approx(0.01))
    assert made.algorithm.kl_coef == 0.02, "advantages in deviations: coefficients stay"  # type: ignore[attr-defined]
    assert made.algorithm.std_eps == pytest.approx(1e-7)  # type: ignore[attr-defined]


def test_what_is_in_units_of_reward_becomes_a_share_of_a_success() -> None:
    """Where the base does not divide by the deviation, coefficients and bounds beside its advantages too."""
    base = grpo(normalize_std=False)
    epo = parse_config(translated(before({"type": "epo", "base": base, "entropy_coef": 0.001}))).algorithm
    assert (epo.entropy_coef, epo.base.kl_coef, epo.weighting) == (1e-4, 0.002, "turns")  # type: ignore[attr-defined]
    clip = {"share": 0.02, "low": 2.0, "high": 60.0}
    spear = {"type": "spear", "base": base, "bonus_coef": 1.0, "fresh_clip": None, "replay_clip": clip}
    made = parse_config(translated(before(spear))).algorithm
    assert (made.bonus_coef, made.replay_clip.low, made.replay_clip.high) == (0.1, 0.2, 6.0)  # type: ignore[attr-defined]
    assert made.normalize_std is False  # type: ignore[attr-defined]
    ppo = {"type": "ppo", **SURROGATE, **REWARDS, **CLIP, "value_clip": 0.5, "whiten": True}
    assert parse_config(translated(before(ppo))).algorithm.value_clip == 0.05  # type: ignore[attr-defined]


def test_what_is_no_reward_keeps_its_size() -> None:
    """AEPO's penalty is a share of readiness; DAPO's is one of reward. EPO's released means were never over turns."""
    aepo = {"type": "aepo", "base": grpo(), "penalty": 0.05}
    assert parse_config(translated(before(aepo))).algorithm == AEPOConfig(base=GRPOConfig(kl_coef=0.02, std_eps=1e-7))
    overlong = {"max_tokens": 9, "buffer_tokens": 3, "penalty": 5.0, "scope": "turn"}
    dapo = parse_config(translated(before({**grpo(), "type": "dapo", "overlong": overlong}))).algorithm
    assert dapo.overlong.penalty == 0.5  # type: ignore[attr-defined]
    released = parse_config(translated(before({"type": "epo", "base": grpo(), "form": "released"}))).algorithm
    assert (released.form, released.weighting) == ("released", "trajectories")  # type: ignore[attr-defined]
    outside = parse_config(translated(before({"type": "epo", "base": {"type": "tests.outside:recipe", "cost": 1.0}})))
    assert outside.algorithm.weighting == "turns"  # type: ignore[attr-defined]


def test_configurations_of_now_are_left_alone() -> None:
    for name in ("spear", "epo", "ppo"):
        raw = yaml.safe_load(dump_config(load_config("household", algorithm=name)))
        assert translated(raw) == raw


def test_a_run_of_before_has_no_induction_heads() -> None:
    raw = yaml.safe_load(dump_config(load_config("webshop")))
    assert raw["model"]["induction_heads"] is True, "a stored configuration says which"
    del raw["model"]["induction_heads"]
    assert parse_config(translated(raw)).model.induction_heads is False  # type: ignore[union-attr]
    assert parse_config(raw).model.induction_heads is True  # type: ignore[union-attr]


def test_a_run_of_before_takes_texts_for_states() -> None:
    """GraphGPO's setting came later, on any base; a stored configuration of now says it."""
    for base in (False, True):
        algorithm: dict[str, Any] = {"type": "graphgpo"}
        raw = yaml.safe_load(dump_config(load_config("household", algorithm="graphgpo")))
        made = translated({**raw, "algorithm": {"type": "empg", "base": algorithm} if base else algorithm})["algorithm"]
        assert (made["base"] if base else made)["states"] == "anchor"
        assert translated(raw)["algorithm"]["states"] == "key"


def test_engines_of_before_are_one_collector() -> None:
    """They moved numbers by rounding alone; shards play other trees, and cannot make a world given as an object."""
    raw = yaml.safe_load(dump_config(load_config("household")))
    del raw["rollout"]["shards"]
    made = parse_config(translated({**raw, "rollout": {**raw["rollout"], "engines": 3}}))
    assert made == load_config("household")
    assert made.rollout.shards == 1


def test_a_run_folder_of_before_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(before(grpo(reward_scale=1.0, invalid_action_penalty=0.03))))
    made = RunDirectory.open(tmp_path).config()
    assert made.rewards.invalid_action_penalty == 0.03
