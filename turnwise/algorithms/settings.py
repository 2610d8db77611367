"""Settings that families of algorithms share, and the parts that they stand for.

An algorithm's configuration is put together from these and its own fields; a default that its paper sets
otherwise is set again there.
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
from turnwise.algorithms.dynamic_sampling import DynamicSampling
from turnwise.learning.credit import Singleton
from turnwise.learning.parts import Aggregation, Composer
from turnwise.learning.planning import GroupPlanner, Planner
from turnwise.learning.primitives import AggregationMode, KLEstimator
from turnwise.learning.recipe import Recipe, StreamRecipe
from turnwise.learning.settings import RunInfo, Settings, UnusedSettingError


class SurrogateSettings(Settings):
    """KL and the ratio's denominator: what every recipe with a policy surrogate has."""

    kl_coef: float = Field(
        default=0.01, ge=0, description="Coefficient of the KL loss (beta); 0 spares the reference's forward."
    )
    kl_estimator: KLEstimator = Field(default="k3", description="Estimator of the KL per token.")
    ratio_denominator: Literal["behaviour", "proximal"] = Field(
        default="behaviour",
        description="Log-probs under the ratio: as sampled, or recomputed before the first step.",
    )
    importance_cap: float = Field(
        default=2.0,
        gt=0,
        description="Cap on π_proximal / π_behaviour; used with ratio_denominator=proximal.",
    )

    @property
    def proximal(self) -> bool:
        """Whether the ratio starts from recomputed log-probs."""
        return self.ratio_denominator == "proximal"

    @model_validator(mode="after")
    def _surrogate_is_consistent(self) -> SurrogateSettings:
        if not self.proximal and self.changed("importance_cap"):
            raise UnusedSettingError("importance_cap", "importance_cap is used with ratio_denominator=proximal only")
        if not self.kl_coef and self.changed("kl_estimator"):
            raise UnusedSettingError(
                "kl_estimator", "kl_estimator has no effect with kl_coef=0; remove it or set a coefficient"
            )
        return self

    def compose(self, name: str, composer: Composer, stream: StreamRecipe, planner: Planner | None = None) -> Recipe:
        """The recipe of one stream under these settings, checked."""
        made = Recipe(name, composer, (stream,), planner=planner)
        if self.proximal:
            made = made.with_weighter(TruncatedImportance(self.importance_cap))
        return made.with_regularizer(ReferenceKL(self.kl_estimator), self.kl_coef).checked()


class ClipSettings(SurrogateSettings):
    """PPO's clipped surrogate and how it is averaged."""

    clip_low: float = Field(default=0.2, ge=0, le=1, description="Lower clip range of the ratio (eps_low).")
    clip_high: float = Field(default=0.2, ge=0, description="Upper clip range of the ratio (eps_high).")
    dual_clip: float | None = Field(
        default=3.0, gt=1, description="Bound c on the ratio where the advantage is negative; null: none."
    )
    aggregation: AggregationMode = Field(default="token-mean", description="How token losses become a scalar.")
    aggregation_constant: float | None = Field(
        default=None,
        gt=0,
        description="Divisor of a row's token sum in the token-sum modes, in tokens (the longest row that may occur).",
    )

    @model_validator(mode="after")
    def _clip_is_consistent(self) -> ClipSettings:
        if self.aggregation == "seq-mean-token-sum-norm" and self.aggregation_constant is None:
            raise ValueError(
                "aggregation=seq-mean-token-sum-norm divides by aggregation_constant, which is not set. "
                "Set it to the longest row in tokens (verl takes the padded width, which changes the loss)"
            )
        if "token-sum" not in self.aggregation and self.aggregation_constant is not None:
            raise UnusedSettingError(
                "aggregation_constant",
                "aggregation_constant is the divisor of seq-mean-token-sum and seq-mean-token-sum-norm; "
                f"{self.aggregation} does not use it",
            )
        return self

    def clip(self) -> PPOClip:
        return PPOClip(self.clip_low, self.clip_high, self.dual_clip, self.proximal)

    def aggregate(self) -> Aggregation:
        return Aggregation(self.aggregation, self.aggregation_constant)


class GroupSettings(Settings):
    """Attempts at one task that judge each other."""

    group_stats: GroupStats = Field(
        default="trajectories",
        description="What a group's statistics run over: one return per trajectory, or per training row (released).",
    )
    singleton: Singleton = Field(
        default="zero", description="Advantage of a group of one: zero, or its reward (released)."
    )
    drop_uniform_groups: bool = Field(
        default=False,
        description="Leave groups with equal shaped returns out; with max_tries, those with equal raw returns.",
    )
    max_tries: int = Field(
        default=1,
        ge=1,
        description="Waves of tasks an update may play to replace uniform groups (DAPO's dynamic sampling); 1: none.",
    )

    @model_validator(mode="after")
    def _sampling_is_consistent(self) -> GroupSettings:
        if not self.drop_uniform_groups and self.max_tries > 1 and self.changed("max_tries"):
            raise UnusedSettingError(
                "max_tries", "max_tries replaces uniform groups; with drop_uniform_groups=false they are kept"
            )
        return self

    def groups(self, name: str, run: RunInfo, raw: bool = False) -> FreshGroups:
        """The composer (``raw``: groups are uniform by raw rewards, as they are where they are replaced).

        Raises ValueError where the group size leaves nothing to learn from.
        """
        if run.group_size < 2 and self.singleton == "zero":
            raise ValueError(
                f"{name} compares attempts at one task: group_size={run.group_size} with singleton=zero gives "
                "every advantage 0. Use a group_size of at least 2"
            )
        return FreshGroups(self._drops(run), raw or self.max_tries > 1)

    def planner(self, run: RunInfo) -> Planner | None:
        """Dynamic sampling, where uniform groups are replaced; None: plain groups."""
        replaces = self._drops(run) and self.max_tries > 1
        return DynamicSampling(GroupPlanner(run.group_size), self.max_tries) if replaces else None

    def _drops(self, run: RunInfo) -> bool:
        # A group of one is always uniform, and singleton=reward wants to learn from it.
        return self.drop_uniform_groups and run.group_size > 1


class StandardScoreSettings(GroupSettings):
    """GRPO's advantage: distance from the group's mean in units of its standard deviation."""

    normalize_std: bool = Field(default=True, description="Divide by the group's unbiased standard deviation.")
    std_eps: float = Field(default=1e-6, gt=0, description="Added to the std, as a share of a success (eps).")

    @model_validator(mode="after")
    def _scores_are_consistent(self) -> StandardScoreSettings:
        if not self.normalize_std and self.changed("std_eps"):
            raise UnusedSettingError("std_eps", "std_eps has no effect with normalize_std=false")
        return self

    def advantage(self, run: RunInfo) -> GroupAdvantage:
        eps = self.std_eps * run.rewards.success
        return GroupAdvantage(self.group_stats, self.normalize_std, eps, self.singleton)
