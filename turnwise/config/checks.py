"""Cross-checks of a configuration: each looks at several settings and raises ValueError where they do not fit.

A setting that would have no effect raises UnusedSettingError, which names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from turnwise.agents.decoding import DecodingConfig
from turnwise.agents.prompts import AgentConfig
from turnwise.cloning.settings import EXPERT, WarmstartConfig
from turnwise.config.sections import (
    EvalConfig,
    GameConfig,
    LearnerConfig,
    RayConfig,
    RewardsConfig,
    RolloutConfig,
    in_shards,
)
from turnwise.envs.settings import EnvConfig
from turnwise.errors import UnusedSettingError
from turnwise.learning.settings import RunInfo, Settings, StaleSettings, setting_name
from turnwise.models.settings import LoRAConfig, ModelConfig, PackedWeights, ScratchModelConfig
from turnwise.models.vllm.settings import VllmConfig

if TYPE_CHECKING:
    from turnwise.learning.recipe import Recipe


_ONLY_OWN: Mapping[str, str] = {
    "agent.decoding.second": "asks another model in this process for single tokens",
    "agent.decoding.steering": "changes the states within the model",
}
"""Methods of decoding that no other engine has, and why."""


def check_own(decoding: DecodingConfig) -> None:
    """Raise ValueError for a method of decoding that vLLM cannot do."""
    if name := decoding.only_own:
        raise ValueError(
            f"{name} {_ONLY_OWN[name]}, which works in our own engine: set rollout.backend=own, or leave it out"
        )


def check_start(model: ModelConfig, warmstart: WarmstartConfig | None) -> None:
    """A model of random weights is cloned before it trains."""
    if isinstance(model, ScratchModelConfig) and warmstart is None:
        raise ValueError(
            "model.type=scratch starts from random weights, which win no episode to learn from: add a "
            "`warmstart:` section (warmstart={} takes the defaults), or give model.path=FOLDER_OR_NAME"
        )
    if isinstance(model, ScratchModelConfig) and warmstart is not None and warmstart.lora is not None:
        raise ValueError("model.type=scratch starts from random weights, all of which are cloned: warmstart.lora=null")
    if isinstance(model, ScratchModelConfig) and warmstart is not None and not warmstart.max_tokens:
        raise ValueError(
            "model.type=scratch starts from random weights: warmstart.max_tokens=0 is for a model that was cloned "
            "before, model.path=FOLDER"
        )
    if isinstance(model, ScratchModelConfig) and warmstart is not None and warmstart.source != EXPERT:
        raise ValueError(
            f"model.type=scratch takes its words from an expert's demonstrations: warmstart.from={warmstart.source} is "
            "for a model that has a tokenizer, model.path=FOLDER_OR_NAME"
        )


def check_adapters(model: ModelConfig, warmstart: WarmstartConfig | None, lora: LoRAConfig | None) -> None:
    """RL can go on from the adapter that the warm start makes, as ``model.adapter`` says."""
    if isinstance(model, ScratchModelConfig) or warmstart is None or warmstart.lora is None:
        return
    if lora is None and model.adapter != "merge":
        raise ValueError(
            "the warm start makes an adapter, and lora=null trains all weights: set model.adapter=merge to add it to "
            "them first, warmstart.lora=null to clone all weights too, or keep LoRA"
        )
    cloned = warmstart.lora
    if lora is not None and model.adapter == "continue" and (lora.rank, lora.alpha) != (cloned.rank, cloned.alpha):
        raise ValueError(
            f"the warm start makes an adapter of rank {cloned.rank} and alpha {cloned.alpha:g}, and RL is to train it "
            f"on with lora.rank={lora.rank} and lora.alpha={lora.alpha:g}: make them equal, or set "
            "model.adapter=frozen to train a new one above it"
        )


def check_shards(rollout: RolloutConfig, ray: RayConfig | None, device: str) -> None:
    """Every shard has a slot and repeats itself, and processes share a CPU; shards on GPUs are Ray's to place."""
    if rollout.num_slots < rollout.shards:
        raise ValueError(
            f"rollout.num_slots={rollout.num_slots} leaves a shard of rollout.shards={rollout.shards} without a slot: "
            "raise the one or lower the other"
        )
    if not in_shards(rollout, ray):
        for name in ("shard_timeout_s", "shard_losses"):
            if getattr(rollout, name) != RolloutConfig.model_fields[name].default:
                raise UnusedSettingError(
                    f"rollout.{name}", f"rollout.{name} is for rollout.shards of 2 or more, rollout.ahead, or ray"
                )
    check_places(rollout.shards, ray, device)
    if ray is None:
        check_ahead(rollout.ahead, device)
    if rollout.env_waiting_share < 0.5 and (not rollout.env_threads or rollout.env_order == "free"):
        raise UnusedSettingError(
            "rollout.env_waiting_share",
            f"rollout.env_waiting_share={rollout.env_waiting_share:g} is for worlds in threads "
            "(rollout.env_threads=16) whose answers are taken in a fixed order (rollout.env_order=fixed)",
        )
    if rollout.env_order == "free" and in_shards(rollout, ray):
        raise ValueError(
            "rollout.env_order=free never repeats, and a shard that is lost has its episodes played again by another: "
            "leave rollout.env_order at fixed, or rollout.shards at 1, rollout.ahead at 0 and ray out"
        )


def check_places(shards: int, ray: RayConfig | None, device: str) -> None:
    """Shards in processes share a CPU, and those of a Ray cluster sample on what the run's device is."""
    if ray is not None and device != "cpu" and not ray.gpus_per_shard:
        raise ValueError(f"device={device}, and shards would sample on CPUs: set ray.gpus_per_shard=1 (a share, as .5)")
    if ray is None and shards > 1 and device != "cpu":
        raise ValueError(
            f"rollout.shards={shards} without ray are processes that share a CPU; on device={device} leave it at 1, or "
            "have Ray place shards: ray.address=local and ray.gpus_per_shard=1"
        )


def check_ahead(ahead: int, device: str) -> None:
    """Updates are played ahead in processes beside the learner's; on GPUs Ray places them."""
    if ahead and device != "cpu":
        raise ValueError(
            f"rollout.ahead={ahead} plays in a process beside this one, which without ray is for a CPU; on "
            f"device={device} leave it at 0, or set ray.address=local and ray.gpus_per_shard=1 (a share, as .5)"
        )


def check_stale(rollout: RolloutConfig, stale: StaleSettings) -> None:
    """A correction is for episodes that earlier weights played."""
    unused = tuple(f"stale.{name}" for name in type(stale).model_fields if stale.changed(name))
    if unused and not rollout.ahead:
        raise UnusedSettingError(unused, f"{', '.join(unused)}: for rollout.ahead of 1 or more, and it is 0")


def check_backend(
    rollout: RolloutConfig, ray: RayConfig | None, agent: AgentConfig, lora: LoRAConfig | None, learner: LearnerConfig
) -> None:
    """Settings of one engine are for that one."""
    served = rollout.vllm.url is not None
    if rollout.backend != "vllm":
        unused = [name for name, value in rollout.vllm if value != getattr(VllmConfig(), name)]
        if unused:
            told = ", ".join(f"rollout.vllm.{name}" for name in unused)
            raise UnusedSettingError(
                tuple(f"rollout.vllm.{name}" for name in unused), f"{told}: set rollout.backend=vllm, or leave it out"
            )
    elif rollout.packed_weights is True:
        raise UnusedSettingError(
            "rollout.packed_weights",
            "rollout.packed_weights is for our own engine, and rollout.backend=vllm samples: leave it out",
        )
    elif rollout.ahead and served:
        raise ValueError(
            f"rollout.ahead={rollout.ahead} was not tried with a vLLM server: set rollout.ahead=0, or leave "
            "rollout.vllm.url out, so that each shard has a vLLM of its own"
        )
    elif served and ray is not None and ray.address != "local":
        raise ValueError(
            f"ray.address={ray.address}: a vLLM server reads adapters from folders of its own machine, and shards of a "
            "cluster may be on others: set ray.address=local, or leave rollout.vllm.url out, so that each shard has a "
            "vLLM of its own"
        )
    elif learner.ranks > 1 and not served and not in_shards(rollout, ray):
        raise ValueError(
            f"learner.ranks={learner.ranks}, and vLLM in the first rank's process would wait for the others: play in "
            "shards (rollout.shards), give a server (rollout.vllm.url), or set rollout.backend=own"
        )
    elif served and lora is None:
        raise ValueError(
            "a vLLM server plays adapters, and lora=null trains all weights: leave rollout.vllm.url out, so that vLLM "
            "runs in this process, or keep LoRA"
        )
    elif agent.decoding.only_own:
        check_own(agent.decoding)
    elif served and (names := _of_each_token(agent)):
        raise ValueError(f"{names[0]} works on each token of a reply, which a vLLM server cannot: {_IN_THIS_PROCESS}")


_IN_THIS_PROCESS = "leave rollout.vllm.url out, so that vLLM runs in this process"


def _of_each_token(agent: AgentConfig) -> list[str]:
    """The settings of an agent that need a processor of ours."""
    found = ["agent.constrained"] if agent.constrained else []
    return [*found, *(["agent.thought_tokens"] if agent.thought_tokens is not None else []), *agent.decoding.names]


def check_packed_weights(packed: PackedWeights, device: str) -> None:
    """Packed weights are for a CPU."""
    if packed is True and device != "cpu":
        raise ValueError(
            f"rollout.packed_weights=true is for a CPU, and this run has device={device}: leave it at auto"
        )


def check_ranks(learner: LearnerConfig, lora: LoRAConfig | None, device: str, ray: RayConfig | None) -> None:
    """Frozen weights are divided among several ranks, each of which has a device of its own."""
    if learner.ranks == 1 and learner != LearnerConfig():
        unused = [
            name for name in ("parallel", "timeout_s") if getattr(learner, name) != getattr(LearnerConfig(), name)
        ]
        names = tuple(f"learner.{name}" for name in unused)
        raise UnusedSettingError(names, f"{', '.join(names)}: for several ranks, and learner.ranks is 1")
    if learner.ranks == 1 and ray is not None and ray.cpus_per_rank != RayConfig().cpus_per_rank:
        raise UnusedSettingError("ray.cpus_per_rank", "ray.cpus_per_rank: for several ranks, and learner.ranks is 1")
    if learner.parallel == "fsdp2" and lora is None:
        raise ValueError(
            "learner.parallel=fsdp2 divides frozen weights, and lora=null trains all of them: set "
            "learner.parallel=ddp, or keep LoRA"
        )
    if learner.ranks > 1 and ":" in device:
        raise ValueError(
            f"learner.ranks={learner.ranks} needs as many devices, and device={device} is one: set "
            f"device={device.partition(':')[0]}, of which each rank takes its own"
        )


def check_splits(env: EnvConfig, measured: EvalConfig) -> None:
    """Training, choosing a checkpoint and the final measurement use different splits."""
    if measured.test_split is not None and measured.test_split in (env.split, measured.split):
        raise ValueError(
            f"eval.test_split={measured.test_split!r} is also used for training or for choosing checkpoints: "
            "the final numbers would not be of unseen tasks"
        )
    if env.split == measured.split and measured.every:
        raise ValueError(f"env.split and eval.split are both {env.split!r}: choose two")


def check_heating(
    recipe: Recipe, setting: str, rollout: RolloutConfig, agent: AgentConfig, game: GameConfig | None
) -> None:
    """Temperatures that an algorithm decides are one policy's, need a processor of ours, and are nobody else's.

    ``setting`` is the dotted name of the one that decides them.
    """
    name = f"{recipe.name} decides temperatures ({setting})"
    if rollout.vllm.url is not None:
        raise ValueError(f"{name} token by token, which a vLLM server cannot: set {setting}=0, or {_IN_THIS_PROCESS}")
    if game is not None and game.policies != "shared":
        raise ValueError(
            f"{name} by the tokens of one policy, and game.policies={game.policies} trains several: set {setting}=0"
        )
    if agent.decoding.heat is not None:
        raise ValueError(f"{name}, and so would agent.decoding.heat: set {setting}=0, or leave that out")


def check_planner(recipe: Recipe, game: GameConfig | None) -> None:
    """A planner that goes by what a policy did in updates before knows one policy, and plays for all."""
    from turnwise.learning.parts import Part  # here: a recipe brings torch
    from turnwise.learning.recipe import layers

    if game is None or game.policies == "shared":
        return
    for layer in layers(recipe.planner):
        if isinstance(layer, Part) or getattr(layer, "remembers", False):
            raise ValueError(
                f"{recipe.name} decides what is played ({type(layer).__name__}) by the earlier episodes of one policy, "
                f"and game.policies={game.policies} trains several: set game.policies=shared, or take another algorithm"
            )


def check_forks(recipe: Recipe, agent: AgentConfig) -> None:
    """A copy that begins within a reply goes on as its parent did, so that no method goes by earlier draws."""
    from turnwise.learning.recipe import layers  # here: a recipe brings torch

    going = {"agent.decoding.mirostat", "agent.decoding.second"} & set(agent.decoding.names)
    if going and any(getattr(layer, "within_replies", False) for layer in layers(recipe.planner)):
        raise ValueError(
            f"{recipe.name} begins copies within replies, by forced tokens, and {', '.join(sorted(going))} would go by "
            "how the tokens before were drawn, which a copy does not know: leave it out, or take another algorithm"
        )


def check_algorithm(
    algorithm: Settings,
    run: RunInfo,
    rewards: RewardsConfig,
    rollout: RolloutConfig,
    agent: AgentConfig,
    game: GameConfig | None,
) -> None:
    """The algorithm fits the rollouts. One that plays nothing has no use for graders, and trains one policy."""
    from turnwise.algorithms.registry import build  # here: an algorithm brings torch
    from turnwise.learning.planning import NoRollouts

    recipe = build(algorithm, run)
    if recipe.heating is not None:
        check_heating(recipe, setting_name(algorithm, recipe.heating.setting), rollout, agent, game)
    check_planner(recipe, game)
    check_forks(recipe, agent)
    if not isinstance(recipe.planner, NoRollouts):
        return
    default = RewardsConfig()
    paying = ("world", "functions", "judge", "ranking")
    given = [f"rewards.{name}" for name in paying if getattr(rewards, name) != getattr(default, name)]
    if given:
        raise ValueError(
            f"{', '.join(given)}: graders pay episodes that are played, and with algorithm.episodes nothing is. Leave "
            "them out, and learn from episodes that were paid so when they were played; `turnwise rejudge` shows what "
            "graders would pay stored ones"
        )
    if game is not None and game.policies != "shared":
        raise ValueError(
            f"game.policies={game.policies} trains several policies, and with algorithm.episodes each would learn from "
            "the replies of all of them: set game.policies=shared, or learn from episodes that the run plays"
        )


def check_context(agent: AgentConfig) -> None:
    """The agent's context settings belong together, and a reply has room in the context."""
    if agent.context == "full" and agent.window != AgentConfig().window:
        raise UnusedSettingError(
            "agent.window", "agent.window is set, but agent.context=full does not use it: set agent.context=window"
        )
    check_roles(agent)
    if agent.context == "window" and agent.on_overflow == "restart":
        raise UnusedSettingError(
            "agent.on_overflow", "agent.on_overflow=restart is for agent.context=full: a window is fresh every turn"
        )
    if agent.context != "full" and agent.thoughts == "drop":
        raise UnusedSettingError(
            "agent.thoughts",
            f"agent.thoughts=drop is for agent.context=full: context={agent.context} shows what it shows",
        )
    if agent.thought_tokens is not None and agent.thought_tokens >= agent.max_reply_tokens:
        raise ValueError(
            f"agent.thought_tokens={agent.thought_tokens} leaves no room for an answer in "
            f"agent.max_reply_tokens={agent.max_reply_tokens}: lower the one or raise the other"
        )
    if agent.max_reply_tokens >= agent.max_context_tokens:
        raise ValueError(
            f"agent.max_reply_tokens={agent.max_reply_tokens} leaves no room in "
            f"agent.max_context_tokens={agent.max_context_tokens}: no episode could begin"
        )


def check_roles(agent: AgentConfig) -> None:
    """A chat with roles has calls in its replies, and what it is shown is the world's to say."""
    default, roles = AgentConfig(), agent.context == "roles"
    if roles and agent.action_format != "calls":
        raise ValueError(
            f"agent.context=roles shows tools, and agent.action_format={agent.action_format} reads no calls of them: "
            "set agent.action_format=calls"
        )
    if not roles and agent.action_format == "calls" and agent.context in ("full", "window"):
        raise ValueError(
            f"agent.action_format=calls reads calls of tools, which agent.context={agent.context} does not show: set "
            "agent.context=roles"
        )
    unused = ("tool_calls", "tools_in") if agent.action_format != "calls" else ()
    if roles:
        unused = (*unused, "window", "show_admissible", "admissible_format", "constrained")
    names = tuple(f"agent.{name}" for name in unused if getattr(agent, name) != getattr(default, name))
    if names:
        raise UnusedSettingError(names, f"{', '.join(names)}: without effect with agent.context={agent.context}")


def check_measurements(measured: EvalConfig, keep_checkpoint: str, num_updates: int) -> None:
    """A best checkpoint needs measurements, and a panel needs someone to measure it."""
    if not measured.every and measured.tasks != EvalConfig().tasks:
        raise UnusedSettingError("eval.tasks", "eval.tasks is set, but eval.every=0 never measures on eval.split")
    if keep_checkpoint == "best" and not 0 < measured.every <= num_updates:
        raise ValueError("keep_checkpoint=best needs eval.every between 1 and num_updates: nothing would be the best")


def check_warmstart(clone: WarmstartConfig, env: EnvConfig, measured: EvalConfig) -> None:
    """Cloning keeps off the test split and off the split that chooses checkpoints, and every setting of it counts."""
    own = ("split", "stop_split") if clone.is_own else ("stop_split",)
    for name in own:
        if getattr(clone, name) == measured.test_split:
            raise ValueError(f"warmstart.{name} is the test split {measured.test_split!r}: it must stay unseen")
    if clone.env is not None and clone.env.rpartition(":")[2] == env.id.rpartition(":")[2]:  # with its module, or not
        raise ValueError("warmstart.env is the run's own world: leave it out, so that splits are proven apart")
    if clone.is_own and clone.split == measured.split and measured.every:
        raise ValueError(f"warmstart.split and eval.split are both {clone.split!r}: choose two")
    default = WarmstartConfig()
    of_experts = ("expert", "env", "split", "noise", "noise_stale", "expert_jitter", "num_demonstrations", "takeovers")
    unused = [name for name in of_experts if getattr(clone, name) != getattr(default, name)]
    if clone.source != EXPERT and unused:
        names = tuple(f"warmstart.{name}" for name in unused)
        raise UnusedSettingError(names, f"{', '.join(names)}: for an expert's demonstrations, not for {clone.source}")
    if clone.stop_success is None and (clone.stop_tasks, clone.check_every) != (
        default.stop_tasks,
        default.check_every,
    ):
        raise UnusedSettingError(
            ("warmstart.stop_tasks", "warmstart.check_every"),
            "warmstart.stop_tasks and check_every do nothing without warmstart.stop_success",
        )
