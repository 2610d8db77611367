"""EMPO: attempts are paid for agreeing, and no label is used (Zhang et al. 2025, arXiv 2504.05812), on a base.

    R_i = success * share of the task's attempts that gave i's answer          vote=share
    R_i = success   where i's answer is the most frequent one, else 0          vote=majority, as TTRL (arXiv 2504.16084)
    R_i = 0         without an answer;  of a share, where no two attempts agree

What the world pays is not used, but penalties stay. It is for questions without a key: an agent in a world is paid here
for whatever all its attempts do alike, and looking around will do. So a world must say that its episodes give answers
(``gives_answers``), which it compares; others are refused.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from turnwise.algorithms.composition import AnyAlgorithm, base_recipe
from turnwise.algorithms.grpo import GRPOConfig
from turnwise.algorithms.offline import playing
from turnwise.algorithms.votes import AnswerVotes, Vote, without_labels
from turnwise.learning.recipe import About, Recipe
from turnwise.learning.settings import RunInfo, Settings

ABOUT = About(
    title="Right Question is Already Half the Answer: Fully Unsupervised LLM Reasoning Incentivization",
    arxiv="2504.05812",
    kind="credit",
    code="QingyangZhang/EMPO c5eccd40 (trl)",
    differences=(
        "Answers are equal or not, in the form in which their world compares them; released: a matcher of mathematical "
        "expressions.",
        "Where no two attempts agree none is paid, as meant; released: a comparison of floats, which fails for some "
        "numbers of attempts (7), and all are paid alike.",
        "The paper's filter of tasks by a band of entropy is left out: groups that all agree, or all differ, have "
        "equal returns, and the base drops them.",
        "Among equally frequent answers TTRL's majority is the one that came first.",
    ),
    sources={"base": "GRPO without KL: released", "vote": "the paper's"},
)


class EMPOConfig(Settings):
    """EMPO's settings."""

    type: Literal["empo"] = "empo"
    base: AnyAlgorithm = Field(default=GRPOConfig(kl_coef=0.0), description="The algorithm that learns from votes.")
    vote: Vote = Field(
        default="share", description="What an answer is worth: its share of the attempts, or all or none."
    )


def recipe(config: EMPOConfig, run: RunInfo) -> Recipe:
    """Compose EMPO on its base. Raises ValueError for one that asks the world for labels, or plays nothing."""
    base = without_labels(playing(base_recipe(config.base, run), "empo"))
    return base.with_shaper(AnswerVotes(config.vote, run.rewards.success)).named("empo")
