"""CURE: critical-token-guided re-concatenation for exploration (Li et al. 2025, arXiv 2508.11016), on a base.

Each attempt is continued anew from one of the places where it was least certain:

    n1 attempts from each task;   group = n1 (1 + n2) attempts, compared as one
    t*  uniform among the K = top tokens of highest entropy that are words, not the first of an episode
    n2  copies:  the attempt before t*, then drawn anew from t* on

A copy learns from what it drew itself: what comes before t* is a prompt to it, other turns and the beginning of the
reply alike. An agent's t* lies in some turn. There the world is as it was before that turn, and the copy goes on from
the same beginning of a reply.

The paper's second stage is a run of the base, without copies, that begins with the model of the first.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from turnwise.algorithms.composition import AnyAlgorithm, base_recipe
from turnwise.algorithms.dapo import DAPOConfig
from turnwise.algorithms.starts import plain_base
from turnwise.algorithms.within import Among, By, Choice, WithinReplies, around, roots_of
from turnwise.learning.recipe import About, Recipe
from turnwise.learning.settings import RunInfo, Settings

ABOUT = About(
    title="CURE: Critical-Token-Guided Re-Concatenation for Entropy-Collapse Prevention",
    arxiv="2508.11016",
    kind="planners",
    code="bytedance/CURE c904b389",
    differences=(
        "Entropies are those of sampling; released: computed again by the trainer, which are the same up to rounding.",
        "A token that the sampling forced, or that alone was allowed, is no place: it would come again.",
        "Where an attempt has no place, other attempts from the task are played, as released (its fallback is 0).",
        "A reply keeps its limit of tokens, the shared beginning included; released: the rest has the whole limit, and "
        "where prompt and beginning do not fit together the beginning is cut.",
        "A length penalty of the base (overlong) counts the whole attempt; released: what was drawn anew.",
        "An agent's copies may all begin in its first turns: among=turn takes the turn of highest mean entropy first.",
    ),
    sources={
        "base": "released: DAPO with dual clip 10; its length penalty does not fit episodes",
        "copies": "paper: n2 = 3, with a group of 16",
        "top": "paper",
        "by": "paper; random is its ablation",
        "among": "paper: one reply is the episode; turn is our own",
    },
)


class CUREConfig(Settings):
    """CURE's settings. A task has as many attempts as the group size says, copies included."""

    type: Literal["cure"] = "cure"
    base: AnyAlgorithm = Field(
        default=DAPOConfig(dual_clip=10.0), description="The algorithm that compares and trains the attempts."
    )
    copies: int = Field(default=3, ge=1, description="Copies of each attempt from the task, at most (n2).")
    top: int = Field(default=20, ge=1, description="Tokens of highest entropy that a copy may begin at (K).")
    by: By = Field(default="entropy", description="What the tokens are chosen by; random: any word.")
    among: Among = Field(
        default="episode", description="What they are chosen among: all turns, or that of highest mean entropy."
    )


def recipe(config: CUREConfig, run: RunInfo) -> Recipe:
    """Compose CURE on its base. Raises ValueError for a base that says by itself where attempts start."""
    base = plain_base(base_recipe(config.base, run), "cure")
    choice = Choice(config.top, config.by, config.among, run.token_text)
    roots = roots_of(run.group_size, config.copies)
    return around(base, WithinReplies(run.group_size, roots, 1, config.copies, choice, run.seed))
