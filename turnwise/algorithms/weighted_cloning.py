"""Weighted cloning: episodes are cloned, the better ones more (Peng et al. 2019, arXiv 1910.00177, without a critic).

    w_i  = min(exp((R_i - mean R) / temperature), cap)      R: returns in successes; mean: over the update's episodes
    loss = -sum over episodes of w_i * sum over its action tokens of log π / number of the minibatch's action tokens

A low temperature clones the best episodes alone, a high one all alike. Episodes may be of any policy (``episodes``: a
file, and nothing is played), or the run's own attempts.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from turnwise.algorithms.offline import OfflineSettings
from turnwise.learning.parts import Objective, Streams, UpdateContext
from turnwise.learning.recipe import About, Recipe, StreamRecipe
from turnwise.learning.settings import RunInfo

ABOUT = About(
    title="Advantage-Weighted Regression: Simple and Scalable Off-Policy Reinforcement Learning",
    arxiv="1910.00177",
    kind="replay",
    differences=(
        "The paper weighs each action by a critic's advantage; here a whole episode has one weight, by its return.",
        "The baseline is the mean return of the update's episodes, not a value of states.",
        "Temperature and cap are in successes, and ours.",
    ),
    sources={"temperature, cap": "our own", "batch": "our own"},
)


class WeightedCloningConfig(OfflineSettings):
    """The settings of weighted cloning."""

    type: Literal["weighted_cloning"] = "weighted_cloning"
    temperature: float = Field(default=0.5, gt=0, description="Return, in successes, that multiplies a weight by e.")
    cap: float = Field(default=20.0, gt=0, description="Largest weight of an episode.")


class WeightedLikelihood(Objective):
    """-log π of action tokens, each with the weight of its episode; ``unit`` is what a success is worth."""

    def __init__(self, temperature: float, cap: float, unit: float) -> None:
        self.temperature, self.cap, self.unit = temperature, cap, unit
        self.weights = torch.zeros(0)

    def before_update(self, update: int, streams: Streams) -> None:
        samples = streams["fresh"].samples
        returns = torch.tensor(
            [samples.rewards.total(n) for n in range(len(samples.trajectories))], dtype=torch.float64
        )
        apart = (returns - returns.mean()) / (self.temperature * self.unit)
        self.weights = apart.exp().clamp(max=self.cap)
        self.occurred.count("mean_weight", self.weights, len(self.weights))
        self.occurred.count("capped_share", self.weights >= self.cap, len(self.weights))

    def loss(self, ctx: UpdateContext) -> Tensor:
        weights = self.weights.to(ctx.logprobs)[ctx.batch.trajectory].unsqueeze(1)
        return ctx.token_mean(-weights * ctx.logprobs)


def recipe(config: WeightedCloningConfig, run: RunInfo) -> Recipe:
    """Compose it."""
    composer, planner = config.source(run)
    part = WeightedLikelihood(config.temperature, config.cap, run.rewards.success)
    stream = StreamRecipe(objectives=((part, 1.0),))
    return Recipe("weighted_cloning", composer, (stream,), planner=planner).checked()
