"""The run configuration: parsed at the edge, frozen inside.

A run is described by one YAML file and ``key.path=value`` overrides. Unknown keys, wrong types, impossible
combinations and settings that the run would not use are errors of one line each, with the nearest right name.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    field_validator,
    model_validator,
)

from turnwise.agents.policy import DType, LoRAConfig
from turnwise.agents.prompts import AgentConfig
from turnwise.agents.scratch import ScratchModelConfig
from turnwise.agents.worldwork import Order
from turnwise.algorithms.optimizer import OptimizerConfig
from turnwise.algorithms.recipe import RunInfo, Settings
from turnwise.algorithms.registry import ALGORITHMS, build, resolve
from turnwise.envs.process import ProcessEnv
from turnwise.envs.tasks import TextEnv, make_env
from turnwise.training.cloning import WarmstartConfig
from turnwise.training.mirrors import MirrorName
from turnwise.training.watchdog import WatchdogConfig


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
                raise ValueError(f"env.{name} can only be kept with env.process=true")
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


class _WorldOverrides(_Section):
    kwargs: dict[str, Any] = Field(default_factory=dict)
    success_threshold: float | None = None


class EvaluationOverrides(_Section):
    """What ``turnwise evaluate`` may change about a run or a model: the agent's settings, and the world's."""

    agent: dict[str, Any] = Field(default_factory=dict)
    env: _WorldOverrides = _WorldOverrides()


class RunConfig(_Section):
    """Everything that decides a run's numbers."""

    env: EnvConfig = EnvConfig()
    model: ModelConfig = ScratchModelConfig()
    lora: LoRAConfig | None = LoRAConfig()
    agent: AgentConfig = AgentConfig()
    warmstart: WarmstartConfig | None = None
    algorithm: SerializeAsAny[Settings] = Field(validate_default=True, default="epo")
    optimizer: OptimizerConfig = OptimizerConfig()
    rollout: RolloutConfig = RolloutConfig()
    game: GameConfig | None = None
    eval: EvalConfig = EvalConfig()
    watchdog: WatchdogConfig = WatchdogConfig()
    num_updates: int = Field(100, ge=0, description="updates (collect, then train)")
    max_sampled_tokens: int | None = Field(
        None, ge=1, description="stop after the update that reaches it; num_updates then only spans the schedules"
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
        """``"grpo"``, ``{"type": "grpo", ...}``, or ``module:recipe`` from outside."""
        if isinstance(value, Settings):
            return value
        given = {"type": value} if isinstance(value, str) else value
        if not isinstance(given, Mapping) or "type" not in given:
            raise ValueError("algorithm is a name, such as grpo or epo, or a section with a `type:`")
        given = dict(given)
        return resolve(str(given["type"])).config.model_validate(given)

    def _check_algorithm(self) -> None:
        """The algorithm fits the rollouts, and what it needs is there."""
        recipe = build(self.algorithm, RunInfo(self.num_updates, self.rollout.group_size, self.seed))
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
        if self.rollout.engines > 1 and self.device != "cpu":
            raise ValueError(
                f"rollout.engines={self.rollout.engines} divides the slots on a CPU; on device={self.device} "
                "one engine plays: leave it at 1"
            )
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
            raise ValueError("agent.window is set, but agent.context=full does not use it: set agent.context=window")
        if agent.context == "window" and agent.on_overflow == "restart":
            raise ValueError("agent.on_overflow=restart is for agent.context=full: a window is fresh every turn")
        if agent.max_reply_tokens >= agent.max_context_tokens:
            raise ValueError(
                f"agent.max_reply_tokens={agent.max_reply_tokens} leaves no room in "
                f"agent.max_context_tokens={agent.max_context_tokens}: no episode could begin"
            )
        if not measured.every and measured.tasks != EvalConfig().tasks:
            raise ValueError("eval.tasks is set, but eval.every=0 never measures on eval.split")
        if self.keep_checkpoint == "best" and not 0 < measured.every <= self.num_updates:
            raise ValueError(
                "keep_checkpoint=best needs eval.every between 1 and num_updates: nothing would be the best"
            )
        if clone is not None:
            for name in ("split", "stop_split"):
                if getattr(clone, name) == measured.test_split:
                    raise ValueError(f"warmstart.{name} is the test split {measured.test_split!r}: it must stay unseen")
            if clone.split == measured.split and measured.every:
                raise ValueError(f"warmstart.split and eval.split are both {clone.split!r}: choose two")
            default = WarmstartConfig()
            if clone.stop_success is None and (clone.stop_tasks, clone.check_every) != (
                default.stop_tasks,
                default.check_every,
            ):
                raise ValueError("warmstart.stop_tasks and check_every do nothing without warmstart.stop_success")


Section = TypeVar("Section", bound=BaseModel)

CONFIG_SUFFIXES = (".yaml", ".yml")


def config_folder() -> Path:
    """The folder of the configuration files that come with turnwise."""
    shipped = Path(str(files("turnwise"))) / "configs"
    return shipped if shipped.is_dir() else Path(__file__).parent.parent / "configs"


def shipped_configs() -> list[str]:
    """Names of the shipped configurations, such as ``epo/household``."""
    root = config_folder()
    return sorted(str(p.relative_to(root).with_suffix("")) for p in root.rglob("*.yaml"))


def read_config(name: str | Path, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """A configuration file by path, or a shipped one by name; ValueError that names the nearest.

    ``extends: NAME`` in a file takes that configuration and lays the file's own settings over it. ``above`` are those
    that lead here.
    """
    read = _read_yaml(name)
    below = read.pop("extends", None)
    if below is None:
        return read
    if not isinstance(below, str) or below in (*above, str(name)):
        raise ValueError(f"{name}: extends should name another configuration, and not lead back; got {below!r}")
    return _over(read_config(below, (*above, str(name))), read)


def _over(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Settings laid over others; a section of another ``type`` replaces the one below."""
    made = dict(below)
    for key, value in above.items():
        old = made.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and value.get("type", old.get("type")) == old.get("type"):
            made[key] = _over(old, value)
        else:
            made[key] = value
    return made


def _read_yaml(name: str | Path) -> dict[str, Any]:
    path = Path(name)
    if path.suffix not in CONFIG_SUFFIXES and not _is_file(path):
        path = config_folder() / f"{name}.yaml"
    if not _is_file(path):
        near = difflib.get_close_matches(str(name), shipped_configs(), n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"no configuration {str(name)!r}.{hint} Shipped: {', '.join(shipped_configs())}; or a path to a YAML file"
        )
    try:
        read = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, or 2020-99-99 as a date
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(read, dict):
        raise ValueError(f"{path} should hold `key: value` lines; got {type(read).__name__}")
    return read


def _is_file(path: Path) -> bool:
    """Also for names that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def override(config: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """``key.path=value`` settings laid over a configuration; values are YAML (``true``, ``0.1``, ``[1, 2]``)."""
    made: dict[str, Any] = _deep_copy(config)
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise ValueError(f"{setting!r} is not of the form key.path=value, such as optimizer.lr=1e-3")
        *parents, leaf = key.split(".")
        section = made
        for parent in parents:
            below = section.setdefault(parent, {})
            if isinstance(below, str) and parent == "algorithm":
                below = section[parent] = {"type": below}
            if below is None:
                below = section[parent] = {}
            if not isinstance(below, dict):
                raise ValueError(f"{setting!r}: {parent!r} is a value, not a section")
            section = below
        section[leaf] = _yaml_value(text)
        if key == "model.path":  # another kind of model: what described the old one goes
            made["model"] = {
                k: v for k, v in section.items() if k in PretrainedModelConfig.model_fields and k != "type"
            }
    return made


def with_algorithm(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The configuration with another algorithm; settings that both have are kept.

    EPO on GRPO to GRPO takes the base; GRPO to EPO makes it the base.
    """
    made: dict[str, Any] = _deep_copy(config)
    present = made.get("algorithm") or {}
    present = {"type": present} if isinstance(present, str) else present
    if present.get("type") == name:
        return made
    base = present.get("base") or present
    if base.get("type", "grpo") == name:
        made["algorithm"] = {**base, "type": name}
    elif "base" in resolve(name).config.model_fields:
        made["algorithm"] = {"type": name, **({"base": base} if base else {})}
    else:
        fields = resolve(name).config.model_fields
        made["algorithm"] = {**{key: value for key, value in base.items() if key in fields}, "type": name}
    return made


def config_for_env(env_id: str) -> str:
    """The shipped configuration that fits an environment: its own, else ``default``."""
    name = env_id.rpartition("/")[2].rpartition("-v")[0].lower()
    return name if name in shipped_configs() else "default"


def _yaml_value(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: 2020-99-99 looks like a date
        raise ValueError(f"{text!r} is not a YAML value (an open bracket or quote?)") from None
    if isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _deep_copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _deep_copy(v) for k, v in value.items()}
    return list(value) if isinstance(value, list) else value


def parse_config(raw: Mapping[str, Any]) -> RunConfig:
    """Validate; a ValueError with one line per problem, each with the nearest right name."""
    return parse_section(RunConfig, raw)


def parse_section(section: type[Section], raw: Mapping[str, Any], prefix: str = "") -> Section:
    """The same for a part of the configuration that stands alone; ``prefix`` is its name."""
    place = (prefix,) if prefix else ()
    try:
        made = section.model_validate(raw)
    except ValidationError as error:
        lines = [_explain({**problem, "loc": (*place, *problem["loc"])}) for problem in error.errors()]
        raise ValueError("\n".join(dict.fromkeys(lines))) from None
    if infinite := [".".join((*place, *name)) for name in _not_finite(made.model_dump())]:
        raise ValueError(f"{', '.join(infinite)}: expected a finite number (what can be switched off is so by null)")
    return made


def _not_finite(found: Any) -> Iterator[tuple[str, ...]]:
    """Where nan and infinite numbers are, but for what a world is given."""
    if isinstance(found, float) and not math.isfinite(found):
        yield ()
    named = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list | tuple) else ()
    for name, inner in named:
        if name != "kwargs":
            yield from ((str(name), *below) for below in _not_finite(inner))


def load_config(
    name: str | Path | None = None,
    settings: Sequence[str] = (),
    *,
    env: str | None = None,
    algorithm: str | None = None,
) -> RunConfig:
    """Read, override, validate. Without ``name`` the shipped configuration that fits ``env`` is taken."""
    raw = read_config(name if name is not None else config_for_env(env or EnvConfig().id))
    if env is not None and raw.get("env", {}).get("id") != env:
        raw["env"] = {"id": env}
    if algorithm is not None:
        raw = with_algorithm(raw, algorithm)
    return parse_config(override(raw, settings))


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML; ``parse_config`` of it gives the same configuration."""
    return str(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=False), sort_keys=False))


def _explain(problem: Any) -> str:
    place = [str(part) for part in problem["loc"]]
    shown = ".".join(part for part in place if part not in ("scratch", "pretrained"))
    if problem["type"] == "extra_forbidden":
        return f"Unknown setting {shown!r}.{_nearest(shown)}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] in ("value_error", "model_type", "union_tag_invalid", "union_tag_not_found"):
        return f"{shown}: {message}" if shown else message
    return f"{shown}: {message}; got {problem['input']!r}"


def _nearest(wrong: str) -> str:
    """A hint: the same name in another section, else the nearest in this one, else what this section knows."""
    names = [name for name, _ in all_settings()]
    section, _, leaf = wrong.rpartition(".")
    elsewhere = [name for name in names if name.rpartition(".")[2] == leaf and name != wrong]
    here = {name.rpartition(".")[2]: name for name in names if name.rpartition(".")[0] == section and name != wrong}
    near = [here[found] for found in difflib.get_close_matches(leaf, here, n=1, cutoff=0.6)]
    if near or elsewhere:
        return f" Did you mean {(elsewhere or near)[0]!r}?"
    return f" Known here: {', '.join(here)}." if here else ""


def all_settings() -> Iterator[tuple[str, Any]]:
    """(dotted name, field) of every setting there is, those of each algorithm included."""
    yield from settings_of(RunConfig)
    for algorithm in ALGORITHMS.values():
        yield from settings_of(algorithm.config, "algorithm.")


def settings_of(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, field) of every setting below a configuration class."""
    for name, info in section.model_fields.items():
        yield f"{prefix}{name}", info
        for candidate in dict.fromkeys((info.annotation, *get_args(info.annotation), type(info.default))):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel) and candidate is not Settings:
                yield from settings_of(candidate, f"{prefix}{name}.")
