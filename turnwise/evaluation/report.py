"""A report: what the episodes of a fixed panel of tasks showed, with an interval beside each success rate."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from turnwise.agents.chat_client import Usage
from turnwise.envs.interface import Panel
from turnwise.grading.agreement import Graded, graded
from turnwise.jsonfile import without_nan
from turnwise.statistics import Estimate, bootstrap_mean, pass_at_k, wilson
from turnwise.trajectory import Task, Trajectory, successes

_MEANS = ("mean_return", "mean_turns", "mean_action_tokens", "invalid_share", "entropy", "context_share")


@dataclass(frozen=True, slots=True)
class Report:
    """What the episodes of a panel showed. ``success`` is None where the world does not say what success is.

    ``errors`` counts the episodes that a fault of the environment ended. They are left out of all other numbers: they
    are neither failures nor returns of 0. Where no other episode was played the means are nan. ``first_error`` is the
    reason of the first one.

    ``overlap`` counts the tasks that the agent may have met before, by their use: ``trained on``, ``cloned on``,
    ``selected on`` (they chose the checkpoint, or ended the cloning) or ``shown as examples`` in its prompts. It is
    empty where it is proven that its run met none, and None where that is unknown. What the run's model met before is
    not counted. ``graded`` is what functions and a judge gave, if any did.
    """

    name: str
    env: str
    split: str
    panel_hash: str
    num_tasks: int
    samples: int
    temperature: float
    success: Estimate | None
    per_type: dict[str, Estimate]
    pass_at: dict[int, float]
    mean_return: float
    mean_turns: float
    mean_action_tokens: float
    invalid_share: float
    entropy: float
    context_share: float  # episodes that a full context ended, in [0, 1]
    errors: int
    outcomes: tuple[tuple[float, ...], ...]  # [task][sample] success (or return), in panel order
    score: Estimate | None = None  # mean score in [0, 1], where the world gives scores
    per_player: dict[str, Estimate] = field(default_factory=dict)  # of games
    draw_share: float | None = None  # of games: neither won nor lost, in [0, 1]; None where no game was scored
    keys: tuple[str, ...] = ()  # [task] content keys, in panel order: their hash is panel_hash
    types: tuple[str, ...] = ()  # [task]
    scores: tuple[tuple[float, ...], ...] = ()  # [task][sample] in [0, 1], where the world gives them
    overlap: dict[str, int] | None = None
    usage: Usage | None = None  # of the episodes that count here, where an endpoint played
    first_error: str = ""
    graded: Graded | None = None
    player_episodes: dict[str, int] = field(default_factory=dict)  # of games: those that count, by player

    @property
    def num_episodes(self) -> int:
        """Episodes that count: those without an error."""
        return sum(map(len, self.outcomes))

    @property
    def pass_episodes(self) -> int:
        """Episodes that ``pass_at`` is over: those of the tasks of which no attempt failed with an error."""
        return sum(map(len, _full(self.outcomes, self.samples)))

    def episodes_of(self, part: str) -> int:
        """Episodes that count of a task type or a player, which ``per_type`` or ``per_player`` names."""
        if part in self.per_player:
            return self.player_episodes.get(part, self.per_player[part].num)
        if not self.types:  # of an earlier version
            return self.per_type[part].num
        return sum(len(task) for kind, task in zip(self.types, self.outcomes, strict=True) if kind == part)

    def too_many_errors(self, max_error_share: float) -> str:
        """An error message where too many episodes failed, with the first reason, or none could begin; else ``""``."""
        played = self.num_episodes + self.errors
        if self.num_episodes and self.context_share == 1 and not self.mean_turns:
            return (
                f"{self.name} on {self.env} {self.split}: no episode could begin, since no first prompt fits into the "
                "context: raise agent.max_context_tokens, which holds agent.max_reply_tokens too, or the context of "
                "the server"
            )
        if self.num_episodes and self.errors <= max_error_share * played:
            return ""
        if not played:
            return f"{self.name} on {self.env} {self.split}: no episode was played"
        return (
            f"{self.name} on {self.env} {self.split}: {self.errors} of {played} episodes failed, more than "
            f"eval.max_error_share={max_error_share:g}; the first: {self.first_error}"
        )

    def as_json(self) -> str:
        return json.dumps(without_nan(asdict(self)), indent=1)

    @classmethod
    def from_plain(cls, raw: dict[str, Any]) -> Report:
        """Inverse of ``asdict`` after writing to JSON and reading back; nan may have become None."""
        return cls(
            **{
                **raw,
                **{name: math.nan for name in _MEANS if raw[name] is None},
                "success": Estimate(**raw["success"]) if raw["success"] else None,
                "per_type": {k: Estimate(**v) for k, v in raw["per_type"].items()},
                "score": Estimate(**raw["score"]) if raw.get("score") else None,
                "per_player": {k: Estimate(**v) for k, v in raw.get("per_player", {}).items()},
                "player_episodes": raw.get("player_episodes", {}),
                "pass_at": {int(k): v for k, v in raw["pass_at"].items()},
                "outcomes": tuple(tuple(task) for task in raw["outcomes"]),
                "keys": tuple(raw.get("keys", ())),
                "types": tuple(raw.get("types", ())),
                "scores": tuple(tuple(task) for task in raw.get("scores", ())),
                "usage": Usage(**raw["usage"]) if raw.get("usage") else None,
                "graded": Graded.from_plain(raw["graded"]) if raw.get("graded") else None,
            }
        )


def summarize(
    name: str,
    tasks: Sequence[Task],
    trajectories: Sequence[Trajectory],
    *,
    samples: int,
    temperature: float,
) -> Report:
    """A report of ``samples`` episodes for each task. In a game that is won, drawn or lost, success means to win.

    Where the world says only at the end of an episode whether it is a success, one that was cut short is none.
    With one sample per task the interval of the success rate is Wilson's. With several it is a bootstrap over tasks,
    since attempts at one task are not independent. A single task leaves a bootstrap nothing to resample: its interval
    is Wilson's too, and speaks of this task alone. So is that of tasks with equal rates, over all attempts. Where an
    agent has several seats of a game (self-play) there is no pass@k: one attempt has several outcomes.
    """
    sound = [t for t in trajectories if t.end != "error"]
    attempts = _by_task(tasks, sound)
    one_seat = len({(t.task, t.sample) for t in sound}) == len(sound)
    known = bool(sound) and None not in successes(sound)
    outcomes = tuple(tuple(_outcome(t, known) for t in own) for own in attempts)
    types = tuple(task.type or (own[0].task.type if own else "") for task, own in zip(tasks, attempts, strict=True))
    scores = tuple(tuple(t.score for t in own if t.score is not None) for own in attempts)
    return Report(
        name=name,
        env=tasks[0].env if tasks else "",
        split=tasks[0].split if tasks else "",
        panel_hash=Panel("", "", tuple(tasks)).hash,
        num_tasks=len(tasks),
        samples=samples,
        temperature=temperature,
        success=_rate(outcomes) if known else None,
        per_type=_per_type(types, outcomes) if known else {},
        pass_at=_pass_at(outcomes, samples) if known and one_seat else {},
        mean_return=_mean([t.total_reward for t in sound]),
        mean_turns=_mean([len(t.turns) for t in sound]),
        mean_action_tokens=_mean([t.num_action_tokens for t in sound]),
        invalid_share=_invalid_share(sound),
        entropy=_entropy(sound),
        context_share=_mean([float(t.end_reason == "context") for t in sound]),
        errors=len(trajectories) - len(sound),
        outcomes=outcomes,
        score=_score(scores),
        per_player=_per_player(attempts) if known else {},
        draw_share=_draw_share(sound),
        keys=tuple(task.key for task in tasks),
        types=types,
        scores=scores if any(scores) else (),
        player_episodes=dict(sorted(Counter(t.player for t in sound if t.player).items())) if known else {},
        first_error=next((t.end_reason for t in trajectories if t.end == "error"), ""),
        graded=graded(sound),
    )


def _by_task(tasks: Sequence[Task], trajectories: Sequence[Trajectory]) -> list[list[Trajectory]]:
    """[task][attempt], in panel order."""
    found: dict[Task, list[Trajectory]] = defaultdict(list)
    for trajectory in trajectories:
        found[trajectory.task].append(trajectory)
    return [found[task] for task in tasks]


def _outcome(trajectory: Trajectory, known: bool) -> float:
    """Success as 0 or 1 where it is known, else the return."""
    return float(bool(trajectory.success)) if known else trajectory.total_reward


def _invalid_share(trajectories: Sequence[Trajectory]) -> float:
    """Share of turns, in [0, 1]; 0 where episodes were played but none has a turn."""
    turns = [turn for t in trajectories for turn in t.turns]
    return _mean([float(not turn.valid) for turn in turns]) if turns or not trajectories else 0.0


def _entropy(trajectories: Sequence[Trajectory]) -> float:
    """Mean over the action tokens, nats; 0 where episodes were played and no token was sampled."""
    found = [turn.entropies[turn.action_mask] for t in trajectories for turn in t.turns if len(turn.entropies)]
    if found:
        return float(np.concatenate(found).mean())
    return 0.0 if trajectories else math.nan


def _draw_share(trajectories: Sequence[Trajectory]) -> float | None:
    """Share of games that were neither won nor lost, in [0, 1]; None in worlds of one player, or without scores."""
    if not any(t.player and t.score is not None for t in trajectories):
        return None
    return _mean([float(t.score == 0.5 and not t.success) for t in trajectories])


def _score(found: Sequence[Sequence[float]]) -> Estimate | None:
    """Mean of ``[task][attempt]`` scores, with a bootstrap over tasks; None where there are no scores."""
    means = [float(np.mean(scores)) for scores in found if scores]
    if len(means) == 1:  # one task: only its attempts can be resampled
        means = [*next(scores for scores in found if scores)]
    return bootstrap_mean(means) if means else None


def _per_player(attempts: Sequence[Sequence[Trajectory]]) -> dict[str, Estimate]:
    """Success of each player of a game, from ``[task][attempt]``."""
    players = sorted({t.player for own in attempts for t in own if t.player})
    return {
        player: _rate([[_outcome(t, known=True) for t in own if t.player == player] for own in attempts])
        for player in players
    }


def _rate(outcomes: Sequence[Sequence[float]]) -> Estimate:
    """Success over ``[task][attempt]`` outcomes, with its interval."""
    means = [float(np.mean(task)) for task in outcomes if task]
    if len(means) == 1:  # nothing to resample: the interval is about this task alone
        return wilson(int(sum(map(sum, outcomes))), sum(map(len, outcomes)))
    if all(len(task) <= 1 for task in outcomes) or set(means) <= {0.0} or set(means) <= {1.0}:
        return wilson(int(sum(means)), len(means))  # a bootstrap of equal means would have no width
    if len(set(means)) == 1:  # no task differs from another: neither would it here
        return wilson(int(sum(map(sum, outcomes))), sum(map(len, outcomes)))
    return bootstrap_mean(means)


def _per_type(types: Sequence[str], outcomes: Sequence[Sequence[float]]) -> dict[str, Estimate]:
    """Success of each task type that has an episode that counts."""
    found: dict[str, list[Sequence[float]]] = defaultdict(list)
    for kind, result in zip(types, outcomes, strict=True):
        if kind and result:
            found[kind].append(result)
    return {kind: _rate(results) for kind, results in sorted(found.items())}


def _full(outcomes: Sequence[Sequence[float]], samples: int) -> list[Sequence[float]]:
    """The tasks of which no attempt failed with an error."""
    return [task for task in outcomes if len(task) == samples]


def _pass_at(outcomes: Sequence[Sequence[float]], samples: int) -> dict[int, float]:
    """pass@k for powers of two up to ``samples``, over the tasks of which no attempt failed with an error."""
    powers = [k for k in (1, 2, 4, 8, 16, 32, 64) if k <= samples]
    full = _full(outcomes, samples)
    if not full:
        return {}
    return {k: _mean([pass_at_k(samples, int(sum(task)), k) for task in full]) for k in powers}


def _mean(values: Sequence[float]) -> float:
    """The mean; nan of no values, since 0 would look like a result."""
    return float(np.mean(values)) if values else math.nan
