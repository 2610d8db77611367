"""What a tiny model plays, by a planner: in this process, and in shards on any host."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.runs import config as faults_config
from tests.faults.runs import timeless
from turnwise.agents.collector import Collector
from turnwise.agents.playing import Grader
from turnwise.assembly.collecting import TRAIN, Cast
from turnwise.assembly.policies import new_policies
from turnwise.assembly.shards import shards_of
from turnwise.config.schema import RunConfig
from turnwise.envs.tasks import panel
from turnwise.learning.planning import GroupPlanner, Planner
from turnwise.models.drawing import Sampling
from turnwise.models.policy import Policy
from turnwise.replay.codec import to_record
from turnwise.shards.connection import Host
from turnwise.shards.rollouts import ShardedCollector
from turnwise.trajectory import Trajectory

SAMPLING = Sampling(max_tokens=4)
TREE = "algorithm={type: arpo, bias: 1.0, initial: 2}"
"""It branches wherever it may, so that every task has forks."""


@dataclass
class Played:
    """``records`` of the trajectories in the planner's order, without times; ``seen`` in the order they were told."""

    trajectories: list[Trajectory]
    seen: list[str] = field(default_factory=list)

    @property
    def records(self) -> list[Any]:
        return [timeless(to_record(t)) for t in self.trajectories]

    @property
    def tokens(self) -> dict[str, list[list[int]]]:
        return {t.episode: [turn.action_ids.tolist() for turn in t.turns] for t in self.trajectories}


def config(model: Path, *settings: str) -> RunConfig:
    return faults_config(model, "rollout.num_tasks=3", "rollout.num_slots=6", *settings)


def policy_of(made: RunConfig, model: Path) -> Policy:
    policies = new_policies(model, [""], model=made.model, lora=made.lora, seed=made.seed, device="cpu")
    return policies[""]


def planner_of(made: RunConfig) -> Planner:
    from turnwise.algorithms.registry import build

    return build(made.algorithm, made.run_info).planner or GroupPlanner(made.rollout.group_size)


def here(made: RunConfig, model: Path, updates: int = 1) -> list[Played]:
    """By a collector in this process."""
    return _played(collector_here(made, model), made, updates)


def collector_here(made: RunConfig, model: Path, grader: Grader | None = None) -> Collector:
    with closing(made.env.make()) as world:
        cast = Cast(world, made.env, made.agent, made.rollout, made.game, made.seed, ())
        return cast.collectors({"": cast.agent("", policy_of(made, model))}, grader)[TRAIN]


def sharded(made: RunConfig, model: Path, host: Host, updates: int = 1, policy: Policy | None = None) -> list[Played]:
    """By shards on a host."""
    with closing(collector_in_shards(made, model, host, policy)) as collector:
        return _played(collector, made, updates)


def collector_in_shards(
    made: RunConfig, model: Path, host: Host, policy: Policy | None = None, grader: Grader | None = None
) -> ShardedCollector:
    policies = {"": policy or policy_of(made, model)}
    shards = shards_of(made.model_dump(mode="json"), str(model), (), policies, host)
    return ShardedCollector(shards, TRAIN, grader)


def _played(collector: Any, made: RunConfig, updates: int) -> list[Played]:
    found = []
    with closing(made.env.make()) as world:
        tasks = panel(world, "train")[: made.rollout.num_tasks]
    planner = planner_of(made)
    for update in range(updates):
        seen: list[str] = []
        rollouts = collector.rollouts(SAMPLING, update, lambda t, seen=seen: seen.append(t.episode))
        found.append(Played(planner.plan(tasks, rollouts), seen))
    return found
