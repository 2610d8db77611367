"""DR-PO: dataset reset policy optimisation (Chang et al. 2024, arXiv 2404.08495), backwards along won episodes.

A part of each update's groups starts in stored states instead of at the beginning of a task:

    D   = won episodes, one for each task;   N: the turns of one
    s   = its state after N - d turns        d grows where at least c of an update's attempts from D are won
          order=any: after 1 .. N - 1 turns, drawn uniformly (the paper)
    A_k = norm over the group's attempts from s of their returns;   norm: the base's comparison, GRPO's by default

The world takes the stored actions again. These turns are a prompt, without a gradient, and only attempts from the same
state are compared. Going backwards from the end is Salimans and Chen's (2018, arXiv 1812.03381): what is close to the
goal is learned first, and a success is always near.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field, model_validator

from turnwise.algorithms.composition import AnyAlgorithm, base_recipe
from turnwise.algorithms.grpo import GRPOConfig
from turnwise.algorithms.starts import plain_base
from turnwise.algorithms.stored import Order, RememberedWins, StoredStarts, WonEpisodes
from turnwise.errors import UnusedSettingError
from turnwise.learning.recipe import About, Recipe
from turnwise.learning.settings import RunInfo, Settings

ABOUT = About(
    title="Dataset Reset Policy Optimization for RLHF",
    arxiv="2404.08495",
    kind="planners",
    differences=(
        "The paper's dataset is given, and people preferred its texts; here it grows with what the run itself wins.",
        "The paper resets to any state of the dataset (order=any); here starts move from the end of won episodes to "
        "their beginnings, as in Salimans and Chen's work on a single demonstration.",
        "There each demonstration has a starting point of its own; here won episodes share one distance to the end, "
        "because an update meets each of them once or never.",
        "The paper trains by PPO with a learned reward model; here the base compares the attempts from one state.",
        "What share of the attempts is reset is not known from the paper.",
    ),
    sources={
        "base": "our own: GRPO without KL",
        "share": "our own",
        "order": "Salimans and Chen; DR-PO: any",
        "advance": "Salimans and Chen: 20 %",
        "stride": "our own",
        "capacity": "our own",
    },
)


class DRPOConfig(Settings):
    """DR-PO's settings."""

    type: Literal["drpo"] = "drpo"
    base: AnyAlgorithm = Field(
        default=GRPOConfig(kl_coef=0.0), description="The algorithm that compares and trains the attempts."
    )
    share: float = Field(
        default=0.5, gt=0, le=1, description="Share of an update's groups that start in stored states, as far as known."
    )
    order: Order = Field(
        default="backwards", description="From the end of won episodes to their beginnings, or in any of their states."
    )
    advance: float = Field(
        default=0.2,
        gt=0,
        le=1,
        description="Share of an update's stored starts to win before the next go further back.",
    )
    stride: int = Field(default=1, ge=1, description="How much further back, in turns.")
    capacity: int = Field(default=128, ge=1, description="Won episodes that are kept, one for each task.")

    @model_validator(mode="after")
    def _consistent(self) -> DRPOConfig:
        if self.order == "any" and (unused := tuple(n for n in ("advance", "stride") if self.changed(n))):
            raise UnusedSettingError(unused, f"{' and '.join(unused)} say how order=backwards goes back")
        return self


def recipe(config: DRPOConfig, run: RunInfo) -> Recipe:
    """Compose DR-PO on its base. Raises ValueError for a base that plays trees of its own."""
    base, won = plain_base(base_recipe(config.base, run), "drpo"), WonEpisodes(config.capacity)
    planner = StoredStarts(run.group_size, config.share, config.order, config.advance, config.stride, won, run.seed)
    made = base.with_planner(planner)
    return replace(made, composer=RememberedWins(made.composer, planner))
