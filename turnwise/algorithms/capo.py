"""CAPO: tokens whose update would bend the policy too far are left out (Melo et al. 2025, arXiv 2510.00819), on a base.

A token's step is modelled by the output head alone, as one of plain gradient descent of size lr:

    v    = e_y - p,   x the last hidden state over the temperature,   g = A v x^T  A in its unit
    m_F  = 1/2 lr^2 A^2 |v|^4 |x|^4                                                what the policy changes (Fisher)
    m_H  = lr A^2 |v|^2 |x|^2 + 1/2 lr^2 A^3 |x|^4 (|v|^4 - Var_p v)               what the objective changes (Hessian)
    keep = m_F < fisher  and  -hessian < m_H < hessian                             two_sided; else 0 <= m_H
    loss = the base's over the kept tokens;  a mean is one over them

p, x and v are the present policy's, before each step.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from turnwise.algorithms.composition import AnyAlgorithm, base_recipe
from turnwise.algorithms.forking import mean_over
from turnwise.algorithms.grpo import GRPOConfig
from turnwise.algorithms.vocabulary import StepCurvature, StepNorm
from turnwise.learning.parts import MinibatchView, Need, TokenWeighter, UpdateContext, required
from turnwise.learning.recipe import About, Recipe
from turnwise.learning.settings import RunInfo, Settings

ABOUT = About(
    title="Stabilizing Policy Gradients for Sample-Efficient Reinforcement Learning in LLM Reasoning",
    arxiv="2510.00819",
    code="luckeciano/stable-pg-llm 933fe017",
    differences=(
        "The step is one of gradient descent; released also: of Adam, with moments of the head.",
        "p is over the whole vocabulary; released: over the likeliest tokens.",
        "With adapters the head itself is not trained: the model tells which tokens are extreme, no more.",
        "A is counted in successes, or in deviations where the base divides by them; released: in the reward's unit.",
    ),
    kind="token weights",
    sources={
        "base": "GRPO by rows, without division by the deviation and KL: released",
        "lr": "released: five times the usual rate",
        "fisher, hessian, two_sided": "released for GRPO, with Adam's step; Dr.GRPO 1e-3 and 5e-4",
    },
)


class CAPOConfig(Settings):
    """CAPO's settings."""

    type: Literal["capo"] = "capo"
    base: AnyAlgorithm = Field(
        default=GRPOConfig(normalize_std=False, aggregation="seq-mean-token-mean", dual_clip=None, kl_coef=0.0),
        description="The algorithm whose tokens are chosen among.",
    )
    lr: float = Field(default=1.5e-5, gt=0, description="Size of the modelled step.")
    fisher: float = Field(default=1e-4, gt=0, description="m_F from which a token is left out.")
    hessian: float = Field(default=1e-2, gt=0, description="m_H from which a token is left out.")
    two_sided: bool = Field(default=True, description="Leave a token out below -hessian; else below 0.")


class CurvatureMask(TokenWeighter):
    """0 on tokens that are left out; on the others what makes the base's mean one over the kept tokens."""

    needs: frozenset[Need] = frozenset({"vocabulary"})
    claims: frozenset[str] = frozenset({"choice of tokens"})

    def __init__(self, config: CAPOConfig) -> None:
        self.config = config
        self.kept = torch.zeros(0, 0, dtype=torch.bool)

    def prepare(self, view: MinibatchView) -> None:
        mask = view.batch.action_mask
        advantages = required(view.batch.advantages, "advantages") / view.unit
        norm, curvature = view.read((StepNorm(), StepCurvature()))
        m_fisher, m_hessian = step_sizes(advantages, norm, curvature, self.config.lr)
        low = m_hessian > -self.config.hessian if self.config.two_sided else m_hessian >= 0
        self.kept = mask & (m_fisher < self.config.fisher) & (m_hessian < self.config.hessian) & low
        self.occurred.count("left_out_share", mask & ~self.kept, mask)
        self.occurred.count("mean_fisher", m_fisher * mask, mask)

    def weight(self, ctx: UpdateContext) -> Tensor:
        return mean_over(self.kept, ctx)


def step_sizes(advantages: Tensor, norm: Tensor, curvature: Tensor, lr: float) -> tuple[Tensor, Tensor]:
    """(m_F, m_H) of each token, [B, T], from |v|^2 |x|^2 and |x|^4 (|v|^4 - Var v)."""
    first, second = lr * advantages.square(), 0.5 * lr**2 * advantages.square()
    return second * norm.square(), first * norm + second * advantages * curvature


def recipe(config: CAPOConfig, run: RunInfo) -> Recipe:
    """Compose CAPO on its base."""
    return base_recipe(config.base, run).named("capo").with_weighter(CurvatureMask(config))
