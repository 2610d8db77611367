"""PEAR: a success is worth less the more uncertain its thoughts are (arXiv 2510.08026), on a base.

    pen_n = max(0, Hth_n - alpha Han_n)      of turn n: mean entropy of its thought, less that of its action
    R     = success * min(1, s - mean_n pen_n), but not less than a lost episode's       of an episode that succeeds
    R     = success * lost                                                               of one that does not

The entropies are the sampling policy's. The last token of a thought, which closes it, is in neither mean. A turn
without a thought has no penalty. What else the world pays stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import numpy as np
from pydantic import Field

from turnwise.algorithms.common import succeeded
from turnwise.algorithms.composition import AnyAlgorithm, base_recipe
from turnwise.algorithms.grpo import GRPOConfig
from turnwise.algorithms.offline import playing
from turnwise.algorithms.within import whole_replies
from turnwise.learning.metrics import Occurrences
from turnwise.learning.planning import Scorer
from turnwise.learning.recipe import About, Recipe
from turnwise.learning.rewards import RewardTable
from turnwise.learning.settings import RunInfo, Settings
from turnwise.trajectory import Trajectory, Turn

ABOUT = About(
    title="PEAR: Phase Entropy Aware Reward for Efficient Reasoning",
    arxiv="2510.08026",
    kind="credit",
    differences=(
        "There is no official code at hand; the numbers are held against the equations.",
        "Of each turn, averaged over an episode's turns; the paper has one reply.",
        "A success is worth no less than a loss; the paper does not say (floor=none).",
        "It shortens thoughts and lowers their entropy: with EPO, SAC or TEA it pulls both ways.",
    ),
    sources={"base": "paper: GRPO with KL", "alpha, scale": "paper", "lost": "ours; paper: below 1", "floor": "ours"},
)


class PEARConfig(Settings):
    """PEAR's settings."""

    type: Literal["pear"] = "pear"
    base: AnyAlgorithm = Field(default=GRPOConfig(), description="The algorithm whose successes are worth less.")
    alpha: float = Field(default=1.0, ge=0, description="How much uncertain actions excuse uncertain thoughts.")
    scale: float = Field(default=1.0, gt=0, le=1, description="Worth of a success without a penalty (s).")
    lost: float = Field(
        default=0.0, ge=0, lt=1, description="Worth of a lost episode (r_fmt), as a share of a success."
    )
    floor: Literal["lost", "none"] = Field(default="lost", description="What a success is worth at least.")


class ThoughtPenalty:
    """Adds what a success loses, and what a lost episode is worth, to the whole episode's return."""

    reads_success = reads_entropies = True

    def __init__(self, config: PEARConfig, success: float) -> None:
        self.config, self.success = config, success

    @cached_property
    def occurred(self) -> Occurrences:
        return Occurrences()

    def acted(self) -> dict[str, float]:
        return self.occurred.take()

    def shape(self, trajectories: Sequence[Trajectory], rewards: RewardTable, scorer: Scorer) -> RewardTable:
        worths = []
        for number, trajectory in enumerate(trajectories):
            worth = self._worth(trajectory, succeeded(trajectory, rewards.paid(number), self.success))
            worths.append(self.success * worth)
        return rewards.with_extra(worths)

    def _worth(self, trajectory: Trajectory, won: bool) -> float:
        """What is added to an episode's return, as a share of a success."""
        if not won:
            return self.config.lost
        turns = trajectory.turns
        penalty = sum(map(self.penalty, turns)) / max(len(turns), 1)
        self.occurred.count("penalised_share", penalty > 0)
        self.occurred.count("mean_penalty", penalty)
        worth = min(1.0, self.config.scale - penalty)
        return (max(worth, self.config.lost) if self.config.floor == "lost" else worth) - 1.0

    def penalty(self, turn: Turn) -> float:
        """pen of one turn, nats."""
        thought, action = turn.entropies[: max(turn.thought_tokens - 1, 0)], turn.entropies[turn.thought_tokens :]
        return max(0.0, _mean(thought) - self.config.alpha * _mean(action)) if len(thought) else 0.0


def _mean(values: np.ndarray[tuple[int], np.dtype[np.float32]]) -> float:
    return float(values.mean(dtype=np.float64)) if len(values) else 0.0


def recipe(config: PEARConfig, run: RunInfo) -> Recipe:
    """Compose PEAR on its base. Raises ValueError for one that plays nothing, or copies that begin within replies."""
    shaper = ThoughtPenalty(config, run.rewards.success)
    return whole_replies(playing(base_recipe(config.base, run), "pear").named("pear").with_shaper(shaper))
