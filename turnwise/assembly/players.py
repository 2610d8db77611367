"""From a name to whoever plays: a scripted agent, a run (as one of its checkpoints left it), a model folder, an
endpoint.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from turnwise.agents.chat import ChatFormat
from turnwise.agents.chat_client import EndpointConfig
from turnwise.agents.endpoint import endpoint, is_endpoint
from turnwise.agents.opening import Example, check_room
from turnwise.agents.prompts import AgentConfig
from turnwise.agents.scripted import scripted
from turnwise.agents.seating import AnyAgent, ModelAgent, Scripted
from turnwise.agents.untrained import settings_of_untrained
from turnwise.assembly.agent_files import agent_settings, examples_of
from turnwise.assembly.frozen import second_bytes, second_model
from turnwise.assembly.policies import WhichCheckpoint, load_policies, open_run, sides_of
from turnwise.assembly.steering import steer
from turnwise.cloning.examples import examples_for
from turnwise.config.checks import check_own
from turnwise.config.files import parse_section
from turnwise.envs.interface import HasPlayers, capability, instructions_of, speaks_in_roles
from turnwise.envs.tasks import TextEnv, players_of
from turnwise.models.convert import NAMED, gguf_of
from turnwise.models.engine import Engine, SlotEngine
from turnwise.models.kinds import check_length, is_fast
from turnwise.models.loading import end_ids
from turnwise.models.packed_weights import wanted
from turnwise.models.policy import Policy
from turnwise.models.settings import LoRAConfig, ModelConfig, PackedWeights, PretrainedModelConfig
from turnwise.models.vllm.settings import Backend, VllmConfig
from turnwise.training.plan import Demand, fitting, is_packed, prompt_tokens
from turnwise.training.shape import shape_of


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
    other = None if second is None or not plays else second_model(policy, second, num_slots, limits)
    return ModelAgent(engine, chat, settings, name, policy.version, policy.adapter_hash, examples, other)


def _vllm_engine(policy: Policy, settings: VllmConfig, **limits: Any) -> Engine:
    """vLLM in this process, where it has to be installed, or behind a server."""
    if settings.url is not None:
        from turnwise.models.vllm.server import served_engine

        return served_engine(policy, settings.url, **limits)
    from turnwise.models.vllm.local import local_engine

    return local_engine(policy, settings=settings, **limits)


def check_player(name: str) -> None:
    """Raise ValueError for a name that nobody can have: no scripted agent's, endpoint's, folder's or model's."""
    if "/" in name or Path(name).exists() or scripted(name) or is_endpoint(name) or gguf_of(name):
        return
    near = difflib.get_close_matches(name, ("random", "expert", "expert:knowing", *NAMED), n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"unknown agent {name!r}.{hint} Expected random, expert, expert:KIND, the folder of a run or of a model, a hub "
        "name such as Qwen/Qwen2.5-0.5B-Instruct, or openai:MODEL@URL"
    )


def player_from_anywhere(name: str) -> str:
    """The name of a player for processes in any working directory: the whole path of a folder; others as they are.

    A name of another kind stays also where a folder has the same name.
    """
    is_folder = scripted(name) is None and not is_endpoint(name) and Path(name).exists()
    return str(Path(name).resolve()) if is_folder else name


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
    check_player(str(target))
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
