"""The sections of a run's configuration that belong to the run itself: rollouts, ranks, games, evaluation, overrides.

The other sections are defined beside what they configure, such as ``turnwise.agents.prompts.AgentConfig``.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from turnwise.agents.worldwork import Order
from turnwise.grading.settings import GradingConfig
from turnwise.heat import LEAST_TEMPERATURE
from turnwise.learning.settings import RewardSettings
from turnwise.models.settings import PackedWeights
from turnwise.models.vllm.settings import Backend, VllmConfig


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RewardsConfig(GradingConfig, RewardSettings):
    """What an episode is paid, and what an update makes of that."""


class RolloutConfig(Section):
    """What one update collects: ``num_tasks`` groups of ``group_size`` episodes."""

    num_tasks: int = Field(8, ge=1, description="tasks (groups) per update")
    group_size: int = Field(8, ge=1, description="episodes per task, G")
    num_slots: int = Field(64, ge=1, description="episodes played at once")
    backend: Backend | None = Field(
        None, description="the engine that samples: own, or vllm; None: by device, size and precision (docs/vllm.md)"
    )
    vllm: VllmConfig = VllmConfig()
    shards: int = Field(
        1,
        ge=1,
        description="processes that share the slots and play at the same time; 1: the main process, or with ahead one "
        "beside it",
    )
    ahead: int = Field(
        0,
        ge=0,
        description="updates that are played ahead while the learner learns, each with the weights of so many updates "
        "before; 0: played and learned from in turn (docs/scale.md)",
    )
    shard_timeout_s: float = Field(
        1800.0, gt=0, description="seconds that a shard may take to be made or to answer; then it counts as lost"
    )
    shard_losses: int = Field(
        5, ge=0, description="how often one shard may be lost and made again in an update, before the run stops"
    )
    threads: int | None = Field(
        1, ge=1, description="torch threads while sampling; None: the number for learning (threads)"
    )
    packed_weights: PackedWeights = Field(
        "auto",
        description="a copy of the sampler's weights that is faster on a CPU. auto: in half precision, with the same "
        "results; true: in float32 too, which moves log-probs by some 5e-5; false: saves its memory",
    )
    env_threads: int = Field(
        0, ge=0, description="threads for worlds that wait, so that they work during generation; 0: no threads"
    )
    env_order: Order = Field(
        "fixed",
        description="order in which worlds' answers are taken. fixed: runs repeat; free: as they come, which is faster",
    )
    env_waiting_share: float = Field(
        0.5,
        gt=0,
        le=0.5,
        description="with env_order=fixed: share of the running episodes that may wait for their worlds at once. Less "
        "where worlds answer sooner than a reply is generated (programs: 0.125): then more episodes generate together",
    )
    max_error_share: float = Field(
        0.25, ge=0, le=1, description="stop the run when more of an update's episodes fail in their environment"
    )
    temperature: float = Field(
        1.0, ge=LEAST_TEMPERATURE, le=10, description="temperature of sampling, and of the log-probs that are trained"
    )


class RayConfig(Section):
    """Shards and ranks on a Ray cluster in the place of processes of this machine."""

    address: str = Field(
        "local", description="local: a cluster of this machine; auto: the one it belongs to; else the head's address"
    )
    cpus_per_shard: float = Field(1.0, ge=0, description="CPUs of a node that a shard takes")
    gpus_per_shard: float = Field(0.0, ge=0, description="GPUs of a node that a shard takes; 0: it samples on CPUs")
    cpus_per_rank: float = Field(
        1.0, ge=0, description="CPUs of a node that a rank of the learner takes, beside the first; on GPUs one GPU too"
    )


def in_shards(rollout: RolloutConfig, ray: RayConfig | None) -> bool:
    """Whether episodes are played outside the main process."""
    return rollout.shards > 1 or rollout.ahead > 0 or ray is not None


class LearnerConfig(Section):
    """How many processes learn together. Each computes some of the microbatches; the result is the same."""

    ranks: int = Field(
        1,
        ge=1,
        description="processes that share the work of an update: on this machine, on a Ray cluster (ray.address), or "
        "as torchrun starts them; on GPUs each has one of its own. Numbers change by rounding",
    )
    parallel: Literal["ddp", "fsdp2"] = Field(
        "ddp",
        description="what each process holds. ddp: the whole model; fsdp2: its part of the frozen weights, for a model "
        "that does not fit beside its activations",
    )
    timeout_s: float = Field(
        1800.0, gt=0, description="seconds that a process waits for the others in an update before the run is ended"
    )


class GameConfig(Section):
    """Worlds of several players: who has the other seats.

    An opponent is ``random``, ``expert[:KIND]``, or the folder of a run or model. It never learns.
    """

    opponent: str = Field("self", description="opponent in training; self: learners take every seat (self-play)")
    policies: Literal["shared", "per_role", "per_player"] = Field(
        "shared", description="one policy for all seats, one for each role, or one for each seat"
    )
    eval_opponent: str = Field("random", description="opponent in measurements; self: as in training")


class EvalConfig(Section):
    """Measurements during training (on ``split``), and before and after it (on ``test_split``)."""

    every: int = Field(10, ge=0, description="updates between two evaluations; 0: never")
    split: str = Field("validation", description="panel that chooses the best checkpoint")
    tasks: int = Field(128, ge=1, description="tasks of the panel eval.split")
    test_split: str | None = Field(
        "test", description="panel measured before and after training; None: no such measurement"
    )
    test_tasks: int = Field(256, ge=1, description="tasks of the test panel, at most")
    samples: int = Field(1, ge=1, description="sampled episodes per task")
    greedy: bool = Field(True, description="measure greedy decoding as well as sampling, before and after training")
    max_error_share: float = Field(
        0.25, ge=0, le=1, description="refuse a measurement when more of its episodes fail in their environment"
    )


class _WorldOverrides(Section):
    kwargs: dict[str, Any] = Field(default_factory=dict)
    success_threshold: float | None = None
    process: bool | None = None
    step_timeout_s: float | None = None
    reset_timeout_s: float | None = None

    def where(self) -> dict[str, Any]:
        """The settings of the world's process and its time limits that are given."""
        return self.model_dump(include={"process", "step_timeout_s", "reset_timeout_s"}, exclude_none=True)


class _RolloutOverrides(Section):
    shards: int = Field(1, ge=1)
    env_threads: int = Field(0, ge=0)


class _EvalOverrides(Section):
    max_error_share: float | None = Field(None, ge=0, le=1)


class EvaluationOverrides(Section):
    """What ``turnwise evaluate`` may change: settings of agent, world and graders, the speed, how many may fail.

    With ``ray`` shards are actors of a cluster.
    """

    agent: dict[str, Any] = Field(default_factory=dict)
    rewards: dict[str, Any] = Field(default_factory=dict)
    env: _WorldOverrides = _WorldOverrides()
    rollout: _RolloutOverrides = _RolloutOverrides()
    ray: RayConfig | None = None
    eval: _EvalOverrides = _EvalOverrides()
