"""The arithmetic that every algorithm shares: pure functions on tensors, no state, no configuration.

Shapes: ``[B, T]`` rows by tokens, mask True on action tokens. A mean over a minibatch is written as a sum
over whatever part of it is at hand, divided by a count of the whole: microbatches then add up to the full
result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

AggregationMode = Literal["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"]
KLEstimator = Literal["k1", "abs", "k2", "k3"]


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the True positions, 0 where there is none."""
    return (values * mask).sum() / mask.sum().clamp(min=1)


def masked_whiten(values: Tensor, mask: Tensor, eps: float = 1e-8) -> Tensor:
    """(values - mean) / sqrt(variance + eps) with masked mean and unbiased variance; applied everywhere.

    With fewer than two masked values the variance is taken as 0. In float64 inside: equal values give 0, and not the
    rounding of their mean over sqrt(eps).
    """
    exact = values.double()
    mean, count = masked_mean(exact, mask), mask.sum()
    variance = ((exact - mean).square() * mask).sum() / (count - 1).clamp(min=1)
    return ((exact - mean) * torch.rsqrt(variance + eps)).to(values.dtype)


@dataclass(frozen=True, slots=True)
class Counts:
    """What a minibatch holds; ``rows`` and ``turns`` count those with at least one action token."""

    rows: int
    turns: int
    action_tokens: int
    width: int

    @classmethod
    def of(cls, mask: Tensor, turn_index: Tensor) -> Counts:
        """Count from [B, T] mask and turn numbers."""
        return cls(
            rows=int(mask.any(1).sum()),
            turns=int(turn_starts(mask, turn_index).sum()),
            action_tokens=int(mask.sum()),
            width=mask.shape[1],
        )


def denominator(counts: Counts, mode: AggregationMode, constant: float | None = None) -> float:
    """Z of ``aggregate`` for a minibatch; at least 1, so an empty minibatch gives 0 and not nan.

    ``constant`` (tokens; Dr.GRPO's longest reply) divides the sums over a row's tokens: of
    ``seq-mean-token-sum``, where 1 is usual, and of ``seq-mean-token-sum-norm``, where verl takes the padded
    width and divides by no number of rows, so that its gradient grows with the minibatch.
    """
    if mode == "token-mean":
        return float(max(counts.action_tokens, 1))
    if mode == "seq-mean-token-sum-norm":
        return float(constant if constant is not None else max(counts.width, 1))
    scale = constant if mode == "seq-mean-token-sum" and constant is not None else 1.0
    return float(max(counts.rows, 1) * scale)


def surrogate_weight(counts: Counts, mode: AggregationMode, constant: float | None = None) -> float:
    """``aggregate`` of 1 on every action token of the minibatch: 1 for means, tokens / Z for sums."""
    return counts.action_tokens / denominator(counts, mode, constant) if "token-sum" in mode else 1.0


def aggregate(loss: Tensor, mask: Tensor, mode: AggregationMode, denominator: float) -> Tensor:
    """Sum [B, T] losses into this part's share of the minibatch's scalar.

    token-mean: Σ l·m / Z with Z tokens; seq-mean-token-sum: the same sum with Z rows; seq-mean-token-mean:
    the rows' token means over Z rows; seq-mean-token-sum-norm: the sum with Z a constant. Rows without action
    tokens add nothing. Values outside the mask are never read, not even nan.
    """
    loss = loss.masked_fill(~mask, 0.0)
    if mode == "seq-mean-token-mean":
        return (loss.sum(1) / mask.sum(1).clamp(min=1)).sum() / denominator
    return loss.sum() / denominator


def turn_starts(mask: Tensor, turn_index: Tensor) -> Tensor:
    """True on each turn's first action token, [B, T]; turn numbers ascend along a row, -1 off the mask."""
    before = torch.full_like(turn_index[:, :1], -1)
    return mask & (turn_index > torch.cat([before, turn_index[:, :-1].cummax(1).values], dim=1))


def turn_lengths(mask: Tensor, turn_index: Tensor) -> Tensor:
    """Number of action tokens of the turn that each action token belongs to, [B, T]; 1 elsewhere."""
    return per_turn_sum(mask.long(), mask, turn_index).masked_fill(~mask, 1)


def per_turn_sum(values: Tensor, mask: Tensor, turn_index: Tensor) -> Tensor:
    """Each action token's sum of ``values`` over the action tokens of its turn, [B, T]; 0 elsewhere."""
    values = values.masked_fill(~mask, 0)
    if turn_index.numel() == 0:
        return values
    slots = turn_index.clamp(min=0)
    sums = values.new_zeros((mask.shape[0], int(slots.max()) + 1)).scatter_add(1, slots, values)
    return sums.gather(1, slots).masked_fill(~mask, 0)


def per_turn_mean(values: Tensor, mask: Tensor, turn_index: Tensor) -> Tensor:
    """Each action token's turn mean of ``values``, [B, T]; 0 elsewhere."""
    return per_turn_sum(values, mask, turn_index) / turn_lengths(mask, turn_index)


def turn_mean(values: Tensor, mask: Tensor, turn_index: Tensor, num_turns: int) -> Tensor:
    """Mean over turns of each turn's token mean, this part's share: every turn weighs the same."""
    return (values.masked_fill(~mask, 0.0) / turn_lengths(mask, turn_index)).sum() / max(num_turns, 1)


def trajectory_weights(mask: Tensor, turn_index: Tensor, turns: Tensor) -> Tensor:
    """Weights of tokens in a mean over trajectories of their turns' token means, [B, T] float64 that add up to 1.

    ``turns`` [B] is how many turns with action tokens the trajectory of each row has, in rows elsewhere too: a row
    holds its share of the trajectory. Without any action token all are 0.
    """
    share = 1.0 / turns.double().clamp(min=1).unsqueeze(1)  # of a turn in its trajectory
    total = (turn_starts(mask, turn_index) * share).sum().clamp(min=1e-12)
    return share / (turn_lengths(mask, turn_index) * total) * mask


def turns_of_trajectories(mask: Tensor, turn_index: Tensor, trajectory: Tensor) -> Tensor:
    """Turns with action tokens of each trajectory, [N] int64; ``trajectory`` [B] says whose a row is (0 to N - 1)."""
    size = int(trajectory.max()) + 1 if trajectory.numel() else 0
    return torch.zeros(size, dtype=torch.int64, device=mask.device).index_add(
        0, trajectory, turn_starts(mask, turn_index).sum(1)
    )


def importance_ratio(logprobs: Tensor, old_logprobs: Tensor, clamp: float = 20.0) -> Tensor:
    """exp(logprobs - old); the exponent is clamped as in verl (no gradient beyond)."""
    return (logprobs - old_logprobs).clamp(-clamp, clamp).exp()


def pooled_ratio(logprobs: Tensor, pooled: Tensor, ceiling: float = 10.0) -> Tensor:
    """exp(``pooled``) on every token, with the gradient of each token's own log-prob (GSPO's token form), [B, T].

    ``pooled`` [B, T] or [B, 1] is a log-ratio that tokens share. Beyond exp(``ceiling``) it is clamped, and
    without gradient.
    """
    return (logprobs - logprobs.detach() + pooled.detach()).clamp(max=ceiling).exp()


def token_covariance(advantages: Tensor, logprobs: Tensor, mask: Tensor) -> Tensor:
    """(A - mean A)(log π - mean log π) per token, means over the mask, [B, T] (Cui et al. 2025, 2505.22617)."""
    return (advantages - masked_mean(advantages, mask)) * (logprobs - masked_mean(logprobs, mask))


class Clipped(NamedTuple):
    """Per-token surrogate loss, and where each of the two clips decided it."""

    loss: Tensor
    clipped: Tensor
    dual_clipped: Tensor


def clipped_surrogate(
    ratio: Tensor, advantages: Tensor, low: float | Tensor, high: float | Tensor, dual: float | None
) -> Clipped:
    """max(-A r, -A clip(r, low, high)), and at most -A * dual where A < 0 (PPO; dual clip of Ye et al. 2020).

    ``low`` <= 1 <= ``high`` are absolute bounds on the ratio, scalars or [B, T], and may carry gradient.
    """
    low, high = (torch.as_tensor(bound, dtype=ratio.dtype, device=ratio.device) for bound in (low, high))
    free = -advantages * ratio
    bounded = -advantages * ratio.clamp(low, high)
    loss = torch.maximum(free, bounded)
    if dual is None:
        return Clipped(loss, bounded > free, torch.zeros_like(bounded, dtype=torch.bool))
    ceiling = -advantages * dual
    negative = advantages < 0
    return Clipped(
        torch.where(negative, torch.minimum(loss, ceiling), loss), bounded > free, negative & (loss > ceiling)
    )


def kl_estimate(logprobs: Tensor, reference: Tensor, estimator: KLEstimator) -> Tensor:
    """Per-token estimate of KL(policy || reference) on tokens of the policy, [B, T] nats (Schulman 2020).

    k1 = log π - log ref; abs; k2 = ½ k1²; k3 = exp(-k1) + k1 - 1 with verl's clamps (exponent ±20, value ±10,
    no gradient beyond).
    """
    difference = logprobs - reference
    if estimator == "k1":
        return difference
    if estimator == "abs":
        return difference.abs()
    if estimator == "k2":
        return 0.5 * difference.square()
    log_inverse = (-difference).clamp(-20.0, 20.0)
    return (log_inverse.exp() - log_inverse - 1.0).clamp(-10.0, 10.0)


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """max((v - R)², (v_clip - R)²) per token with v_clip within ``clip`` of the old value.

    verl halves its aggregate, verl-agent does not.
    """
    bounded = values.clamp(old_values - clip, old_values + clip)
    return torch.maximum((values - returns).square(), (bounded - returns).square())
