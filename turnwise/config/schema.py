"""The run configuration: every setting of a run with its meaning, frozen.

``checks.py`` refuses combinations that cannot work. ``files.py`` reads a configuration from files and command lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from turnwise.agents.prompts import AgentConfig
from turnwise.cloning.settings import WarmstartConfig, for_pretrained
from turnwise.config import checks
from turnwise.config.names import DEFAULT_ALGORITHM
from turnwise.config.sections import (
    EvalConfig,
    GameConfig,
    LearnerConfig,
    RayConfig,
    RewardsConfig,
    RolloutConfig,
    Section,
)
from turnwise.envs.settings import EnvConfig
from turnwise.learning.settings import OptimizerConfig, RunInfo, Settings, StaleSettings
from turnwise.models.settings import (
    LoRAConfig,
    ModelConfig,
    PretrainedModelConfig,
    ScratchModelConfig,
    made_from_scratch,
)
from turnwise.monitoring.mirrors import MirrorName
from turnwise.monitoring.settings import WatchdogConfig


class RunConfig(Section):
    """Everything that decides a run's numbers."""

    env: EnvConfig = EnvConfig()
    model: ModelConfig = ScratchModelConfig()
    lora: LoRAConfig | None = LoRAConfig()
    agent: AgentConfig = AgentConfig()
    warmstart: WarmstartConfig | None = None
    algorithm: SerializeAsAny[Settings] = Field(validate_default=True, default=DEFAULT_ALGORITHM)
    rewards: RewardsConfig = RewardsConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    stale: StaleSettings = StaleSettings()
    learner: LearnerConfig = LearnerConfig()
    rollout: RolloutConfig = RolloutConfig()
    ray: RayConfig | None = None
    game: GameConfig | None = None
    eval: EvalConfig = EvalConfig()
    watchdog: WatchdogConfig = WatchdogConfig()
    num_updates: int = Field(100, ge=0, description="updates (collect, then train)")
    max_sampled_tokens: int | None = Field(
        None,
        ge=1,
        description="stop after the update that reaches so many; num_updates is then only the span of schedules",
    )
    schedule_updates: int | None = Field(
        None, ge=1, description="updates that schedules span; None: num_updates. A run that is prolonged keeps its span"
    )
    checkpoint_every: int = Field(10, ge=1, description="updates between two checkpoints")
    max_skipped_updates: int = Field(
        3, ge=1, description="stop after this many updates in a row with a gradient that was not finite"
    )
    mirrors: tuple[MirrorName, ...] = Field(
        (), description="where metrics.jsonl is copied to: tensorboard, wandb (offline unless WANDB_MODE=online)"
    )
    seed: int = Field(0, ge=0, description="seed of everything random")
    device: str = Field("cpu", description="device of the model, such as cpu, cuda or cuda:1")
    threads: int = Field(1, ge=1, description="torch threads while learning; with 2 a small model gains a third")
    keep_checkpoint: Literal["best", "last"] = Field(
        "last",
        description="which policy the final evaluation and exports use: the last, or the best on eval.split",
    )

    @model_validator(mode="before")
    @classmethod
    def _warmstart_by_kind(cls, value: Any) -> Any:
        """Settings of a warm start that are not given are the usual ones for the kind of model."""
        if not isinstance(value, Mapping):
            return value
        model, clone = value.get("model"), value.get("warmstart")
        path = model.path if isinstance(model, PretrainedModelConfig) else None
        path = model.get("path") if isinstance(model, Mapping) else path
        if isinstance(clone, WarmstartConfig):
            clone = clone.model_dump(exclude_unset=True)
        if path is None or not isinstance(clone, Mapping) or made_from_scratch(str(path)):
            return value
        lora = value.get("lora")
        lora = lora.model_dump() if isinstance(lora, LoRAConfig) else lora
        return {**value, "warmstart": for_pretrained(clone, lora if isinstance(lora, Mapping) else {})}

    @field_validator("model", mode="before")
    @classmethod
    def _kind_of_model(cls, value: Any) -> Any:
        """Add the type: a section with a path is a pretrained model, one without is a model with random weights."""
        if isinstance(value, Mapping) and "type" not in value:
            return {"type": "pretrained" if "path" in value else "scratch", **value}
        return value

    @field_validator("algorithm", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Settings:
        """Read ``"grpo"``, ``{"type": "grpo", ...}`` (EPO without a type), or ``module:recipe`` for one of your own."""
        if isinstance(value, Settings):
            return value
        given = {"type": value} if isinstance(value, str) else value
        if not isinstance(given, Mapping):
            raise ValueError("algorithm is a name, such as grpo or epo, or a section of settings with a `type:`")
        from turnwise.algorithms.registry import resolve  # here: an algorithm brings torch

        given = {"type": DEFAULT_ALGORITHM, **given}
        return resolve(str(given["type"])).config.model_validate(given)

    @property
    def run_info(self) -> RunInfo:
        """What the algorithm's recipe may know about the run."""
        rollout = self.rollout
        return RunInfo(self.span, rollout.group_size, self.seed, self.rewards, ahead=rollout.ahead, stale=self.stale)

    @property
    def span(self) -> int:
        """Updates that schedules span; after them they stay at their ends."""
        return self.num_updates if self.schedule_updates is None else self.schedule_updates

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        """The cross-checks, one after another; the first that fails is the one error that is shown."""
        checks.check_start(self.model, self.warmstart)
        checks.check_adapters(self.model, self.warmstart, self.lora)
        checks.check_shards(self.rollout, self.ray, self.device)
        checks.check_stale(self.rollout, self.stale)
        checks.check_backend(self.rollout, self.ray, self.agent, self.lora, self.learner)
        checks.check_packed_weights(self.rollout.packed_weights, self.device)
        checks.check_ranks(self.learner, self.lora, self.device, self.ray)
        checks.check_splits(self.env, self.eval)
        checks.check_algorithm(self.algorithm, self.run_info, self.rewards, self.rollout, self.agent, self.game)
        checks.check_context(self.agent)
        checks.check_measurements(self.eval, self.keep_checkpoint, self.num_updates)
        if self.warmstart is not None:
            checks.check_warmstart(self.warmstart, self.env, self.eval)
        return self
