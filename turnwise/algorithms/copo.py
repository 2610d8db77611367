"""COPO: consistency-aware policy optimisation (Han et al. 2025, arXiv 2508.04138), on a base.

A group that always ends alike teaches a group-relative base nothing. Here whole groups are compared with each other,
too, and the more a group's answers agree the more this counts:

    H     = entropy, in bits, of the group's answers;   lam = (1 - 1/n) / log2 n        n attempts
    R_g   = mean_g R * (1 - lam H)
    A_g   = (R_g - mean R_g) / (std R_g + eps)          over the update's groups; no division where the base has none
    w     = sigmoid(sharpness (H - midpoint))
    loss  = w l(r, A) + (1 - w) l(r, A_g)               A and l: the base's advantage and clipped surrogate

An answer is how an episode ended, its last state and action; or its last action, or all its actions. COPO goes
outermost: what changes advantages, token weights or the clip on top of it is refused, as it would act on the first loss
alone.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from turnwise.algorithms.composition import AnyAlgorithm, base_recipe
from turnwise.algorithms.consistency import (
    AnswerKind,
    Blend,
    GroupSurrogate,
    LocalShare,
    LocalWeight,
    keeps_uniform_groups,
)
from turnwise.algorithms.grpo import GRPOConfig
from turnwise.errors import UnusedSettingError
from turnwise.learning.recipe import About, Recipe
from turnwise.learning.settings import RunInfo, Settings

ABOUT = About(
    title="COPO: Consistency-Aware Policy Optimization",
    arxiv="2508.04138",
    kind="credit",
    code="hijih/copo-code 095afa5a (advantages), f66883fb (loss)",
    differences=(
        "An answer is the last state and action, or the course of actions; released: a string that is compared.",
        "A group of one has lam = 0; released: divides by log2 1 = 0.",
        "Groups of equal returns must be kept by the base, which is refused otherwise.",
        "Counted in successes where the base's advantages are rewards; released: always divided by the std.",
    ),
    sources={
        "midpoint, sharpness": "defaults of the released function; the launch scripts are not public",
        "blend": "the paper's",
        "answer": "our own",
        "by_type": "our own; released: all tasks together",
    },
)


class COPOConfig(Settings):
    """COPO's settings."""

    type: Literal["copo"] = "copo"
    base: AnyAlgorithm = Field(
        default=GRPOConfig(drop_uniform_groups=False), description="The algorithm whose groups are compared, too."
    )
    midpoint: float = Field(default=0.5, ge=0, description="Entropy at which both losses count alike (b), bits.")
    sharpness: float = Field(default=1.0, ge=0, description="How fast the weight turns about it (k), per bit.")
    blend: Blend = Field(
        default="soft",
        description="soft: w as above; forced: w = 0 where A = 0, zero: where R = 0, else 1; soft_forced, soft_zero: "
        "else as above; global: w = 0.",
    )
    answer: AnswerKind = Field(
        default="ending",
        description="What of an episode is its answer: its last state and action, its last action, or all its actions.",
    )
    by_type: bool = Field(default=False, description="Whether groups are compared within their task's type.")

    @model_validator(mode="after")
    def _weight_is_soft(self) -> COPOConfig:
        unused = tuple(name for name in ("midpoint", "sharpness") if self.changed(name))
        if unused and not self.blend.startswith("soft"):
            raise UnusedSettingError(unused, f"{', '.join(unused)}: blend={self.blend} has no soft weight w")
        return self


def recipe(config: COPOConfig, run: RunInfo) -> Recipe:
    """Compose COPO on its base. Raises ValueError for a base without a surrogate, or one that drops groups."""
    base = base_recipe(config.base, run)
    clip = base["fresh"].clip
    if clip is None:
        raise ValueError("copo blends two policy surrogates; its base has none")
    if not keeps_uniform_groups(base.composer):
        raise ValueError(
            "copo learns from groups whose returns are equal, which its base leaves out: "
            "set algorithm.base.drop_uniform_groups=false"
        )
    divides, weight = base["fresh"].unit == "deviation", LocalWeight(config.blend, config.midpoint, config.sharpness)
    local = LocalShare(weight, config.answer, config.by_type, divides, run.rewards.success)
    made = base.with_modifier(local).with_objective(GroupSurrogate(local, clip, base["fresh"].weighters))
    return made.named("copo")
