"""The range of every number that can be set, at its ends; and each way in which settings contradict one another."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from turnwise.algorithms.aepo import AEPOConfig
from turnwise.algorithms.bapo import BAPOConfig
from turnwise.algorithms.canon import CANONConfig
from turnwise.algorithms.cispo import CISPOConfig
from turnwise.algorithms.clip_cov import ClipCovConfig
from turnwise.algorithms.copo import COPOConfig
from turnwise.algorithms.dapo import OverlongSettings
from turnwise.algorithms.dppo import DPPOConfig
from turnwise.algorithms.drgrpo import DrGRPOConfig
from turnwise.algorithms.ear import EARConfig
from turnwise.algorithms.empg import EMPGConfig
from turnwise.algorithms.epo import EPOConfig
from turnwise.algorithms.grpo import GRPOConfig
from turnwise.algorithms.kl_cov import KLCovConfig
from turnwise.algorithms.ppo import PPOConfig
from turnwise.algorithms.registry import ALGORITHMS, resolve
from turnwise.algorithms.reinforce_pp import ReinforcePPConfig
from turnwise.algorithms.sac import SACConfig
from turnwise.algorithms.spear import SPEARConfig
from turnwise.algorithms.steer import STEERConfig
from turnwise.learning.settings import OptimizerConfig, Settings

COUNT, ANY, POSITIVE, SHARE, NONZERO = "1..", "[0, inf)", "(0, inf)", "[0, 1]", "(0, 1]"
RANGES = {
    **dict.fromkeys(
        (
            "baseline_groups", "bonus_updates", "branches", "buffer_size", "bundle", "buffer_tokens", "draw",
            "entropy_tokens", "epochs", "history_turns", "initial", "max_reply_tokens", "max_tokens", "max_tries",
            "microbatch_tokens", "ngram", "num_minibatches", "schedule_updates", "tolerance",
            "value_width", "warmup_updates",
        ),
        COUNT,
    ),
    **dict.fromkeys(
        (
            "beta", "bias", "bonus_coef", "clarity", "clip_high", "corridor_coef", "entropy_advantage", "entropy_coef",
            "entropy_weight", "epo.gamma", "kl_coef", "length_weight", "aepo.penalty", "penalty_coef", "replay_coef",
            "scaling", "square_coef", "step_coef", "entropy_advantage.alpha", "bapo.target", "weight_decay",
        ),
        ANY,
    ),
    **dict.fromkeys(
        (
            "bapo.high_step", "bapo.low_step", "bound", "budget", "coef_lr", "initial_coef", "max_coef",
            "sac.target", "target_share", "delta_high", "delta_low",
            "aggregation_constant", "bonus_per_turn", "bonus_share", "eps", "grad_clip", "importance_cap",
            "value_range", "value_sigma",
            "log_vocabulary", "lr", "overlong.penalty", "std_eps", "value_clip", "value_coef", "value_lr",
            "spear.warmup_share",
        ),
        POSITIVE,
    ),
    **dict.fromkeys(("clip_low", "gamma", "lam", "min_lr_share", "clip_cov.share"), SHARE),
    **dict.fromkeys(("ares.branches", "gate_turn", "history", "max_repeats"), "0.."),
    **dict.fromkeys(("cvar_weight", "flat_std", "margin", "midpoint", "sharpness", "sum_floor"), ANY),
    **dict.fromkeys(("cpl.alpha", "dpo.beta", "oreo.beta", "limit", "weight_cap"), POSITIVE),
    **dict.fromkeys(("first_attempts", "last_attempts", "first_tokens", "last_tokens", "batch_share"), NONZERO),
    **dict.fromkeys(("cpl.bias", "cpl.gamma", "favour", "rate"), NONZERO),
    **dict.fromkeys(("decay",), "[0, 1)"),
    "mu": SHARE,
    **dict.fromkeys(("anchor", "coef"), ANY),
    **dict.fromkeys(("fisher", "hessian"), POSITIVE),
    **dict.fromkeys(("min_p", "top_p"), NONZERO),
    "drop_below": SHARE,
    "ares.window": COUNT,
    "ares.eps": POSITIVE,
    **dict.fromkeys(("ares.cap", "seed_grpo.alpha"), ANY),
    "kl_relaxed": SHARE,
    **dict.fromkeys(("aepo_arbitrary.high", "aepo_arbitrary.low", "aepo_arbitrary.coef"), POSITIVE),
    **dict.fromkeys(("aepo_arbitrary.target", "aepo_arbitrary.threshold"), ANY),
    "aepo_arbitrary.most": COUNT,
    "top_k": COUNT,
    "lp_reg.share": SHARE,
    "siren.quantile": "[0, 1)",
    "smoothing": "[0, 0.5)",
    **dict.fromkeys(("clip_share", "group_share", "quantile", "share", "similarity", "weight_min"), NONZERO),
    "dual_clip": "(1, inf)",
    "warmup_share": "[0, 1)",
    "value_bins": "2..",
    "weight_max": "[1, inf)",
    "kappa": "[1, inf)",
}  # fmt: skip
"""By name, or by what holds it and its name: ``1..`` for counts, intervals for the others."""


def settings() -> Iterator[tuple[str, type[Settings], str]]:
    """(the name in the table, configuration class, field) of every setting that the table knows."""
    seen = set[tuple[type[Settings], str]]()

    def below(owner: str, config: type[Settings]) -> Iterator[tuple[str, type[Settings], str]]:
        for name, field in config.model_fields.items():
            known = next((key for key in (f"{owner}.{name}", name) if key in RANGES), "")
            if known and (config, name) not in seen:
                seen.add((config, name))
                yield known, config, name
            for kind in (field.annotation, *typing.get_args(field.annotation)):
                if isinstance(kind, type) and issubclass(kind, Settings) and kind is not Settings:
                    yield from below(name, kind)

    for owner in ALGORITHMS:
        yield from below(owner, resolve(owner).config)
    yield from below("optimizer", OptimizerConfig)


def refused(config: type[Settings], field: str, value: float) -> bool:
    """Whether the value is out of the field's own range, whatever else is amiss with it alone."""
    try:
        config(**{field: value})
    except ValidationError as error:
        return any(found["loc"] == (field,) for found in error.errors())
    return False


@pytest.mark.parametrize(
    ("known", "config", "field"), [pytest.param(*found, id=f"{found[1].__name__}.{found[2]}") for found in settings()]
)
def test_a_number_is_taken_up_to_the_ends_of_its_range_and_no_further(
    known: str, config: type[Settings], field: str
) -> None:
    interval, step = RANGES[known], 1e-6
    if interval.endswith(".."):
        least = int(interval.removesuffix(".."))
        assert [refused(config, field, value) for value in (least - 1, least, least + 1)] == [True, False, False]
        return
    low, high = interval[1:-1].split(", ")
    expected = {float(low) - step: True, float(low): interval[0] == "(", float(low) + step: False}
    if high != "inf":
        expected |= {float(high) - step: False, float(high): interval[-1] == ")", float(high) + step: True}
    assert {value: refused(config, field, value) for value in expected} == expected


@pytest.mark.parametrize(
    ("config", "values", "message"),
    [
        (AEPOConfig, {"balance": False, "monitor": "keep"}, "balance=true"),
        (AEPOConfig, {"forget": False, "pace": "lockstep"}, "origin=own"),
        (AEPOConfig, {"forget": False, "origin": "own"}, "pace=lockstep"),
        (BAPOConfig, {"low": (0.9, 0.8)}, "expected 0 <= low <= 1 <= high"),
        (BAPOConfig, {"high": (0.9, 2.0)}, "expected 0 <= low <= 1 <= high"),
        (
            BAPOConfig,
            {"base": {"clip_low": 0.1, "clip_high": 0.3}},
            r"base\.clip_low, base\.clip_high: no effect",
        ),
        (CISPOConfig, {"base": {"dual_clip": 5.0}}, r"base\.dual_clip: no effect"),
        (CISPOConfig, {"base": {"type": "empg", "base": {"clip_low": 0.1}}}, r"base\.base\.clip_low: no effect"),
        (DPPOConfig, {"base": {"type": "dapo", "clip_high": 0.2}}, r"base\.clip_high: no effect, as dppo"),
        (KLCovConfig, {"base": {"type": "grpo", "clip_low": 0.1}}, r"base\.clip_low: no effect, as kl_cov"),
        (BAPOConfig, {"target": 1.1}, "expected at most 1"),
        (CANONConfig, {"mu": 0.0, "favour": 0.9}, "mu=0 leaves out that"),
        (COPOConfig, {"blend": "forced", "midpoint": 0.2}, "midpoint: blend=forced has no soft weight"),
        (COPOConfig, {"blend": "zero", "sharpness": 2.0}, "sharpness: blend=zero"),
        (COPOConfig, {"blend": "global", "midpoint": 0.2, "sharpness": 2.0}, "midpoint, sharpness: blend=global"),
        (ClipCovConfig, {"low": 3.0, "high": 2.0}, "low < high"),
        (DrGRPOConfig, {"aggregation": "seq-mean-token-mean"}, "does not use it"),
        (EPOConfig, {"corridor": (1.0, 1.0)}, "kappa_l"),
        (EPOConfig, {"corridor": (-0.1, 1.0)}, "kappa_l"),
        (EPOConfig, {"schedule": "constant", "gamma": 1.0}, "schedule=paper"),
        (EPOConfig, {"schedule": "released", "gamma": 1.0}, "schedule=paper"),
        (GRPOConfig, {"aggregation": "seq-mean-token-mean", "aggregation_constant": 5.0}, "does not use it"),
        (ReinforcePPConfig, {"baseline": "group", "returns_along": "row"}, "baseline=group"),
        (PPOConfig, {"value_bins": 21}, "no effect with critic=mse"),
        (PPOConfig, {"critic": "hl_gauss", "value_clip": 0.2}, "no effect with critic=hl_gauss"),
        (SACConfig, {"target": 1.0, "target_share": 0.3}, "stands in for target"),
        (SACConfig, {"initial_coef": 0.1}, "above max_coef"),
        (EARConfig, {"bound": 0.5}, "belongs to form=clip"),
        (STEERConfig, {"weight_max": 1.5}, "belongs to form=linear"),
        (SPEARConfig, {"bonus_course": "constant", "bonus_share": 0.5}, "never falls"),
        (SPEARConfig, {"replay_coef": 0.0, "phases": "sequential"}, "phases would have no effect"),
        (SPEARConfig, {"replay_coef": 0.0, "replay_clip": None}, "replay_clip would have no effect"),
        (AEPOConfig, {"form": "released", "bias": 0.7}, "bias belongs to form=paper"),
        (EMPGConfig, {"bonus_coef": 0.0, "clarity": 2.0}, "bonus_coef=0 pays none"),
    ],
)
def test_settings_that_contradict_each_other(config: type[Settings], values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**values)


@pytest.mark.parametrize(
    ("config", "values"),
    [
        (AEPOConfig, {"balance": False, "initial": 2}),
        (AEPOConfig, {"forget": False, "pace": "lockstep", "origin": "own"}),
        (BAPOConfig, {"criterion": "odds", "target": 1.1}),
        (BAPOConfig, {"target": 1.0}),
        (CANONConfig, {"mu": 0.1, "favour": 0.9}),
        (CANONConfig, {"course": "annealed", "favour": 0.9}),
        (COPOConfig, {"blend": "soft_zero", "midpoint": 0.2, "sharpness": 2.0}),
        (EPOConfig, {"form": "released", "schedule": "paper", "gamma": 1.0}),
        (EPOConfig, {"schedule": "released", "schedule_updates": 10}),
        (EPOConfig, {"corridor": (0.0, 0.1)}),
        (GRPOConfig, {"aggregation": "seq-mean-token-sum", "aggregation_constant": 5.0}),
        (GRPOConfig, {"ratio_denominator": "proximal", "importance_cap": 5.0}),
        (OverlongSettings, {"max_tokens": 8, "buffer_tokens": 8}),
        (PPOConfig, {"level": "turn"}),
        (PPOConfig, {"gae_along": "row"}),
        (ReinforcePPConfig, {"baseline": "group", "group_stats": "rows"}),
        (SPEARConfig, {"bonus_course": "constant"}),
        (SPEARConfig, {"replay_coef": 0.0}),
        (SPEARConfig, {"warmup_updates": 5, "bonus_updates": 5}),
    ],
)
def test_settings_that_go_together(config: type[Settings], values: dict[str, Any]) -> None:
    made = config(**values)
    assert {name: getattr(made, name) for name in values} == values


@pytest.mark.parametrize("name", ["cispo", "dppo", "bapo", "kl_cov"])
@pytest.mark.parametrize(
    "base", ["dapo", "drbot", "empg", {"type": "grpo", "kl_coef": 0.1}, {"type": "drbot", "base": {"kl_coef": 0.1}}]
)
def test_a_replaced_clip_may_stand_at_its_default(name: str, base: Any) -> None:
    """Also in a file that names every setting."""
    config = resolve(name).config
    made = config.model_validate({"base": base})
    assert config.model_validate(made.model_dump()) == made
