"""KL-Cov (Cui et al. 2025, arXiv 2505.22617): the tokens of highest covariance are held near the sampling policy.

    cov_t = (A_t - mean A) (log π_t - mean log π)                     over the minibatch's action tokens
    S     = the max(1, share * tokens) tokens of highest cov_t
    loss  = mean_tokens ( -A r + penalty_coef * [t in S] |log π_t - log π_behaviour,t| );   no clip on any token

The penalty has no gradient where the ratio is exactly 1: with one optimizer step an update it does nothing.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from turnwise.algorithms.common import CLIP, PPOClip, replaced_clip
from turnwise.algorithms.composition import AnyAlgorithm, base_recipe, refuse_unused_clip
from turnwise.algorithms.covariance import covariance, top_share
from turnwise.algorithms.grpo import GRPOConfig
from turnwise.learning.parts import MinibatchView, Regularizer, UpdateContext
from turnwise.learning.primitives import kl_estimate
from turnwise.learning.recipe import About, Recipe
from turnwise.learning.settings import RunInfo, Settings

ABOUT = About(
    title="The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models",
    arxiv="2505.22617",
    kind="regularisers",
    code="PRIME-RL/Entropy-Mechanism-of-RL 88505792; TencentYoutuResearch/SPEAR 7e843151",
    differences=(
        "The paper writes KL(behaviour || policy); the released code and we take the absolute log-ratio.",
        "share is a fraction: 0.002 is the paper's 7B setting (0.2 %), 0.0002 its 32B one and verl's default.",
        "Covariances and the choice run over the minibatch; released: over each microbatch.",
    ),
    sources={
        "base": "GRPO without dual clip and KL",
        "share": "the paper's 7B runs (0.2 %); 0.0002 for 32B, and verl's default",
        "penalty_coef": "paper",
    },
)


class KLCovConfig(Settings):
    """KL-Cov's settings."""

    type: Literal["kl_cov"] = "kl_cov"
    base: AnyAlgorithm = Field(
        default=GRPOConfig(dual_clip=None, kl_coef=0.0),
        description="The algorithm whose clipped surrogate is replaced by this one.",
    )
    share: float = Field(default=2e-3, gt=0, le=1, description="Share of action tokens penalised (k), at least one.")
    penalty_coef: float = Field(default=1.0, ge=0, description="Coefficient of the penalty (beta); 0: no clip alone.")

    @model_validator(mode="after")
    def _replaces_the_clip(self) -> KLCovConfig:
        refuse_unused_clip(self, self.base, "clip_low", "clip_high", "dual_clip")
        return self


class CovariancePenalty(Regularizer):
    """|log-ratio| in nats on the tokens chosen for this step, 0 on the others; tokens weigh as in the surrogate."""

    claims: frozenset[str] = frozenset({"tokens of high covariance"}) | CLIP

    def __init__(self, share: float) -> None:
        self.share = share
        self.chosen = torch.zeros(0, 0, dtype=torch.bool)

    def prepare(self, view: MinibatchView) -> None:
        self.chosen = top_share(covariance(view, view.logprobs()), view.batch.action_mask, self.share)
        self.occurred.count("penalised_share", self.chosen, view.batch.action_mask)

    def term(self, ctx: UpdateContext) -> Tensor:
        distance = kl_estimate(ctx.logprobs, ctx.old_logprobs, "abs")
        return ctx.mean(distance * ctx.own(self.chosen))


def recipe(config: KLCovConfig, run: RunInfo) -> Recipe:
    """Compose KL-Cov on its base. Raises ValueError for a base whose clip is not PPO's."""
    base = base_recipe(config.base, run).named("kl_cov")
    unclipped = PPOClip(low=1.0, high=math.inf, dual=None, proximal="proximal" in replaced_clip(base).needs)
    return base.with_clip(unclipped).with_regularizer(CovariancePenalty(config.share), config.penalty_coef)
