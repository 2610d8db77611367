"""DPPO: divergence proximal policy optimisation (Qi et al. 2026, arXiv 2602.04879), on a base.

A token is dropped where its probability, and not its ratio, has moved too far already in the way that it is pushed:

    q_t  = π_behaviour(y_t),   p_t = π(y_t)
    drop   A > 0, p > q, D > delta_high,   or   A < 0, p < q, D > delta_low
    D    = |p - q|                                                              divergence=tv
    D    = q ln(q / p) + (1 - q) ln((1 - q) / (1 - p))                          divergence=kl
    loss = the base's mean of  -A p / q  over the kept tokens, 0 on dropped ones;  + square_coef * mean (ln p - ln q)^2

D is of the two-way choice between the sampled token and all others. A rare token may multiply its probability tenfold
and pass; a frequent one is stopped by an absolute change.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from turnwise.algorithms.common import CLIP, PPOClip, replaced_clip
from turnwise.algorithms.composition import AnyAlgorithm, base_recipe, refuse_unused_clip
from turnwise.algorithms.grpo import GRPOConfig
from turnwise.learning.parts import Regularizer, TokenWeighter, UpdateContext
from turnwise.learning.recipe import About, Recipe
from turnwise.learning.settings import RunInfo, Settings

ABOUT = About(
    title="Rethinking the Trust Region in LLM Reinforcement Learning",
    arxiv="2602.04879",
    code="NovaSky-AI/SkyRL a9564572, PrimeIntellect-ai/prime-rl 559b4477",
    differences=(
        "Divergences of the two-way choice alone; the paper also has one over the k likeliest tokens.",
        "prime-rl adds the squared log-ratio (square_coef=1e-3); SkyRL does not.",
        "A token with advantage 0 is never dropped; prime-rl counts it as one with a negative advantage, without "
        "any effect on the gradient.",
        "verl and SkyRL average over rows without tokens too (aggregation=seq-mean-token-mean); ours leaves them out.",
    ),
    kind="clips",
    sources={
        "base": "GRPO without KL; the base's own clip is not used",
        "divergence": "SkyRL and prime-rl",
        "delta_low, delta_high": "0.2 with tv, 0.05 with kl: SkyRL",
        "square_coef": "SkyRL; prime-rl 1e-3",
    },
)


class DPPOConfig(Settings):
    """DPPO's settings."""

    type: Literal["dppo"] = "dppo"
    base: AnyAlgorithm = Field(
        default=GRPOConfig(kl_coef=0.0, dual_clip=None),
        description="The algorithm whose clipped surrogate is replaced by this one.",
    )
    divergence: Literal["tv", "kl"] = Field(
        default="tv", description="How far a probability has moved: its absolute change, or the binary KL in nats."
    )
    delta_low: float | None = Field(
        default=None, gt=0, description="Where a falling token is dropped; null: 0.2 with tv, 0.05 with kl."
    )
    delta_high: float | None = Field(default=None, gt=0, description="Where a rising token is dropped; null: as above.")
    square_coef: float = Field(
        default=0.0, ge=0, description="Coefficient of the mean squared log-ratio, which holds all tokens (kl_tau)."
    )

    @model_validator(mode="after")
    def _replaces_the_clip(self) -> DPPOConfig:
        refuse_unused_clip(self, self.base, "clip_low", "clip_high", "dual_clip")
        return self

    @property
    def bounds(self) -> tuple[float, float]:
        """(delta_low, delta_high)."""
        usual = 0.2 if self.divergence == "tv" else 0.05
        return self.delta_low or usual, self.delta_high or usual


class TrustRegion(TokenWeighter):
    """1 on the tokens that are kept, 0 on those whose probability has moved too far; the surrogate has no clip."""

    claims: frozenset[str] = CLIP
    from_sampler = True

    def __init__(self, divergence: Literal["tv", "kl"], low: float, high: float) -> None:
        self.divergence, self.low, self.high = divergence, low, high

    def weight(self, ctx: UpdateContext) -> Tensor:
        now, before = ctx.logprobs.detach(), ctx.batch.behaviour_logprobs
        p, q = now.exp(), before.exp()
        if self.divergence == "tv":
            moved = (p - q).abs()
        else:
            moved = q * (before - now) + (1 - q) * torch.log((1 - q + 1e-8) / (1 - p + 1e-8))
        rising = (ctx.advantages > 0) & (p > q) & (moved > self.high)
        falling = (ctx.advantages < 0) & (p < q) & (moved > self.low)
        dropped = (rising | falling) & ctx.mask
        self.occurred.count("dropped_share", dropped, ctx.mask)
        return (~dropped).to(ctx.logprobs.dtype)


class SquaredLogRatio(Regularizer):
    """(log π - log π_behaviour)^2 on every action token; tokens weigh as in the surrogate."""

    def term(self, ctx: UpdateContext) -> Tensor:
        return ctx.mean((ctx.logprobs - ctx.batch.behaviour_logprobs).square())


def recipe(config: DPPOConfig, run: RunInfo) -> Recipe:
    """Compose DPPO on its base. Raises ValueError for a base whose clip is not PPO's, from the sampler's log-probs."""
    base = base_recipe(config.base, run).named("dppo")
    if "proximal" in replaced_clip(base).needs:
        raise ValueError("dppo compares with the sampler's probabilities: its base needs ratio_denominator=behaviour")
    made = base.with_clip(PPOClip(low=1.0, high=math.inf, dual=None))
    made = made.with_weighter(TrustRegion(config.divergence, *config.bounds))
    return made.with_regularizer(SquaredLogRatio(), config.square_coef)
