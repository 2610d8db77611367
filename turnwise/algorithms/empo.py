"""EMPO: attempts are paid for agreeing, and no label is used (Zhang et al. 2025, arXiv 2504.05812), on a base.

    R_i = success * share of the task's attempts that gave i's answer          vote=share
    R_i = success   where i's answer is the most frequent one, else 0          vote=majority, as TTRL (arXiv 2504.16084)
    R_i = 0         without an answer;  of all attempts at a task where no two agree

What the world pays is not used, but penalties stay. An answer is the last action of an episode that its world ended. It
is for questions without a key: an agent in a world is paid here for whatever all its attempts do alike, and looking
around will do. So a world must say that its episodes end with an answer (``gives_answers``); others are refused.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from pydantic import Field

from turnwise.algorithms.composition import AnyAlgorithm, base_recipe
from turnwise.algorithms.dynamic_sampling import DynamicSampling
from turnwise.algorithms.grpo import GRPOConfig
from turnwise.learning.metrics import Occurrences
from turnwise.learning.planning import Scorer
from turnwise.learning.recipe import About, Recipe, layers
from turnwise.learning.rewards import RewardTable
from turnwise.learning.settings import RunInfo, Settings
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


@dataclass(frozen=True, slots=True)
class Votes:
    """Pays each episode's last turn its vote, in the place of what the world paid."""

    vote: Vote
    success: float
    occurred: Occurrences = field(default_factory=Occurrences, compare=False)
    compares_answers: ClassVar[bool] = True

    def shape(self, trajectories: Sequence[Trajectory], rewards: RewardTable, scorer: Scorer) -> RewardTable:
        groups = defaultdict[tuple[str, str, tuple[str, int] | None], list[int]](list)
        for number, trajectory in enumerate(trajectories):
            if trajectory.end != "error":
                groups[trajectory.task.key, trajectory.player, trajectory.stored_start].append(number)
        earned = [(0.0,) * len(trajectory.turns) for trajectory in trajectories]
        for members in groups.values():
            answers = [answer_of(trajectories[number]) for number in members]
            paid = votes(answers, self.vote)
            self.occurred.count("answered_share", sum(map(bool, answers)), len(answers))
            self.occurred.count("mean_vote", sum(paid), len(paid))
            for number, vote in zip(members, paid, strict=True):
                earned[number] = (*earned[number][:-1], self.success * vote)[: len(earned[number])]
        return replace(rewards, earned=tuple(earned))

    def acted(self) -> Mapping[str, float]:
        return self.occurred.take()


def recipe(config: EMPOConfig, run: RunInfo) -> Recipe:
    """Compose EMPO on its base. Raises ValueError for a base that chooses groups by what the world paid."""
    base = base_recipe(config.base, run).named("empo")
    if any(isinstance(layer, DynamicSampling) for layer in layers(base.planner)):
        raise ValueError(
            "empo looks at no reward of the world, and its base replaces groups by these: set max_tries of "
            "algorithm.base to 1"
        )
    return base.with_shaper(Votes(config.vote, run.rewards.success))
