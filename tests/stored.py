"""A small run on disk without training: real models play, what they did is stored as the trainer stores it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.models import scratch_folder, tiny_model, tokenizer
from turnwise.agents.chat import ChatFormat
from turnwise.agents.collector import Collector
from turnwise.agents.episode import SuccessRule
from turnwise.agents.jobs import jobs_for
from turnwise.agents.rollouts import Rollouts
from turnwise.agents.scripted import scripted
from turnwise.agents.seating import ModelAgent, Scripted, Seating
from turnwise.config.files import parse_config
from turnwise.config.schema import RunConfig
from turnwise.envs.tasks import panel
from turnwise.models.engine import Sampling, SlotEngine
from turnwise.replay.store import TrajectoryWriter
from turnwise.runs.directory import RunDirectory
from turnwise.trajectory import RolloutFinished, TurnFinished

HOUSE, ECHO, NIM = "turnwise/Household-v0", "tests.worlds:tests/Echo-v0", "tests.worlds:tests/Nim-v0"


def run_config(env_id: str, env: dict[str, Any] | None = None, **sections: Any) -> RunConfig:
    agent = {"max_reply_tokens": 6, "max_context_tokens": 512, **sections.pop("agent", {})}
    return parse_config({"env": {"id": env_id, **(env or {})}, "agent": agent, "warmstart": {}, **sections})


def stored_run(folder: Path, config: RunConfig, updates: int = 2, tasks: int = 2, opponent: str = "self") -> Path:
    """``updates`` updates of ``tasks`` tasks, two episodes each."""
    run = RunDirectory.create(folder, config, {})
    scratch_folder(run.model_path)
    collector = collector_of(config, opponent)
    whole, writer = panel(config.env.make(), config.env.split), TrajectoryWriter(run.trajectories_path)
    for update in range(updates):
        jobs = jobs_for([whole[update * tasks + i] for i in range(tasks)], 2, update)
        writer.append(update, collector.collect(jobs, Sampling(max_tokens=6)))
    return run.path


def collector_of(config: RunConfig, opponent: str = "self") -> Collector:
    chat = ChatFormat(tokenizer(), config.agent.system)
    engine = SlotEngine(
        tiny_model(), num_slots=4, max_length=config.agent.max_context_tokens, end_ids=chat.end_ids, threads=1
    )
    other = scripted(opponent)
    opponents: dict[str, Scripted] | None = {"": other} if other else None
    seating = Seating({"": ModelAgent(engine, chat, config.agent)}, opponents)
    return Collector(config.env.make, seating, seed=config.seed, success=SuccessRule(config.env.success_threshold))


def forked(config: RunConfig, key: int, at: int) -> list[Any]:
    """The trajectories of an attempt at one task and of a fork of it after ``at`` turns."""
    rollouts = Rollouts(collector_of(config), Sampling(max_tokens=6), key=key)
    first, found = rollouts.start(panel(config.env.make(), config.env.split)[0], 0), []
    for event in rollouts.events():
        if isinstance(event, TurnFinished) and event.rollout == first and event.turn == at - 1:
            rollouts.fork(first, at)
        if isinstance(event, RolloutFinished):
            found.append(event.trajectory)
    return found
