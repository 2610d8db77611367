"""How far sampler and learner may be apart on the same tokens with the same weights: rounding, measured.

In float32 they agree to 1e-4 nats. In half precision what rounding does depends on the model: the log-probs of one with
135 M real weights differ by .04 nats on average between any two ways to compute them, those of a small one by .001. So
the model's own noise is measured where a run begins or goes on, before anything is trained: it answers a few prompts,
and the log-probs that sampler and learner give these tokens are compared with those of transformers' own forward pass,
the third way to compute the same. The smaller of the two distances is the floor: had one of our two sides a fault, the
other's would still be rounding alone.

The rule: mean and 99th percentile of an update stay within three times the floor's (and ``LEAST``, which small models
never reach), widened by 1 + 2 / sqrt(n) for n compared tokens. Three: from update to update the same weights on other
texts were seen at .2 to 1.6 times the floor, and learning sharpens a policy, which scales its noise; faults of numbers
(adapters off, another mask, a temperature that is wrong by 10 %) lie above, and one below it, a copy left out, is seen
by the links, which are exact. The widening is about two standard errors of a mean over n tokens, whose distances vary
as much as they are large.
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
"""On the measured floor."""
LEAST = (0.02, 0.2)
"""Mean and 99th percentile in nats that half precision always may have."""
FLOAT32 = 1e-4
"""Nats, the most on any token where arithmetic has 24 bits."""

_TOKENS = 512  # to measure on, at least; fewer where replies end at once
_MOST_REPLIES, _REPLY = 64, 64


@dataclass(frozen=True, slots=True)
class Limits:
    """Of the distances in an ``Agreement``, nats. ``floor`` is the measured noise, None where none was measured."""

    half: bool
    floor: Agreement | None = None

    def of(self, num_tokens: int) -> tuple[float, float]:
        """Of mean and 99th percentile over so many tokens, in half precision."""
        wider = 1.0 + 2.0 / math.sqrt(num_tokens)
        floor = (0.0, 0.0) if self.floor is None else (self.floor.mean_abs, self.floor.p99)
        return max(LEAST[0], FACTOR * floor[0]) * wider, max(LEAST[1], FACTOR * floor[1]) * wider

    def allow(self, seen: Agreement) -> bool:
        """Never what is not finite."""
        if not self.half:
            return seen.max_abs <= FLOAT32
        mean, p99 = self.of(seen.num_tokens)
        return seen.mean_abs <= mean and seen.p99 <= p99

    def told(self, num_tokens: int) -> str:
        if not self.half:
            return f"max {FLOAT32:.0e}"
        mean, p99 = self.of(num_tokens)
        return f"mean {mean:.3g}, p99 {p99:.3g}, from the model's own rounding"

    def numbers(self) -> dict[str, float]:
        """For the log."""
        return {"noise/mean_abs": self.floor.mean_abs, "noise/p99": self.floor.p99} if self.floor else {}


def limits_of(policy: Policy, agent: ModelAgent) -> Limits:
    """For weights as they are now, which sampler and learner must both hold. Plays: in half precision only."""
    if not is_half(next(policy.sampler.parameters()).dtype):
        return Limits(half=False)
    batch = sampled_batch(agent, policy.temperature)
    return Limits(half=True, floor=floor_of(policy, batch) if batch is not None else None)


@torch.no_grad()
def floor_of(policy: Policy, batch: TokenBatch) -> Agreement:
    """The nearer one of sampler and learner to transformers' forward pass of the sampler's weights."""
    mask, theirs = batch.action_mask, torch.zeros_like(batch.behaviour_logprobs)
    for row, length in enumerate(batch.lengths.tolist()):
        ids = batch.tokens[row, :length].to(policy.device)
        logits = policy.sampler(input_ids=ids[None], use_cache=False).logits[0, :-1].float()
        full = torch.log_softmax(logits / policy.temperature, -1)
        theirs[row, 1:length] = full.gather(-1, ids[1:, None])[:, 0].cpu()
    ours: tuple[Tensor, ...] = batch.behaviour_logprobs, policy.score(batch).logprobs.cpu()
    found = [Agreement.of((side - theirs)[mask].abs()) for side in ours]
    return min(found, key=lambda agreement: agreement.mean_abs)


def sampled_batch(agent: ModelAgent, temperature: float) -> TokenBatch | None:
    """Replies to a few prompts, sampled as rollouts are; None where a prompt leaves no room for one."""
    engine, tokens, turns = agent.engine, 0, list[Turn]()
    prompts = [agent.chat.open(f"Room {n}. There is a table with {n + 1} cups, a door and a book.") for n in range(8)]
    room = min(_REPLY, engine.max_length - max(map(len, prompts)))
    if room < 1:
        return None
    while tokens < _TOKENS and len(turns) < _MOST_REPLIES:
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
