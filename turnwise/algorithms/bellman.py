"""OREO's two losses, which make policy and values agree along an episode.

An episode's sum of log-ratios runs over all its rows, which may lie in several microbatches and minibatches. So the
sums are computed before each optimizer step; then both losses of a row have their exact gradients.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from turnwise.algorithms.critic import value_head
from turnwise.learning.parts import MinibatchView, Need, Objective, Streams, UpdateContext, required
from turnwise.learning.planning import Scorer
from turnwise.learning.primitives import turn_starts
from turnwise.replay.batch import TokenBatch

if TYPE_CHECKING:
    from turnwise.algorithms.oreo import OREOConfig


class SoftBellman(Objective):
    """Value loss plus policy loss; ``success`` is what a success is worth in the rewards; values are in units of r."""

    needs: frozenset[Need] = frozenset({"hidden", "reference", "proximal"})

    def __init__(self, config: OREOConfig, seed: int, success: float = 1.0) -> None:
        self.beta, self.level = config.beta, config.level
        self.scale, self.shift = config.return_scale / success, config.return_shift
        self.module_lr, self.width, self.seed = config.value_lr, config.value_width, seed
        self.returns, self.rows = torch.zeros(0), torch.zeros(0)
        self.order = torch.zeros(0, 2, dtype=torch.int64)
        self.sums, self.weights = torch.zeros(0, 0), torch.zeros(0, 0)

    def attach(self, scorer: Scorer) -> None:
        self.module = value_head(scorer, self.width, 1, self.seed)

    def before_update(self, update: int, streams: Streams) -> None:
        """What every episode returned, and what its rows' log-ratios sum to at the start of the update."""
        stream = streams["fresh"]
        batch, rewards = stream.batch, stream.samples.rewards
        totals = [rewards.total(n) for n in range(len(stream.samples.trajectories))]
        self.returns = self.scale * torch.tensor(totals, dtype=torch.float64) + self.shift
        self.rows = self._ratios(batch, required(batch.proximal_logprobs, "proximal_logprobs")).sum(1)
        self.order = torch.stack([batch.trajectory, batch.first_turn], 1)

    def prepare(self, view: MinibatchView) -> None:
        """S of every state of the minibatch, and its weight in the mean: over an episode's states, then episodes."""
        batch = view.batch
        ratios = self._ratios(batch, view.logprobs().to(batch.behaviour_logprobs))
        own = torch.stack([batch.trajectory, batch.first_turn], 1)
        now = self.rows.clone()
        for row, place in enumerate(self._places(own)):
            now[place] = ratios[row].sum()
        later = (self.order[:, 0] == own[:, :1]) & (self.order[:, 1] > own[:, 1:])
        after = (later.double() * now).sum(1)
        self.sums = ratios.flip(1).cumsum(1).flip(1) + after.unsqueeze(1)
        states = self._states(batch)
        counts = torch.zeros(len(self.returns)).index_add(0, batch.trajectory, states.sum(1).float())
        counted = counts[batch.trajectory].clamp(min=1) * max(int((counts > 0).sum()), 1)
        self.weights = states.double() / counted.unsqueeze(1)

    def loss(self, ctx: UpdateContext) -> Tensor:
        value, policy = self.losses(ctx, self._values(ctx))
        return value + policy

    def losses(self, ctx: UpdateContext, values: Tensor) -> tuple[Tensor, Tensor]:
        """The microbatch's shares of the value loss and of the policy loss; ``values`` [b, T] at the states."""
        batch = ctx.batch
        weights = ctx.own(self.weights).to(ctx.logprobs)
        target = self.returns.to(batch.trajectory.device)[batch.trajectory].unsqueeze(1)
        target = (target - self.beta * ctx.own(self.sums)).to(values)
        errors = values - target
        self.occurred.count("mean_error", errors.detach().abs() * weights, weights)
        self.occurred.count("raised_share", (errors.detach() < 0) * weights, weights)
        value = (weights * errors.square()).sum()
        slope = 2 * self.beta * self._from_state(batch, (weights * errors).detach())
        linear = (slope * ctx.logprobs).masked_fill(~ctx.mask, 0.0).sum()
        return value, linear - linear.detach() + value.detach()

    def _values(self, ctx: UpdateContext) -> Tensor:
        assert self.module is not None
        found: Tensor = self.module(required(ctx.hidden, "hidden").detach()).squeeze(-1)
        return torch.zeros_like(ctx.logprobs, dtype=found.dtype).masked_scatter(ctx.mask, found)

    def _states(self, batch: TokenBatch) -> Tensor:
        """[B, T] bool: the action tokens whose state has a value."""
        return batch.action_mask if self.level == "token" else turn_starts(batch.action_mask, batch.turn_index)

    def _from_state(self, batch: TokenBatch, values: Tensor) -> Tensor:
        """The value of the last state before each action token, [b, T]."""
        columns = torch.arange(values.shape[1], device=values.device).expand_as(values)
        return values.gather(1, (columns * self._states(batch)).cummax(1).values) * batch.action_mask

    def _places(self, own: Tensor) -> list[int]:
        """The places of rows in the update's order."""
        known = {(int(t), int(n)): place for place, (t, n) in enumerate(self.order)}
        return [known[int(t), int(n)] for t, n in own]

    def _ratios(self, batch: TokenBatch, logprobs: Tensor) -> Tensor:
        """d of the action tokens, [B, T] float64 nats; 0 elsewhere."""
        reference = required(batch.reference_logprobs, "reference_logprobs")
        return (logprobs.double() - reference.double()).masked_fill(~batch.action_mask, 0.0)
