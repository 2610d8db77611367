"""HAPO: heterogeneous adaptive policy optimisation, by the entropy of tokens (Liu et al. 2025, arXiv 2509.16591).

    e    = ln max(H, 1e-8);   z = e - e_pivot       over the minibatch's action tokens; e_pivot: the ``pivot`` quantile
    h    = z / max z where z > 0, else z / |min z|                                                      in [-1, 1]
    low  = 1 - clip_low  (1 + alpha max(-h, 0))                       sure tokens may fall further
    high = 1 + clip_high (1 + alpha max( h, 0))                       unsure tokens may rise further
    calm = 1 - (1 - low) / 2 < r < 1 + (high - 1) / 2                 the ratio is near 1
    w    = 1 + beta h   on unsure tokens (h > 0) that are not calm, and on sure ones that are;   else 1
    A    = (R - mu) / (sd + eps)      mu, sd: of the group's returns, each weighed by its number of tokens;
           as GRPO's in a group where some |A| reaches 5
    loss = the clipped surrogate of each token, times w
    T    = T0 (1 + heat h)                    of each sampled token, with pivot, max z and min z of the last update

H is the sampling policy's. Nothing in h, w and the bounds has a gradient.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field

from turnwise.algorithms.by_entropy import EntropyBounds, EntropyHeat, EntropyWeight
from turnwise.algorithms.common import GroupCredit, TokenWeightedAdvantage
from turnwise.algorithms.settings import ClipSettings, StandardScoreSettings
from turnwise.heat import Sign
from turnwise.learning.recipe import About, Recipe, StreamRecipe
from turnwise.learning.settings import RunInfo

ABOUT = About(
    title="From Uniform to Heterogeneous: Tailoring Policy Optimization to Every Token's Nature",
    arxiv="2509.16591",
    kind="bases",
    code="starriver030515/HAPO 7671dde3",
    differences=(
        "Sure tokens have h < 0; released: they are divided by a negative number, and none is sure (sign=released).",
        "h is of the minibatch and the sampling policy; released: of a microbatch and the present policy.",
        "Whether |A| reaches 5 is asked of real tokens; released: of padding too.",
        "T is what the paper says (heat=0.05); as released it did not reach the sampler (heat=0).",
        "DAPO's filter and overlong penalty, which the scripts have, are settings of other recipes.",
    ),
    sources={
        "pivot, alpha, beta, heat": "released scripts",
        "dual_clip": "released",
        "kl_coef": "released",
        "sign": "paper",
    },
)


class HAPOConfig(StandardScoreSettings, ClipSettings):
    """HAPO's settings."""

    type: Literal["hapo"] = "hapo"
    kl_coef: float = Field(default=0.0, ge=0, description="Coefficient of the KL loss; 0 spares the reference.")
    dual_clip: float | None = Field(
        default=10.0, gt=1, description="Bound c on the ratio where the advantage is negative; null: none."
    )
    pivot: float = Field(default=0.8, gt=0, le=1, description="Quantile of the log-entropies that divides the tokens.")
    alpha: float = Field(default=1.0, ge=0, description="How far the clip range widens at |h| = 1; 0: not at all.")
    beta: float = Field(default=1.0, ge=0, le=1, description="How far a token's weight changes at |h| = 1; 0: not.")
    heat: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="How far a token's temperature moves at |h| = 1, as a share of it; 0: not.",
    )
    average: Literal["tokens", "attempts"] = Field(
        default="tokens", description="What the group's mean and deviation run over; attempts: GRPO's."
    )
    sign: Sign = Field(default="intended", description="Sign of h on sure tokens.")


def recipe(config: HAPOConfig, run: RunInfo) -> Recipe:
    """Compose HAPO. Raises ValueError where the group size leaves nothing to learn from."""
    estimator: GroupCredit = config.advantage(run)
    if config.average == "tokens":
        eps = config.std_eps * run.rewards.success
        estimator = TokenWeightedAdvantage(config.group_stats, config.normalize_std, eps, config.singleton)
    clip = EntropyBounds(config.clip(), config.alpha, config.pivot, config.sign)
    stream = StreamRecipe(estimator=estimator, clip=clip, aggregation=config.aggregate())
    made = config.compose("hapo", config.groups("HAPO", run), stream, config.planner(run))
    heating = EntropyHeat(config.heat, config.pivot, config.sign) if config.heat else None
    made = replace(made, heating=heating)
    return made.with_weighter(EntropyWeight(clip, config.beta)) if config.beta else made
