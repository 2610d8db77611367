"""EPO as its code was released (WujiangXu/EPO at 5b6fa98e), for comparisons with the paper's form.

What differs from the paper, each kept on purpose:

- The penalty is a constant wherever an entropy lies outside the corridor: it has **no gradient**, so what
  trains the policy is a plain entropy bonus. (The official gradients, all of them, equal the bonus's.)
- The corridor follows a vector, one entropy per turn number, averaged over all updates *including this one*.
- An update whose longest episode is shorter than ``history_turns`` has its vector padded with zeros *on the
  left*, so that turn n is compared with another turn.
- The penalty counts only in minibatches that reach turn ``gate_turn`` (25, half of a step limit of 50 that
  the code assumes when it fails to find the real one).
- Means run over tokens, not over turns.

What we do not repeat: the released code measures a turn's entropy over finished episodes too (they keep
generating there), applies the gate per microbatch, and includes padding in its ``seq`` level; here results
depend on neither the microbatch nor the padding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from turnwise.learning.parts import (
    MinibatchView,
    Need,
    Regularizer,
    Schedule,
    Streams,
    UpdateContext,
    required,
)
from turnwise.learning.primitives import per_turn_mean
from turnwise.learning.settings import Settings
from turnwise.replay.batch import TokenBatch


class ReleasedSettings(Settings):
    """Details of the released form."""

    level: Literal["token", "seq"] = Field(
        default="token",
        description="What is held against the corridor: each token's entropy, or its turn's mean.",
    )
    gate_turn: int = Field(default=25, ge=0, description="First turn number (0-based) that switches the penalty on.")
    history_turns: int = Field(default=50, ge=1, description="Length of the history: the environment's step limit.")


def indicator_penalty(level: Tensor, reference: Tensor, corridor: tuple[float, float], amount: float) -> Tensor:
    """``amount`` where the level is not strictly inside the corridor around its reference; no gradient."""
    low, high = corridor
    inside = (low * reference < level) & (level < high * reference)
    return torch.where(inside, 0.0, amount).to(level.dtype)


def turn_entropies(batch: TokenBatch, num_turns: int) -> NDArray[np.float64]:
    """Token-average behaviour entropy of each turn number over all rows, nats; zeros on the left up to
    [num_turns].

    Raises ValueError for a batch with more turns than that.
    """
    turns = batch.turn_index[batch.action_mask].cpu().numpy()
    entropies = batch.behaviour_entropies[batch.action_mask].double().cpu().numpy()
    length = int(turns.max()) + 1 if turns.size else 0
    if length > num_turns:
        raise ValueError(
            f"EPO's released form keeps a history of released.history_turns={num_turns} turns, but an "
            f"episode has {length}; set it to the environment's step limit"
        )
    sums, counts = (np.bincount(turns, weights=w, minlength=length) for w in (entropies, None))
    return np.concatenate([np.zeros(num_turns - length), sums / np.maximum(counts, 1)])


class EntropyIndicator(Regularizer):
    """w_k * penalty - H, both token means, nats; its gradient is the bonus's alone. Keeps the history."""

    needs: frozenset[Need] = frozenset({"entropy"})
    claims: frozenset[str] = frozenset({"entropy"})

    def __init__(
        self,
        corridor: tuple[float, float],
        coef: float,
        schedule: Schedule,
        details: ReleasedSettings,
        stream: str = "fresh",
    ) -> None:
        self.corridor, self.coef, self.schedule, self.details = corridor, coef, schedule, details
        self.stream = stream
        self.past_sum, self.past_updates = np.zeros(details.history_turns), 0
        self.gate_open = False

    def before_update(self, update: int, streams: Streams) -> None:
        batch = streams[self.stream].batch
        if len(batch):
            self.past_sum = self.past_sum + turn_entropies(batch, self.details.history_turns)
            self.past_updates += 1

    def prepare(self, view: MinibatchView) -> None:
        self.gate_open = bool((view.batch.turn_index >= self.details.gate_turn).any())

    def term(self, ctx: UpdateContext) -> Tensor:
        entropy = required(ctx.entropy, "entropy")
        bonus = ctx.token_mean(entropy)
        if not self.gate_open:
            return -bonus
        history = torch.from_numpy(self.past_sum / self.past_updates).to(entropy)
        reference = history[ctx.batch.turn_index.clamp(min=0)]
        level = entropy.detach()
        if self.details.level == "seq":
            level = per_turn_mean(level, ctx.mask, ctx.batch.turn_index)
        penalty = indicator_penalty(level, reference, self.corridor, self.coef)
        self.occurred.count("outside_share", (penalty > 0) & ctx.mask, ctx.mask)
        return self.schedule(ctx.update) * ctx.token_mean(penalty) - bonus

    def state_dict(self) -> dict[str, Any]:
        return {"past_sum": self.past_sum.tolist(), "past_updates": self.past_updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if len(state["past_sum"]) != self.details.history_turns:
            raise ValueError(
                f"The saved entropy history has {len(state['past_sum'])} turns, the configuration "
                f"released.history_turns={self.details.history_turns}"
            )
        self.past_sum, self.past_updates = np.array(state["past_sum"]), int(state["past_updates"])
