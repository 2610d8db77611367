"""SIREN: the nucleus entropy of the least certain tokens is held (Jiang et al. 2025, arXiv 2509.25133), on a base.

    Ht   = entropy of p within its nucleus of top_p, renormalised                       0 where p is sure
    k    = [Ht > the quantile of Ht over the row's action tokens]                       the peaks
    Hagg = mean over rows of the mean of Ht over the row's peaks; 0 for a row without   of the minibatch
    loss = the base's + coef * (Hagg - anchor)^2

The anchor is Hagg of the first update's batch under the policy that sampled it. Unlike a bonus on all tokens and the
whole vocabulary, the term lifts no improbable tokens, and leaves sure tokens sure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from turnwise.algorithms.composition import AnyAlgorithm, base_recipe
from turnwise.algorithms.drgrpo import DrGRPOConfig
from turnwise.algorithms.vocabulary import NucleusEntropy, above_quantile
from turnwise.learning.parts import MinibatchView, Need, Regularizer, Streams, UpdateContext
from turnwise.learning.planning import Reading
from turnwise.learning.recipe import About, Recipe
from turnwise.learning.settings import RunInfo, Settings

ABOUT = About(
    title="Rethinking Entropy Regularization in Large Reasoning Models",
    arxiv="2509.25133",
    code="Linn3a/siren fa59a8df",
    differences=(
        "The token that crosses top_p is not in the nucleus, as released; usually it is.",
        "Hagg is the minibatch's; released: a microbatch's, so that the square also punishes its variance.",
        "Rows without an action token do not count in the mean over rows; released: they do.",
        "The anchor is saved with the run; released: a resumed run has none.",
        "Released: top_k larger than the vocabulary fails; ours takes all.",
    ),
    kind="regularisers",
    sources={
        "base": "released: Dr.GRPO with dual clip 3, no KL",
        "top_p, top_k, quantile, coef, average": "released",
        "within": "paper: the reply; within a turn for agents",
        "anchor": "paper: the first batch's",
    },
)


class SIRENConfig(Settings):
    """SIREN's settings."""

    type: Literal["siren"] = "siren"
    base: AnyAlgorithm = Field(default=DrGRPOConfig(dual_clip=3.0), description="The algorithm beside the term.")
    top_p: float = Field(default=0.8, gt=0, le=1, description="Probability that the nucleus stays below.")
    top_k: int = Field(default=10_000, ge=1, description="Number of tokens that the nucleus is looked for among.")
    quantile: float = Field(default=0.8, ge=0, lt=1, description="Quantile of Ht above which a token is a peak (tau).")
    within: Literal["row", "turn"] = Field(default="row", description="Whose tokens the quantile is of.")
    coef: float = Field(default=5e-3, ge=0, description="Coefficient of the squared distance, nats^2 (beta).")
    average: Literal["rows", "tokens"] = Field(default="rows", description="Hagg: a mean of rows' means, or of tokens.")
    anchor: float | None = Field(default=None, ge=0, description="Hagg to hold, in nats; null: the first update's.")


class AnchoredNucleus(Regularizer):
    """(Hagg - anchor)^2 in nats^2; keeps the anchor."""

    needs: frozenset[Need] = frozenset({"vocabulary"})
    claims: frozenset[str] = frozenset({"entropy"})

    def __init__(self, config: SIRENConfig) -> None:
        self.config, self.anchor, self.mean, self.size = config, config.anchor, 0.0, 1
        self.reading = NucleusEntropy(config.top_p, config.top_k)
        self.reads, self.peaks = (self.reading,), torch.zeros(0, 0, dtype=torch.bool)

    @property
    def opening(self) -> tuple[Reading, ...]:
        return (self.reading,) if self.anchor is None else ()

    def before_update(self, update: int, streams: Streams) -> None:
        batch = streams["fresh"].batch
        if self.anchor is None and batch.action_mask.any():
            self._choose(batch.opening[self.reading], batch.action_mask, batch.turn_index)
            self.anchor = self.mean

    def prepare(self, view: MinibatchView) -> None:
        (entropy,) = view.read(self.reads)
        self._choose(entropy, view.batch.action_mask, view.batch.turn_index)
        self.occurred.count("peak_share", self.peaks, view.batch.action_mask)
        self.occurred.count("peak_entropy", self.mean)

    def _choose(self, entropy: Tensor, mask: Tensor, turn_index: Tensor) -> None:
        owner = torch.where(mask, turn_index if self.config.within == "turn" else 0, -1)
        self.peaks = above_quantile(entropy, owner, self.config.quantile)
        self.size = max(int(mask.any(1).sum() if self.config.average == "rows" else self.peaks.sum()), 1)
        self.mean = float(self._share(entropy, self.peaks))

    def _share(self, entropy: Tensor, peaks: Tensor) -> Tensor:
        """What some rows add to Hagg; entropies and peaks [b, T]."""
        sums = (entropy * peaks).sum(1)
        return (sums / peaks.sum(1).clamp(min=1) if self.config.average == "rows" else sums).sum() / self.size

    def term(self, ctx: UpdateContext) -> Tensor:
        """Linear in these rows' share of Hagg, so that the shares of the square and their gradients add up."""
        gap = self.mean - (self.mean if self.anchor is None else self.anchor)
        share = self._share(ctx.readings[self.reading], ctx.own(self.peaks))
        tokens = int(ctx.mask.sum()) / max(ctx.counts.action_tokens, 1)
        return gap * (2 * share + tokens * (gap - 2 * self.mean))

    def state_dict(self) -> dict[str, Any]:
        return {"anchor": self.anchor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.anchor = state["anchor"]


def recipe(config: SIRENConfig, run: RunInfo) -> Recipe:
    """Compose SIREN on its base."""
    return base_recipe(config.base, run).named("siren").with_regularizer(AnchoredNucleus(config), config.coef)
