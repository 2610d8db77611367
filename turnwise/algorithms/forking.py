"""80/20: gradients of the forking tokens alone (Wang et al. 2025, arXiv 2506.01939), on a base.

Most tokens of a reply are certain. The few uncertain ones decide where it goes, and only they are trained:

    S    = the max(1, share * tokens) action tokens of highest entropy H,  over the minibatch or within each turn
    loss = the base's over S in the place of all action tokens; a mean is one over S

H is the sampling policy's. An agent's actions are often more certain than its thoughts, so that a ranking over the
minibatch may train thoughts alone: ``within=turn`` takes the share of every turn, and ``keep_first`` adds each turn's
first token.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from turnwise.algorithms.composition import AnyAlgorithm, base_recipe
from turnwise.algorithms.dapo import DAPOConfig
from turnwise.learning.parts import MinibatchView, TokenWeighter, UpdateContext
from turnwise.learning.primitives import turn_lengths, turn_starts
from turnwise.learning.recipe import About, Recipe
from turnwise.learning.settings import RunInfo, Settings

ABOUT = About(
    title="Beyond the 80/20 Rule: High-Entropy Minority Tokens Drive Effective Reinforcement Learning for LLM "
    "Reasoning",
    arxiv="2506.01939",
    code="CarlanLark/Lp-Reg-dev 33b27e27 (a reimplementation; there is no official code)",
    differences=(
        "Ranked over the minibatch by the sampling policy's entropies; the code: over a microbatch, by the present "
        "policy's.",
        "The code overwrites the mask, so that KL and entropy terms see the chosen tokens only; ours see all.",
        "A sum over a row's tokens is one over the chosen tokens, divided as before, as in the code.",
    ),
    kind="token weights",
    sources={
        "base": "paper: DAPO",
        "share": "paper",
        "within": "paper: the batch; within a turn for agents that think",
        "keep_first": "ours",
    },
)


class ForkingConfig(Settings):
    """80/20's settings."""

    type: Literal["forking"] = "forking"
    base: AnyAlgorithm = Field(default=DAPOConfig(), description="The algorithm whose tokens are chosen among.")
    share: float = Field(default=0.2, gt=0, le=1, description="Share of the action tokens that is trained; 1: all.")
    within: Literal["minibatch", "turn"] = Field(
        default="minibatch", description="What tokens are ranked in; at least one of it is trained."
    )
    keep_first: bool = Field(default=False, description="Train the first action token of every turn as well.")


class ForkingTokens(TokenWeighter):
    """0 on tokens that are left out; on the others what makes the base's mean one over the chosen tokens."""

    claims: frozenset[str] = frozenset({"choice of tokens"})

    def __init__(self, share: float, within: Literal["minibatch", "turn"], keep_first: bool) -> None:
        self.share, self.within, self.keep_first = share, within, keep_first
        self.chosen = torch.zeros(0, 0, dtype=torch.bool)

    def prepare(self, view: MinibatchView) -> None:
        batch, mask = view.batch, view.batch.action_mask
        if self.within == "minibatch":
            self.chosen = top_of_all(batch.behaviour_entropies, mask, self.share)
        else:
            self.chosen = top_of_turns(batch.behaviour_entropies, mask, batch.turn_index, self.share)
        if self.keep_first:
            self.chosen = self.chosen | turn_starts(mask, batch.turn_index)
        self.occurred.count("left_out_share", mask & ~self.chosen, mask)

    def weight(self, ctx: UpdateContext) -> Tensor:
        return mean_over(self.chosen, ctx)


def mean_over(chosen: Tensor, ctx: UpdateContext) -> Tensor:
    """Weights [b, T]: 0 on tokens not ``chosen`` of the minibatch, on the others what makes a mean one over these."""
    own = ctx.own(chosen)
    factor: float | Tensor = 1.0
    if ctx.aggregation.mode == "token-mean":
        factor = ctx.counts.action_tokens / max(int(chosen.sum()), 1)
    elif ctx.aggregation.mode == "seq-mean-token-mean":
        factor = ctx.mask.sum(1, keepdim=True) / own.sum(1, keepdim=True).clamp(min=1)
    return own.to(ctx.logprobs.dtype) * factor


def top_of_all(scores: Tensor, mask: Tensor, share: float) -> Tensor:
    """The max(1, share) of the action tokens with the highest scores, [B, T] bool; those equal to the last one too."""
    values = scores[mask]
    least = values.topk(max(1, int(share * len(values)))).values[-1:] if len(values) else values
    return mask & (scores >= least.sum())


def top_of_turns(scores: Tensor, mask: Tensor, turn_index: Tensor, share: float) -> Tensor:
    """The max(1, share) of each turn's action tokens with the highest scores, [B, T] bool; of equal ones the first."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, turn_index.gather(1, order).argsort(dim=1, stable=True))  # turn by turn, best first
    turns, places = turn_index.gather(1, order), torch.arange(scores.shape[1]).expand_as(order)
    starts = torch.ones_like(mask)
    starts[:, 1:] = turns[:, 1:] != turns[:, :-1]
    first = torch.where(starts, places, 0).cummax(1).values if scores.numel() else places
    rank = torch.zeros_like(order).scatter(1, order, places - first)
    return mask & (rank < (share * turn_lengths(mask, turn_index)).floor().clamp(min=1))


def recipe(config: ForkingConfig, run: RunInfo) -> Recipe:
    """Compose 80/20 on its base."""
    base = base_recipe(config.base, run).named("forking")
    if config.share == 1.0:
        return base
    return base.with_weighter(ForkingTokens(config.share, config.within, config.keep_first))
