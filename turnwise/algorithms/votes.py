"""A reward without labels: the answer that most of a group's attempts gave counts as the right one (TTRL)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from turnwise.algorithms.common import FreshGroups
from turnwise.algorithms.dynamic_sampling import DynamicSampling
from turnwise.learning.metrics import Occurrences
from turnwise.learning.planning import Scorer
from turnwise.learning.recipe import Recipe, layers
from turnwise.learning.rewards import RewardTable
from turnwise.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class MajorityVote:
    """Pays ``success`` (reward units) on the last turn of an episode that gave its group's most frequent answer.

    All others get 0, and what the world and graders paid is not looked at. An episode without an answer has no vote.
    Among answers with equally many votes the one that was given first counts. Penalties stay.
    """

    success: float
    occurred: Occurrences = field(default_factory=Occurrences, compare=False)
    compares_answers: ClassVar[bool] = True

    def shape(self, trajectories: Sequence[Trajectory], rewards: RewardTable, scorer: Scorer) -> RewardTable:
        members = defaultdict[str, list[int]](list)
        for number, trajectory in enumerate(trajectories):
            members[trajectory.task.key].append(number)
        paid = [(0.0,) * len(trajectory.turns) for trajectory in trajectories]
        for group in members.values():
            label = self._elected([trajectories[number] for number in group])
            for number in group:
                if label and self._votes(trajectories[number]) == label:
                    paid[number] = (*paid[number][:-1], self.success)
        return replace(rewards, earned=tuple(paid))

    def _elected(self, group: Sequence[Trajectory]) -> str:
        """The most frequent answer; "" where nobody gave one."""
        votes = Counter(answer for trajectory in group if (answer := self._votes(trajectory)))
        label, most = max(votes.items(), key=lambda found: found[1]) if votes else ("", 0)
        self.occurred.count("answered_share", votes.total(), len(group))
        self.occurred.count("majority_share", most, votes.total())
        right = any(trajectory.success and self._votes(trajectory) == label for trajectory in group)
        self.occurred.count("right_share", right, bool(votes))  # as the world says, whom nobody learns from
        return label

    @staticmethod
    def _votes(trajectory: Trajectory) -> str:
        return trajectory.answer if trajectory.turns and trajectory.end != "error" else ""

    def acted(self) -> Mapping[str, float]:
        return self.occurred.take()


def without_labels(base: Recipe) -> Recipe:
    """The base itself. Raises ValueError where it leaves groups out by what the world paid."""
    raw = any(isinstance(layer, FreshGroups) and layer.drop_uniform and layer.raw for layer in layers(base.composer))
    if raw or any(isinstance(layer, DynamicSampling) for layer in layers(base.planner)):
        raise ValueError(
            f"a vote takes the place of the world's rewards, and {base.name} leaves groups out by these: take another "
            "base, such as grpo with max_tries=1"
        )
    return base
