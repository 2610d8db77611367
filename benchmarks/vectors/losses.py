"""References of the losses, in float64 with numpy alone: each from its equation, gradients worked out by hand.

Written from the description of the algorithms and of what released code does with them; nothing of ours is imported.
[B, T] rows by tokens, ``mask`` 1 on what counts. Where the released code divides by nothing the result is nan.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Family = str  # "verl" or "verlagent"

MODES = ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")
TINY = 1e-8


def masked_mean(values: Array, mask: Array) -> float:
    """Σ x m / (Σ m + 1e-8), the sum below as the official code's float32 has it: from 1 on the 1e-8 is lost in it.

    (In float64 it would move the mean of equal values, and whitening would divide that by sqrt(1e-8).)
    """
    return float((values * mask).sum() / float(np.float32(mask.sum()) + np.float32(TINY)))


def whiten(values: Array, mask: Array) -> Array:
    """(x - mean) / sqrt(unbiased variance + 1e-8), everywhere; for two masked values or more."""
    mean, count = masked_mean(values, mask), mask.sum()
    variance = masked_mean((values - mean) ** 2, mask) * count / (count - 1)
    return (values - mean) / np.sqrt(variance + TINY)


def weights(mask: Array, mode: str, family: Family, constant: float | None = None) -> Array:
    """What each token's loss is multiplied by before all are added up."""
    lengths = mask.sum(1, keepdims=True)
    counted = float((lengths > 0).sum()) if family == "verl" else float(len(mask))
    with np.errstate(divide="ignore", invalid="ignore"):
        if mode == "token-mean":
            return mask / (mask.sum() + (0.0 if family == "verl" else TINY))
        if mode == "seq-mean-token-sum":
            return mask / counted
        if mode == "seq-mean-token-mean":
            if family == "verl":
                return mask / (lengths + TINY) / counted
            return mask / lengths / counted  # an empty row: 0 / 0
        return mask / float(mask.shape[1] if constant is None else constant)


def aggregate(loss: Array, mask: Array, mode: str, family: Family, constant: float | None = None) -> float:
    return float((loss * weights(mask, mode, family, constant)).sum())


def ppo(case: dict[str, Any], family: Family) -> dict[str, Any]:
    """max(-A r, -A clip(r)), at most -A c where A < 0; verl clamps log r at 20 (no gradient beyond)."""
    old, new, advantage, mask = (case[k] for k in ("old_log_prob", "log_prob", "advantages", "response_mask"))
    difference = new - old
    inside = np.ones_like(difference)
    if family == "verl":
        inside = (np.abs(difference) <= 20.0).astype(float)
        difference = difference.clip(-20.0, 20.0)
    ratio = np.exp(difference)
    clipped = ratio.clip(1 - case["clip_low"], 1 + case["clip_high"])
    free, bounded, ceiling = -advantage * ratio, -advantage * clipped, -advantage * case["clip_c"]
    worse = bounded > free
    loss = np.where(worse, bounded, free)
    dual = (advantage < 0) & (loss > ceiling)
    slope = np.where(worse | dual, 0.0, -advantage * ratio) * inside
    weight = weights(mask, case["agg"], family)
    return {
        "loss": float((np.where(dual, ceiling, loss) * weight).sum()),
        "clipfrac": masked_mean(worse.astype(float), mask),
        "clipfrac_lower": masked_mean(dual.astype(float), mask),
        "ppo_kl": masked_mean(-difference, mask),
        "grad_log_prob": slope * weight,
    }


def gspo(case: dict[str, Any]) -> dict[str, Any]:
    """One ratio a row, with each token's own gradient; the log-ratio clamped at 10; mean of the rows' means."""
    mask, advantage = case["response_mask"], case["advantages"]
    difference = case["log_prob"] - case["old_log_prob"]
    pooled = (difference * mask).sum(1, keepdims=True) / np.maximum(mask.sum(1, keepdims=True), 1)
    ratio = np.exp(np.minimum(pooled, 10.0)) * np.ones_like(mask)
    clipped = ratio.clip(1 - case["clip_low"], 1 + case["clip_high"])
    free, bounded = -advantage * ratio, -advantage * clipped
    worse = bounded > free
    weight = weights(mask, "seq-mean-token-mean", "verl")
    return {
        "loss": float((np.maximum(free, bounded) * weight).sum()),
        "metrics": {
            "actor/pg_clipfrac": masked_mean(worse.astype(float), mask),
            "actor/ppo_kl": masked_mean(-difference, mask),
            "actor/pg_clipfrac_lower": 0.0,
        },
        "grad_log_prob": np.where(worse | (pooled > 10.0), 0.0, free) * weight,
    }


def kl(new: Array, reference: Array) -> dict[str, Array]:
    """k1, |k1|, k1²/2 and k3 (d = ref - log π within ±20, the value within ±10), each with its slope in log π."""
    k1 = new - reference
    inside = np.abs(k1) <= 20.0
    inverse = (-k1).clip(-20.0, 20.0)
    k3 = np.exp(inverse) - inverse - 1.0
    return {
        "kl": k1, "kl_grad": np.ones_like(k1),
        "abs": np.abs(k1), "abs_grad": np.sign(k1),
        "mse": 0.5 * k1**2, "mse_grad": k1,
        "low_var_kl": k3.clip(-10.0, 10.0),
        "low_var_kl_grad": np.where(inside & (k3 <= 10.0), 1.0 - np.exp(inverse), 0.0),
    }  # fmt: skip


def value_loss(case: dict[str, Any], family: Family) -> dict[str, Any]:
    """max((v - R)², (clip(v) - R)²); verl takes half of the mean."""
    mask, returns, value = case["response_mask"], case["returns"], case["vpreds"]
    bounded = value.clip(case["values"] - case["cliprange_value"], case["values"] + case["cliprange_value"])
    free_error, bounded_error = (value - returns) ** 2, (bounded - returns) ** 2
    worse = bounded_error > free_error
    weight = weights(mask, "token-mean", family) * (0.5 if family == "verl" else 1.0)
    return {
        f"{family}_value_loss": float((np.maximum(free_error, bounded_error) * weight).sum()),
        f"{family}_value_clipfrac": masked_mean(worse.astype(float), mask),
        f"{family}_value_grad": np.where(worse, 0.0, 2.0 * (value - returns)) * weight,
    }


def covariances(case: dict[str, Any]) -> dict[str, Any]:
    """Clip-Cov and KL-Cov: which tokens may be chosen, and the losses where the choice is no matter of chance."""
    new, old, advantage, mask = (case[k] for k in ("log_prob", "old_log_prob", "advantages", "response_mask"))
    count = mask.sum()
    mean_a, mean_l = ((x * mask).sum() / count for x in (advantage, new))
    covariance = (advantage - mean_a) * (new - mean_l)
    ratio = np.exp(new - old)
    free = -advantage * ratio
    bounded = -advantage * ratio.clip(1 - case["clip_low"], 1 + case["clip_high"])
    worse = bounded > free
    eligible = (covariance > case["lb"]) & (covariance < case["ub"]) & (mask > 0) & ~worse
    number = max(1, int(case["clip_cov_ratio"] * count))
    chosen = min(number, int(eligible.sum()))
    kept = np.where(eligible, 0.0, 1.0)
    weight = mask / count
    made: dict[str, Any] = {
        "covariance": covariance, "eligible_mask": eligible.astype(float), "clip_num": number,
        "deterministic": bool(eligible.sum() <= number), "clip_cov_clipfrac": chosen / count,
        "ppo_kl": float(((old - new) * weight).sum()),
    }  # fmt: skip
    if made["deterministic"]:
        made["clip_cov_loss"] = float((np.maximum(free, bounded) * kept * weight).sum())
        made["clip_cov_grad"] = np.where(worse, 0.0, free) * kept * weight
    if "kl_cov_ratio" in case:
        order = np.argsort(np.where(mask > 0, covariance, -np.inf), axis=None)[::-1]
        highest = max(1, int(case["kl_cov_ratio"] * count))
        ranked = covariance.ravel()[order[: int(count)]]
        if highest < count and np.isclose(ranked[highest - 1], ranked[highest], rtol=1e-5):
            return made  # a tie: which of them is a matter of the sorting
        held = np.zeros(mask.size)
        held[order[:highest]] = case["kl_coef"]
        held, distance = held.reshape(mask.shape), new - old
        made["kl_cov_loss"] = float(((free + held * np.abs(distance)) * weight).sum())
        made["kl_cov_abs_kl"] = float((np.abs(distance) * weight).sum())
        made["kl_cov_grad"] = (free + held * np.sign(distance)) * weight
    return made


def log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def entropy(logits: Array) -> tuple[Array, Array]:
    """(H [...], dH / dlogits [..., V] = -p (log p + H))."""
    logs = log_softmax(logits)
    found = -(np.exp(logs) * logs).sum(-1)
    return found, -np.exp(logs) * (logs + found[..., None])


def epo_weight(epoch: int, max_epochs: int) -> float:
    """The released schedule: 1 - 0.2 (1 - e^(-2x)) to the middle of the run, then 0.8 e^(-3x); 1 without epochs."""
    if max_epochs <= 0:
        return 1.0
    middle = max_epochs // 2
    if epoch <= middle:
        return 1.0 - 0.2 * (1.0 - math.exp(-2.0 * epoch / middle)) if middle else 1.0
    return 0.8 * math.exp(-3.0 * min((epoch - middle) / (max_epochs - middle), 1.0))


def epo_official(case: dict[str, Any]) -> dict[str, Any]:
    """Released: a PPO loss, an entropy bonus, and a penalty that is constant where it applies."""
    logits, mask = case["logits"], case["response_mask"]
    levels, slope = entropy(logits)
    tokens = np.asarray(case["tokens"], int)
    history = np.asarray(case["entropy_history"])[np.asarray(case["rollout_step"], int)][:, None]
    level = levels if case["mask_mode"] == "token" else levels.mean(1, keepdims=True) * np.ones_like(levels)
    inside = (case["min_ratio"] * history < level) & (level < case["max_ratio"] * history)
    applied = bool(max(case["rollout_step"]) >= 25)
    penalty = np.where(inside | (not applied), 0.0, case["out_range_penalty"])
    if case["smooth_weights"]:
        penalty = penalty * epo_weight(case["epoch"], 150)
    chosen = np.take_along_axis(log_softmax(logits), tokens[..., None], -1)[..., 0]
    policy = ppo(
        {**case, "log_prob": chosen, "clip_low": 0.2, "clip_high": 0.2, "clip_c": 3.0, "agg": "token-mean"}, "verlagent"
    )
    mean, penalised = masked_mean(levels, mask), masked_mean(penalty, mask)
    onehot = np.eye(logits.shape[-1])[tokens]
    through_policy = policy["grad_log_prob"][..., None] * (onehot - np.exp(log_softmax(logits)))
    through_entropy = -case["entropy_coeff"] * slope * (mask / (mask.sum() + TINY))[..., None]
    return {
        "applied": applied, "entropy": levels, "penalty": penalty,
        "in_range_ratio": float(inside.mean()) if applied else 0.0,
        "pg_loss": policy["loss"], "entropy_mean": mean, "penalty_mean": penalised,
        "total_loss": policy["loss"] - case["entropy_coeff"] * (mean - case["smooth_coeff"] * penalised),
        "grad_logits": through_policy + through_entropy, "grad_equals_plain_entropy_bonus": True,
    }  # fmt: skip


def epo_paper(case: dict[str, Any]) -> dict[str, Any]:
    """-λ (L_H - β L_smooth): means over trajectories of means over their turns of means over the turns' tokens."""
    mask = case["mask"]  # [trajectory, turn, token]
    levels, slope = entropy(case["logits"])
    low, high = case["kappa_l"] * case["H_ref"], case["kappa_r"] * case["H_ref"]
    outside = np.maximum(low - levels, 0.0) + np.maximum(levels - high, 0.0)
    direction = (levels > high).astype(float) - (levels < low).astype(float)
    beta = 1.0 + math.exp(-case["gamma"] * case["step"] / (case["total_steps"] // 2))
    tokens = mask.sum(2)
    turns = (tokens > 0).sum(1)
    share = (
        mask / np.maximum(tokens, 1)[:, :, None] / np.maximum(turns, 1)[:, None, None] / max(int((turns > 0).sum()), 1)
    )
    bonus, smooth = float((share * levels).sum()), float((share * case["alpha"] * outside).sum())
    through = -case["lam"] * share * (1.0 - beta * case["alpha"] * direction)
    return {
        "beta": beta, "entropy": levels, "penalty": outside, "L_H": bonus, "L_smooth": smooth,
        "regulariser": -case["lam"] * (bonus - beta * smooth), "grad_logits": through[..., None] * slope,
    }  # fmt: skip


def aepo(case: dict[str, Any]) -> dict[str, Any]:
    """A clip whose upper bound passes the gradient on, and advantages that follow the tokens' entropies."""
    new, old, advantage, mask = (case[k] for k in ("log_prob", "old_log_prob", "advantages", "response_mask"))
    valid = mask > 0
    if case["entropy_advantage"]:
        levels = case["entropy"][valid]
        std = levels.std(ddof=1) if levels.size > 1 else math.nan
        advantage = advantage * (1.0 + case["alpha"] * (case["entropy"] - levels.mean()) / (1.0 if std == 0 else std))
    ratio = np.exp(new - old)
    low, high = 1 - case["clip_low"], 1 + case["clip_high"]
    free, bounded, ceiling = -advantage * ratio, -advantage * ratio.clip(low, high), -advantage * case["clip_c"]
    worse = bounded > free
    dual = (advantage < 0) & (np.maximum(free, bounded) > ceiling)
    factor = np.where(worse, 0.0, ratio)
    if case["balanced_clip"]:
        factor = np.where((advantage > 0) & (ratio > high), high, factor)
    weight = mask / (mask.sum() + TINY)
    return {
        "loss": float((np.where(dual, ceiling, np.maximum(free, bounded)) * weight).sum()),
        "clipfrac": masked_mean(worse.astype(float), mask), "clipfrac_lower": masked_mean(dual.astype(float), mask),
        "ppo_kl": masked_mean(old - new, mask),
        "grad_log_prob": np.where(dual, 0.0, -advantage * factor) * weight, "entropy_grad_is_none": True,
    }  # fmt: skip
