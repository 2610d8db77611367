"""How far the log-probs of sampler and learner may differ on the same tokens with the same weights: rounding.

In float32 they agree to 1e-4 nats, but for single tokens: where attention is sharp (models with induction heads) the
worst of some thousand tokens differs by 1e-5 to 6e-5 in most updates. In one of 300 it differed by 1.25e-4, where the
mean was 4e-7. So the 99th percentile has the limit of 1e-4, and any token one of 1e-3.

In half precision the rounding depends on the model. Between any two ways to compute them, the log-probs of a model
with 135 M real weights differ by .04 nats on average, those of a small one by .001. So the model's own rounding is
measured when a run begins or is resumed, before anything is trained. The model answers a few prompts. The log-probs of
these tokens by the sampler and by the learner are compared with those of a third way, transformers' own forward pass.
The smaller of the two distances is the floor: if one of the two had a fault, the other's distance would still be
rounding alone.

The rule in half precision: in an update the mean and the 99th percentile of the differences stay within three times
the floor's. The limit is ``LEAST`` at least, which small models never reach, and it is widened by 1 + 2 / sqrt(n) for
n compared tokens.

Why three: the same weights on other texts were seen at .2 to 1.6 times the floor from update to update, and learning
sharpens a policy, which scales its rounding. Numeric faults (adapters off, another mask, a temperature that is wrong by
10 %) lie above the limit. One fault lies below it, a copy that was left out; the check of links (proof.py) is exact and
finds it. The widening is about two standard errors of a mean over n tokens, whose standard deviation is as large as
their mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from turnwise.agents.seating import ModelAgent
from turnwise.learning.metrics import Agreement
from turnwise.models.engine import Reply, Sampling
from turnwise.models.layers import is_half
from turnwise.models.policy import Policy
from turnwise.replay.batch import TokenBatch, layout
from turnwise.trajectory import Group, IntArray, Task, Trajectory, Turn

FACTOR = 3.0
"""Times the measured floor."""
LEAST = (0.02, 0.2)
"""Mean and 99th percentile in nats that are always allowed in half precision."""
FLOAT32 = (1e-4, 1e-3)
"""99th percentile and largest difference in nats that are allowed in float32."""

_TOKENS = 512  # to measure on, at least; fewer where replies end at once
_MOST_REPLIES, _REPLY = 64, 64


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of the differences in an ``Agreement``, in nats. ``floor`` is the measured rounding, None without one."""

    half: bool
    floor: Agreement | None = None

    def of(self, num_tokens: int) -> tuple[float, float]:
        """Limits of the mean and the 99th percentile over ``num_tokens`` tokens, in half precision."""
        wider = 1.0 + 2.0 / math.sqrt(num_tokens)
        floor = (0.0, 0.0) if self.floor is None else (self.floor.mean_abs, self.floor.p99)
        return max(LEAST[0], FACTOR * floor[0]) * wider, max(LEAST[1], FACTOR * floor[1]) * wider

    def allow(self, seen: Agreement) -> bool:
        """Whether the differences are within the limits; False where they are not finite."""
        if not self.half:
            return seen.p99 <= FLOAT32[0] and seen.max_abs <= FLOAT32[1]
        mean, p99 = self.of(seen.num_tokens)
        return seen.mean_abs <= mean and seen.p99 <= p99

    def told(self, num_tokens: int) -> str:
        """The limits for a message."""
        if not self.half:
            return f"99th percentile {FLOAT32[0]:.0e}, max {FLOAT32[1]:.0e}"
        mean, p99 = self.of(num_tokens)
        return f"mean {mean:.3g}, p99 {p99:.3g}, from the model's own rounding"

    def numbers(self) -> dict[str, float]:
        """For the log."""
        return {"noise/mean_abs": self.floor.mean_abs, "noise/p99": self.floor.p99} if self.floor else {}


def limits_of(policy: Policy, agent: ModelAgent) -> Limits:
    """Limits for the present weights, which sampler and learner must both have.

    In half precision the model answers a few prompts for this.
    """
    if not is_half(next(policy.sampler.parameters()).dtype):
        return Limits(half=False)
    batch = sampled_batch(agent, policy.temperature)
    return Limits(half=True, floor=floor_of(policy, batch) if batch is not None else None)


@torch.no_grad()
def sampler_logprobs(policy: Policy, batch: TokenBatch) -> Tensor:
    """Log-probs [B, T] of a batch's tokens by transformers' forward pass of the sampler's weights, on the CPU.

    Column 0 is 0. No other rank takes part, also where the learner's weights are divided.
    """
    found = torch.zeros_like(batch.behaviour_logprobs)
    for row, length in enumerate(batch.lengths.tolist()):
        ids = batch.tokens[row, :length].to(policy.device)
        logits = policy.sampler(input_ids=ids[None], use_cache=False).logits[0, :-1].float()
        full = torch.log_softmax(logits / policy.temperature, -1)
        found[row, 1:length] = full.gather(-1, ids[1:, None])[:, 0].cpu()
    return found


@torch.no_grad()
def floor_of(policy: Policy, batch: TokenBatch) -> Agreement:
    """The smaller of two distances to transformers' forward pass of the sampler's weights: sampler's and learner's."""
    mask, theirs = batch.action_mask, sampler_logprobs(policy, batch)
    ours: tuple[Tensor, ...] = batch.behaviour_logprobs, policy.score(batch).logprobs.cpu()
    found = [Agreement.of((side - theirs)[mask].abs()) for side in ours]
    return min(found, key=lambda agreement: agreement.mean_abs)


def sampled_batch(agent: ModelAgent, temperature: float, num_tokens: int = _TOKENS) -> TokenBatch | None:
    """Replies to a few prompts, sampled as in rollouts; None where the prompts leave no room for a reply.

    They have ``num_tokens`` tokens or more, or are as many as there may be.
    """
    engine, tokens, turns = agent.engine, 0, list[Turn]()
    prompts = [agent.chat.open(f"Room {n}. There is a table with {n + 1} cups, a door and a book.") for n in range(8)]
    room = min(_REPLY, engine.max_length - max(map(len, prompts)))
    if room < 1:
        return None
    while tokens < num_tokens and len(turns) < _MOST_REPLIES:
        asked = prompts[: engine.num_free]
        sampling = Sampling(temperature, max_tokens=room)
        for reply, prompt in _replies(agent, asked, len(turns), sampling):
            turns.append(_turn(prompt, reply))
            tokens += len(reply.ids)
    task = Task("noise", "", 0, "noise")
    played = (Trajectory(str(n), task, 0, n, (turn,), "terminated", None, 0.0) for n, turn in enumerate(turns))
    return layout([Group(task, tuple(played))])


def _replies(agent: ModelAgent, asked: list[IntArray], key: int, sampling: Sampling) -> list[tuple[Reply, IntArray]]:
    engine = agent.engine
    prompts = {engine.open(): prompt for prompt in asked}
    for number, (slot, prompt) in enumerate(prompts.items()):
        engine.submit(slot, prompt, fresh=True, key=key + number, sampling=sampling)
    replies: dict[int, Reply] = {}
    while len(replies) < len(prompts):
        replies |= {reply.slot: reply for reply in engine.step()}
    for slot in prompts:
        engine.close(slot)
    return [(replies[slot], prompt) for slot, prompt in prompts.items()]


def _turn(prompt: IntArray, reply: Reply) -> Turn:
    entropies = np.zeros(len(reply.ids), np.float32)
    return Turn("", prompt, False, reply.ids, reply.logprobs, entropies, "", "", True, 0.0)
