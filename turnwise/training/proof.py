"""The LoRA proof: at every update, sampler and learner are checked to have the same policy.

The proof has two halves. The first compares numbers: sampler and learner give the same tokens the same log-probs, up to
the rounding that ``turnwise.training.noise`` allows. The second checks the links, for faults that are too small to show
in numbers: the hash of the learner's weights is the one that the sampler and its engine play under, every adapter is
on and its copy in the sampler equals the learner's to the bit, and all other weights are the same memory. Where the
learner's frozen weights are divided among ranks, no rank has them to compare with: there the sampler's weights are
those that were copied last, by their digests.

An engine that runs the sampler's model in this process plays those weights. Any other one holds weights of its own, in
another library or another process, and only says which. So it is probed, when the run begins and at every update: it
answers a few prompts, always the same, and the sampler scores these tokens. Another base model, weights that did not
arrive, and keys in its cache that older weights left there, show in them.

Neither half finds a fault within the learner's forward pass (adapters that are off while it scores, for example) that
moves no log-prob by more than the limit. Such a fault moves no ratio by more than that either.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from turnwise.agents.seating import ModelAgent
from turnwise.learning.metrics import Agreement
from turnwise.models.policy import Policy
from turnwise.models.sharding import is_divided
from turnwise.training.noise import Limits, sampled_batch, sampler_logprobs

PROBE = 64
"""Tokens, at least, on which an engine with weights of its own is compared at every update."""


class DisagreementError(RuntimeError):
    """Sampler and learner do not have the same policy. The run stops before it trains on wrong ratios."""


def prove(policy: Policy, agent: ModelAgent, agreement: Agreement, limits: Limits, sampled: bool = True) -> None:
    """Check sampler against learner, before the first optimizer step of an update.

    Of an update for which nothing was ``sampled`` only the weights are compared: its episodes are of other policies.
    Raises DisagreementError that names what differs.
    """
    broken = broken_link(policy, agent) or probed(policy, agent, limits)
    if not sampled and broken is None:
        return
    if not agreement.num_tokens:
        raise DisagreementError(
            "the update would take an optimizer step, and not one token was there to compare sampler and learner on: "
            f"{broken or 'nothing that its weights sampled came with it'}"
        )
    seen = (
        f"max {agreement.max_abs:.2e}, mean {agreement.mean_abs:.2e}, 99th percentile {agreement.p99:.2e} nats "
        f"on {agreement.num_tokens} tokens that both hold"
    )
    if not math.isfinite(agreement.mean_abs):
        raise DisagreementError(
            f"log-probs of sampler or learner are not finite ({seen}): "
            f"{broken or 'the weights are the same; look for overflow in half precision, or for a damaged model'}"
        )
    if not limits.allow(agreement):
        raise DisagreementError(
            f"sampler and learner disagree on the log-probs of the same tokens: {seen} "
            f"(limit: {limits.told(agreement.num_tokens)}): "
            f"{broken or 'the weights are the same, the temperature or the attention is not'}"
        )
    if broken is not None:
        raise DisagreementError(f"sampler and learner do not hold the same policy: {broken}")


def broken_link(policy: Policy, agent: ModelAgent) -> str | None:
    """What is wrong between the learner's weights and the engine that plays with them; None if nothing is."""
    present = policy.hash_of(policy.trainable_state())
    if present != policy.adapter_hash:
        return f"sync: the learner holds weights {present}, the sampler was last brought to {policy.adapter_hash}"
    if agent.adapter_hash != policy.adapter_hash:
        return f"name: the agent plays as {agent.adapter_hash}, its weights are {policy.adapter_hash}"
    weights = getattr(agent.engine, "weights", None)
    if weights is None:
        return (
            f"engine: {type(agent.engine).__name__} does not say which weights it plays; it needs `weights` and `hold`"
        )
    if getattr(agent.engine, "model", policy.sampler) is not policy.sampler:
        return "engine: it runs another model than the one that is synchronised"
    if weights != policy.adapter_hash:
        return f"engine: it plays weights {weights or 'without a name'}, the sampler holds {policy.adapter_hash}"
    return _unlike(policy)


def is_elsewhere(policy: Policy, agent: ModelAgent) -> bool:
    """Whether the engine holds weights of its own, and does not run the sampler's model."""
    return getattr(agent.engine, "model", None) is not policy.sampler


@torch.no_grad()
def probed(policy: Policy, agent: ModelAgent, limits: Limits) -> str | None:
    """What an engine that holds weights of its own samples otherwise than the sampler scores; None if nothing."""
    if not is_elsewhere(policy, agent):
        return None
    batch = sampled_batch(agent, policy.temperature, PROBE)
    if batch is None:
        return None
    mask = batch.action_mask
    seen = Agreement.of((sampler_logprobs(policy, batch) - batch.behaviour_logprobs)[mask].abs())
    if limits.allow(seen):
        return None
    return (
        f"probe: the engine says that it plays {policy.adapter_hash}, and on {seen.num_tokens} tokens of its replies "
        f"to set prompts it differs from the sampler by at most {seen.max_abs:.2e} nats, by {seen.mean_abs:.2e} on "
        f"average (limit: {limits.told(seen.num_tokens)})"
    )


@torch.no_grad()
def _unlike(policy: Policy) -> str | None:
    """The first weight of the sampler that differs from the learner's; None if all are the same."""
    base = policy.model if policy.lora is None else policy.model.get_base_model()
    modules: dict[str, Any] = dict(base.named_modules())
    for name, weight in policy.sampler.named_parameters():
        module = modules[name.rpartition(".")[0]]
        if hasattr(module, "lora_A") and not name.endswith(".bias"):
            if module.disable_adapters:
                return f"adapters: those of {name} are switched off while scoring"
        else:
            own = getattr(module, "base_layer", module)._parameters[name.rpartition(".")[2]]
            if not is_divided(own) and (weight.dtype != own.dtype or weight.data_ptr() != own.data_ptr()):
                return f"copy: {name} is no longer the learner's own memory"
    unlike = policy.unlike()
    return None if unlike is None else f"merge: {unlike} in the sampler is not the learner's W + scale * B A"
