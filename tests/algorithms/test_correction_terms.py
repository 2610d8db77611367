"""The terms around the surrogate, number by number: importance weights, KL's direction, the turns' value loss."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tests.golden.builders import batch_of, context_of, loss_of, recipe_of
from turnwise.algorithms.critic import ValueLoss
from turnwise.algorithms.grpo import GRPOConfig
from turnwise.algorithms.ppo import PPOConfig
from turnwise.learning.recipe import StreamRecipe


def logs(*probabilities: float) -> Tensor:
    return torch.tensor([probabilities]).log()


def test_importance_weights_are_proximal_over_behaviour_and_capped() -> None:
    recipe = recipe_of(GRPOConfig(ratio_denominator="proximal", importance_cap=2.0, kl_coef=0.0, clip_high=0.2))
    mask = torch.ones(1, 4, dtype=torch.bool)
    behaviour, proximal = logs(0.4, 0.4, 0.2, 0.1), logs(0.2, 0.4, 0.3, 0.5)  # 1/2, 1, 3/2, and 5, capped at 2
    batch = batch_of(
        mask, behaviour_logprobs=behaviour, proximal_logprobs=proximal, advantages=torch.tensor([[1.0, 1.0, 1.0, 1.0]])
    )
    ctx, view = context_of(batch, logprobs := proximal.clone().requires_grad_(), recipe.aggregation)
    (weighter,) = recipe.weighters
    assert weighter.weight(ctx).tolist() == [pytest.approx([0.5, 1.0, 1.5, 2.0])]
    loss, _ = loss_of(recipe, ctx, view)
    assert loss.item() == pytest.approx(-(0.5 + 1.0 + 1.5 + 2.0) / 4)  # the ratio to proximal is 1
    (found,) = torch.autograd.grad(loss, logprobs)
    assert found.tolist() == [pytest.approx([-0.125, -0.25, -0.375, -0.5])]


def test_the_ratio_starts_from_the_sampler_where_nothing_is_recomputed() -> None:
    recipe = recipe_of(GRPOConfig(kl_coef=0.0, clip_high=0.2, clip_low=0.2))
    assert not recipe.weighters
    mask = torch.ones(1, 2, dtype=torch.bool)
    batch = batch_of(mask, behaviour_logprobs=logs(0.5, 0.5), advantages=torch.tensor([[1.0, -1.0]]))
    loss, tally = loss_of(recipe, *context_of(batch, logs(0.55, 0.55), recipe.aggregation))
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert tally.per_token("ratio") == pytest.approx(1.1)


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        ("k1", math.log(2.0)),
        ("abs", math.log(2.0)),
        ("k2", 0.5 * math.log(2.0) ** 2),
        ("k3", 0.5 - 1.0 + math.log(2.0)),  # ref / π - 1 - ln(ref / π); the other way round 2 - 1 - ln 2
    ],
)
def test_the_kl_is_of_the_policy_from_the_reference(estimator: str, expected: float) -> None:
    """The policy gives a token one half that the reference gives a quarter."""
    recipe = recipe_of(GRPOConfig(kl_coef=0.5, kl_estimator=estimator))
    mask = torch.tensor([[True, False]])
    batch = batch_of(
        mask,
        behaviour_logprobs=logs(0.5, 0.9),
        reference_logprobs=logs(0.25, 0.1),
        advantages=torch.zeros(1, 2),
    )
    logprobs = logs(0.5, 0.9).requires_grad_()
    loss, tally = loss_of(recipe, *context_of(batch, logprobs, recipe.aggregation))
    assert loss.item() == pytest.approx(0.5 * expected, rel=1e-5)
    assert tally.term_sums["ReferenceKL"] == pytest.approx(expected, rel=1e-5)
    assert tally.per_token("kl_reference") == pytest.approx(0.5 - 1.0 + math.log(2.0), rel=1e-5)
    (found,) = torch.autograd.grad(loss, logprobs)
    assert found[0, 0] > 0  # the loss falls as the policy comes down to the reference
    assert found[0, 1] == 0


def test_the_reported_distance_from_the_sampler_is_measured_on_its_tokens() -> None:
    """k3 of KL(behaviour || policy): π / behaviour - 1 - ln(π / behaviour)."""
    recipe = recipe_of(GRPOConfig(kl_coef=0.0))
    mask = torch.tensor([[True, False]])
    batch = batch_of(mask, behaviour_logprobs=logs(0.25, 0.1), advantages=torch.zeros(1, 2))
    _, tally = loss_of(recipe, *context_of(batch, logs(0.5, 0.9), recipe.aggregation))
    assert tally.per_token("kl_behaviour") == pytest.approx(2.0 - 1.0 - math.log(2.0), rel=1e-5)
    assert tally.ratio_max == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("level", "expected", "share"),
    [
        ("turn", (1.0 + 9.0) / 2, [[1.0, 0.0, 0.0, 0.0, 3.0]]),  # first tokens 2 and 3 against 1 and 0, over 2 turns
        ("token", (1.0 + 4.0 + 16.0 + 9.0) / 4, [[0.5, 1.0, 0.0, 2.0, 1.5]]),
    ],
)
def test_the_value_loss_of_a_turn_is_that_of_its_first_token(
    level: str, expected: float, share: list[list[float]]
) -> None:
    """A turn of three action tokens, one of them after a token of the world, and a turn of one."""
    critic = ValueLoss(PPOConfig(level=level, value_clip=None, share_trunk=True), seed=0)
    critic.module = nn.Identity()
    turns = torch.tensor([[0, 0, -1, 0, 1]])
    mask = turns >= 0
    values = torch.tensor([[2.0, 3.0, 7.0, 5.0, 3.0]], requires_grad=True)
    returns = torch.tensor([[1.0, 1.0, 0.0, 1.0, 0.0]])
    batch = batch_of(mask, turn_index=turns, values=torch.zeros(1, 5), returns=returns)
    ctx, view = context_of(batch, torch.zeros(1, 5), hidden=values[mask].unsqueeze(1))
    loss, _ = loss_of(StreamRecipe(objectives=((critic, 1.0),)), ctx, view)
    assert loss.item() == pytest.approx(expected)
    assert torch.autograd.grad(loss, values)[0].tolist() == [pytest.approx(row) for row in share]
