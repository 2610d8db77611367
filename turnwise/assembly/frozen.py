"""Models that are asked and not trained: teachers, and second models that draw tokens."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from turnwise.agents.decoding import SecondConfig
from turnwise.agents.prompts import AgentConfig
from turnwise.assembly.agent_files import exported_agent
from turnwise.assembly.policies import load_policies, open_run
from turnwise.models.engine import SlotEngine
from turnwise.models.policy import Policy
from turnwise.models.second import SecondModel
from turnwise.models.settings import PretrainedModelConfig
from turnwise.runs.directory import RunDirectory
from turnwise.training.shape import FLOAT, read_config, shape_of
from turnwise.training.teacher import check_tokens


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
    agent = exported_agent(name) if run is None else run.config().agent
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


def second_model(policy: Policy, config: SecondConfig, num_slots: int, limits: Mapping[str, Any]) -> SecondModel:
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
