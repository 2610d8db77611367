"""The LoRA proof: at every update, what has sampled is what learns.

Two halves. *By the numbers*: sampler and learner give the tokens they both hold the same log-probs. *By the links*, for
what is too small to show in numbers: the learner's weights have the name that the sampler plays under, the engine runs
the sampler's model, every adapter is on and merged into it, and everything else is the same memory.

What neither half sees: a fault within the learner's forward pass (adapters off for as long as it scores, say) that
moves no log-prob by more than the limit. Then it moves no ratio by more than that either.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from turnwise.agents.episode import ModelAgent
from turnwise.agents.policy import Policy, weights_hash
from turnwise.algorithms.metrics import Agreement

# Sampler against learner on the same tokens, nats: exact arithmetic agrees to rounding, half precision less.
_FLOAT32_LIMIT = 1e-4
HALF_LIMITS = (0.02, 0.2)  # mean, 99th percentile


class DisagreementError(RuntimeError):
    """Sampler and learner do not hold the same policy: the run stops before it trains on wrong ratios."""


def prove(policy: Policy, agent: ModelAgent, agreement: Agreement) -> None:
    """Before the first optimizer step of an update. Raises DisagreementError that names the broken link."""
    broken = broken_link(policy, agent)
    exact = next(policy.model.parameters()).dtype == torch.float32
    limit = f"max {_FLOAT32_LIMIT:.0e}" if exact else f"mean {HALF_LIMITS[0]}, p99 {HALF_LIMITS[1]}"
    if exact:
        agreed = agreement.max_abs <= _FLOAT32_LIMIT
    else:
        agreed = agreement.mean_abs <= HALF_LIMITS[0] and agreement.p99 <= HALF_LIMITS[1]
    if not agreed:
        raise DisagreementError(
            f"sampler and learner disagree on the log-probs of {agreement.num_tokens} tokens they both hold: "
            f"max {agreement.max_abs:.2e}, mean {agreement.mean_abs:.2e}, 99th percentile {agreement.p99:.2e} nats "
            f"(limit: {limit}): {broken or 'the weights are the same, the temperature or the attention is not'}"
        )
    if broken is not None:
        raise DisagreementError(f"sampler and learner do not hold the same policy: {broken}")


def broken_link(policy: Policy, agent: ModelAgent) -> str | None:
    """What is wrong between the learner's weights and the engine that plays with them, None if nothing is."""
    present = weights_hash(policy.trainable_state())
    if present != policy.adapter_hash:
        return f"sync: the learner holds weights {present}, the sampler was last brought to {policy.adapter_hash}"
    if agent.adapter_hash != policy.adapter_hash:
        return f"name: the agent plays as {agent.adapter_hash}, its weights are {policy.adapter_hash}"
    if getattr(agent.engine, "model", policy.sampler) is not policy.sampler:
        return "engine: it runs another model than the one that is synchronised"
    return _unlike(policy)


@torch.no_grad()
def _unlike(policy: Policy) -> str | None:
    """The first weight of the sampler that is not the learner's."""
    base = policy.model if policy.lora is None else policy.model.get_base_model()
    modules: dict[str, Any] = dict(base.named_modules())
    for name, weight in policy.sampler.named_parameters():
        module = modules[name.rpartition(".")[0]]
        if name.endswith(".weight") and hasattr(module, "lora_A"):
            if module.disable_adapters:
                return f"adapters: those of {name} are switched off while scoring"
            if not _is_merged(weight, module.base_layer.weight, module.get_delta_weight("default")):
                return f"merge: {name} is not the learner's W + scale * B A"
        else:
            own = getattr(module, "base_layer", module)._parameters[name.rpartition(".")[2]]
            if weight.dtype != own.dtype or weight.data_ptr() != own.data_ptr():
                return f"copy: {name} is no longer the learner's own memory"
    return None


def _is_merged(weight: Tensor, base: Any, delta: Any) -> bool:
    """Equal but for the last digits of its type: the same product may be rounded otherwise on another day."""
    merged = (base + delta).to(base.dtype)  # adapters of a half-precision model are float32
    if weight.dtype != merged.dtype:
        return False
    rounding = 4 * torch.finfo(weight.dtype).eps * merged.abs()
    return bool(((weight - merged).abs() <= rounding).all())
