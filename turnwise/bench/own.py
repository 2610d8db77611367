"""The figures of a user's own model and world: one update, stage by stage, with the floors of the machine beside them.

A run is measured as its checkpoint left it, a model folder as it is, a configuration with its warm start (or, where
that was never made, with random weights: replies then run to their limit).
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from turnwise.assembly.policies import load_policies, open_run
from turnwise.assembly.run import Assembly
from turnwise.bench.floor import Load, Machine, Stopwatch
from turnwise.bench.rollout import Script, race
from turnwise.clock import STAGES
from turnwise.config.files import parse_config, target_config
from turnwise.config.overrides import override
from turnwise.config.sections import RolloutConfig
from turnwise.models.engine import EngineCounts
from turnwise.models.loading import check_device
from turnwise.models.policy import Policy
from turnwise.runs.directory import RunDirectory
from turnwise.training.trainer import Trainer
from turnwise.trajectory import Group, Trajectory

UNMEASURED = {
    "eval": {"every": 0, "test_split": None},
    "keep_checkpoint": "last",
    "checkpoint_every": 1_000_000,
    "max_sampled_tokens": None,
    "num_updates": 2,
}
"""What a run does beside its updates."""

ALONE = {name: getattr(RolloutConfig(), name) for name in ("shards", "shard_timeout_s", "shard_losses")}
"""One process is measured: this one, whose clock counts its CPU time."""


@dataclass(frozen=True, slots=True)
class Stage:
    """``tokens`` of the environment are steps. ``floor_s`` is None where there is none."""

    name: str
    seconds: float
    share: float
    tokens: int
    floor_s: float | None = None

    @property
    def rate(self) -> float | None:
        return self.tokens / self.seconds if self.tokens and self.seconds else None

    @property
    def floor_rate(self) -> float | None:
        return self.tokens / self.floor_s if self.tokens and self.floor_s else None


@dataclass(frozen=True, slots=True)
class OwnBench:
    """One update. Seconds are CPU time of the process (on a GPU: wall time); the machine's rates are floor.py's."""

    env: str
    parameters: int
    episodes: int
    machine: Machine
    stages: tuple[Stage, ...]
    generate_ratio: float | None  # generate() over the engine, on some of the same episodes

    def plain(self) -> dict[str, Any]:
        """JSON-able, flat: ``decode_s``, ``decode_per_s``, ``decode_floor_per_s``, ``decode_share``."""
        found: dict[str, Any] = {"env": self.env, "parameters": self.parameters, "episodes": self.episodes}
        for stage in self.stages:
            found[f"{stage.name}_s"], found[f"{stage.name}_share"] = stage.seconds, stage.share
            found[f"{stage.name}_per_s"], found[f"{stage.name}_floor_per_s"] = stage.rate, stage.floor_rate
        rates = {
            "bandwidth_gb_per_s": self.machine.bandwidth / 1e9,
            "matmul_gflop_per_s": self.machine.matmul_rate / 1e9,
        }
        return {**found, **rates, "generate_ratio": self.generate_ratio}


def own_bench(target: str, settings: Sequence[str] = (), *, env: str | None = None, num_generate: int = 16) -> OwnBench:
    """Measure the second of two updates of ``target``; ``num_generate`` of its episodes again with ``generate()``.

    ``target``: a run, a model folder, or a configuration (a path or a shipped name). Raises ValueError for what is none
    of them, and for settings of a run (its own are measured).
    """
    threads = torch.get_num_threads()
    try:
        with tempfile.TemporaryDirectory() as folder:
            return _measured(target, settings, env, Path(folder) / "run", num_generate)
    finally:
        torch.set_num_threads(threads)


def _measured(target: str, settings: Sequence[str], env: str | None, folder: Path, num_generate: int) -> OwnBench:
    source = open_run(target)
    if source is not None and (settings or env):
        raise ValueError(f"{target} is a run and is measured as it is: leave --env and other settings out")
    config = source.config() if source is not None else target_config(target, settings, env=env)
    kept = config.keep_checkpoint
    given = {**override(config.model_dump(), []), **UNMEASURED}
    config = parse_config({**given, "rollout": {**given["rollout"], **ALONE}, "ray": None})
    check_device(config.device)
    torch.set_num_threads(config.threads)
    with closing(Assembly(config)) as assembly:
        run = RunDirectory.create(folder, config, assembly.panels.hashes())
        if source is None and config.warmstart is not None:
            assembly.warmstart.put_unlearned(run)
        which = kept if source is not None and source.has_checkpoint else None
        policies = load_policies(source or run, assembly.side_names, which)
        trainer = assembly.trainer_of(_Seen, run, policies=policies)
        with closing(trainer):
            return _update(trainer, policies, num_generate, env=config.env.id, device=config.device)


def _update(trainer: _Seen, policies: Mapping[str, Policy], num_generate: int, *, env: str, device: str) -> OwnBench:
    trainer.clock.now = watch = Stopwatch(torch.device(device))
    trainer.step()
    steps, began = _steps(trainer), watch()
    record = trainer.step()
    total = watch() - began
    policy = next(iter(policies.values()))
    machine = Machine.measure(policy.model)
    played = [t for group in trainer.groups for t in group.trajectories if t.turns]
    adapters = sum(p.numel() for p in policy.parameters()) if policy.lora else 0
    load = Load.of(policy.sampler, adapters)
    floors = _floors(load, machine, record["tokens"], played, _steps(trainer) - steps)
    ratio = None
    if num_generate:
        scripts = [Script.of(t) for t in played[:num_generate]]
        slots = trainer.sides[0].agent.engine.num_slots
        ours, theirs, _ = race(policy.sampler, scripts, slots, policy.tokenizer.pad_token_id)
        ratio = theirs / ours
    return OwnBench(
        env=env,
        parameters=sum(p.numel() for p in policy.model.parameters()) - adapters,
        episodes=len(played),
        machine=machine,
        stages=_stages(record, floors, total),
        generate_ratio=ratio,
    )


class _Seen(Trainer):
    """Keeps the groups of the last update."""

    groups: Sequence[Group] = ()

    def store(self, groups: list[Group], update: int) -> None:
        self.groups = groups
        super().store(groups, update)


def _steps(trainer: Trainer) -> int:
    engines = {id(side.agent.engine): side.agent.engine for side in trainer.sides}
    counts = [getattr(engine, "counts", EngineCounts()) for engine in engines.values()]
    return sum(found.steps for found in counts)


def _floors(
    load: Load, machine: Machine, tokens: Mapping[str, int], played: Sequence[Trajectory], steps: int
) -> dict[str, float]:
    """Floors in seconds by stage, from how long the contexts are on average when something is fed to them."""
    prefill, decode = _places(played)
    actions = sum(t.num_action_tokens for t in played)
    share = actions / (len(prefill) + len(decode))  # of the learner's tokens, those that are predicted
    mean = float(np.concatenate([prefill, decode]).mean())
    scored, trained = tokens.get("score", 0), tokens.get("train", 0)
    return {
        "prefill": load.prefill_s(machine, tokens.get("prefill", 0), float(prefill.mean())),
        "decode": steps * load.decode_s(machine, actions / max(steps, 1), float(decode.mean())),
        "score": load.score_s(machine, scored, scored * share, mean),
        "train": load.train_s(machine, trained, trained * share, mean),
    }


def _places(played: Sequence[Trajectory]) -> tuple[np.ndarray, np.ndarray]:
    """How many tokens of its context each prompt token and each sampled token come after."""
    prefill, decode = [], []
    for trajectory in played:
        place = 0
        for turn in trajectory.turns:
            place = place if turn.continues else 0
            middle = place + len(turn.prompt_ids)
            prefill.append(np.arange(place, middle))
            place = middle + len(turn.action_ids)
            decode.append(np.arange(middle, place))
    return np.concatenate(prefill), np.concatenate(decode)


def _stages(record: Mapping[str, Any], floors: Mapping[str, float], total: float) -> tuple[Stage, ...]:
    seconds, tokens = record["seconds"], record["tokens"]
    rows = [
        Stage(name, seconds[name], seconds[name] / total, tokens.get(name, 0), floors.get(name))
        for name in STAGES
        if seconds.get(name)
    ]
    rest = max(total - sum(row.seconds for row in rows), 0.0)
    return (*rows, Stage("other", rest, rest / total, 0))
