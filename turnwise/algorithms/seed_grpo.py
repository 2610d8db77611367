"""SEED-GRPO: tasks whose answers agree teach more (Chen et al. 2025, arXiv 2505.12346), on a base.

    H  = entropy of the answers of a task's n attempts
    x  = alpha H / ln n                        0 where all agree, alpha where all differ;  0 for a lone attempt
    A' = A f(x),   f(x) = max(0, 1 - x)        form=linear
                   f(x) = exp(-x)              form=exponential

An answer is how an episode ended, its last state and action; or its last action, or all its actions. Tasks that the
agent does not know how to solve count less: note that these are the hard ones.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from turnwise.algorithms.composition import AnyAlgorithm, base_recipe
from turnwise.algorithms.consistency import AnswerKind, group_entropy
from turnwise.algorithms.drgrpo import DrGRPOConfig
from turnwise.learning.parts import AdvantageModifier, Stream, required
from turnwise.learning.recipe import About, Recipe
from turnwise.learning.settings import RunInfo, Settings

ABOUT = About(
    title="SEED-GRPO: Semantic Entropy Enhanced GRPO for Uncertainty-Aware Policy Optimization",
    arxiv="2505.12346",
    kind="credit",
    differences=(
        "There is no public code; the numbers are held against the equations.",
        "H is of how many attempts gave each answer; the paper weighs answers by their likelihood.",
        "The paper's answers are compared by meaning; here they are equal or not.",
        "alpha is not confirmed: notes say about 0.02, with which no weight of ours would fall below 0.98. With 1 a "
        "task without two equal answers teaches nothing.",
        "The paper's third form, focal, is left out: its equation is not known to us.",
    ),
    sources={
        "base": "paper: no division by the standard deviation",
        "alpha": "ours",
        "form": "paper: one of its forms",
        "answer": "ours",
    },
)


class SEEDConfig(Settings):
    """SEED-GRPO's settings."""

    type: Literal["seed_grpo"] = "seed_grpo"
    base: AnyAlgorithm = Field(default=DrGRPOConfig(), description="The algorithm whose advantages are scaled.")
    alpha: float = Field(default=0.5, ge=0, description="x where all answers differ; 0: the base alone.")
    form: Literal["linear", "exponential"] = Field(default="linear", description="How a task's weight falls with x.")
    answer: AnswerKind = Field(
        default="ending",
        description="What of an episode is its answer: its last state and action, its last action, or all its actions.",
    )


class AgreementScale(AdvantageModifier):
    """A f(alpha H / ln n) on the tokens of each attempt."""

    def __init__(self, config: SEEDConfig) -> None:
        self.config = config

    def modify(self, stream: Stream) -> Tensor:
        advantages, batch = required(stream.batch.advantages, "advantages"), stream.batch
        group, bits = group_entropy(stream.samples.groups, self.config.answer)
        size = torch.bincount(group, minlength=1)[group].double()
        x = self.config.alpha * bits / size.clamp(min=2).log2()
        scale = (1 - x).clamp(min=0) if self.config.form == "linear" else (-x).exp()
        self.occurred.count("mean_scale", scale, len(scale))
        self.occurred.count("damped_share", scale < 1, len(scale))
        return advantages * scale.to(advantages.dtype)[batch.trajectory].unsqueeze(1)


def recipe(config: SEEDConfig, run: RunInfo) -> Recipe:
    """Compose SEED-GRPO on its base."""
    base = base_recipe(config.base, run).named("seed_grpo")
    return base.with_modifier(AgreementScale(config)) if config.alpha else base
