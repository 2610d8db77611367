"""IGPO: information gain-based policy optimisation (Wang et al. 2025, arXiv 2510.14967), for tasks with a right answer.

A turn is paid by how much more probable it makes the answer, which the world tells and the agent does not see:

    s_n = exp(mean_j ln π(a_j | context of turn n, a_<j))       belief in the answer a before turn n; no gradient
    g_n = s_{n+1} - s_n                                         of every turn but the last; belief=log: of ln s
    G_n = sum_{k>=n} gamma^(k-n) x_k                            x_k: what turn k is paid; 0 after an episode's end
    A   on all tokens of turn n, by ``baseline``:
      apart     G_n,      x_k = gain_coef z(g_k), for the last turn z(R);    R: the episode's return
      turn      z(G_n),   x_k = r_k + gain_coef g_k;    over the group's G of the same n
      episode   the same, over the group's G_0

    z(x) = (x - mean_g x) / (std_g x + eps);    normalize_std=false: x - mean_g x
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from turnwise.algorithms.common import FreshGroups
from turnwise.algorithms.gains import Baseline, GainCredit
from turnwise.algorithms.settings import ClipSettings
from turnwise.errors import UnusedSettingError
from turnwise.learning.recipe import About, Recipe, StreamRecipe
from turnwise.learning.settings import RunInfo

ABOUT = About(
    title="Information Gain-based Policy Optimization: A Simple and Effective Approach for Multi-Turn LLM Agents",
    arxiv="2510.14967",
    kind="credit",
    code="GuoqingWang1/IGPO bff163b7",
    differences=(
        "Gains and returns are normalised apart, as in the later paper; released: returns to go, less the group's mean "
        "at the same token (baseline=turn normalize_std=false: at the same turn).",
        "Of several right answers the likeliest counts, and nothing stands before it; released: the first, after a "
        "sentence that ends the thought.",
        "Beliefs are of the policy at the start of the update; released: of the one that plays.",
        "A gain is that of its own turn; released: of the first turn with the same text, or lost.",
        "The outcome is what the world pays; released: F1, or -2 for broken tags.",
    ),
    sources={
        "belief": "released and first paper; later paper: log",
        "baseline, normalize_std": "later paper; released: turn, false",
        "gain_coef, gamma, kl_coef, kl_estimator, clip_low, clip_high, dual_clip, aggregation": "released",
    },
)


class IGPOConfig(ClipSettings):
    """IGPO's settings."""

    type: Literal["igpo"] = "igpo"
    kl_coef: float = Field(default=0.001, ge=0, description="Coefficient of the KL loss; 0 spares the reference.")
    belief: Literal["probability", "log"] = Field(
        default="probability", description="What a gain is the growth of: the answer's probability a token, or its log."
    )
    gain_coef: float = Field(default=1.0, ge=0, description="Weight of gains; one of 1 counts as a success (alpha).")
    gamma: float = Field(default=1.0, ge=0, le=1, description="Discount per turn.")
    baseline: Baseline = Field(
        default="apart",
        description="What is compared in a group: gains and returns apart, returns to go at each turn, or with the "
        "whole ones.",
    )
    normalize_std: bool = Field(default=True, description="Divide by the group's unbiased standard deviation.")
    std_eps: float = Field(default=1e-6, gt=0, description="Added to the std, as a share of a success (eps).")

    @model_validator(mode="after")
    def _scores_are_consistent(self) -> IGPOConfig:
        if not self.normalize_std and self.changed("std_eps"):
            raise UnusedSettingError("std_eps", "std_eps has no effect with normalize_std=false")
        return self


def recipe(config: IGPOConfig, run: RunInfo) -> Recipe:
    """Compose IGPO. Raises ValueError where the group size leaves nothing to learn from."""
    if run.group_size < 2:
        raise ValueError("IGPO compares attempts at one task: use a group_size of at least 2")
    credit = GainCredit(
        baseline=config.baseline,
        log=config.belief == "log",
        coef=config.gain_coef,
        gamma=config.gamma,
        normalize_std=config.normalize_std,
        eps=config.std_eps,
        success=run.rewards.success,
    )
    stream = StreamRecipe(estimator=credit, clip=config.clip(), aggregation=config.aggregate())
    return config.compose("igpo", FreshGroups(), stream)
