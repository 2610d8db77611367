"""A reward without labels: attempts at one task are paid for agreeing in their answer (TTRL, EMPO)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from turnwise.algorithms.common import FreshGroups
from turnwise.algorithms.dynamic_sampling import DynamicSampling
from turnwise.learning.metrics import Occurrences
from turnwise.learning.planning import Scorer
from turnwise.learning.recipe import Recipe, layers
from turnwise.learning.rewards import RewardTable
from turnwise.trajectory import Trajectory

Vote = Literal["share", "majority"]


def votes(answers: Sequence[str], kind: Vote) -> list[float]:
    """What each attempt at one task is paid, in [0, 1]; "" is no answer.

    ``share`` is that of the attempts with the same answer, and 0 where no two agree; ``majority`` is 1 for the most
    frequent answer, the first of those that are equally frequent, and 0 for others.
    """
    counts = Counter(filter(None, answers))
    best = max(counts, key=counts.__getitem__, default="")
    if kind == "majority":
        return [float(bool(answer) and answer == best) for answer in answers]
    return [counts[answer] / len(answers) if counts[best] > 1 else 0.0 for answer in answers]


@dataclass(frozen=True, slots=True)
class AnswerVotes:
    """Pays episodes by votes among the answers to their task, on the last turn; one vote of 1 is worth a ``success``.

    What the world and graders paid is not looked at. An episode that failed has no vote. Penalties stay.
    """

    kind: Vote
    success: float  # reward units
    occurred: Occurrences = field(default_factory=Occurrences, compare=False)
    compares_answers: ClassVar[bool] = True

    def shape(self, trajectories: Sequence[Trajectory], rewards: RewardTable, scorer: Scorer) -> RewardTable:
        members = defaultdict[tuple[Hashable, ...], list[int]](list)
        for number, trajectory in enumerate(trajectories):
            if trajectory.end != "error":
                members[trajectory.task.key, trajectory.player, trajectory.stored_start].append(number)
        paid = [(0.0,) * len(trajectory.turns) for trajectory in trajectories]
        for group in members.values():
            attempts = [trajectories[number] for number in group]
            for number, vote in zip(group, self._paid(attempts), strict=True):
                if paid[number]:
                    paid[number] = (*paid[number][:-1], self.success * vote)
        return replace(rewards, earned=tuple(paid), turnless=())

    def _paid(self, attempts: Sequence[Trajectory]) -> list[float]:
        answers = [each.answer if each.turns else "" for each in attempts]
        found, answered = votes(answers, self.kind), Counter(filter(None, answers))
        (label, most) = max(answered.items(), key=lambda item: item[1], default=("", 0))
        right = any(each.success and answer == label for each, answer in zip(attempts, answers, strict=True))
        self.occurred.count("answered_share", answered.total(), len(attempts))
        self.occurred.count("majority_share", most, answered.total())
        self.occurred.count("right_share", right, bool(answered))  # as the world says, whom nobody learns from
        return found

    def acted(self) -> Mapping[str, float]:
        return self.occurred.take()


def without_labels(base: Recipe) -> Recipe:
    """The base itself. Raises ValueError where it looks at what the world paid, at successes or at right answers."""
    raw = any(isinstance(layer, FreshGroups) and layer.drop_uniform and layer.raw for layer in layers(base.composer))
    if raw or any(isinstance(layer, DynamicSampling) for layer in layers(base.planner)):
        raise ValueError(
            f"votes take the place of the world's rewards, and {base.name} leaves groups out by these: take another "
            "base, such as grpo with max_tries=1"
        )
    parts = (*layers(base.planner), *layers(base.composer), *base.parts(), *base.shapers)
    asking = next((type(part).__name__ for part in parts if getattr(part, "reads_success", False)), "")
    if asking or base.needs_answers:
        asks = f"asks which attempts succeed ({asking})" if asking else "learns from the right answers"
        raise ValueError(
            f"votes take the place of the world's rewards, and {base.name} {asks}: combine votes with algorithms that "
            "learn from rewards alone, such as grpo"
        )
    return base
