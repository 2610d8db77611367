"""The losses and credit of the shared parts and of EPO against numbers of the official implementations.

Every number comes out of the product's own parts: what a test puts together itself, it does not test. The parts of
the other recipes are in test_recipes_core.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.algorithms.fakes import entropy_from_logits, logprobs_from_logits
from tests.golden.builders import Given, batch_of, context_of, credit_of, loss_of, recipe_of, stream_of
from tests.golden.vectors import cases, close, tensor
from turnwise.algorithms.common import GroupAdvantage, PPOClip, ReferenceKL, Whiten
from turnwise.algorithms.critic import ValueLoss
from turnwise.algorithms.epo import EPOConfig
from turnwise.algorithms.epo_released import ReleasedSettings
from turnwise.algorithms.grpo import GRPOConfig
from turnwise.algorithms.opo import OPOConfig
from turnwise.algorithms.ppo import PPOConfig
from turnwise.algorithms.rloo import RLOOConfig
from turnwise.algorithms.sequences import ReturnsToGo
from turnwise.learning.metrics import Agreement, Metrics
from turnwise.learning.parts import Aggregation, Regularizer, Streams
from turnwise.learning.primitives import (
    AggregationMode,
    kl_estimate,
)
from turnwise.learning.recipe import StreamRecipe
from turnwise.learning.schedules import epo_released_weight

MODES: tuple[AggregationMode, ...] = (
    "token-mean",
    "seq-mean-token-sum",
    "seq-mean-token-mean",
    "seq-mean-token-sum-norm",
)


def of_rows(ours: Tensor, family: str, mode: str, mask: Tensor) -> Tensor:
    """Our mean over rows as the family counts them: verl-agent counts rows without tokens too."""
    if family == "verlagent" and mode in ("seq-mean-token-sum", "seq-mean-token-mean"):
        return ours * (max(int(mask.any(1).sum()), 1) / mask.shape[0])
    return ours


@pytest.mark.parametrize("case", cases("agg_loss"))
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", ["verl", "verlagent"])
def test_aggregation(case: dict[str, Any], mode: AggregationMode, family: str) -> None:
    loss, mask = tensor(case["loss_mat"]), tensor(case["loss_mask"]).bool()
    ctx, _ = context_of(batch_of(mask), loss, Aggregation(mode))
    ours = of_rows(ctx.aggregate(loss), family, mode, mask)
    official = case[f"{family}_{mode}"]
    if official == "nan":  # verl-agent divides an empty row by its length of 0; ours adds nothing for that row
        assert torch.isfinite(ours)
        return
    close(ours, official)


@pytest.mark.parametrize("case", cases("agg_loss"))
def test_aggregation_by_a_constant(case: dict[str, Any]) -> None:
    loss, mask = tensor(case["loss_mat"]), tensor(case["loss_mask"]).bool()
    for name in (name for name in case if name.startswith("verl_norm_scale")):
        constant = float(name.removeprefix("verl_norm_scale"))
        ctx, _ = context_of(batch_of(mask), loss, Aggregation("seq-mean-token-sum-norm", constant))
        close(ctx.aggregate(loss), case[name])


@pytest.mark.parametrize("case", cases("group_advantages_verl"))
def test_group_advantages_over_trajectories(case: dict[str, Any]) -> None:
    """verl keeps a lone member's reward as its advantage: our switch ``singleton="reward"``."""
    rewards, mask = tensor(case["token_level_rewards"]), tensor(case["response_mask"]).bool()
    stream = stream_of(mask, case["group"], earned=rewards.double().sum(1).tolist(), rewards=rewards)
    centred = GroupAdvantage("trajectories", normalize_std=False, eps=0.0, singleton="reward")
    recipes = {
        "grpo": recipe_of(GRPOConfig(singleton="reward")),
        "drgrpo_nostd": recipe_of(GRPOConfig(singleton="reward", normalize_std=False)),
        "rloo": recipe_of(RLOOConfig(singleton="reward")),
        "opo": recipe_of(OPOConfig(singleton="reward")),
        "reinforce_pp_baseline": StreamRecipe(centred, (Whiten(),)),
    }
    for name, recipe in recipes.items():
        close(credit_of(recipe, stream), tensor(case[name]) * mask)
    to_go = ReturnsToGo(1.0).estimate(stream)
    close(to_go - tensor(case["remax_baseline"]).unsqueeze(1) * mask, tensor(case["remax"]) * mask)
    for name in (name for name in case if name.startswith("reinforce_pp_gamma") and "returns" not in name):
        along = ReturnsToGo(float(name.removeprefix("reinforce_pp_gamma")))
        close(along.estimate(stream), tensor(case[f"{name}_returns"]) * mask)
        close(credit_of(StreamRecipe(along, (Whiten(),)), stream), tensor(case[name]) * mask)


def step_rows(case: dict[str, Any]) -> Any:
    """Rows that each end with the whole episode's return and answer for their own invalid action."""
    mask, invalid = tensor(case["response_mask"]).bool(), tensor(case["invalid_action"], torch.float64)
    penalty = case.get("invalid_penalty", 0.1)
    totals = tensor(case["token_level_rewards"], torch.float64).sum(1) + penalty * invalid
    last = {name: row for row, name in enumerate(case["traj"])}
    earned = [float(totals[row]) if last[name] == row else 0.0 for row, name in enumerate(case["traj"])]
    return stream_of(mask, case["group"], case["traj"], earned=earned, own=(-penalty * invalid).tolist())


@pytest.mark.parametrize("case", cases("group_advantages_verlagent"))
def test_group_advantages_over_rows(case: dict[str, Any]) -> None:
    """cross1: statistics over every row, each with its own penalty."""
    stream = step_rows(case)
    mask = stream.batch.action_mask
    for std in (True, False):
        recipe = recipe_of(GRPOConfig(group_stats="rows", singleton="reward", normalize_std=std))
        close(credit_of(recipe, stream), tensor(case[f"grpo_cross1_std{int(std)}"]) * mask)
    rloo = recipe_of(RLOOConfig(group_stats="rows", singleton="reward"))
    close(credit_of(rloo, stream), tensor(case["rloo_cross1"]) * mask)
    centred = GroupAdvantage("rows", normalize_std=False, eps=0.0, singleton="reward")
    whitened = credit_of(StreamRecipe(centred, (Whiten(),)), stream)
    close(whitened, tensor(case["reinforce_pp_baseline_cross1"]) * mask)


@pytest.mark.parametrize("case", cases("group_advantages_verlagent", lambda case: not any(case["invalid_action"])))
def test_group_advantages_once_a_trajectory(case: dict[str, Any]) -> None:
    """cross0: over the first row of each trajectory, which without penalties is over trajectories."""
    stream = step_rows(case)
    mask = stream.batch.action_mask
    for std in (True, False):
        recipe = recipe_of(GRPOConfig(singleton="reward", normalize_std=std))
        close(credit_of(recipe, stream), tensor(case[f"grpo_cross0_std{int(std)}"]) * mask)
    close(credit_of(recipe_of(RLOOConfig(singleton="reward")), stream), tensor(case["rloo_cross0"]) * mask)


@pytest.mark.parametrize("case", cases("ppo_policy_loss"))
@pytest.mark.parametrize("family", ["verl", "verlagent"])
def test_clipped_surrogate(case: dict[str, Any], family: str) -> None:
    """verl clamps the log-ratio at 20, and so do we; verl-agent does not, which no number here is large enough for."""
    logprobs, mask = tensor(case["log_prob"]).requires_grad_(), tensor(case["response_mask"]).bool()
    batch = batch_of(mask, behaviour_logprobs=tensor(case["old_log_prob"]), advantages=tensor(case["advantages"]))
    clip = PPOClip(case["clip_low"], case["clip_high"], case["clip_c"])
    recipe = StreamRecipe(Given(), clip=clip, aggregation=Aggregation(case["agg"]))
    loss, tally = loss_of(recipe, *context_of(batch, logprobs, recipe.aggregation))
    loss = of_rows(loss, family, case["agg"], mask)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()
    if case[f"{family}_loss"] != "nan":
        close(loss, case[f"{family}_loss"])
        close(gradient, case[f"{family}_grad_log_prob"], gradient=True)
    metrics = case.get("verl_metrics", {}) if family == "verl" else {}
    share = metrics.get("actor/pg_clipfrac", case.get(f"{family}_clipfrac"))
    dual_share = metrics.get("actor/pg_clipfrac_lower", case.get(f"{family}_clipfrac_lower"))
    close(tally.per_token("clipped") or 0.0, share)
    close(tally.per_token("dual_clipped") or 0.0, dual_share)


@pytest.mark.parametrize("case", cases("kl_and_value_loss"))
@pytest.mark.parametrize(("estimator", "name"), [("k1", "kl"), ("abs", "abs"), ("k2", "mse"), ("k3", "low_var_kl")])
def test_kl_to_the_reference(case: dict[str, Any], estimator: Any, name: str) -> None:
    """The term of the loss is the mean of the official values over the mask, and so is its gradient."""
    logprobs, mask = tensor(case["log_prob"]).requires_grad_(), tensor(case["response_mask"]).bool()
    reference = tensor(case["ref_log_prob"])
    close(kl_estimate(logprobs, reference, estimator), case[name])
    batch = batch_of(mask, reference_logprobs=reference)
    term = ReferenceKL(estimator).term(context_of(batch, logprobs)[0])
    count = max(int(mask.sum()), 1)
    close(term, (tensor(case[name]) * mask).sum() / count)
    (gradient,) = torch.autograd.grad(term, logprobs)
    close(gradient * count, tensor(case[f"{name}_grad"]) * mask, gradient=True)


@pytest.mark.parametrize("case", cases("kl_and_value_loss"))
@pytest.mark.parametrize(("family", "coef"), [("verl", 0.5), ("verlagent", 1.0)])
def test_value_loss(case: dict[str, Any], family: str, coef: float) -> None:
    """The critic with its head taken off: what it reads is the value."""
    values, mask = tensor(case["vpreds"]).requires_grad_(), tensor(case["response_mask"]).bool()
    critic = ValueLoss(PPOConfig(value_clip=case["cliprange_value"], share_trunk=True), seed=0)
    critic.module = nn.Identity()
    batch = batch_of(mask, values=tensor(case["values"]), returns=tensor(case["returns"]))
    ctx, view = context_of(batch, torch.zeros(mask.shape), hidden=values[mask].unsqueeze(1))
    loss, _ = loss_of(StreamRecipe(objectives=((critic, coef),)), ctx, view)
    close(loss, case[f"{family}_value_loss"])
    close(torch.autograd.grad(loss, values)[0], case[f"{family}_value_grad"], gradient=True)


@pytest.mark.parametrize("case", cases("epo_epoch_weight"))
def test_epo_released_schedule(case: dict[str, Any]) -> None:
    assert epo_released_weight(case["epoch"], case["max_epochs"]) == pytest.approx(case["weight"], rel=1e-9)


def epo_term(recipe: StreamRecipe) -> tuple[Regularizer, float]:
    """EPO's own term and its coefficient: the last one that was added to its base."""
    return recipe.regularizers[-1]


def on_one_side(case: dict[str, Any], entropy: Tensor, mask: Tensor) -> bool:
    """Whether every row's level is as far from the corridor in the released reading as in ours.

    ``seq`` takes the mean over a row; released with its padding, ours over its action tokens.
    """
    history = tensor(case["entropy_history"])[torch.tensor(case["rollout_step"]).long()]
    low, high = case["min_ratio"] * history, case["max_ratio"] * history
    own = (entropy * mask).sum(1) / mask.sum(1).clamp(min=1)
    inside = [(low < level) & (level < high) for level in (own, entropy.mean(1))]
    return bool((inside[0] == inside[1])[mask.any(1)].all())


@pytest.mark.parametrize("case", cases("epo_official_loss"))
def test_epo_released_loss(case: dict[str, Any]) -> None:
    """The released regulariser on a plain PPO loss with GRPO's own clip; its penalty has no gradient."""
    logits, mask = tensor(case["logits"]).requires_grad_(), tensor(case["response_mask"]).bool()
    entropy = entropy_from_logits(logits)
    close(entropy, case["entropy"])
    config = EPOConfig(
        base=GRPOConfig(kl_coef=0.0),
        form="released",
        entropy_coef=case["entropy_coeff"],
        corridor=(case["min_ratio"], case["max_ratio"]),
        corridor_coef=case["smooth_coeff"] * case["out_range_penalty"],
        schedule="released" if case["smooth_weights"] else "constant",
        schedule_updates=150 if case["smooth_weights"] else None,
        released=ReleasedSettings(level=case["mask_mode"], history_turns=len(case["entropy_history"])),
    )
    recipe = recipe_of(config)
    term, coef = epo_term(recipe)
    term.load_state_dict({"past_sum": case["entropy_history"], "past_updates": 1})
    turns = torch.tensor(case["rollout_step"]).long().unsqueeze(1)
    batch = batch_of(
        mask,
        turn_index=torch.where(mask, turns, -1),
        behaviour_logprobs=tensor(case["old_log_prob"]),
        advantages=tensor(case["advantages"]),
    )
    logprobs = logprobs_from_logits(logits, torch.tensor(case["tokens"]).long())
    ctx, view = context_of(batch, logprobs, recipe.aggregation, update=case["epoch"], entropy=entropy)
    loss, tally = loss_of(recipe, ctx, view)
    policy, regulariser = tally.sums["policy_loss"], tally.term_sums[type(term).__name__]
    close(policy, case["pg_loss"])
    close(torch.autograd.grad(loss, logits, retain_graph=True)[0], case["grad_logits"], gradient=True)
    assert case["grad_equals_plain_entropy_bonus"] is True
    if case["mask_mode"] == "seq" and not on_one_side(case, entropy.detach(), mask):
        return
    close(regulariser, case["smooth_coeff"] * case["penalty_mean"] - case["entropy_mean"])
    close(policy + coef * regulariser, case["total_loss"])
    close(loss, case["total_loss"])


def of_entropy(entropy: float) -> Metrics:
    """An update's metrics of which only the sampled tokens' mean entropy matters."""
    return Metrics(
        loss=0.0, policy_loss=0.0, entropy=entropy, policy_entropy=None, clip_share=0.0, dual_clip_share=0.0,
        ratio_mean=1.0, ratio_max=1.0, kl_behaviour=0.0, kl_reference=None, grad_norm=0.0, learning_rate=0.0,
        return_mean=0.0, advantage_mean=0.0, advantage_std=0.0, num_trajectories=0, num_rows=0, num_action_tokens=0,
        dropped_groups=0, optimizer_steps=0, skipped_steps=0, agreement=Agreement(0.0, 0.0, 0.0, 0),
    )  # fmt: skip


@pytest.mark.parametrize("case", cases("epo_paper_form_reference"))
def test_epo_paper_form(case: dict[str, Any]) -> None:
    """Float64 against a reference of the paper's equations; a row holds the turns of a trajectory.

    Two past updates lie around the vector's reference entropy. The first has none: then the term is the bonus alone.
    """
    logits = tensor(case["logits"], torch.float64).requires_grad_()
    num, turns, tokens, _ = logits.shape
    mask = tensor(case["mask"]).bool().reshape(num, turns * tokens)
    turn_index = torch.where(mask, torch.arange(turns).repeat_interleave(tokens).expand(num, -1), -1)
    entropy = entropy_from_logits(logits).reshape(num, turns * tokens)
    close(entropy[mask], tensor(case["entropy"]).reshape(mask.shape)[mask].tolist())
    config = EPOConfig(
        base=GRPOConfig(kl_coef=0.0),
        entropy_coef=case["lam"],
        corridor=(case["kappa_l"], case["kappa_r"]),
        corridor_coef=case["alpha"],
        gamma=case["gamma"],
    )
    recipe = replace(recipe_of(config, case["total_steps"]), clip=None)
    term, coef = epo_term(recipe)
    batch = batch_of(mask, turn_index=turn_index, num_turns=torch.full((num,), turns))
    logprobs = torch.zeros(mask.shape, dtype=torch.float64)
    ctx, view = context_of(batch, logprobs, recipe.aggregation, update=case["step"], entropy=entropy)
    term.prepare(view)
    assert term.term(ctx).item() == pytest.approx(-case["L_H"], rel=1e-9)
    for past in (0.75, 1.25):
        term.after_update(0, Streams(()), of_entropy(past * case["H_ref"]))
    found = coef * term.term(ctx)
    assert found.item() == pytest.approx(case["regulariser"], rel=1e-9)
    close(torch.autograd.grad(found, logits)[0], case["grad_logits"], gradient=True)
