"""Turns paid by the growth of the policy's belief in the right answer, and compared within groups (IGPO).

Turns of M episodes are lines [M, L], in the order in which they were played; ``played`` says which there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Literal

import torch
from torch import Tensor

from turnwise.algorithms.anchors import on_tokens
from turnwise.learning.credit import group_advantages, group_statistics, returns_to_go
from turnwise.learning.parts import AdvantageEstimator, Need, Stream, required

Baseline = Literal["apart", "turn", "episode"]


def gains_of(beliefs: Tensor, played: Tensor, *, log: bool) -> tuple[Tensor, Tensor]:
    """What each turn adds to the belief, 0 for the last ones, and which turns are others; [M, L] each.

    ``beliefs`` [N] are mean log-probs of the answer's tokens before each turn played, nats. With ``log`` gains are
    differences of these, else of the probabilities that they stand for.
    """
    before = torch.zeros(played.shape, dtype=beliefs.dtype).masked_scatter(played, beliefs if log else beliefs.exp())
    followed = played & torch.cat([played[:, 1:], torch.zeros_like(played[:, :1])], 1)
    return (before.roll(-1, 1) - before) * followed, followed


class GainCredit(AdvantageEstimator):
    """Credit of turns from gains and shaped rewards, as ``igpo.py`` defines it.

    A gain of 1 counts ``coef`` times as much as a ``success``, in units of reward; ``eps`` is a share of that.
    """

    needs: frozenset[Need] = frozenset({"answers"})

    def __init__(
        self,
        *,
        baseline: Baseline,
        log: bool,
        coef: float,
        gamma: float,
        normalize_std: bool,
        eps: float,
        success: float,
    ) -> None:
        self.baseline, self.log, self.coef, self.gamma = baseline, log, coef, gamma
        self.normalize_std, self.eps, self.success = normalize_std, eps * success, success
        self.unit = "deviation" if normalize_std else "reward"

    def estimate(self, stream: Stream) -> Tensor:
        lengths = torch.tensor([len(t.turns) for t in stream.samples.trajectories], dtype=torch.int64)
        played = torch.arange(max(lengths.tolist(), default=0)) < lengths.unsqueeze(1)
        if not played.any():
            return torch.zeros(stream.batch.tokens.shape)
        sizes = torch.tensor([len(group.trajectories) for group in stream.samples.groups], dtype=torch.int64)
        group = torch.arange(len(sizes)).repeat_interleave(sizes)
        beliefs = required(stream.beliefs, "beliefs")
        gains, followed = gains_of(beliefs, played, log=self.log)
        self.occurred.count("mean_belief", beliefs.exp(), len(beliefs))
        self.occurred.count("mean_gain", gains, followed)
        self.occurred.count("positive_share", gains > 0, followed)
        credit = self._apart if self.baseline == "apart" else self._together
        found = credit(stream, self.success * gains, followed, played, group)
        return on_tokens(stream, found[played]).float()

    def _apart(self, stream: Stream, gains: Tensor, followed: Tensor, played: Tensor, group: Tensor) -> Tensor:
        """Gains and returns are compared with their like, and added up."""
        turns = group.unsqueeze(1).expand(played.shape)[followed]
        paid = torch.zeros_like(gains).masked_scatter(followed, self.coef * self._compared(gains[followed], turns))
        rewards = stream.samples.rewards
        returns = torch.tensor([rewards.total(n) for n in range(len(group))], dtype=torch.float64)
        paid = paid + (played & ~followed) * self._compared(returns, group).unsqueeze(1)
        return returns_to_go(paid, played, self.gamma)

    def _together(self, stream: Stream, gains: Tensor, followed: Tensor, played: Tensor, group: Tensor) -> Tensor:
        """Returns to go of rewards and gains. What a turn alone answers for is in no other turn's."""
        rewards = stream.samples.rewards
        earned = _lines(played, [rewards.along(n) for n in range(len(group))])
        returns = returns_to_go(earned + self.coef * gains, played, self.gamma) + _lines(played, rewards.own)
        if self.baseline == "turn":
            return torch.stack([self._compared(column, group) for column in returns.unbind(1)], 1)
        mean, std, size = group_statistics(returns[:, 0], group)
        away = (returns - mean.unsqueeze(1)) * (size > 1).unsqueeze(1)
        return away / (std.unsqueeze(1) + self.eps) if self.normalize_std else away

    def _compared(self, values: Tensor, group: Tensor) -> Tensor:
        """z of values [K], whose groups may have any numbers."""
        _, own = torch.unique(group, return_inverse=True)
        return group_advantages(values, own, normalize_std=self.normalize_std, eps=self.eps)


def _lines(played: Tensor, rows: Sequence[Sequence[float]]) -> Tensor:
    values = torch.tensor(list(chain.from_iterable(rows)), dtype=torch.float64)
    return torch.zeros(played.shape, dtype=torch.float64).masked_scatter(played, values)
