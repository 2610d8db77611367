"""ETMR: entropy-fork tree majority rollout, from ETTRL (Liu et al. 2025, arXiv 2508.11356), on a base.

Trees in the place of independent attempts. Each begins with one attempt, and forks where this was least certain:

    M trees at each task, each of 1 + B N attempts;   N = forks, B = copies
    the N tokens of highest entropy, but the first of an episode;   B copies begin at each, and draw it anew
    reward=world    what the world paid
    reward=vote     1 where an attempt gives the answer that most of its task's attempts give, else 0    (TTRL)

A copy learns from what it drew itself. What comes before is a prompt to it, as other turns are, and beginnings of
replies. ETTRL is `ear` with this as its base.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from turnwise.algorithms.composition import AnyAlgorithm, base_recipe
from turnwise.algorithms.grpo import GRPOConfig
from turnwise.algorithms.starts import plain_base
from turnwise.algorithms.votes import AnswerVotes, without_labels
from turnwise.algorithms.within import Among, Choice, WithinReplies, around, roots_of
from turnwise.learning.recipe import About, Recipe
from turnwise.learning.settings import RunInfo, Settings

ABOUT = About(
    title="ETTRL: Balancing Exploration and Exploitation in LLM Test-Time Reinforcement Learning Via Entropy Mechanism",
    arxiv="2508.11356",
    kind="planners",
    differences=(
        "There is no official code. The paper was read in part: what it says of ties, and of tokens that a fork leaves "
        "out, is not known to us.",
        "The paper votes. An agent's world pays, and few worlds have answers that compare: reward=vote is for those.",
        "Where the group size leaves no room for whole trees, the least uncertain forks are left out.",
        "A token that the sampling forced, or that alone was allowed, is no fork: it would come again.",
        "Tokens before a fork are trained in the attempt that drew them, and nowhere else.",
    ),
    sources={
        "base": "paper: GRPO",
        "forks, copies": "paper",
        "reward": "our own; the paper's is the vote",
        "among": "paper: one reply is the episode; turn is our own",
    },
)


class ETMRConfig(Settings):
    """ETMR's settings. A task has as many attempts as the group size says, in trees of 1 + copies x forks."""

    type: Literal["etmr"] = "etmr"
    base: AnyAlgorithm = Field(
        default=GRPOConfig(kl_coef=0.0), description="The algorithm that compares and trains the attempts."
    )
    forks: int = Field(default=3, ge=1, description="Tokens of highest entropy where a tree forks (N).")
    copies: int = Field(default=2, ge=1, description="Copies that begin at each fork (B).")
    reward: Literal["world", "vote"] = Field(
        default="world", description="What pays: the world, or a vote among the answers of a task's attempts."
    )
    among: Among = Field(
        default="episode", description="What forks are chosen among: all turns, or that of highest mean entropy."
    )


def recipe(config: ETMRConfig, run: RunInfo) -> Recipe:
    """Compose ETMR on its base. Raises ValueError for a base that says by itself where attempts start, and for one that
    looks at the world's rewards where a vote takes their place.
    """
    base = base_recipe(config.base, run)
    base = plain_base(base if config.reward == "world" else without_labels(base), "etmr")
    choice = Choice(config.forks, among=config.among)
    roots = roots_of(run.group_size, config.forks * config.copies)
    made = around(base, WithinReplies(run.group_size, roots, config.forks, config.copies, choice, run.seed))
    return made if config.reward == "world" else made.with_shaper(AnswerVotes("majority", run.rewards.success))
