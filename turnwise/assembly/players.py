"""From a name to whoever plays: a scripted agent, a run (as one of its checkpoints left it), a model folder, an
endpoint.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from turnwise.agents.chat import ChatFormat
from turnwise.agents.chat_client import EndpointConfig
from turnwise.agents.decoding import STEERING_FILE, SecondConfig
from turnwise.agents.endpoint import endpoint, is_endpoint
from turnwise.agents.opening import Example, check_room, read_examples, write_examples
from turnwise.agents.prompts import AgentConfig
from turnwise.agents.scripted import scripted
from turnwise.agents.seating import AnyAgent, ModelAgent, Scripted
from turnwise.agents.untrained import settings_of_untrained
from turnwise.assembly.steering import keep_vector, steer
from turnwise.cloning.examples import examples_for
from turnwise.cloning.settings import WarmstartConfig
from turnwise.config.checks import check_own
from turnwise.config.files import parse_section
from turnwise.config.sections import GameConfig
from turnwise.envs.interface import HasPlayers, capability, instructions_of, speaks_in_roles
from turnwise.envs.tasks import TextEnv, players_of
from turnwise.jsonfile import read_object
from turnwise.learning.settings import laid_over
from turnwise.models.adapters import check_use, load_start
from turnwise.models.engine import Engine, SlotEngine
from turnwise.models.kinds import check_length, is_fast
from turnwise.models.loading import end_ids, from_anywhere
from turnwise.models.packed_weights import wanted
from turnwise.models.policy import Policy
from turnwise.models.second import SecondModel
from turnwise.models.settings import (
    ORIGIN_FILE,
    LoRAConfig,
    ModelConfig,
    PackedWeights,
    PretrainedModelConfig,
    made_from_scratch,
)
from turnwise.models.vllm.settings import Backend, VllmConfig
from turnwise.runs.checkpoints import CheckpointName
from turnwise.runs.directory import RunDirectory
from turnwise.training.plan import Demand, fitting, is_packed, prompt_tokens
from turnwise.training.shape import FLOAT, read_config, shape_of
from turnwise.training.teacher import check_tokens

AGENT_FILE = "agent.json"

WhichCheckpoint = CheckpointName | int
"""The last, the best, or the one after so many updates."""


def sides_of(env: TextEnv, settings: GameConfig | None, env_id: str) -> list[str]:
    """The policies of a run, by the role or player that each plays; ``[""]`` where one plays everything.

    Raises ValueError for settings of games in a world of one player.
    """
    game = capability(env, HasPlayers)
    if game is None:
        if settings is not None:
            raise ValueError(f"{env_id} is a world of one player: leave the game settings out")
        return [""]
    kind = (settings or GameConfig()).policies
    if kind == "shared":
        return [""]
    return list(dict.fromkeys(player if kind == "per_player" else game.role(player) for player in game.players))


def opponents(
    name: str,
    env: TextEnv,
    *,
    num_slots: int,
    threads: int | None = None,
    device: str = "cpu",
    asked: EndpointConfig | None = None,
    shards: int | None = None,
) -> dict[str, AnyAgent] | None:
    """Who has the seats of a game that learners leave, as of ``players``; None for ``self``, and in a world of one
    player.
    """
    if name == "self" or capability(env, HasPlayers) is None:
        return None
    return players(name, env, num_slots=num_slots, threads=threads, device=device, asked=asked, shards=shards)


def load_policies(
    run: RunDirectory,
    sides: list[str],
    checkpoint: WhichCheckpoint | None = None,
    device: str | None = None,
    *,
    samples: bool = True,
) -> dict[str, Policy]:
    """The policies of a run: its base model with fresh adapters for each side, or as a checkpoint left them.

    Number 0 is what the run began with, also where its checkpoint is no longer there. ``device`` None is the run's own.
    Sides share the weights that are not trained. ``samples`` as of ``Policy``.
    """
    config = run.config()
    policies = new_policies(
        run.base_model(),
        sides,
        model=config.model,
        lora=config.lora,
        seed=config.seed,
        device=device or config.device,
        samples=samples,
    )
    known = run.checkpoints.updates()
    if checkpoint is not None and (checkpoint != 0 or 0 in known):
        if isinstance(checkpoint, int) and checkpoint not in known:
            told = ", ".join(map(str, known)) or "none"
            raise ValueError(f"{run.path} has no checkpoint of update {checkpoint}: there is one of {told}")
        saved = run.checkpoints.load(checkpoint) if isinstance(checkpoint, int) else run.load(checkpoint)
        for side, policy in policies.items():
            policy.load_trainable_state(saved.policy_tensors(side))
            policy.sync(saved.update)
    return policies


def new_policies(
    path: str | Path,
    sides: list[str],
    *,
    model: ModelConfig,
    lora: LoRAConfig | None,
    seed: int,
    device: str,
    samples: bool = True,
) -> dict[str, Policy]:
    """The model of a folder or hub name with fresh adapters for each side, by the settings in ``model`` and ``lora``.

    Sides share the weights that are not trained. ``samples`` as of ``Policy``.
    """
    pretrained = model if isinstance(model, PretrainedModelConfig) else None
    base, tokenizer, start = load_start(path, dtype=pretrained.dtype if pretrained else "float32", device=device)
    use = pretrained.adapter if pretrained else "continue"
    if start is None and use != "continue":
        raise ValueError(
            f"model.adapter={use} is for an adapter, and {path} is a whole model: leave it out, or clone with "
            "warmstart.lora"
        )
    if start is not None:
        check_use(use, lora, str(path))
        if use == "merge":  # once for all sides, which share the weights
            start.merge_into(base)
            start = None
    shared = {id(p): p for p in base.parameters()} if lora else {}
    models = [base, *(copy.deepcopy(base, dict(shared)) for _ in sides[1:])]
    return {
        side: Policy(
            own,
            tokenizer,
            lora=lora,
            seed=seed,
            gradient_checkpointing=pretrained.gradient_checkpointing if pretrained else False,
            start=start,
            use=use,
            samples=samples,
        )
        for side, own in zip(sides, models, strict=True)
    }


def model_agent(
    policy: Policy,
    settings: AgentConfig,
    *,
    num_slots: int,
    threads: int | None = None,
    packed_weights: PackedWeights = "auto",
    backend: Backend = "own",
    vllm: VllmConfig | None = None,
    name: str = "",
    examples: tuple[Example, ...] = (),
    instructions: str = "",
    plays: bool = True,
) -> ModelAgent:
    """A policy, ready to play.

    It is shown ``examples``. ``packed_weights``: whether a sampler in this process has a copy of its weights that is
    faster on a CPU; ``auto``: in half precision, where that changes no bit. With ``backend`` vllm it is vLLM that
    samples, run as ``vllm`` says. Without ``plays`` it only proves that sampler and learner agree, and has neither
    packed weights nor a second model. The policy is steered as ``agent.decoding.steering`` says. Raises ValueError for
    what cannot be done, and where the examples, after the world's ``instructions``, leave no room for an episode.
    """
    steer(policy, settings.decoding)
    check_length(policy.sampler.config, settings.max_context_tokens)
    chat = ChatFormat.of(policy.tokenizer, settings, end_ids(policy.sampler))
    check_room(chat, settings, instructions, examples)
    limits: dict[str, Any] = {"max_length": settings.max_context_tokens, "end_ids": chat.end_ids, "threads": threads}
    engine: Engine
    second = settings.decoding.second
    if backend == "vllm":
        check_own(settings.decoding)
        engine = _vllm_engine(policy, vllm or VllmConfig(), num_slots=num_slots, **limits)
    else:
        if wanted(packed_weights, next(policy.sampler.parameters())) and is_fast(policy.sampler.config) and plays:
            policy.pack()
        engine = SlotEngine(policy.sampler, num_slots=num_slots, **limits)
    other = None if second is None or not plays else _second(policy, second, num_slots, limits)
    return ModelAgent(engine, chat, settings, name, policy.version, policy.adapter_hash, examples, other)


def with_decoding_from_anywhere(settings: AgentConfig) -> AgentConfig:
    """An agent's settings whose second model and steering vector have names for any working directory."""
    second, steering = settings.decoding.second, settings.decoding.steering
    named: dict[str, Any] = {}
    if second is not None:
        named["second"] = second.model_copy(update={"model": from_anywhere(second.model)})
    if steering is not None:
        named["steering"] = steering.model_copy(update={"file": str(Path(steering.file).expanduser().absolute())})
    return settings.model_copy(update={"decoding": settings.decoding.model_copy(update=named)})


def _second(policy: Policy, config: SecondConfig, num_slots: int, limits: Mapping[str, Any]) -> SecondModel:
    """The model that draws tokens for a policy, with as many contexts."""
    who, other = _loaded_second(policy, config)
    return SecondModel(who, SlotEngine(other.sampler, num_slots=num_slots, **limits), other.frozen_hash())


def _loaded_second(policy: Policy, config: SecondConfig) -> tuple[str, Policy]:
    """What errors call it, and its weights, none of which is trained."""
    who = f"agent.decoding.second.model={config.model}"
    other = frozen_policy(config.model, who, policy, samples=True)
    other.model.requires_grad_(False)
    return who, other


def second_weights(policy: Policy, agent: AgentConfig) -> str | None:
    """The hash of the weights of an agent's second model, loaded for that alone; None where it has none.

    Raises ValueError as ``frozen_policy`` does.
    """
    second = agent.decoding.second
    return None if second is None else _loaded_second(policy, second)[1].frozen_hash()


def second_bytes(agent: AgentConfig, device: str) -> int:
    """Memory of the weights of an agent's second model; 0 where it has none. Raises ValueError as ``frozen_bytes``."""
    second = agent.decoding.second
    return 0 if second is None else frozen_bytes(second.model, "agent.decoding.second", device)


def _vllm_engine(policy: Policy, settings: VllmConfig, **limits: Any) -> Engine:
    """vLLM in this process, where it has to be installed, or behind a server."""
    if settings.url is not None:
        from turnwise.models.vllm.server import served_engine

        return served_engine(policy, settings.url, **limits)
    from turnwise.models.vllm.local import local_engine

    return local_engine(policy, settings=settings, **limits)


def frozen_policy(name: str, who: str, own: Policy, *, samples: bool = False) -> Policy:
    """The policy of a run (the checkpoint that it names best or last) or of a model, on the device of ``own``.

    ``who`` is what errors call it. Raises ValueError where there is none, where a run has several, and for another
    tokenizer than that of ``own``.
    """
    run, device = _run_of_one(name, who), str(own.device)
    warn_if_steered(name, who)
    if run is None:
        found = Policy.load(name, lora=None, device=device)
    else:
        found = load_policies(run, [""], run.config().keep_checkpoint, device, samples=samples)[""]
    check_tokens(found.tokenizer, own.tokenizer, who)
    return found


def warn_if_steered(name: str, who: str) -> None:
    """Warn where a run, or the model of a folder, was trained steered, and its weights alone are loaded."""
    run = open_run(name)
    agent = _exported_agent(name) if run is None else run.config().agent
    if agent is not None and (steering := agent.decoding.steering) is not None:
        warnings.warn(
            f"{who} was trained while it was steered (by {steering.file}), and is not steered here: this is another "
            "policy than the one that was trained and measured",
            stacklevel=2,
        )


def frozen_bytes(name: str, who: str, device: str) -> int:
    """Memory of the weights of such a policy. Raises ValueError as above."""
    run = _run_of_one(name, who)
    if run is None:
        shape = shape_of(PretrainedModelConfig(path=name), None, device)
    else:
        shape = shape_of(run.config().model, run.config().lora, device)
    return shape.parameters * shape.itemsize + shape.lora * FLOAT


def check_frozen(name: str, who: str, device: str) -> None:
    """Raise ValueError where there is no such policy. Its weights and its tokenizer are not read."""
    if _run_of_one(name, who) is not None:
        return
    try:
        read_config(PretrainedModelConfig(path=name), device)
    except ValueError as error:
        raise ValueError(f"{who}: {error}") from error


def _run_of_one(name: str, who: str) -> RunDirectory | None:
    """The run that a name stands for; None for a model. Raises ValueError for a run of a game."""
    run = open_run(name)
    if run is not None and run.config().game is not None:
        raise ValueError(
            f"{who} is a run of a game, which may have several policies: export the one that is meant (turnwise "
            "export), and name its folder"
        )
    return run


def open_run(target: str | Path) -> RunDirectory | None:
    """The run at ``target``, if there is one."""
    return RunDirectory.open(target) if (Path(target) / "config.yaml").is_file() else None


def players(
    target: str | Path,
    env: TextEnv,
    *,
    num_slots: int,
    checkpoint: WhichCheckpoint | None = None,
    agent: Mapping[str, Any] | None = None,
    threads: int | None = None,
    device: str = "cpu",
    asked: EndpointConfig | None = None,
    shards: int | None = None,
) -> dict[str, AnyAgent]:
    """Who plays, by role or player (``""``: every one).

    ``target`` is ``random``, ``expert[:KIND]``, a run folder, a model folder or hub name, or ``openai:MODEL[@URL]``,
    which is asked as ``asked`` says. A run brings its agent settings and the checkpoint that it names best or last, an
    exported folder its agent settings; ``agent`` changes some of them. A model has as many of ``num_slots`` as fit into
    the free memory. ``shards`` are processes of this machine that play in the place of this one, with weights of their
    own and all of the slots; 0: on other machines, None: this process plays. Raises ValueError for a target that is not
    there, and where nothing fits.
    """
    found = scripted(str(target))
    if found is not None:
        if agent or checkpoint is not None:
            raise ValueError(f"{target} plays without a model: agent settings and checkpoints do not apply")
        return {"": found}
    if is_endpoint(str(target)):
        return {"": _remote(str(target), env, agent or {}, checkpoint, asked or EndpointConfig())}
    run = open_run(target)
    if run is None and checkpoint is not None:
        raise ValueError(f"{target} is not a run: there is no checkpoint to choose")
    settings = agent_settings(target, run.config().agent if run else None, agent or {}, speaks_in_roles(env))
    examples = examples_of(target, settings, agent or {}, lambda: env)
    shown: dict[str, Any] = {"examples": examples, "instructions": instructions_of(env)}
    room: dict[str, Any] = {"device": device, "shards": shards, "players": max(1, len(players_of(env)))}
    if run is None:
        num_slots = _fitting_slots(PretrainedModelConfig(path=str(target)), None, settings, num_slots, **room)
        policies = {"": Policy.load(target, lora=None, device=device)}
    else:
        config = run.config()
        chosen = config.keep_checkpoint if checkpoint is None else checkpoint
        num_slots = _fitting_slots(config.model, config.lora, settings, num_slots, **room)
        policies = load_policies(run, sides_of(env, config.game, config.env.id), chosen, device)
    made: dict[str, AnyAgent] = {}
    shown["packed_weights"] = "auto" if shards is None else False
    for side, policy in policies.items():
        name = f"{target}#{side}" if side else str(target)
        made[side] = model_agent(policy, settings, num_slots=num_slots, threads=threads, name=name, **shown)
    return made


def _fitting_slots(
    model: ModelConfig,
    lora: LoRAConfig | None,
    settings: AgentConfig,
    num_slots: int,
    *,
    device: str,
    shards: int | None,
    players: int,
) -> int:
    """As many of ``num_slots`` as fit into the free memory. Raises ValueError where those of one episode do not."""
    try:
        shape, second = shape_of(model, lora, device), second_bytes(settings, device)
    except ValueError:
        return num_slots  # whoever loads it says what is wrong
    demand = Demand(
        settings.max_context_tokens,
        num_slots,
        prompt_tokens(settings),
        device=device,
        second=second,
        packed=shards != 0 and is_packed("auto", shape, device),
        shards=shards or 0,
        players=players,
    )
    return fitting(shape, demand).num_slots


def examples_of(
    target: str | Path, settings: AgentConfig, changes: Mapping[str, Any], world: Callable[[], TextEnv]
) -> tuple[Example, ...]:
    """The examples that a run or an exported model was trained with; new ones of ``world`` where ``changes`` say so.

    A model from elsewhere gets the usual ones. Raises ValueError as ``examples_for`` does.
    """
    stored = read_examples(target)
    if stored is not None and not any(name.startswith("examples") for name in changes):
        return stored
    usual = open_run(target) is None and not _was_trained_here(target)
    if settings.examples == 0 or (settings.examples is None and not usual):
        return ()
    return examples_for(world(), settings, usual=usual)


def describe_agent(folder: Path, settings: AgentConfig, examples: tuple[Example, ...]) -> None:
    """Write beside a model how its agent is shown the world and steered, for ``evaluate``."""
    keep_vector(settings.decoding, folder)
    plain = settings.model_dump(mode="json")
    if plain["decoding"]["steering"]:
        plain["decoding"]["steering"]["file"] = STEERING_FILE
    (folder / AGENT_FILE).write_text(json.dumps(plain, indent=1))
    if examples:
        write_examples(folder, examples)


def _was_trained_here(folder: str | Path) -> bool:
    """Whether a model's folder is one that turnwise wrote: its agent is known, or it was cloned."""
    return any((Path(folder) / name).is_file() for name in (AGENT_FILE, ORIGIN_FILE))


def is_untrained(model: ModelConfig, warmstart: WarmstartConfig | None) -> bool:
    """Whether a run begins with a pretrained model that has seen nothing of the world: one that needs examples."""
    return isinstance(model, PretrainedModelConfig) and warmstart is None and not _was_trained_here(model.path)


def _remote(
    name: str, env: TextEnv, agent: Mapping[str, Any], checkpoint: WhichCheckpoint | None, asked: EndpointConfig
) -> Scripted:
    if checkpoint is not None:
        raise ValueError(f"{name} is an endpoint: there is no checkpoint to choose")
    if "max_context_tokens" in agent:
        raise ValueError("agent.max_context_tokens: how long a context may be is for the endpoint's server to say")
    settings = parse_section(AgentConfig, settings_of_untrained(agent, speaks_in_roles(env)), "agent")
    for setting in ("constrained", "thought_tokens", "decoding"):
        if getattr(settings, setting) != getattr(AgentConfig(), setting):
            raise ValueError(f"agent.{setting}: an endpoint's server samples by itself; leave it out for {name}")
    return endpoint(name, settings, asked, examples_for(env, settings, usual=True))


def agent_settings(
    target: str | Path, trained: AgentConfig | None, changes: Mapping[str, Any], in_roles: bool = False
) -> AgentConfig:
    """A run's, an exported folder's, or those of an untrained model, with ``changes``; ValueError for unknown ones.

    A model from elsewhere has not been trained on the world: it is told what to do, as an endpoint's is, and gets chats
    with roles where the world says that it speaks so (``in_roles``). A small model of ours knows nothing but its
    demonstrations, which have no instructions.
    """
    trained = trained or _exported_agent(target)
    if trained is not None:
        known = _changed(trained.model_dump(), changes)
    else:
        known = dict(changes) if made_from_scratch(target) else settings_of_untrained(changes, in_roles)
    return parse_section(AgentConfig, known, "agent")


def _exported_agent(folder: str | Path) -> AgentConfig | None:
    """The settings that an exported model's folder holds; None for any other. Raises ValueError for damaged ones."""
    saved = Path(folder) / AGENT_FILE
    if not saved.is_file():
        return None
    return parse_section(AgentConfig, {"examples": 0, **read_object(saved)}, "agent").kept_in(folder)


def _changed(known: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """An agent's settings with ``changes``; those of decoding method by method."""
    given, methods = changes.get("decoding"), known.get("decoding")
    if isinstance(given, Mapping) and isinstance(methods, Mapping):
        changes = {**changes, "decoding": laid_over(methods, given)}
    return {**known, **changes}
