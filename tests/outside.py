"""An algorithm from outside, as a user would write it: GRPO with a bonus for short episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pydantic import Field

from turnwise.algorithms.grpo import GRPOConfig
from turnwise.algorithms.grpo import recipe as grpo
from turnwise.learning.planning import Scorer
from turnwise.learning.recipe import Recipe
from turnwise.learning.rewards import RewardTable
from turnwise.learning.settings import RunInfo, Settings
from turnwise.trajectory import Trajectory


class BriskConfig(Settings):
    cost: float = Field(0.01, ge=0, description="Taken for every turn.")


@dataclass(frozen=True, slots=True)
class TurnCost:
    cost: float

    def shape(self, trajectories: Sequence[Trajectory], rewards: RewardTable, scorer: Scorer) -> RewardTable:
        return replace(rewards, own=tuple(tuple(r - self.cost for r in row) for row in rewards.own))


def recipe(config: BriskConfig, run: RunInfo) -> Recipe:
    return grpo(GRPOConfig(kl_coef=0.0), run).with_shaper(TurnCost(config.cost)).named("brisk")


class HastyConfig(GRPOConfig):
    haste: float = Field(1.0, ge=0, description="Times as much for every turn.")


def hasty(config: HastyConfig, run: RunInfo) -> Recipe:
    return grpo(config, run).with_shaper(TurnCost(0.01 * config.haste)).named("hasty")
