"""Lp-Reg: rare tokens that are no noise are kept alive (Huang et al. 2025, arXiv 2510.03222), on a base.

A lost episode pushes its rarest tokens down for good. Those that a filter does not take for noise are held up:

    q    = the policy before the update without tokens of less than  min_p max_v p(v),  renormalised
    S    = the share of tokens with A < 0 whose ln p is lowest now, over the minibatch, where  ln p < ln q
    loss = the base's;  on S without a clip, and  + coef * mean KL,   KL = q / p - ln(q / p) - 1   (k3) on S, else 0

A token that the filter leaves out has ln q near -10000, and is never in S. The gradient of k3 raises p, up to q.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from turnwise.algorithms.common import CLIP, PPOClip, replaced_clip
from turnwise.algorithms.composition import AnyAlgorithm, base_recipe
from turnwise.algorithms.covariance import top_share
from turnwise.algorithms.grpo import GRPOConfig
from turnwise.algorithms.vocabulary import FILTERED, ROUNDING, ProxyLogprob
from turnwise.learning.parts import ClipPolicy, MinibatchView, Regularizer, Surrogate, UpdateContext, required
from turnwise.learning.planning import Reading
from turnwise.learning.primitives import KLEstimator, kl_estimate
from turnwise.learning.recipe import About, Recipe
from turnwise.learning.settings import RunInfo, Settings

ABOUT = About(
    title="Low-probability Tokens Sustain Exploration in Reinforcement Learning with Verifiable Reward",
    arxiv="2510.03222",
    code="CarlanLark/Lp-Reg-dev 33b27e27",
    differences=(
        "The paper has the KL of two distributions; the released code, and ours, its estimate on the sampled token.",
        "The share is one of the minibatch's tokens with A < 0; released: of a microbatch's.",
        "Released: no term where the share is less than two tokens; ours takes one.",
    ),
    kind="regularisers",
    sources={
        "base": "GRPO with ratio bounds 0 and 10, no dual clip, no KL: released",
        "min_p, coef": "paper",
        "share": "paper's 14B runs; 0.005 for 32B",
        "estimator": "released",
    },
)


class LpRegConfig(Settings):
    """Lp-Reg's settings."""

    type: Literal["lp_reg"] = "lp_reg"
    base: AnyAlgorithm = Field(
        default=GRPOConfig(clip_low=1.0, clip_high=9.0, dual_clip=None, kl_coef=0.0),
        description="The algorithm whose rare tokens are held up.",
    )
    min_p: float = Field(
        default=0.02, gt=0, le=1, description="Share of the largest probability below which a token is noise (kappa)."
    )
    share: float = Field(default=0.01, ge=0, le=1, description="Share of the tokens with A < 0 that may be held (rho).")
    coef: float = Field(default=1.0, ge=0, description="Coefficient of the mean KL in nats (beta).")
    estimator: KLEstimator = Field(default="k3", description="Estimator of the KL on the sampled token.")


class FreedClip(ClipPolicy):
    """The base's clip, without bounds on the tokens of S, which it chooses before each step."""

    claims: frozenset[str] = CLIP

    def __init__(self, clip: PPOClip, config: LpRegConfig) -> None:
        self.clip, self.config, self.needs = clip, config, clip.needs
        self.proxy = ProxyLogprob(config.min_p)
        self.held = torch.zeros(0, 0, dtype=torch.bool)

    @property
    def opening(self) -> tuple[Reading, ...]:
        return (self.proxy,)

    def prepare(self, view: MinibatchView) -> None:
        batch, logprobs = view.batch, view.logprobs()
        lost = batch.action_mask & (required(batch.advantages, "advantages") < 0)
        rare = top_share(-logprobs, lost, self.config.share)
        proxy = batch.opening[self.proxy]
        self.held = rare & (logprobs < proxy - ROUNDING)
        self.occurred.count("held_share", self.held, batch.action_mask)
        self.occurred.count("noise_share", rare & (proxy < FILTERED / 2), rare)

    def surrogate(self, ctx: UpdateContext) -> Surrogate:
        ratio, low, high, dual = self.clip.surrogate(ctx)
        held = ctx.own(self.held)
        return Surrogate(ratio, bound(held, 0.0, low), bound(held, math.inf, high), dual)


def bound(held: Tensor, free: float, usual: float | Tensor) -> Tensor:
    """``free`` on the tokens of S, the usual bound on the others, [b, T]."""
    return torch.where(held, free, torch.as_tensor(usual, dtype=torch.float32, device=held.device))


class ProxyKL(Regularizer):
    """The KL on the tokens that ``clip`` has freed, 0 on the others; tokens weigh as in the surrogate."""

    def __init__(self, clip: FreedClip) -> None:
        self.clip = clip

    def term(self, ctx: UpdateContext) -> Tensor:
        held = ctx.own(self.clip.held)
        proxy = torch.where(held, ctx.batch.opening[self.clip.proxy], ctx.logprobs.detach())
        return ctx.mean(kl_estimate(ctx.logprobs, proxy, self.clip.config.estimator) * held)


def recipe(config: LpRegConfig, run: RunInfo) -> Recipe:
    """Compose Lp-Reg on its base. Raises ValueError for a base whose clip is not PPO's."""
    base = base_recipe(config.base, run).named("lp_reg")
    if not config.share:
        return base
    clip = FreedClip(replaced_clip(base), config)
    return base.with_clip(clip).with_regularizer(ProxyKL(clip), config.coef)
