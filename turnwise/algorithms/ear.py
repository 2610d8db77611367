"""EAR: entropy-based advantage reshaping, from ETTRL (Liu et al. 2025, arXiv 2508.11356), on a base.

    H_i = mean token entropy of attempt i, while sampling;     Hbar = mean of H over the attempts of its group
    A'  = A max(0, 1 + (Hbar - H_i) / Hbar)                    form=residual
    A'  = clip(A, -bound, bound)                               form=clip

The residual form gives sure attempts more credit, and unsure ones less, of either sign. ETTRL's other half is `etmr`:
trees of attempts and, where answers compare, a vote in the place of a reward. As the base of this one it makes ETTRL.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from turnwise.algorithms.composition import AnyAlgorithm, base_recipe
from turnwise.algorithms.grpo import GRPOConfig
from turnwise.errors import UnusedSettingError
from turnwise.learning.parts import AdvantageModifier, Stream, required
from turnwise.learning.recipe import About, Recipe
from turnwise.learning.settings import RunInfo, Settings
from turnwise.replay.batch import TokenBatch

ABOUT = About(
    title="ETTRL: Balancing Exploration and Exploitation in LLM Test-Time Reinforcement Learning Via Entropy Mechanism",
    arxiv="2508.11356",
    differences=(
        "There is no official code; the numbers are held against the equations.",
        "The factor is not negative: an attempt of more than twice the group's entropy has no credit; the paper does "
        "not say.",
        "The reward is the base's, the world's by default; the paper's is a majority vote among answers (base=etmr).",
    ),
    kind="credit",
    sources={"base": "GRPO: paper", "form": "paper", "bound": "ours; the paper's is not known"},
)


class EARConfig(Settings):
    """EAR's settings."""

    type: Literal["ear"] = "ear"
    base: AnyAlgorithm = Field(
        default=GRPOConfig(kl_coef=0.0), description="The algorithm whose advantages are reshaped."
    )
    form: Literal["residual", "clip"] = Field(default="residual", description="Scaled by entropy, or bounded.")
    bound: float = Field(
        default=1.0,
        gt=0,
        description="Largest advantage, form=clip; in standard deviations where the base divides by them, else in "
        "successes.",
    )

    @model_validator(mode="after")
    def _form_is_consistent(self) -> EARConfig:
        if self.form == "residual" and self.changed("bound"):
            raise UnusedSettingError("bound", "bound belongs to form=clip; form=residual has none")
        return self


class EntropyScale(AdvantageModifier):
    """A max(0, 2 - H_i / Hbar) on each attempt's tokens."""

    def modify(self, stream: Stream) -> Tensor:
        batch = stream.batch
        scale = entropy_scale(batch)
        self.occurred.count("mean_change", (scale - 1).abs(), len(scale))
        factor = scale.to(batch.behaviour_entropies.dtype)[batch.trajectory].unsqueeze(1)
        return required(batch.advantages, "advantages") * factor * batch.action_mask


class BoundedAdvantage(AdvantageModifier):
    """Advantages between -bound and bound."""

    def __init__(self, bound: float) -> None:
        self.bound = bound

    def modify(self, stream: Stream) -> Tensor:
        advantages, mask = required(stream.batch.advantages, "advantages"), stream.batch.action_mask
        self.occurred.count("bounded_share", (advantages.abs() > self.bound) & mask, mask)
        return advantages.clamp(-self.bound, self.bound)


def entropy_scale(batch: TokenBatch) -> Tensor:
    """The factor of each trajectory of a batch, [N] float64; 1 where a group has no entropy."""
    size = int(batch.trajectory.max()) + 1 if len(batch) else 0
    zeros = torch.zeros(size, dtype=torch.float64)
    tokens = zeros.index_add(0, batch.trajectory, batch.action_mask.sum(1).double())
    sums = zeros.index_add(0, batch.trajectory, (batch.behaviour_entropies * batch.action_mask).sum(1).double())
    group = torch.zeros(size, dtype=torch.int64).index_copy(0, batch.trajectory, batch.group)
    entropy, spoke = sums / tokens.clamp(min=1), (tokens > 0).double()
    groups = torch.zeros(int(group.max()) + 1 if size else 0, dtype=torch.float64)
    mean = (groups.index_add(0, group, entropy) / groups.index_add(0, group, spoke).clamp(min=1))[group]
    return torch.where((mean > 0) & (tokens > 0), 2 - entropy / mean.clamp(min=1e-12), 1.0).clamp(min=0)


def recipe(config: EARConfig, run: RunInfo) -> Recipe:
    """Compose EAR on its base."""
    base = base_recipe(config.base, run).named("ear")
    bound = config.bound * base["fresh"].success(run.rewards)
    return base.with_modifier(EntropyScale() if config.form == "residual" else BoundedAdvantage(bound))
