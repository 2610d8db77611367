"""Losses on pairs of attempts at one task, of which one did better: DPO's and CPL's.

A pair's attempts may lie in several microbatches, and even in several minibatches. So the sums of all attempts are
computed before each optimizer step. The loss of a row is then linear in its log-probs, with the exact gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from turnwise.learning.parts import MinibatchView, Need, Objective, Stream, Streams, UpdateContext, required
from turnwise.learning.settings import RunInfo, Settings
from turnwise.replay.batch import TokenBatch


@dataclass(frozen=True, slots=True)
class PairRule:
    """Which attempts of a group are pairs; ``margin`` in units of reward."""

    pairs: Literal["all", "extremes"]
    margin: float

    def of_group(self, returns: list[float]) -> list[tuple[int, int]]:
        """(better, worse) places in the group."""
        found = [(i, j) if returns[i] > returns[j] else (j, i) for i, j in combinations(range(len(returns)), 2)]
        if self.pairs == "extremes":
            ends = max(returns, default=0.0), min(returns, default=0.0)
            found = [(i, j) for i, j in found if (returns[i], returns[j]) == ends]
        return [(i, j) for i, j in found if returns[i] > returns[j] and returns[i] - returns[j] >= self.margin]


class PairSettings(Settings):
    """Which attempts are compared."""

    pairs: Literal["all", "extremes"] = Field(
        default="all", description="All pairs of a group's attempts that differ, or its best ones with its worst."
    )
    margin: float = Field(default=0.5, ge=0, description="Least difference of a pair's returns, in successes.")

    def rule(self, name: str, run: RunInfo) -> PairRule:
        """Raises ValueError where the group size leaves no pair."""
        if run.group_size < 2:
            raise ValueError(f"{name} compares attempts at one task: use a group_size of at least 2")
        return PairRule(self.pairs, self.margin * run.rewards.success * (1 - 1e-9))


class Pairs(NamedTuple):
    """Numbers of the better and the worse trajectories of the stream's P pairs, [P] each."""

    won: Tensor
    lost: Tensor


class PairLoss(Objective):
    """-log sigmoid(s_won - bias * s_lost), the mean over pairs. ``scale`` is beta or alpha, per nat.

    A minibatch has all pairs with a row in it. Rows outside count as they were sampled; a pair counts for the share
    of its rows that the minibatch holds.
    """

    def __init__(
        self,
        rule: PairRule,
        scale: float,
        *,
        bias: float = 1.0,
        gamma: float = 1.0,
        smoothing: float = 0.0,
        reference: bool = False,
    ) -> None:
        self.rule, self.scale, self.bias, self.gamma = rule, scale, bias, gamma
        self.smoothing, self.reference = smoothing, reference
        self.needs: frozenset[Need] = frozenset({"reference"}) if reference else frozenset()
        self.pairs = Pairs(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
        self.sums, self.rows = torch.zeros(0), torch.zeros(0)
        self.slope, self.value = torch.zeros(0), 0.0

    def before_update(self, update: int, streams: Streams) -> None:
        stream = streams["fresh"]
        self.pairs = self._pairs(stream)
        self.sums = self._sums(stream.batch, stream.batch.behaviour_logprobs, len(stream.samples.trajectories))
        self.rows = torch.zeros_like(self.sums).index_add(
            0, stream.batch.trajectory, torch.ones(len(stream.batch), dtype=torch.float64)
        )

    def prepare(self, view: MinibatchView) -> None:
        """The slope of the loss in each trajectory's sum, and the loss per row of the minibatch."""
        batch, size = view.batch, len(self.sums)
        won, lost = self.pairs
        self.slope, self.value = torch.zeros(size, dtype=torch.float64), 0.0
        if not len(won):
            self.occurred.count("accuracy", 0, 0)
            return
        moved = self._sums(batch, view.logprobs().to(batch.behaviour_logprobs) - batch.behaviour_logprobs, size, False)
        sums = self.sums + moved
        margin = sums[won] - self.bias * sums[lost]
        inside = torch.zeros(size, dtype=torch.float64).index_add(
            0, batch.trajectory, torch.ones(len(batch), dtype=torch.float64)
        )
        share = inside / self.rows.clamp(min=1)
        counted = (share[won] + share[lost]) / 2
        total = counted.sum().clamp(min=1e-12)
        steep = -(1 - self.smoothing) * torch.sigmoid(-margin) + self.smoothing * torch.sigmoid(margin)
        self.slope.index_add_(0, won, steep / total).index_add_(0, lost, -self.bias * steep / total)
        losses = -(1 - self.smoothing) * logsigmoid(margin) - self.smoothing * logsigmoid(-margin)
        self.value = float((counted * losses).sum() / total) / max(len(batch), 1)
        self.occurred.count("accuracy", (margin > 0) * counted, counted)

    def loss(self, ctx: UpdateContext) -> Tensor:
        slope = self.slope.to(ctx.logprobs)[ctx.batch.trajectory].unsqueeze(1)
        linear = (slope * self._weights(ctx.batch).to(ctx.logprobs) * ctx.logprobs).masked_fill(~ctx.mask, 0.0).sum()
        return linear - linear.detach() + self.value * len(ctx.batch)

    def _pairs(self, stream: Stream) -> Pairs:
        rewards, found, place = stream.samples.rewards, list[tuple[int, int]](), 0
        for group in stream.samples.groups:
            size = len(group.trajectories)
            # An episode without turns has no action to prefer.
            played = [place + n for n, trajectory in enumerate(group.trajectories) if trajectory.turns]
            returns = [rewards.total(number) for number in played]
            own = [(played[i], played[j]) for i, j in self.rule.of_group(returns)]
            self.occurred.count("paired_groups_share", bool(own))
            paired = {n for pair in own for n in pair}
            self.occurred.count("paired_share", len(paired), size)
            found += own
            place += size
        numbers = torch.tensor(found, dtype=torch.int64).reshape(-1, 2)
        return Pairs(numbers[:, 0], numbers[:, 1])

    def _sums(self, batch: TokenBatch, logprobs: Tensor, size: int, compared: bool = True) -> Tensor:
        """s of every trajectory, [size] float64; not ``compared``: of changes of log-probs, without the reference."""
        if self.reference and compared:
            logprobs = logprobs - required(batch.reference_logprobs, "reference_logprobs")
        rows = (logprobs.double() * self._weights(batch)).masked_fill(~batch.action_mask, 0.0).sum(1)
        return torch.zeros(size, dtype=torch.float64).index_add(0, batch.trajectory, rows)

    def _weights(self, batch: TokenBatch) -> Tensor:
        """scale * gamma^n on the tokens of turn n, [B, T] float64."""
        return self.scale * self.gamma ** batch.turn_index.clamp(min=0).double()
