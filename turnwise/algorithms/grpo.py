"""GRPO: group-relative policy optimisation (Shao et al. 2024, arXiv 2402.03300), for multi-turn episodes.

Several attempts at one task judge each other; no critic:

    A_i  = (R_i - mean_g R) / (std_g R + eps)                       on every action token of attempt i
    loss = mean_tokens max(-A r, -A clip(r, 1 - eps_low, 1 + eps_high))  + kl_coef * KL(policy || reference)
    r    = exp(log π - log π_behaviour);   where A < 0 the loss is at most -A * dual_clip

Constants of verl-agent's ALFWorld and WebShop runs (WujiangXu/EPO 5b6fa98e): success worth 10, 0.1 taken for
a turn without a valid action, k3 KL of 0.01. Dr.GRPO is ``normalize_std=False`` with
``seq-mean-token-sum-norm``.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from turnwise.algorithms.common import (
    FreshGroups,
    GroupAdvantage,
    GroupStats,
    PPOClip,
    ReferenceKL,
    TruncatedImportance,
)
from turnwise.algorithms.credit import Singleton
from turnwise.algorithms.parts import Aggregation
from turnwise.algorithms.primitives import AggregationMode, KLEstimator
from turnwise.algorithms.recipe import Recipe, RunInfo, Settings, StreamRecipe
from turnwise.algorithms.rewards import InvalidActionPenalty, RewardScale


class GRPOConfig(Settings):
    """GRPO's settings; the defaults are those of verl-agent unless a field says otherwise."""

    type: Literal["grpo"] = "grpo"
    normalize_std: bool = Field(default=True, description="Divide by the group's unbiased std; False is Dr.GRPO.")
    std_eps: float = Field(default=1e-6, gt=0, description="Added to the std, in reward units (eps).")
    group_stats: GroupStats = Field(
        default="trajectories",
        description="What mean and std run over: one return per trajectory, or per training row (released).",
    )
    singleton: Singleton = Field(
        default="zero", description="Advantage of a group of one: zero, or its reward (released)."
    )
    drop_uniform_groups: bool = Field(
        default=True,
        description="Leave groups with equal shaped returns out (DAPO's filter, without sampling more).",
    )
    clip_low: float = Field(default=0.2, ge=0, lt=1, description="Lower clip range of the ratio (eps_low).")
    clip_high: float = Field(default=0.2, ge=0, description="Upper clip range of the ratio (eps_high).")
    dual_clip: float | None = Field(
        default=3.0, gt=1, description="Bound c on the ratio where the advantage is negative; null: none."
    )
    aggregation: AggregationMode = Field(default="token-mean", description="How token losses become a scalar.")
    aggregation_constant: float | None = Field(
        default=None,
        gt=0,
        description="Divisor of seq-mean-token-sum-norm, in tokens (the longest row that may occur).",
    )
    kl_coef: float = Field(
        default=0.01, ge=0, description="Coefficient of the KL loss (beta); 0 spares the reference's forward."
    )
    kl_estimator: KLEstimator = Field(default="k3", description="Estimator of the KL per token.")
    reward_scale: float = Field(
        default=10.0, gt=0, description="Factor on the raw rewards (verl-agent: a success is worth 10)."
    )
    invalid_action_penalty: float = Field(
        default=0.1, ge=0, description="Taken from a turn without a valid action, in scaled reward units."
    )
    ratio_denominator: Literal["behaviour", "proximal"] = Field(
        default="behaviour",
        description="Log-probs under the ratio: as sampled, or recomputed before the first step.",
    )
    importance_cap: float = Field(
        default=2.0,
        gt=0,
        description="Cap on π_proximal / π_behaviour; used with ratio_denominator=proximal.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> GRPOConfig:
        normed = self.aggregation == "seq-mean-token-sum-norm"
        if normed and self.aggregation_constant is None:
            raise ValueError(
                "aggregation=seq-mean-token-sum-norm divides by aggregation_constant, which is not set. "
                "Set it to the longest row in tokens (verl takes the padded width, which changes the loss)"
            )
        if not normed and self.aggregation_constant is not None:
            raise ValueError(
                f"aggregation_constant is the divisor of seq-mean-token-sum-norm; {self.aggregation} does not use it"
            )
        if self.ratio_denominator == "behaviour" and self.changed("importance_cap"):
            raise ValueError("importance_cap is used with ratio_denominator=proximal only")
        if not self.kl_coef and self.changed("kl_estimator"):
            raise ValueError("kl_estimator has no effect with kl_coef=0; remove it or set a coefficient")
        return self


def recipe(config: GRPOConfig, run: RunInfo) -> Recipe:
    """Compose GRPO. Raises ValueError where the group size leaves nothing to learn from."""
    if run.group_size < 2 and config.singleton == "zero":
        raise ValueError(
            f"GRPO compares attempts at one task: group_size={run.group_size} with singleton=zero gives "
            "every advantage 0. Use a group_size of at least 2"
        )
    lonely = run.group_size == 1  # a group of one is always uniform, and singleton=reward wants to learn from it
    proximal = config.ratio_denominator == "proximal"
    fresh = StreamRecipe(
        estimator=GroupAdvantage(config.group_stats, config.normalize_std, config.std_eps, config.singleton),
        clip=PPOClip(config.clip_low, config.clip_high, config.dual_clip, proximal),
        aggregation=Aggregation(config.aggregation, config.aggregation_constant),
        weighters=(TruncatedImportance(config.importance_cap),) if proximal else (),
    )
    made = Recipe("grpo", FreshGroups(config.drop_uniform_groups and not lonely), (fresh,))
    if config.reward_scale != 1.0:
        made = made.with_shaper(RewardScale(config.reward_scale))
    if config.invalid_action_penalty:
        made = made.with_shaper(InvalidActionPenalty(config.invalid_action_penalty))
    return made.with_regularizer(ReferenceKL(config.kl_estimator), config.kl_coef).checked()
