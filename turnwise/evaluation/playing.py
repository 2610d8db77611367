"""Playing a panel: every task ``samples`` times, and the report of these episodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from turnwise.agents.episode import SuccessRule
from turnwise.agents.jobs import Job, jobs_for
from turnwise.agents.playing import OnEpisode, Playing
from turnwise.agents.seating import Seating, TextEnv
from turnwise.agents.textplay import Played, play_jobs
from turnwise.evaluation.report import Report, summarize
from turnwise.models.engine import Sampling
from turnwise.trajectory import Task, Trajectory

VALIDATION_KEY, TEST_KEY, WARMSTART_KEY = 1 << 40, 1 << 41, 1 << 42
"""Keys that replies are drawn with, one for each kind of measurement. The keys of updates count from 0."""


def evaluate_policy(
    collector: Playing,
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
    """Play every task ``samples`` times with a model. The same key, tasks and weights give the same episodes.

    ``played`` are trajectories of episodes that an earlier, interrupted call played; they are not played again.
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
    grade: Callable[[Trajectory], Trajectory] | None = None,
) -> tuple[Report, list[Trajectory]]:
    """The same for players without an engine of ours: scripts, experts, endpoints. ``workers`` episodes run at once.

    ``temperature`` is what endpoints sample with; here it is only written into the report. ``grade`` pays each episode
    beside its world.
    """
    jobs = jobs_for(tasks, samples, 0)
    fresh: list[Trajectory] = []
    left = _left(jobs, played)
    for found in play_jobs(make_env, seating, left, seed=seed, success=success, workers=workers, grade=grade):
        fresh += found.trajectories
        if on_played is not None:
            on_played(found)
    trajectories = _in_order(jobs, [*played, *fresh])
    report = summarize(name, tasks, trajectories, samples=samples, temperature=temperature)
    return report, trajectories


def _left(jobs: Sequence[Job], played: Sequence[Trajectory]) -> list[tuple[int, Job]]:
    """The jobs that were not played yet, with their numbers among all jobs."""
    done = {(t.task, t.sample) for t in played}
    return [(number, job) for number, job in enumerate(jobs) if (job.task, job.sample) not in done]


def _in_order(jobs: Sequence[Job], trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """The trajectories in the order of the jobs. Those of one job keep their order."""
    places = {(job.task, job.sample): place for place, job in enumerate(jobs)}
    return sorted(trajectories, key=lambda t: places[t.task, t.sample])
