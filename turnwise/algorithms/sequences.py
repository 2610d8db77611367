"""Credit along time: returns to go and GAE, over an episode's tokens in the order in which they were sampled.

An agent with a context window has a row of the batch for every turn, an agent with the full history one row for the
whole episode. Returns and GAE must not depend on this. So they are computed on *lines*: a line holds the chosen tokens
of one trajectory in order, and the results are written back to where the tokens stand in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from turnwise.algorithms.common import row_returns
from turnwise.learning.credit import gae, returns_to_go
from turnwise.learning.parts import AdvantageEstimator, Need, Stream, required
from turnwise.learning.primitives import per_turn_sum, turn_starts
from turnwise.replay.batch import TokenBatch

Along = Literal["trajectory", "row"]
Level = Literal["token", "turn"]


@dataclass(frozen=True, slots=True)
class Lines:
    """Chosen tokens of a batch as lines [N, L]; the four index tensors are [M], one entry per chosen token."""

    row: Tensor
    column: Tensor
    line: Tensor
    place: Tensor
    mask: Tensor  # [N, L] bool

    @classmethod
    def of(cls, batch: TokenBatch, chosen: Tensor, along: Along) -> Lines:
        """Lines of the ``chosen`` [B, T] action tokens, one per trajectory (or per row)."""
        row, column = chosen.nonzero(as_tuple=True)
        owner = batch.trajectory[row] if along == "trajectory" else row
        turn = batch.turn_index[row, column]
        # Within a turn the tokens lie in one row, in order; a stable sort keeps them so.
        order = torch.argsort(owner * (turn.max() + 1 if len(turn) else 1) + turn, stable=True)
        row, column, owner = row[order], column[order], owner[order]
        _, line, lengths = torch.unique_consecutive(owner, return_inverse=True, return_counts=True)
        place = torch.arange(len(row), device=row.device) - (lengths.cumsum(0) - lengths)[line]
        longest = int(lengths.max()) if len(lengths) else 0
        mask = torch.arange(longest, device=row.device) < lengths.unsqueeze(1)
        return cls(row, column, line, place, mask)

    def gather(self, values: Tensor) -> Tensor:
        """[B, T] -> [N, L], 0 after a line's end."""
        lines = values.new_zeros(self.mask.shape)
        lines[self.line, self.place] = values[self.row, self.column]
        return lines

    def scatter(self, lines: Tensor, like: Tensor) -> Tensor:
        """[N, L] -> the shape of ``like`` [B, T], 0 where no token was chosen."""
        values = torch.zeros_like(like, dtype=lines.dtype)
        values[self.row, self.column] = lines[self.line, self.place]
        return values


def rewards_along(stream: Stream, along: Along) -> Tensor:
    """[B, T] float64: each turn's reward on its last action token; along rows, as verl-agent releases it, the
    return of the whole episode on the last action token of every row.
    """
    batch = stream.batch
    if along == "trajectory":
        return required(batch.rewards, "rewards").double()
    after = batch.action_mask.long().flip(1).cumsum(1).flip(1)  # action tokens from here to the row's end
    return ((after == 1) & batch.action_mask) * row_returns(stream).unsqueeze(1)


class ReturnsToGo(AdvantageEstimator):
    """Each action token's discounted sum of the rewards that follow it, in reward units; no baseline."""

    def __init__(self, gamma: float, along: Along = "trajectory") -> None:
        self.gamma, self.along = gamma, along

    def estimate(self, stream: Stream) -> Tensor:
        batch = stream.batch
        lines = Lines.of(batch, batch.action_mask, self.along)
        rewards = lines.gather(rewards_along(stream, self.along))
        found = returns_to_go(rewards, lines.mask, self.gamma) if rewards.numel() else rewards
        return lines.scatter(found, batch.tokens).float()


class GeneralizedAdvantage(AdvantageEstimator):
    """GAE between the action tokens of an episode, or between its turns.

    ``turn``: one step of γ and λ is a turn, whose value is that of its first action token, and all its tokens
    have its advantage. Observation tokens are no steps. An episode that was cut off counts as ended.
    """

    needs: frozenset[Need] = frozenset({"values"})

    def __init__(self, gamma: float, lam: float, level: Level = "token", along: Along = "trajectory") -> None:
        self.gamma, self.lam, self.level, self.along = gamma, lam, level, along

    def estimate(self, stream: Stream) -> Tensor:
        batch, rewards = stream.batch, rewards_along(stream, self.along)
        chosen = batch.action_mask
        if self.level == "turn":
            rewards = per_turn_sum(rewards, batch.action_mask, batch.turn_index)
            chosen = turn_starts(batch.action_mask, batch.turn_index)
        lines = Lines.of(batch, chosen, self.along)
        values = lines.gather(required(batch.values, "values").double())
        found = lines.scatter(gae(lines.gather(rewards), values, lines.mask, self.gamma, self.lam).advantages, rewards)
        if self.level == "turn":
            found = per_turn_sum(found, batch.action_mask, batch.turn_index)
        return found.float()
