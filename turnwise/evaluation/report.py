"""Success rates that can be trusted: a fixed panel, every task once (or k times), and an interval beside each rate."""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from turnwise.agents.chat_client import Usage
from turnwise.agents.collector import Collector, OnEpisode
from turnwise.agents.episode import SuccessRule
from turnwise.agents.jobs import Job, jobs_for
from turnwise.agents.seating import Seating, TextEnv
from turnwise.agents.textplay import Played, play_jobs
from turnwise.envs.interface import Panel
from turnwise.models.engine import Sampling
from turnwise.statistics import Estimate, bootstrap_mean, pass_at_k, wilson
from turnwise.trajectory import Task, Trajectory

_MEANS = ("mean_return", "mean_turns", "mean_action_tokens", "invalid_share", "entropy", "context_share")

# Keys of the reply draws. Updates count from 0; each kind of measurement has a key of its own.
VALIDATION_KEY, TEST_KEY, WARMSTART_KEY = 1 << 40, 1 << 41, 1 << 42


@dataclass(frozen=True, slots=True)
class Report:
    """What a panel of episodes showed. ``errors`` ended in a fault of the environment: they count neither as failures
    nor as returns of 0, every number here is of the others. Where there are no others the means are nan.
    ``first_error`` is the first fault's reason. ``success`` is None where the world does not say what success is.

    ``overlap`` counts the tasks that the agent may have met before, by their use: ``trained on``, ``cloned on``,
    ``selected on`` (they chose the checkpoint, or ended the cloning). Empty: proven that there are none; None: unknown.
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
    draw_share: float | None = None  # of games: neither won nor lost, in [0, 1]
    keys: tuple[str, ...] = ()  # [task] content keys, in panel order: their hash is panel_hash
    types: tuple[str, ...] = ()  # [task]
    scores: tuple[tuple[float, ...], ...] = ()  # [task][sample] in [0, 1], where the world gives them
    overlap: dict[str, int] | None = None
    usage: Usage | None = None  # of the episodes that count here, where an endpoint played
    first_error: str = ""

    @property
    def num_episodes(self) -> int:
        """Those that count."""
        return sum(map(len, self.outcomes))

    def too_many_errors(self, max_error_share: float) -> str:
        """Why the numbers are not to be trusted, with the first fault; ``""`` where few enough episodes failed."""
        played = self.num_episodes + self.errors
        if self.num_episodes and self.errors <= max_error_share * played:
            return ""
        if not played:
            return f"{self.name} on {self.env} {self.split}: no episode was played"
        return (
            f"{self.name} on {self.env} {self.split}: {self.errors} of {played} episodes failed in their environment, "
            f"more than eval.max_error_share={max_error_share:g}; the first: {self.first_error}"
        )

    def as_json(self) -> str:
        return json.dumps(without_nan(asdict(self)), indent=1)

    @classmethod
    def from_plain(cls, raw: dict[str, Any]) -> Report:
        """Inverse of ``asdict`` after a trip through JSON, nan or None."""
        return cls(
            **{
                **raw,
                **{name: math.nan for name in _MEANS if raw[name] is None},
                "success": Estimate(**raw["success"]) if raw["success"] else None,
                "per_type": {k: Estimate(**v) for k, v in raw["per_type"].items()},
                "score": Estimate(**raw["score"]) if raw.get("score") else None,
                "per_player": {k: Estimate(**v) for k, v in raw.get("per_player", {}).items()},
                "pass_at": {int(k): v for k, v in raw["pass_at"].items()},
                "outcomes": tuple(tuple(task) for task in raw["outcomes"]),
                "keys": tuple(raw.get("keys", ())),
                "types": tuple(raw.get("types", ())),
                "scores": tuple(tuple(task) for task in raw.get("scores", ())),
                "usage": Usage(**raw["usage"]) if raw.get("usage") else None,
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
    """A report of ``samples`` episodes for each task; in a game that is won, drawn or lost, success is to win.

    With several samples per task the interval of the rate is a bootstrap over tasks (attempts at one task are not
    independent); with one it is Wilson's, and also where there is but one task, of which alone it speaks then.
    """
    sound = [t for t in trajectories if t.end != "error"]
    judged = [t for t in sound if t.success is not None]
    by_task: dict[Task, list[Trajectory]] = defaultdict(list)
    for trajectory in sound:
        by_task[trajectory.task].append(trajectory)
    known = bool(judged) and len(judged) == len(sound)
    outcomes = tuple(
        tuple(float(bool(t.success)) if known else t.total_reward for t in by_task.get(task, ())) for task in tasks
    )
    types = tuple(task.type or next((t.task.type for t in by_task.get(task, ())), "") for task in tasks)
    scores = [[t.score for t in by_task.get(task, ()) if t.score is not None] for task in tasks]
    turns = [turn for t in sound for turn in t.turns]
    entropies = [turn.entropies for turn in turns if len(turn.entropies)]
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
        pass_at=_pass_at(outcomes, samples) if known else {},
        mean_return=_mean([t.total_reward for t in sound]),
        mean_turns=_mean([len(t.turns) for t in sound]),
        mean_action_tokens=_mean([t.num_action_tokens for t in sound]),
        invalid_share=_mean([float(not turn.valid) for turn in turns]) if turns or not sound else 0.0,
        entropy=float(np.concatenate(entropies).mean()) if entropies else 0.0 if sound else math.nan,
        context_share=_mean([float(t.end_reason == "context") for t in sound]),
        errors=len(trajectories) - len(sound),
        outcomes=outcomes,
        score=_score(scores),
        per_player=_per_player(judged) if known else {},
        draw_share=_mean([float(t.score == 0.5 and not t.success) for t in sound]) if _is_game(sound) else None,
        keys=tuple(task.key for task in tasks),
        types=types,
        scores=tuple(map(tuple, scores)) if any(scores) else (),
        first_error=next((t.end_reason for t in trajectories if t.end == "error"), ""),
    )


def _score(found: Sequence[Sequence[float]]) -> Estimate | None:
    means = [float(np.mean(scores)) for scores in found if scores]
    if len(means) == 1:  # nothing to resample but the episodes of the one task
        means = [*next(scores for scores in found if scores)]
    return bootstrap_mean(means) if means else None


def _is_game(trajectories: Sequence[Trajectory]) -> bool:
    return any(t.player for t in trajectories)


def _per_player(judged: Sequence[Trajectory]) -> dict[str, Estimate]:
    found: dict[str, list[bool]] = defaultdict(list)
    for trajectory in judged:
        if trajectory.player:
            found[trajectory.player].append(bool(trajectory.success))
    return {player: wilson(sum(wins), len(wins)) for player, wins in sorted(found.items())}


def _rate(outcomes: Sequence[Sequence[float]]) -> Estimate:
    means = [float(np.mean(task)) for task in outcomes if task]
    if len(means) == 1:  # nothing to resample: the interval speaks of this task alone
        return wilson(int(sum(map(sum, outcomes))), sum(map(len, outcomes)))
    if all(len(task) <= 1 for task in outcomes) or set(means) <= {0.0} or set(means) <= {1.0}:
        return wilson(int(sum(means)), len(means))  # equal means leave a bootstrap nothing to vary
    return bootstrap_mean(means)


def _per_type(types: Sequence[str], outcomes: Sequence[Sequence[float]]) -> dict[str, Estimate]:
    """Of the types that have an episode that counts."""
    found: dict[str, list[Sequence[float]]] = defaultdict(list)
    for kind, result in zip(types, outcomes, strict=True):
        if kind and result:
            found[kind].append(result)
    return {kind: _rate(results) for kind, results in sorted(found.items())}


def _pass_at(outcomes: Sequence[Sequence[float]], samples: int) -> dict[int, float]:
    powers = [k for k in (1, 2, 4, 8, 16, 32, 64) if k <= samples]
    full = [task for task in outcomes if len(task) == samples]
    if not full:
        return {}
    return {k: _mean([pass_at_k(samples, int(sum(task)), k) for task in full]) for k in powers}


def _mean(values: Sequence[float]) -> float:
    """nan of nothing: a mean of 0 would be a result."""
    return float(np.mean(values)) if values else math.nan


def evaluate_policy(
    collector: Collector,
    tasks: Sequence[Task],
    *,
    name: str,
    temperature: float = 1.0,
    samples: int = 1,
    max_tokens: int,
    top_p: float = 1.0,
    top_k: int = 0,
    key: int = 0,
    on_episode: OnEpisode | None = None,
    played: Sequence[Trajectory] = (),
) -> tuple[Report, list[Trajectory]]:
    """Play every task ``samples`` times. The same key, tasks and weights give the same episodes.

    ``played`` are whole jobs of an earlier sitting, which are not played again.
    """
    jobs = jobs_for(tasks, samples, key)
    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, max_tokens=max_tokens)
    fresh = collector.collect([job for _, job in _left(jobs, played)], sampling, on_episode)
    trajectories = _in_order(jobs, [*played, *fresh])
    report = summarize(name, tasks, trajectories, samples=samples, temperature=temperature)
    return report, trajectories


def evaluate_scripted(
    make_env: Callable[[], TextEnv],
    seating: Seating,
    tasks: Sequence[Task],
    *,
    name: str,
    samples: int = 1,
    temperature: float = 1.0,
    seed: int = 0,
    success: SuccessRule | None = None,
    workers: int = 1,
    on_played: Callable[[Played], None] | None = None,
    played: Sequence[Trajectory] = (),
) -> tuple[Report, list[Trajectory]]:
    """The same for players that answer by themselves, ``workers`` episodes at once; ``temperature`` is of endpoints."""
    jobs = jobs_for(tasks, samples, 0)
    fresh: list[Trajectory] = []
    for found in play_jobs(make_env, seating, _left(jobs, played), seed=seed, success=success, workers=workers):
        fresh += found.trajectories
        if on_played is not None:
            on_played(found)
    trajectories = _in_order(jobs, [*played, *fresh])
    report = summarize(name, tasks, trajectories, samples=samples, temperature=temperature)
    return report, trajectories


def _left(jobs: Sequence[Job], played: Sequence[Trajectory]) -> list[tuple[int, Job]]:
    """Jobs that were not played yet, with their numbers among all."""
    done = {(t.task, t.sample) for t in played}
    return [(number, job) for number, job in enumerate(jobs) if (job.task, job.sample) not in done]


def _in_order(jobs: Sequence[Job], trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """In the order of the jobs, whenever they were played; a job's own stay in theirs."""
    places = {(job.task, job.sample): place for place, job in enumerate(jobs)}
    return sorted(trajectories, key=lambda t: places[t.task, t.sample])


def without_nan(value: Any) -> Any:
    """For JSON, which has no nan: None in its place, however deep."""
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write atomically, down to the disk: a reader sees the old file or the new one, after a crash too."""
    partial = path.with_suffix(path.suffix + ".tmp")
    with partial.open("w") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
