"""The run configuration: every setting with its meaning, frozen; impossible combinations are refused here.

How one is read from files and command lines: ``turnwise.config.files``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    field_validator,
    model_validator,
)

from turnwise.agents.prompts import AgentConfig
from turnwise.agents.worldwork import Order
from turnwise.cloning.settings import WarmstartConfig
from turnwise.config.names import DEFAULT_ALGORITHM
from turnwise.envs.process import ProcessEnv
from turnwise.envs.tasks import TextEnv, make_env
from turnwise.learning.settings import OptimizerConfig, RewardSettings, RunInfo, Settings, UnusedSettingError
from turnwise.models.settings import DType, LoRAConfig, ScratchModelConfig
from turnwise.monitoring.mirrors import MirrorName
from turnwise.monitoring.watchdog import WatchdogConfig


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EnvConfig(_Section):
    """The world."""

    id: str = Field("turnwise/Household-v0", description="gymnasium id, or module:ns/Id-v0")
    kwargs: dict[str, Any] = Field(default_factory=dict, description="arguments of gymnasium.make")
    split: str = Field("train", description="split that training draws tasks from")
    success_threshold: float | None = Field(
        None, description="total reward that counts as success, for worlds without info['success']"
    )
    process: bool = Field(
        False, description="each environment in a process of its own, so that one that hangs or dies is replaced"
    )
    step_timeout_s: float = Field(60.0, gt=0, description="seconds a step may take; with process=true")
    reset_timeout_s: float = Field(300.0, gt=0, description="seconds a reset may take; with process=true")

    def make(self) -> TextEnv:
        """A fresh environment. Raises ValueError for an unknown id, or settings that the world does not take."""
        if not self.process:
            return make_env(self.id, **self.kwargs)
        return ProcessEnv(
            self.id, self.kwargs, step_timeout_s=self.step_timeout_s, reset_timeout_s=self.reset_timeout_s
        )

    @model_validator(mode="after")
    def _limits_need_a_process(self) -> EnvConfig:
        default = type(self).model_fields
        for name in ("step_timeout_s", "reset_timeout_s"):
            if not self.process and getattr(self, name) != default[name].default:
                raise UnusedSettingError(name, f"env.{name} can only be kept with env.process=true")
        return self


class PretrainedModelConfig(_Section):
    """A Hugging Face causal LM (Qwen2.5, Qwen3, Llama type) with its own tokenizer and chat template."""

    type: Literal["pretrained"] = "pretrained"
    path: str = Field(description="folder or hub name")
    dtype: DType = Field("auto", description="auto: as stored")
    gradient_checkpointing: bool = Field(False, description="recompute activations on the way back")


ModelConfig = Annotated[ScratchModelConfig | PretrainedModelConfig, Field(discriminator="type")]


class RolloutConfig(_Section):
    """What one update collects: ``num_tasks`` groups of ``group_size`` episodes."""

    num_tasks: int = Field(8, ge=1, description="tasks (groups) per update")
    group_size: int = Field(8, ge=1, description="episodes per task, G")
    num_slots: int = Field(64, ge=1, description="episodes played at once")
    engines: int = Field(
        1, ge=1, description="processes that divide the slots and sample at once (on a CPU); 1: this one"
    )
    threads: int | None = Field(1, ge=1, description="torch threads of an engine; None: as while learning")
    env_threads: int = Field(
        0, ge=0, description="threads in which worlds work while others generate, for worlds that wait; 0: in between"
    )
    env_order: Order = Field(
        "fixed", description="fixed: worlds' answers are taken so that runs repeat; free: as they come (throughput)"
    )
    max_error_share: float = Field(
        0.25, ge=0, le=1, description="stop the run when more of an update's episodes fail in their environment"
    )
    temperature: float = Field(1.0, gt=0, le=10, description="of sampling, and of the log-probs that are trained")


def check_engines(engines: int, device: str) -> None:
    """Raises ValueError for several engines off the CPU."""
    if engines > 1 and device != "cpu":
        raise ValueError(
            f"rollout.engines={engines} divides the slots on a CPU; on device={device} one engine plays: leave it at 1"
        )


class GameConfig(_Section):
    """Worlds of several players: who has the other seats. An opponent is ``random``, ``expert[:KIND]``, or the folder
    of a run or model, and never learns.
    """

    opponent: str = Field("self", description="in training; self: learners take every seat (self-play)")
    policies: Literal["shared", "per_role", "per_player"] = Field(
        "shared", description="one policy for all seats, one for each role, or one for each seat"
    )
    eval_opponent: str = Field("random", description="when measured; self as above")


class EvalConfig(_Section):
    """Measurements along the way (``split``) and before and after training (``test_split``)."""

    every: int = Field(10, ge=0, description="updates between two evaluations; 0: never")
    split: str = Field("validation", description="panel that chooses the best checkpoint")
    tasks: int = Field(128, ge=1, description="tasks of that panel")
    test_split: str | None = Field("test", description="panel measured before and after; None: skip")
    test_tasks: int = Field(256, ge=1, description="tasks of the test panel")
    samples: int = Field(1, ge=1, description="sampled episodes per task")
    greedy: bool = Field(True, description="measure greedy decoding beside sampling before and after")
    max_error_share: float = Field(
        0.25, ge=0, le=1, description="refuse a measurement when more of its episodes fail in their environment"
    )


class _WorldOverrides(_Section):
    kwargs: dict[str, Any] = Field(default_factory=dict)
    success_threshold: float | None = None
    process: bool | None = None
    step_timeout_s: float | None = None
    reset_timeout_s: float | None = None

    def where(self) -> dict[str, Any]:
        """What is said of where the world works, and for how long at most."""
        return self.model_dump(include={"process", "step_timeout_s", "reset_timeout_s"}, exclude_none=True)


class _RolloutOverrides(_Section):
    engines: int = Field(1, ge=1)
    env_threads: int = Field(0, ge=0)


class _EvalOverrides(_Section):
    max_error_share: float | None = Field(None, ge=0, le=1)


class EvaluationOverrides(_Section):
    """What ``turnwise evaluate`` may change about a run or a model: the agent's settings, the world's, how much goes
    on at once, and how many episodes may fail.
    """

    agent: dict[str, Any] = Field(default_factory=dict)
    env: _WorldOverrides = _WorldOverrides()
    rollout: _RolloutOverrides = _RolloutOverrides()
    eval: _EvalOverrides = _EvalOverrides()


class RunConfig(_Section):
    """Everything that decides a run's numbers."""

    env: EnvConfig = EnvConfig()
    model: ModelConfig = ScratchModelConfig()
    lora: LoRAConfig | None = LoRAConfig()
    agent: AgentConfig = AgentConfig()
    warmstart: WarmstartConfig | None = None
    algorithm: SerializeAsAny[Settings] = Field(validate_default=True, default=DEFAULT_ALGORITHM)
    rewards: RewardSettings = RewardSettings()
    optimizer: OptimizerConfig = OptimizerConfig()
    rollout: RolloutConfig = RolloutConfig()
    game: GameConfig | None = None
    eval: EvalConfig = EvalConfig()
    watchdog: WatchdogConfig = WatchdogConfig()
    num_updates: int = Field(100, ge=0, description="updates (collect, then train)")
    max_sampled_tokens: int | None = Field(
        None, ge=1, description="stop after the update that reaches it; num_updates then only spans the schedules"
    )
    schedule_updates: int | None = Field(
        None, ge=1, description="updates that schedules span; None: num_updates. A prolonged run keeps its own"
    )
    checkpoint_every: int = Field(10, ge=1, description="updates between two checkpoints")
    max_skipped_updates: int = Field(
        3, ge=1, description="stop after this many updates in a row with a gradient that was not finite"
    )
    mirrors: tuple[MirrorName, ...] = Field(
        (), description="where metrics.jsonl is copied to: tensorboard, wandb (offline unless WANDB_MODE=online)"
    )
    seed: int = Field(0, ge=0, description="of everything random")
    device: str = Field("cpu", description="cpu, cuda, cuda:1")
    threads: int = Field(1, ge=1, description="torch threads while learning; with 2 a small model gains a third")
    keep_checkpoint: Literal["best", "last"] = Field(
        "last",
        description="which policy the final evaluation and exports use: the last, or the best on eval.split",
    )

    @field_validator("model", mode="before")
    @classmethod
    def _kind_of_model(cls, value: Any) -> Any:
        """A path means a pretrained model; without one the model is made from nothing."""
        if isinstance(value, Mapping) and "type" not in value:
            return {"type": "pretrained" if "path" in value else "scratch", **value}
        return value

    @field_validator("algorithm", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Settings:
        """``"grpo"``, ``{"type": "grpo", ...}`` (EPO where there is no type), or ``module:recipe`` from outside."""
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
        return RunInfo(self.span, self.rollout.group_size, self.seed, self.rewards)

    @property
    def span(self) -> int:
        """Updates that schedules span; after them they stay at their ends."""
        return self.num_updates if self.schedule_updates is None else self.schedule_updates

    def _check_algorithm(self) -> None:
        """The algorithm fits the rollouts, and what it needs is there."""
        from turnwise.algorithms.registry import build

        recipe = build(self.algorithm, self.run_info)
        if self.lora is None and any("reference" in stream.needs for stream in recipe.streams):
            raise ValueError(
                f"algorithm {recipe.name!r} compares with a frozen reference policy, which is the model with its "
                "adapters off: with lora=null there is none. Set kl_coef=0, or keep LoRA"
            )

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        if isinstance(self.model, ScratchModelConfig) and self.warmstart is None:
            raise ValueError(
                "model.type=scratch starts from random weights, which win no episode to learn from: add a "
                "`warmstart:` section (warmstart={} takes the defaults), or give model.path=FOLDER_OR_NAME"
            )
        check_engines(self.rollout.engines, self.device)
        if self.eval.test_split is not None and self.eval.test_split in (self.env.split, self.eval.split):
            raise ValueError(
                f"eval.test_split={self.eval.test_split!r} is also used for training or for choosing checkpoints: "
                "the final numbers would not be of unseen tasks"
            )
        if self.env.split == self.eval.split and self.eval.every:
            raise ValueError(f"env.split and eval.split are both {self.env.split!r}: choose two")
        self._check_algorithm()
        self._check_use()
        return self

    def _check_use(self) -> None:
        """Settings that this run would not use, or that leave it nothing to do."""
        agent, clone, measured = self.agent, self.warmstart, self.eval
        if agent.context == "full" and agent.window != AgentConfig().window:
            raise UnusedSettingError(
                "agent.window", "agent.window is set, but agent.context=full does not use it: set agent.context=window"
            )
        if agent.context == "window" and agent.on_overflow == "restart":
            raise UnusedSettingError(
                "agent.on_overflow", "agent.on_overflow=restart is for agent.context=full: a window is fresh every turn"
            )
        if agent.max_reply_tokens >= agent.max_context_tokens:
            raise ValueError(
                f"agent.max_reply_tokens={agent.max_reply_tokens} leaves no room in "
                f"agent.max_context_tokens={agent.max_context_tokens}: no episode could begin"
            )
        if not measured.every and measured.tasks != EvalConfig().tasks:
            raise UnusedSettingError("eval.tasks", "eval.tasks is set, but eval.every=0 never measures on eval.split")
        if self.keep_checkpoint == "best" and not 0 < measured.every <= self.num_updates:
            raise ValueError(
                "keep_checkpoint=best needs eval.every between 1 and num_updates: nothing would be the best"
            )
        if clone is not None:
            own = ("split", "stop_split") if clone.env is None else ("stop_split",)
            for name in own:
                if getattr(clone, name) == measured.test_split:
                    raise ValueError(f"warmstart.{name} is the test split {measured.test_split!r}: it must stay unseen")
            if clone.env == self.env.id:
                raise ValueError("warmstart.env is the run's own world: leave it out, so that splits are proven apart")
            if clone.env is None and clone.split == measured.split and measured.every:
                raise ValueError(f"warmstart.split and eval.split are both {clone.split!r}: choose two")
            default = WarmstartConfig()
            if clone.stop_success is None and (clone.stop_tasks, clone.check_every) != (
                default.stop_tasks,
                default.check_every,
            ):
                raise UnusedSettingError(
                    ("warmstart.stop_tasks", "warmstart.check_every"),
                    "warmstart.stop_tasks and check_every do nothing without warmstart.stop_success",
                )
