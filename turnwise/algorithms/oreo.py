"""OREO: offline reasoning optimisation (Wang et al. 2024, arXiv 2412.16145), by a soft Bellman equation along episodes.

Policy and values are to agree with what stored episodes returned. With d_k = log π(y_k) - log π_ref(y_k) of the action
tokens of an episode, r its return and S_t = sum of d_k from token t on:

    states        level=turn: before every reply;  token: before every action token
    value loss  = mean (V_t - (r - beta S_t))^2                               S without gradient
    policy loss = mean (V_t + beta z_t - r)^2                                 V without gradient
                  z_t = sum of d_k up to the next state + the rest of S_t without gradient
    loss        = value loss + policy loss + kl_coef KL(π || π_ref)           mean: over an episode's, then episodes

A reply is likelier than the reference's where the episode returned more than the value said. Episodes may be of any
policy (``episodes``: a file, and nothing is played), or the run's own attempts.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from turnwise.algorithms.bellman import SoftBellman
from turnwise.algorithms.common import ReferenceKL
from turnwise.algorithms.offline import OfflineSettings
from turnwise.learning.recipe import About, Recipe, StreamRecipe
from turnwise.learning.settings import RunInfo

ABOUT = About(
    title="Offline Reinforcement Learning for LLM Multi-Step Reasoning",
    arxiv="2412.16145",
    kind="replay",
    code="jwhj/OREO 6f7403b1",
    differences=(
        "Values are a head on the policy's own states, without gradient into them; released: a second model.",
        "The return is the world's, in successes, from which return_scale and return_shift make r; released: 2 r - 1, "
        "but on ALFWorld the stored reward as it is.",
        "The KL is estimated on the sampled tokens (k3); released: over the whole vocabulary, where it is unbiased.",
        "The released ALFWorld run leaves the first replies of a chat out; here every reply counts.",
        "Tokens of an episode outside the minibatch count as they were when the update began.",
    ),
    sources={
        "beta": "released",
        "kl_coef": "released",
        "level": "released on ALFWorld: turn (its step); token for mathematics",
        "return_scale, return_shift": "released: 2 and -1; on ALFWorld as here",
        "value_lr, value_width": "ours: the values are a small head",
        "batch": "released",
    },
)


class OREOConfig(OfflineSettings):
    """OREO's settings."""

    type: Literal["oreo"] = "oreo"
    beta: float = Field(default=0.03, gt=0, description="What a nat of distance to the reference is worth (beta).")
    kl_coef: float = Field(default=0.01, ge=0, description="Coefficient of the KL to the reference.")
    level: Literal["turn", "token"] = Field(
        default="turn", description="The states that have a value: before every reply, or every action token."
    )
    return_scale: float = Field(default=1.0, gt=0, description="Factor on an episode's return, which is in successes.")
    return_shift: float = Field(default=0.0, description="Added to that.")
    value_lr: float = Field(default=1e-3, gt=0, description="Peak learning rate of the values.")
    value_width: int = Field(default=64, ge=1, description="Width of their hidden layer.")


def recipe(config: OREOConfig, run: RunInfo) -> Recipe:
    """Compose OREO."""
    composer, planner = config.source(run)
    stream = StreamRecipe(objectives=((SoftBellman(config, run.seed, run.rewards.success), 1.0),))
    made = Recipe("oreo", composer, (stream,), planner=planner)
    return made.with_regularizer(ReferenceKL(), config.kl_coef).checked()
