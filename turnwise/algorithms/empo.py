"""EMPO: attempts are paid for agreeing, and no label is used (Zhang et al. 2025, arXiv 2504.05812), on a base.

    R_i = success * share of the task's attempts that gave i's answer          vote=share
    R_i = success   where i's answer is the most frequent one, else 0          vote=majority, as TTRL (arXiv 2504.16084)
    R_i = 0         without an answer;  of all attempts at a task where no two agree

What the world pays is not used, but penalties stay. An answer is the last action of an episode that its world ended. It
is for questions without a key: an agent in a world is paid here for whatever all its attempts do alike, and looking
around will do. So a world must say that its episodes end with an answer (``ends_with_answer``); others are refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from pydantic import Field

from turnwise.algorithms.composing import ComposerAround
from turnwise.algorithms.composition import AnyAlgorithm, base_recipe
from turnwise.algorithms.grpo import GRPOConfig
from turnwise.learning.parts import Composer, Samples, Streams
from turnwise.learning.recipe import About, Recipe
from turnwise.learning.settings import RunInfo, Settings
from turnwise.replay.buffer import TrajectoryBuffer
from turnwise.trajectory import Trajectory

Vote = Literal["share", "majority"]

ABOUT = About(
    title="Right Question is Already Half the Answer: Fully Unsupervised LLM Reasoning Incentivization",
    arxiv="2504.05812",
    kind="credit",
    code="QingyangZhang/EMPO c5eccd40 (trl)",
    differences=(
        "Answers are equal or not, but for case and spaces; released: a matcher of mathematical expressions.",
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


def answer_of(trajectory: Trajectory) -> str:
    """The answer without case and superfluous spaces; "" where the world did not end the episode."""
    ended = trajectory.end == "terminated" and trajectory.turns
    return " ".join(trajectory.turns[-1].action.lower().split()) if ended else ""


def votes(answers: Sequence[str], kind: Vote) -> list[float]:
    """What each attempt at one task is paid, in [0, 1]; "" is no answer."""
    counts = Counter(filter(None, answers))
    best = max(counts, key=counts.__getitem__, default="")
    if counts[best] < 2:
        return [0.0] * len(answers)
    return [counts[a] / len(answers) if kind == "share" else float(a == best) for a in answers]


class Votes(ComposerAround):
    """Puts votes in the place of what the world paid."""

    def __init__(self, inner: Composer, kind: Vote, success: float) -> None:
        super().__init__(inner)
        self.kind, self.success = kind, success

    def compose(self, update: int, samples: Samples, buffer: TrajectoryBuffer) -> Streams:
        paid: list[float] = []
        for group in samples.groups:
            answers = [answer_of(t) if t.end != "error" else "" for t in group.trajectories]
            paid += votes(answers, self.kind)
            self.occurred.count("answered_share", sum(map(bool, answers)), len(answers))
        self.occurred.count("mean_vote", sum(paid), len(paid))
        rewards = samples.rewards
        unpaid = replace(rewards, earned=tuple((0.0,) * len(row) for row in rewards.earned))
        shaped = unpaid.with_extra([self.success * vote for vote in paid])
        return self.inner.compose(update, Samples(samples.groups, shaped), buffer)


def recipe(config: EMPOConfig, run: RunInfo) -> Recipe:
    """Compose EMPO on its base."""
    base = base_recipe(config.base, run).named("empo")
    return replace(base, composer=Votes(base.composer, config.vote, run.rewards.success), compares_answers=True)
