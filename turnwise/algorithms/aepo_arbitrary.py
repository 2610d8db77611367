"""Arbitrary-entropy AEPO: an entropy is held by learning from attempts at another temperature (2025, arXiv 2510.08141).

    T    = high while the last update's entropy is not above the target, else low
    D+   = attempts at temperature T, at the first quarter of the tasks, with  A > threshold  among their like
    loss = the base's, with the first |D+| attempts replaced by D+, whose advantage is 1          mix=replace (released)
    loss = the base's + coef * that of D+                                                         mix=append (paper)

Attempts that are hotter than the policy and won raise its entropy when they are learned from, colder ones lower it. A
thermostat so needs no bonus. |D+| is ``most`` at most, and half of that where the entropy is above the target.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from turnwise.algorithms.common import replaced_clip
from turnwise.algorithms.composition import AnyAlgorithm, base_recipe
from turnwise.algorithms.grpo import GRPOConfig
from turnwise.algorithms.heated import STREAM, HeatedAttempts, Success, Thermostat
from turnwise.errors import UnusedSettingError
from turnwise.learning.recipe import About, Recipe, StreamRecipe
from turnwise.learning.settings import RunInfo, Settings

ABOUT = About(
    title="Arbitrary Entropy Policy Optimization: Entropy Is Controllable in Reinforcement Fine-tuning",
    arxiv="2510.08141",
    code="597358816/AEPO b353a054",
    differences=(
        "Heated tokens are scored at the temperature that drew them, as every token; released: at 1.",
        "The entropy is that of the sampling policy's distributions, over all attempts that are not heated; released: "
        "the mean surprise of trained tokens.",
        "The paper adds the term with a weight (mix=append); released: attempts are replaced, and the weight is their "
        "share (mix=replace).",
        "Without a heated attempt that is better than its like nothing is mixed in; released: an error.",
        "Where there are fewer than four tasks, one is played again; released: none.",
    ),
    kind="planners",
    sources={
        "base": "released: GRPO with clip range .2/.3, dual clip 3, no KL",
        "target": "released script; the paper's best is 0.75",
        "high, low, share, most, threshold, mix": "released",
        "coef": "ours; the paper names no weight",
    },
)


class ArbitraryAEPOConfig(Settings):
    """The settings of arbitrary-entropy AEPO."""

    type: Literal["aepo_arbitrary"] = "aepo_arbitrary"
    base: AnyAlgorithm = Field(
        default=GRPOConfig(clip_high=0.3, kl_coef=0.0), description="The algorithm whose entropy is held."
    )
    target: float = Field(default=0.5, ge=0, description="Entropy to hold, in nats for a token.")
    high: float = Field(default=1.2, gt=0, description="Temperature while the entropy is not above the target.")
    low: float = Field(default=0.8, gt=0, description="Temperature while it is above.")
    share: float = Field(
        default=0.25, gt=0, le=1, description="Share of the tasks that are played again, one at least."
    )
    most: int = Field(default=60, ge=1, description="Heated attempts that are trained on, at most.")
    threshold: float = Field(default=0.05, ge=0, description="Advantage above which one is, in deviations of its like.")
    mix: Literal["replace", "append"] = Field(
        default="replace", description="Whether they take the place of other attempts, or come beside them."
    )
    coef: float = Field(default=0.1, gt=0, description="Factor on the loss of heated attempts; mix=append.")

    @model_validator(mode="after")
    def _mix_is_consistent(self) -> ArbitraryAEPOConfig:
        if self.mix == "replace" and self.changed("coef"):
            raise UnusedSettingError("coef", "coef belongs to mix=append; with mix=replace the share of tokens decides")
        if self.low > self.high:
            raise ValueError(f"low <= high is what the temperature moves between; got low={self.low}, high={self.high}")
        return self


def recipe(config: ArbitraryAEPOConfig, run: RunInfo) -> Recipe:
    """Compose on a base. Raises ValueError for one that plays otherwise than in groups, or whose clip is not PPO's."""
    base = base_recipe(config.base, run).named("aepo_arbitrary")
    if base.planner is not None:
        raise ValueError(
            f"aepo_arbitrary decides what is played, and so does {config.base.model_dump().get('type')}: take a base "
            "that plays plain groups (max_tries=1)"
        )
    fresh = base["fresh"]
    if config.mix == "replace" and fresh.aggregation.mode != "token-mean":
        raise ValueError("mix=replace makes one mean over tokens: the base needs aggregation=token-mean")
    heated = HeatedAttempts(
        base.composer,
        Thermostat(config.target, config.high, config.low),
        group_size=run.group_size,
        share=config.share,
        most=config.most,
        threshold=config.threshold,
        coef=config.coef if config.mix == "append" else None,
    )
    advantage = Success(fresh.success(run.rewards), fresh.unit)
    stream = StreamRecipe(advantage, clip=replaced_clip(base), aggregation=fresh.aggregation, name=STREAM)
    return Recipe(
        base.name,
        heated,
        (*base.streams, stream),
        shapers=base.shapers,
        planner=heated,
        phases=base.phases,
        keep_updates=base.keep_updates,
        teacher=base.teacher,
        heating=base.heating,
    ).checked()
