"""The loop: collect -> store -> sample -> credit -> update (the last three are the learner's).

Everything random is drawn from (seed, update), so a resumed run repeats what an unbroken one does.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch

from turnwise.agents.collector import Collector, Rollouts, SuccessRule, mix
from turnwise.agents.engine import Sampling, SlotEngine
from turnwise.agents.policy import Policy
from turnwise.agents.prompts import ChatFormat
from turnwise.algorithms.metrics import Agreement, Metrics
from turnwise.algorithms.planning import GroupPlanner
from turnwise.algorithms.recipe import RunInfo
from turnwise.algorithms.registry import build
from turnwise.algorithms.update import Learner
from turnwise.cloning import Progress
from turnwise.config import RunConfig
from turnwise.envs.interface import Panel
from turnwise.envs.tasks import make_env, maker, panel
from turnwise.evaluation import Report, evaluate_policy
from turnwise.replay.buffer import TrajectoryBuffer
from turnwise.replay.store import TrajectoryWriter
from turnwise.rundir import POLICY, Checkpoint, CheckpointName, RunDirectory
from turnwise.trajectory import Group, Task, Trajectory, group_by_task

# Sampler against learner on the same tokens, nats: exact arithmetic agrees to rounding, half precision less.
_FLOAT32_LIMIT = 1e-4
_HALF_LIMITS = (0.02, 0.2)  # mean, 99th percentile

# Keys of the reply draws: updates count from 0, measurements have their own.
_EVAL_KEY, TEST_KEY = 1 << 40, 1 << 41


class Observer(Protocol):
    """Hears what happens; a display, a test, nobody."""

    def stage(self, name: str) -> None: ...
    def cloning(self, progress: Progress) -> None: ...
    def episode(self, trajectory: Trajectory) -> None: ...
    def update(self, record: dict[str, Any]) -> None: ...
    def report(self, report: Report) -> None: ...


class Silent:
    """An observer that hears nothing."""

    def stage(self, name: str) -> None: ...
    def cloning(self, progress: Progress) -> None: ...
    def episode(self, trajectory: Trajectory) -> None: ...
    def update(self, record: dict[str, Any]) -> None: ...
    def report(self, report: Report) -> None: ...


class DisagreementError(RuntimeError):
    """Sampler and learner do not hold the same policy: the run stops before it trains on wrong ratios."""


class CollectionError(RuntimeError):
    """Nothing could be collected: every episode failed, or ended before its first turn."""


@dataclass(frozen=True, slots=True)
class Panels:
    """The tasks of a run; what is trained or cloned on is proven apart from what is measured."""

    train: Sequence[Task]
    validation: list[Task]
    test: list[Task]

    def hashes(self) -> dict[str, str]:
        """Identity of each panel's content and order (a generated one's definition)."""
        found = {"validation": self.validation, "test": self.test}
        hashes = {name: Panel("", "", tuple(tasks)).hash for name, tasks in found.items() if tasks}
        return {"train": str(getattr(self.train, "hash", "")), **hashes}


@dataclass(slots=True)
class _Times:
    """Wall seconds of one update's stages."""

    collect: float = 0.0
    update: float = 0.0
    evaluate: float = 0.0


@dataclass(slots=True)
class _Best:
    success: float = -math.inf
    update: int = -1


class Trainer:
    """One run in progress. Build it with ``train`` or ``resume``; tests may drive it update by update."""

    def __init__(self, config: RunConfig, run: RunDirectory, policy: Policy, observer: Observer) -> None:
        self.config, self.run, self.policy, self.observer = config, run, policy, observer
        self.policy.temperature = config.rollout.temperature
        self.chat = ChatFormat(policy.tokenizer, config.agent.system)
        self.engine = SlotEngine(
            policy.sampler,
            num_slots=config.rollout.num_slots,
            max_length=config.agent.max_context_tokens,
            end_ids=self.chat.end_ids,
            threads=config.rollout.threads,
        )
        self.collector = Collector(
            maker(config.env.id, **config.env.kwargs),
            self.engine,
            self.chat,
            config.agent,
            seed=config.seed,
            success=SuccessRule(config.env.success_threshold),
        )
        info = RunInfo(config.num_updates, config.rollout.group_size, config.seed)
        self.learner = Learner(build(config.algorithm, info), policy, config.optimizer, info)
        self.buffer = TrajectoryBuffer(self.learner.recipe.keep_updates)
        self.planner = self.learner.recipe.planner or GroupPlanner(config.rollout.group_size)
        panels = open_panels(config)
        self.tasks, self.validation, self.test = panels.train, panels.validation, panels.test
        self.writer = TrajectoryWriter(run.trajectories_path)
        self.finished = 0  # updates
        self.best = _Best()
        self.sampled_tokens = 0
        self._order: tuple[int, Any] = (-1, None)
        self._sync()

    def step(self) -> dict[str, Any]:
        """One update; its record for the log."""
        update, times = self.finished, _Times()
        began = time.perf_counter()
        groups = self.collect(update)
        self.store(groups, update)
        times.collect = time.perf_counter() - began
        began = time.perf_counter()
        metrics = self.learner.update(self.buffer, update, verify=self.verify)
        self.finished = update + 1
        self._sync()
        times.update = time.perf_counter() - began
        record = self._record(groups, update, metrics)
        began = time.perf_counter()
        if self.config.eval.every and self.finished % self.config.eval.every == 0:
            record["eval_success"] = self.validate()
        times.evaluate = time.perf_counter() - began
        record["seconds"] = asdict(times)
        self.run.log(record)
        self.observer.update(record)
        if self.finished % self.config.checkpoint_every == 0 or self.finished == self.config.num_updates:
            self.save("last")
        return record

    def collect(self, update: int) -> list[Group]:
        """Play ``group_size`` episodes of each of the update's tasks."""
        sampling = Sampling(self.config.rollout.temperature, max_tokens=self.config.agent.max_reply_tokens)
        rollouts = Rollouts(self.collector, sampling, key=update, on_episode=self.observer.episode)
        played = self.planner.plan(self.tasks_of(update), rollouts)
        if not any(t.turns for t in played if t.end != "error"):
            reasons = sorted({f"{t.end}: {t.end_reason}" for t in played})[:3]
            raise CollectionError(f"no episode of update {update} has a turn to learn from ({'; '.join(reasons)})")
        return group_by_task(played)

    def tasks_of(self, update: int) -> list[Task]:
        """The update's tasks, no two the same: the split in a seeded order, shuffled anew for each pass over it.

        A pass has as many updates as fit; the few tasks that are left over differ from pass to pass.
        """
        num = self.config.rollout.num_tasks
        epoch, place = divmod(update, len(self.tasks) // num)
        if self._order[0] != epoch:
            generator = np.random.default_rng(mix("tasks", self.config.seed, epoch))
            self._order = (epoch, generator.permutation(len(self.tasks)))
        return [self.tasks[int(i)] for i in self._order[1][place * num : (place + 1) * num]]

    def store(self, groups: list[Group], update: int) -> None:
        """To disk first, then to the buffer that the learner samples from."""
        self.writer.append(update, [t for group in groups for t in group.trajectories])
        self.buffer.add(groups, update)
        for group in groups:
            for trajectory in group.trajectories:
                if trajectory.turns and trajectory.adapter_hash != self.policy.adapter_hash:
                    raise DisagreementError(
                        f"episode {trajectory.episode} was sampled with weights {trajectory.adapter_hash}, "
                        f"the learner holds {self.policy.adapter_hash}: the sampler was not synchronised"
                    )

    def verify(self, agreement: Agreement) -> None:
        """Stop where the sampler's log-probs are not the learner's. Raises DisagreementError."""
        exact = next(iter(self.policy.sampler.parameters())).dtype == torch.float32
        if exact and agreement.max_abs <= _FLOAT32_LIMIT:
            return
        if not exact and agreement.mean_abs <= _HALF_LIMITS[0] and agreement.p99 <= _HALF_LIMITS[1]:
            return
        raise DisagreementError(
            f"sampler and learner disagree on the log-probs of {agreement.num_tokens} tokens they both hold: "
            f"max {agreement.max_abs:.2e}, mean {agreement.mean_abs:.2e}, 99th percentile {agreement.p99:.2e} nats "
            f"(limit: {f'max {_FLOAT32_LIMIT:.0e}' if exact else f'mean {_HALF_LIMITS[0]}, p99 {_HALF_LIMITS[1]}'}). "
            "The adapters did not reach the sampler, or the attention implementations differ"
        )

    def _sync(self) -> None:
        self.policy.sync(self.finished)
        self.collector.version, self.collector.adapter_hash = self.policy.version, self.policy.adapter_hash

    def validate(self) -> float:
        """Sampled success (mean return where success is unknown) on the validation panel; keeps the best."""
        report = self.measure(self.validation, "validation", temperature=1.0, key=_EVAL_KEY)
        value = report.success.value if report.success else report.mean_return
        if value > self.best.success:
            self.best = _Best(value, self.finished)
            self.save("best")
        return value

    def measure(self, tasks: Sequence[Task], name: str, *, temperature: float, key: int) -> Report:
        """A report on a panel; the same key gives every policy the same draws."""
        samples = 1 if temperature == 0 else self.config.eval.samples
        report, _ = evaluate_policy(
            self.collector,
            tasks,
            name=name,
            temperature=temperature,
            samples=samples,
            max_tokens=self.config.agent.max_reply_tokens,
            key=key,
            on_episode=self.observer.episode,
        )
        return report

    def final(self) -> dict[str, Report]:
        """Sampled (T = 1) and greedy reports on the test panel."""
        if not self.test:
            return {}
        reports = {"sampled": self.measure(self.test, "sampled", temperature=1.0, key=TEST_KEY)}
        if self.config.eval.greedy:
            reports["greedy"] = self.measure(self.test, "greedy", temperature=0.0, key=TEST_KEY)
        for report in reports.values():
            self.observer.report(report)
        return reports

    def save(self, name: CheckpointName) -> None:
        state, tensors = self.learner.state_dict()
        policy = {f"{POLICY}{k}": v for k, v in self.policy.trainable_state().items()}
        extra = {
            "learner": state,
            "best": asdict(self.best) if self.best.update >= 0 else None,
            "buffer": self.buffer.state_dict(),
            "sampled_tokens": self.sampled_tokens,
            "adapter_hash": self.policy.adapter_hash,
        }
        self.run.save(name, Checkpoint(self.finished, extra, {**policy, **tensors}))

    def load(self, name: CheckpointName) -> None:
        """Take up a checkpoint; what the run logged after it is dropped."""
        checkpoint = self.run.load(name)
        self.policy.load_trainable_state(checkpoint.policy_tensors())
        self.learner.load_state_dict(checkpoint.state["learner"], checkpoint.tensors)
        self.buffer.load_state_dict(checkpoint.state["buffer"])
        best = checkpoint.state["best"]
        self.best = _Best(**best) if best else _Best()
        self.sampled_tokens = checkpoint.state["sampled_tokens"]
        self.finished = checkpoint.update
        self._sync()
        if self.policy.adapter_hash != checkpoint.state["adapter_hash"]:
            raise ValueError(f"checkpoint {name!r} of {self.run.path} does not restore the weights it was saved from")

    def _record(self, groups: list[Group], update: int, metrics: Metrics) -> dict[str, Any]:
        episodes = [t for group in groups for t in group.trajectories if t.end != "error"]
        turns = [turn for t in episodes for turn in t.turns]
        known = [t.success for t in episodes if t.success is not None]
        sampled = sum(t.num_action_tokens for t in episodes)
        self.sampled_tokens += sampled
        return {
            "update": update,
            "success": float(np.mean(known)) if known else None,
            "reward": float(np.mean([t.total_reward for t in episodes])) if episodes else 0.0,
            "turns": float(np.mean([len(t.turns) for t in episodes])) if episodes else 0.0,
            "invalid_share": float(np.mean([not turn.valid for turn in turns])) if turns else 0.0,
            "episodes": len(episodes),
            "errors": sum(t.end == "error" for group in groups for t in group.trajectories),
            "sampled_tokens": sampled,
            "total_sampled_tokens": self.sampled_tokens,
            "adapter_hash": self.policy.adapter_hash,
            "entropy": None,  # as_dict leaves out what was not measured
            **metrics.as_dict(),
        }


def open_panels(config: RunConfig) -> Panels:
    """The run's panels. Raises ValueError for an unknown split, an overlap, or too few training tasks."""
    env = make_env(config.env.id, **config.env.kwargs)
    train, test_split = panel(env, config.env.split), config.eval.test_split
    validation = _subset(panel(env, config.eval.split), config.eval.tasks) if config.eval.every else []
    test = _subset(panel(env, test_split), config.eval.test_tasks) if test_split else []
    cloned = [panel(env, config.warmstart.split)] if config.warmstart else []
    prove_disjoint([train, *cloned], [validation, test])
    if len(train) < config.rollout.num_tasks:
        raise ValueError(
            f"split {config.env.split!r} has {len(train)} tasks, fewer than "
            f"rollout.num_tasks={config.rollout.num_tasks}"
        )
    return Panels(train, validation, test)


def _subset(tasks: Sequence[Task], num: int) -> list[Task]:
    """The first ``num`` tasks of a panel: the same for every run."""
    return [tasks[i] for i in range(min(num, len(tasks)))]


def prove_disjoint(trained: Sequence[Sequence[Task]], measured: Sequence[Sequence[Task]]) -> None:
    """No measured task is in another measured panel, or may be among those trained or cloned on, by content key.

    Raises ValueError that names one that is.
    """
    seen: dict[str, Task] = {}
    for task in (task for tasks in measured for task in tasks):
        if task.key in seen and seen[task.key].split != task.split:
            raise ValueError(
                f"task {task.key} is in {seen[task.key].split} and in {task.split}: panels must be disjoint"
            )
        seen[task.key] = task
    overlap = [key for tasks in trained for key in seen if _may_contain(tasks, key)]
    if overlap:
        raise ValueError(f"evaluation task {overlap[0]} is also a training task: success on it would prove nothing")


def _may_contain(tasks: Sequence[Task], key: str) -> bool:
    return tasks.may_contain(key) if isinstance(tasks, Panel) else any(task.key == key for task in tasks)
