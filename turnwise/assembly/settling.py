"""What a run's configuration leaves open: the engine that samples, and how much of it fits into the memory."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import torch

from turnwise.algorithms.registry import build
from turnwise.assembly.frozen import second_bytes
from turnwise.assembly.shards import is_sharded, shares_memory
from turnwise.assembly.teachers import teacher_bytes
from turnwise.config.schema import RunConfig
from turnwise.envs.tasks import closed_after, players_of
from turnwise.models.precision import chosen_dtype
from turnwise.models.settings import PretrainedModelConfig
from turnwise.models.vllm.install import fits, installed
from turnwise.models.vllm.settings import Backend, Facts, chosen_backend
from turnwise.training.plan import Demand, fitting, is_packed, num_contexts, prompt_tokens
from turnwise.training.shape import FLOAT, Shape, shape_of


def backend_of(config: RunConfig) -> tuple[Backend, str]:
    """The engine that samples, and why: the configured one, or that of the rule in models/vllm/settings.py."""
    rollout = config.rollout
    if rollout.backend is not None:
        return rollout.backend, f"rollout.backend={rollout.backend}"
    if name := config.agent.decoding.only_own:
        return "own", f"{name} works in our own engine"
    facts = Facts(
        device=config.device,
        sharded=is_sharded(rollout, config.ray),
        ranks=config.learner.ranks,
        length=config.agent.max_context_tokens,
        rank=config.lora.rank if config.lora is not None else 0,
        available=fits(installed() or ""),
    )
    if torch.device(config.device).type == "cuda":  # elsewhere the model decides nothing
        with suppress(ValueError):  # whoever loads the model says why
            shape = shape_of(config.model, config.lora, config.device)
            half = shape.itemsize < FLOAT
            facts = replace(facts, half=half, parameters=shape.parameters, positions=shape.positions)
    return chosen_backend(facts)


def has_vllm(config: RunConfig) -> bool:
    """Whether this process asks a vLLM, and not the shards alone: each of those has its own, or they share a server."""
    rollout = config.rollout
    return backend_of(config)[0] == "vllm" and (rollout.vllm.url is not None or not is_sharded(rollout, config.ray))


def sampling_of(config: RunConfig) -> tuple[Backend, str]:
    """The engine that samples, and why in words, with the precision where its rule (models/precision.py) settles it."""
    backend, why = backend_of(config)
    model = config.model
    if isinstance(model, PretrainedModelConfig) and chosen_dtype(model.dtype, config.device) != model.dtype:
        why += "; in float32: this processor has no instructions for bfloat16"
    return backend, why


def num_players(config: RunConfig) -> int:
    """How many contexts an episode has; 1 where the world cannot be made, which is for whoever plays to tell."""
    try:
        with closed_after(config.env.make()) as world:
            return max(1, len(players_of(world)))
    except (ValueError, OSError, RuntimeError):
        return 1


def demand_of(config: RunConfig) -> tuple[Shape, Demand]:
    """What decides a run's memory: the model's shape, which is read without its weights, and how much is held at once.

    Of shards and ranks it counts those in the main memory of this machine. Raises ValueError where the model's
    configuration cannot be found.
    """
    shape = shape_of(config.model, config.lora, config.device)
    rollout, measuring, agent = config.rollout, config.eval, config.agent
    collected = rollout.num_tasks * rollout.group_size
    validated = measuring.tasks * measuring.samples if measuring.every else 0
    tested = measuring.test_tasks * measuring.samples if measuring.test_split is not None else 0
    recipe, players = build(config.algorithm, config.run_info), num_players(config)
    backend, sharded = backend_of(config)[0], is_sharded(rollout, config.ray)
    here = shares_memory(config.ray)
    demand = Demand(
        max_context_tokens=agent.max_context_tokens,
        num_slots=min(rollout.num_slots, players * max(collected, validated, tested)) if here else 1,
        prompt_tokens=prompt_tokens(agent),
        num_rows=-(-collected // config.optimizer.num_minibatches) * num_contexts(agent),
        microbatch_tokens=config.optimizer.microbatch_tokens,
        device=config.device,
        gradient_checkpointing=bool(getattr(config.model, "gradient_checkpointing", False)),
        reference=recipe.needs_reference,
        reads=recipe.reads_vocabulary,
        teacher=teacher_bytes(recipe, config.device),
        second=second_bytes(agent, config.device) if here else 0,
        packed=here and backend == "own" and is_packed(rollout.packed_weights, shape, config.device),
        shards=rollout.shards if here and sharded else 0,
        ahead=rollout.ahead,
        ranks=config.learner.ranks,
        divided=config.learner.parallel == "fsdp2",
        ranks_elsewhere=config.ray is not None and config.ray.address != "local",
        vllm=rollout.vllm if backend == "vllm" and (here or has_vllm(config)) else None,
        players=players,
    )
    return shape, demand


def fitted(config: RunConfig) -> RunConfig:
    """``config``, with smaller microbatches, fewer slots and a warning where what is free now would not hold the rest.

    A model whose shape cannot be read is left to whoever loads it. Raises ValueError where nothing fits.
    """
    try:
        shape, demand = demand_of(config)
    except ValueError:
        return config
    found = fitting(shape, demand)
    optimizer, rollout = config.optimizer, config.rollout
    if found.tokens < demand.tokens:
        optimizer = optimizer.model_copy(update={"microbatch_tokens": found.microbatch_tokens})
    if found.num_slots < demand.num_slots:
        rollout = rollout.model_copy(update={"num_slots": found.num_slots})
    return config.model_copy(update={"optimizer": optimizer, "rollout": rollout})
