"""ARES: how uncertain attempts should be, by their task's difficulty (Chen et al. 2025, arXiv 2510.08457), on a base.

Uncertain stretches of a reply are where the agent weighs what to do. Easy tasks should need few of them, hard ones may
have many. With H the sampling policy's entropy of a token, and d a task's difficulty, by the share that succeeds:

    N    = windows of 4 tokens in a row, of one reply, whose mean H is at least tau             of an attempt
    tau  = mean over attempts of the 0.95 quantile of their windows' means                      of this update
    N*_d = running mean of N over earlier updates              of attempts at tasks of difficulty d
    g_d  = max(0, x) where easy,  |x| where medium,  max(0, -x) where hard
    lam  = g_d(mean_d N - N*_d) / (Var_d N + eps)
    R    = R_base - success min(cap, lam g_d(N - N*_d))        of an attempt that does not succeed
    loss = base + kl_coef mean of beta_d rho_t KL(pi || pi_ref)                rho_t = kl_relaxed within windows, else 1

With ``branches`` an attempt is continued anew from the tokens where its uncertain stretches begin, by the tau of the
update before; the copies are attempts of the same group, and learn from what they drew themselves.

A reply shorter than a window is one window. The paper calls its algorithm AEPO; ``aepo`` here is another one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field, model_validator

from turnwise.algorithms.composition import AnyAlgorithm, base_recipe
from turnwise.algorithms.effort import EffortKL, EffortTargets
from turnwise.algorithms.grpo import GRPOConfig
from turnwise.algorithms.offline import playing
from turnwise.algorithms.starts import plain_base
from turnwise.algorithms.within import OwnParts, WithinReplies, roots_of, whole_replies
from turnwise.errors import UnusedSettingError
from turnwise.learning.recipe import About, Recipe
from turnwise.learning.settings import RunInfo, Settings

ABOUT = About(
    title="ARES: Multimodal Adaptive Reasoning via Difficulty-Aware Token-Level Entropy Shaping",
    arxiv="2510.08457",
    kind="credit",
    code="shawn0728/ARES 146620e3 (form=released)",
    differences=(
        "The paper was read in notes on it. They print N*_d as the mean of the very batch that it is compared with, "
        "so that lam is 0 and nothing is ever taken; here it is the mean of the updates before.",
        "They print lam as max(0, mean - N*_d) for every difficulty; here it has the direction of g_d.",
        "eps and cap are ours: without them lam has no bound where all counts are alike.",
        "The paper's tau is a quantile of single tokens (quantile_of=tokens).",
        "Released: another reward, which also pays lost attempts for windows (form=released), and windows only behind "
        "words of a list; here behind any token.",
        "The paper branches where a window begins, and the released code not at all. How often, and at which windows, "
        "is not in the notes: here ``branches`` copies of an attempt at most, each at another stretch of windows, "
        "drawn at random; by default none.",
        "The released KL factor of a difficulty follows a target of its own; here it is a setting.",
    ),
    sources={
        "base": "GRPO; its KL is the one of ARES",
        "window": "released; paper: 4 to 8",
        "quantile": "paper, released",
        "quantile_of": "released; paper: tokens, which windows of short replies hardly ever pass",
        "levels": "paper, released: a third and two thirds",
        "branches": "released: none; paper: some",
        "decay, eps": "ours",
        "cap": "ours; released: alpha's beginning",
        "kl_coef": "released",
        "kl_factors": "ours, in the proportions of a comment in the released code",
        "kl_relaxed": "ours; paper: below 1",
    },
)


class ARESConfig(Settings):
    """ARES's settings."""

    type: Literal["ares"] = "ares"
    base: AnyAlgorithm = Field(default=GRPOConfig(kl_coef=0.0), description="The algorithm whose returns are changed.")
    form: Literal["paper", "released"] = Field(default="paper", description="What an attempt's windows are worth.")
    window: int = Field(default=4, ge=1, description="Tokens of a window.")
    quantile: float = Field(default=0.95, gt=0, le=1, description="Quantile of an attempt's entropies that makes tau.")
    quantile_of: Literal["windows", "tokens"] = Field(
        default="windows", description="What tau is a quantile of: means of windows, or single tokens; form=paper."
    )
    levels: tuple[float, float] = Field(
        default=(0.333, 0.666), description="Share of successes from which a task is of medium difficulty, and easy."
    )
    branches: int = Field(
        default=0,
        ge=0,
        description="Copies of each attempt from the task, at most, that begin where its windows do; form=paper.",
    )
    decay: float = Field(default=0.9, ge=0, lt=1, description="What each update keeps of the targets; form=paper.")
    eps: float = Field(default=1.0, gt=0, description="Added to the variance, in windows squared; form=paper.")
    cap: float = Field(
        default=0.5,
        ge=0,
        description="Largest amount taken, as a share of a success; form=released: alpha at first.",
    )
    kl_coef: float = Field(default=0.01, ge=0, description="Coefficient of the KL loss; 0 spares the reference.")
    kl_factors: tuple[float, float, float] = Field(
        default=(2.0, 1.0, 0.5), description="Factors of the KL (beta_d) for easy, medium and hard tasks."
    )
    kl_relaxed: float = Field(default=0.5, ge=0, le=1, description="Factor of the KL within windows (rho).")

    @model_validator(mode="after")
    def _consistent(self) -> ARESConfig:
        if not 0 <= self.levels[0] <= self.levels[1] <= 1:
            raise ValueError(f"levels needs 0 <= medium <= easy <= 1; got {self.levels}")
        if min(self.kl_factors) < 0:
            raise ValueError(f"kl_factors cannot be negative; got {self.kl_factors}")
        paper = ("quantile_of", "branches", "decay", "eps") if self.form == "released" else ()
        factors = ("kl_factors", "kl_relaxed") if not self.kl_coef else ()
        for names, needed in ((paper, "form=paper"), (factors, "kl_coef above 0")):
            if unused := tuple(filter(self.changed, names)):
                raise UnusedSettingError(unused, f"{', '.join(unused)}: for {needed} only")
        return self


def recipe(config: ARESConfig, run: RunInfo) -> Recipe:
    """Compose ARES on its base. Raises ValueError for one with a KL term of its own or that plays nothing, for a base
    with copies that begin within replies inside of which entropies are read, and with ``branches`` for one that says by
    itself where its attempts start.
    """
    base = playing(base_recipe(config.base, run), "ares")
    size, branches = run.group_size, config.branches
    base = plain_base(base, "ares") if branches else base.named("ares")
    inner = OwnParts(base.composer) if branches else base.composer
    targets = EffortTargets(inner, config, run.rewards.success)
    if branches:
        roots = roots_of(size, branches)
        base = base.with_planner(WithinReplies(size, roots, branches, 1, targets.places, run.seed, remembers=True))
    made = whole_replies(replace(base, composer=targets))
    return made.with_regularizer(EffortKL(targets, config), config.kl_coef)
