"""Clips, token weights and regularisers, number by number: what each does to a token, and when it does nothing."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.algorithms.fakes import TEN, BigramPolicy, buffer_of, groups, learner
from tests.golden.builders import batch_of, context_of, loss_of, recipe_of
from turnwise.algorithms.balancing import rising, tried_bounds
from turnwise.algorithms.bapo import BalancedBounds, BAPOConfig
from turnwise.algorithms.cispo import CISPOConfig
from turnwise.algorithms.dppo import DPPOConfig
from turnwise.algorithms.ear import EARConfig, entropy_scale
from turnwise.algorithms.entropy_advantage import EntropyBonus
from turnwise.algorithms.forking import ForkingConfig, top_of_all, top_of_turns
from turnwise.algorithms.grpo import GRPOConfig
from turnwise.algorithms.hapo import HAPOConfig
from turnwise.algorithms.registry import build
from turnwise.algorithms.sac import SACConfig, Temperature
from turnwise.algorithms.steer import STEERConfig
from turnwise.algorithms.tea import CovarianceEntropy, TEAConfig
from turnwise.learning.parts import Samples, Stream
from turnwise.learning.rewards import RewardTable
from turnwise.learning.settings import RunInfo, Settings
from turnwise.replay.batch import TokenBatch, layout

BARE = GRPOConfig(kl_coef=0.0, dual_clip=None)


def row(*, before: list[float], now: list[float], advantages: list[float]) -> tuple[TokenBatch, Tensor]:
    """One row of tokens by their probabilities."""
    mask = torch.ones(1, len(now), dtype=torch.bool)
    columns = {"behaviour_logprobs": torch.tensor([before]).log(), "advantages": torch.tensor([advantages])}
    return batch_of(mask, **columns), torch.tensor([now]).log().requires_grad_()


def gradient(config: Settings, batch: TokenBatch, logprobs: Tensor) -> list[float]:
    recipe = recipe_of(config)
    loss, _ = loss_of(recipe, *context_of(batch, logprobs, recipe.aggregation))
    found: list[float] = torch.autograd.grad(loss, logprobs)[0][0].tolist()
    return found


def stream(batch: TokenBatch) -> Stream:
    return Stream(Samples((), RewardTable((), ())), batch)


def test_hapo_weighs_tokens_where_no_bound_widens() -> None:
    """The first token is the least certain one: its weight is 1 + 0.5, and the ratio is beyond the bound of calm."""
    batch, logprobs = row(before=[0.5, 0.5], now=[0.56, 0.5], advantages=[1.0, 1.0])
    batch = batch.with_columns(behaviour_entropies=torch.tensor([[2.0, 1.0]]))
    config = HAPOConfig(alpha=0.0, beta=0.5, pivot=0.5, heat=0.0)
    assert gradient(config, batch, logprobs) == pytest.approx([-1.12 * 1.5 / 2, -1.0 / 2])


def test_cispo_keeps_every_gradient_with_a_bounded_weight() -> None:
    batch, logprobs = row(before=[0.1, 0.5, 0.4], now=[0.9, 0.5, 0.1], advantages=[1.0, 1.0, -1.0])
    found = gradient(CISPOConfig(base=BARE, clip_low=0.2, clip_high=0.28), batch, logprobs)
    assert found == pytest.approx([-1.28 / 3, -1.0 / 3, 0.8 / 3])
    assert gradient(BARE, batch, logprobs) == pytest.approx([0.0, -1.0 / 3, 0.0]), "PPO drops both"


def test_dppo_drops_by_probability_and_only_what_goes_further() -> None:
    batch, logprobs = row(
        before=[0.01, 0.5, 0.9, 0.5, 0.9], now=[0.05, 0.8, 0.6, 0.8, 0.6], advantages=[1.0, 1.0, -1.0, -1.0, 1.0]
    )
    found = gradient(DPPOConfig(base=BARE), batch, logprobs)
    # Fivefold, but rare: kept. Up by .3 and pushed up: dropped. Down and pushed down: dropped. The last two come back.
    assert found == pytest.approx([-5 / 5, 0.0, 0.0, 1.6 / 5, -(2 / 3) / 5], rel=1e-5)
    kl = gradient(DPPOConfig(base=BARE, divergence="kl"), batch, logprobs)
    assert [value == 0.0 for value in kl] == [False, True, True, False, False]


def test_bounds_are_tried_in_order_and_end_at_their_maximum() -> None:
    assert rising(0.6, 0.7, 0.04) == pytest.approx([0.6, 0.64, 0.68, 0.7])
    assert rising(1.0, 1.0, 0.1) == [1.0]
    low, high, steps = (0.8, 0.9), (1.2, 1.4), (0.1, 0.1)
    upper = tried_bounds(low, high, steps, high_first=True)
    assert upper == [pytest.approx(pair) for pair in ((0.8, 1.2), (0.8, 1.3), (0.8, 1.4), (0.9, 1.4))]
    lower = tried_bounds(low, high, steps, high_first=False)
    assert lower == [pytest.approx(pair) for pair in ((0.8, 1.2), (0.9, 1.2), (0.9, 1.3), (0.9, 1.4))]


@pytest.mark.parametrize(
    ("target", "bounds", "acted"),
    [(0.3, (0.6, 1.2), (0.0, 0.0)), (0.6, (0.6, 1.5), (1.0, 0.0)), (0.99, (0.9, 3.0), (1.0, 1.0))],
)
def test_bapo_widens_until_positive_tokens_have_their_share(
    target: float, bounds: tuple[float, float], acted: tuple[float, float]
) -> None:
    """Positive: ratio 1 and 1.5 (clipped at first); negative: ratio 1. The shares are 1/2 and then 2.5/3.5."""
    batch, logprobs = row(before=[0.5, 0.5, 0.5], now=[0.5, 0.75, 0.5], advantages=[1.0, 1.0, -1.0])
    recipe = recipe_of(BAPOConfig(base=BARE, target=target, high_step=0.1))
    loss_of(recipe, *context_of(batch, logprobs))
    part = recipe.clip
    assert isinstance(part, BalancedBounds)
    assert (part.low, part.high) == pytest.approx(bounds)
    found = part.acted()
    assert (found["widened_share"], found["exhausted_share"]) == acted


def test_bapo_leaves_the_bounds_where_nothing_has_an_advantage() -> None:
    batch, logprobs = row(before=[0.5, 0.5], now=[0.9, 0.1], advantages=[0.0, 0.0])
    recipe = recipe_of(BAPOConfig(base=BARE))
    loss_of(recipe, *context_of(batch, logprobs))
    assert isinstance(recipe.clip, BalancedBounds)
    assert (recipe.clip.low, recipe.clip.high) == (0.6, 1.2)
    assert recipe.clip.acted() == {"widened_share": 0.0, "exhausted_share": 0.0}


MASK = torch.tensor([[True, True, True, False, True, True], [True, True, True, True, False, False]])
TURNS = torch.tensor([[0, 0, 0, -1, 1, 1], [0, 0, 0, 0, -1, -1]])
SCORES = torch.tensor([[1.0, 3.0, 2.0, 9.0, 0.2, 0.1], [0.5, 0.5, 0.4, 0.3, 9.0, 9.0]])


def test_forking_tokens_are_ranked_over_everything_or_within_turns() -> None:
    assert top_of_all(SCORES, MASK, 0.25).nonzero().tolist() == [[0, 1], [0, 2]]
    assert top_of_all(SCORES, MASK, 0.45).nonzero().tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1]], "equals too"
    assert top_of_turns(SCORES, MASK, TURNS, 0.5).nonzero().tolist() == [[0, 1], [0, 4], [1, 0], [1, 1]]
    assert top_of_turns(SCORES, MASK, TURNS, 0.1).nonzero().tolist() == [[0, 1], [0, 4], [1, 0]], "one at least"
    empty = torch.zeros(2, 0)
    assert top_of_turns(empty, empty.bool(), empty.long(), 0.5).shape == (2, 0)
    assert top_of_all(empty, empty.bool(), 0.5).shape == (2, 0)


def test_forking_keeps_first_tokens_and_its_mean_is_over_what_is_left() -> None:
    batch = batch_of(MASK, turn_index=TURNS, behaviour_entropies=SCORES, advantages=MASK.float())
    recipe = recipe_of(ForkingConfig(base=BARE, share=0.2, within="turn", keep_first=True))
    ctx, view = context_of(batch, torch.zeros(MASK.shape))
    loss, _ = loss_of(recipe, ctx, view)
    (part,) = recipe.weighters
    weight = part.weight(ctx)
    assert (weight > 0).nonzero().tolist() == [[0, 0], [0, 1], [0, 4], [1, 0]]
    assert loss.item() == pytest.approx(-1.0)
    assert part.acted()["left_out_share"] == pytest.approx(5 / 9)


def test_steer_damps_large_changes_of_either_direction() -> None:
    batch, logprobs = row(before=[0.5, 0.5, 0.5], now=[0.5, 0.5, 0.5], advantages=[1.0, -1.0, 0.01])
    recipe = recipe_of(STEERConfig(base=BARE, weight_min=0.5))
    ctx, view = context_of(batch, logprobs)
    loss_of(recipe, ctx, view)
    (part,) = recipe.weighters
    assert part.weight(ctx)[0].tolist() == pytest.approx([0.5, 0.5, 0.5**0.01])
    assert part.acted()["mean_change"] == pytest.approx((0.5 + 0.5 + 1 - 0.5**0.01) / 3)
    quiet = batch.with_columns(advantages=torch.full((1, 3), 1e-4))
    ctx, view = context_of(quiet, logprobs)
    part.prepare(view)
    assert (part.weight(ctx) > 0.99).all(), "changes of a ten-thousandth are below the floor"
    ten = context_of(batch.with_columns(advantages=torch.full((1, 3), 1e-3)), logprobs)[1]
    one = part.weight(ctx).clone()
    part.prepare(replace(ten, unit=10.0))
    torch.testing.assert_close(part.weight(ctx), one)


def test_the_entropy_bonus_changes_no_sign_and_leaves_zero() -> None:
    batch = batch_of(
        torch.ones(1, 4, dtype=torch.bool),
        behaviour_entropies=torch.tensor([[1.0, 1.0, 0.1, 5.0]]),
        advantages=torch.tensor([[1.0, -0.2, -1.0, 0.0]]),
    )
    part = EntropyBonus(0.4, 2.0)
    assert part.modify(stream(batch))[0].tolist() == pytest.approx([1.4, -0.1, -0.96, 0.0])
    assert part.acted() == {"raised_share": 0.75, "bounded_share": 0.25}
    assert EntropyBonus(0.4, 1.0).modify(stream(batch))[0].tolist() == pytest.approx([1.4, 0.0, -0.96, 0.0])


def test_sure_attempts_have_more_credit_wherever_their_rows_lie() -> None:
    """Two groups; the second trajectory has two rows, and the last one no token."""
    mask = torch.tensor([[True, True], [True, False], [True, True], [True, True], [False, False]])
    entropy = torch.tensor([[0.5, 1.5], [1.0, 9.0], [4.0, 4.0], [7.0, 7.0], [9.0, 9.0]])
    batch = batch_of(
        mask,
        behaviour_entropies=entropy,
        advantages=torch.ones(mask.shape) * mask,
        trajectory=torch.tensor([0, 1, 1, 2, 3]),
        group=torch.tensor([0, 0, 0, 1, 1]),
    )
    scale = entropy_scale(batch)  # entropies 1 and 3, mean 2; then 7 alone
    assert scale.tolist() == pytest.approx([1.5, 0.5, 1.0, 1.0])
    (part,) = recipe_of(EARConfig()).modifiers
    assert part.modify(stream(batch))[:, 0].tolist() == pytest.approx([1.5, 0.5, 0.5, 1.0, 0.0])
    odd = replace(batch, behaviour_entropies=torch.tensor([[0.1, 0.1], [9.0, 9.0], [9.0, 9.0], [0.0, 0.0], [0.0, 0.0]]))
    assert entropy_scale(odd).min() >= 0


def alphas(config: SACConfig, updates: int = 4) -> list[float]:
    policy = BigramPolicy()
    run = RunInfo(10, 4, rewards=TEN)
    made = learner(build(config, run), policy, run, lr=1e-9, num_minibatches=2)
    return [
        made.update(buffer_of(groups(policy, version=update), update), update).mechanisms["Temperature/alpha"]
        for update in range(updates)
    ]


def test_the_temperature_follows_the_gap_to_its_target() -> None:
    below = alphas(SACConfig(target=100.0, initial_coef=0.01, max_coef=1.0, coef_lr=0.1))
    above = alphas(SACConfig(target=1e-3, initial_coef=0.01, max_coef=1.0, coef_lr=0.1))
    assert below == sorted(below)
    assert above == sorted(above, reverse=True)
    assert below[-1] > 0.015 > 0.007 > above[-1]
    limited = alphas(SACConfig(target=100.0, initial_coef=0.01, max_coef=0.011, coef_lr=0.1))
    assert limited[-1] == pytest.approx(0.011)


def test_the_target_is_a_share_of_the_first_entropy_and_is_kept() -> None:
    policy = BigramPolicy()
    run = RunInfo(10, 4)
    made = learner(build(SACConfig(target_share=0.5), run), policy, run)
    (part,) = (part for part in made.parts if isinstance(part, Temperature))
    first = made.update(buffer_of(groups(policy)), 0)
    assert first.entropy is not None
    assert part.target == pytest.approx(0.5 * first.entropy)
    made.update(buffer_of(groups(policy, seed=3, version=1), 1), 1)
    again = learner(build(SACConfig(target_share=0.5), run), BigramPolicy(), run)
    again.load_state_dict(*made.state_dict())
    (restored,) = (part for part in again.parts if isinstance(part, Temperature))
    assert restored.target == part.target
    assert restored.log_alpha.item() == part.log_alpha.item() != math.log(1e-3)


def test_a_rows_coefficients_add_up_to_the_budget() -> None:
    batch = layout(groups(BigramPolicy()))
    batch = batch.with_columns(advantages=torch.randn(batch.tokens.shape) * batch.action_mask)
    part = CovarianceEntropy(TEAConfig(budget=3.0, bound=100.0))
    ctx, view = context_of(batch, batch.behaviour_logprobs, entropy=torch.ones(batch.tokens.shape))
    part.prepare(view)
    found = part.coefficients(ctx)
    assert (found[~batch.action_mask] == 0).all()
    assert found.sum(1).tolist() == pytest.approx([3.0] * len(batch), rel=1e-5)
    assert part.term(ctx).item() == pytest.approx(-3.0 * len(batch) / ctx.counts.action_tokens, rel=1e-5)
