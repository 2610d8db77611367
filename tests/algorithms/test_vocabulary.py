"""Lp-Reg, SIREN and CAPO by hand: which tokens they choose, what they keep, and when they read the vocabulary."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.algorithms.fakes import BigramPolicy, buffer_of, groups, learner
from tests.golden.builders import batch_of, context_of, loss_of, recipe_of
from tests.learning.test_learner import RUN, drifted, gradient
from turnwise.algorithms.capo import CAPOConfig, CurvatureMask
from turnwise.algorithms.grpo import GRPOConfig
from turnwise.algorithms.lp_reg import FreedClip, LpRegConfig
from turnwise.algorithms.registry import build
from turnwise.algorithms.siren import AnchoredNucleus, SIRENConfig
from turnwise.algorithms.vocabulary import NucleusEntropy, ProxyLogprob, StepCurvature, StepNorm, above_quantile
from turnwise.learning.parts import MinibatchView, UpdateContext
from turnwise.models.allowed import Drawn
from turnwise.models.reading import by_head, read

BARE = GRPOConfig(kl_coef=0.0, dual_clip=None)
LOGITS = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()


def test_a_proxy_leaves_out_what_is_far_below_the_likeliest() -> None:
    for token, kept in enumerate((0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95)):
        found = ProxyLogprob(0.2)(LOGITS, torch.tensor([token]), LOGITS)
        assert float(found.exp()) == pytest.approx(kept)
    assert float(ProxyLogprob(0.2)(LOGITS, torch.tensor([3]), LOGITS)) < -9000


def test_a_nucleus_stays_below_its_bound_and_of_one_token_has_no_entropy() -> None:
    def entropy(top_p: float, top_k: int = 10) -> float:
        return float(NucleusEntropy(top_p, top_k)(LOGITS, torch.zeros(1, dtype=torch.long), LOGITS))

    two = torch.tensor([5 / 8, 3 / 8])
    assert entropy(0.9) == pytest.approx(float(-(two * two.log()).sum()))
    assert entropy(0.96, top_k=2) == entropy(0.9)
    assert entropy(0.7) == entropy(0.4) == 0.0


def lost(logprobs: list[float], proxy: list[float], **settings: Any) -> tuple[FreedClip, UpdateContext, MinibatchView]:
    """A row of lost tokens of a ratio far below the clip's bound, with its last token won."""
    recipe = recipe_of(LpRegConfig(base=BARE, **settings))
    part = recipe.clip
    assert isinstance(part, FreedClip)
    advantages = -torch.ones(1, len(logprobs))
    advantages[0, -1] = 1.0
    batch = batch_of(
        torch.ones(1, len(logprobs), dtype=torch.bool),
        behaviour_logprobs=torch.tensor([logprobs]) + 1.0,
        advantages=advantages,
        opening={part.proxy: torch.tensor([proxy])},  # type: ignore[arg-type]
    )
    ctx, view = context_of(batch, torch.tensor([logprobs]).requires_grad_())
    return part, ctx, view


def test_the_rarest_lost_tokens_are_held_unless_they_are_noise_or_above_their_proxy() -> None:
    part, ctx, view = lost([-5.0, -4.0, -3.0, -1.0, -9.0], [-1e4, -3.5, -3.2, -0.5, -8.0], share=0.75)
    part.prepare(view)
    assert part.held.tolist() == [[False, True, False, False, False]]
    assert part.acted() == {"held_share": pytest.approx(1 / 5), "noise_share": pytest.approx(1 / 3)}
    bounds = part.surrogate(ctx)
    assert bounds.low.tolist() == [pytest.approx([0.8, 0.0, 0.8, 0.8, 0.8])]  # type: ignore[union-attr]
    assert bounds.high.tolist()[0][1] == float("inf")  # type: ignore[union-attr]


def test_a_held_token_is_pulled_up_and_no_other_one_is() -> None:
    part, ctx, view = lost([-5.0, -4.0, -3.0, -1.0], [-4.0, -3.9, -2.0, -0.5], share=0.01)
    recipe = recipe_of(LpRegConfig(base=BARE, share=0.01))
    recipe = replace(recipe, clip=part, regularizers=((type(recipe.regularizers[0][0])(part), 1.0),))  # type: ignore[call-arg]
    loss_of(recipe, ctx, view)
    (found,) = torch.autograd.grad(recipe.regularizers[0][0].term(ctx), ctx.logprobs)
    assert found[0].tolist() == pytest.approx([(1 - torch.e) / 4, 0, 0, 0])


def test_the_proxy_is_the_policys_before_the_update() -> None:
    """Also in the second optimizer step, with other weights."""
    policy, seen = drifted(BigramPolicy()), []
    made = learner(build(LpRegConfig(base=BARE, share=0.5, min_p=0.3), RUN), policy, num_minibatches=2, lr=0.5)
    part = made.recipe["fresh"].clip
    assert isinstance(part, FreedClip)
    table, original = policy.table.detach().clone(), part.prepare

    def spy(view: MinibatchView) -> None:
        batch = view.batch
        logits = table[batch.tokens.roll(1, 1)][batch.action_mask]
        seen.append(part.proxy(logits, batch.tokens[batch.action_mask], logits))
        torch.testing.assert_close(batch.opening[part.proxy][batch.action_mask], seen[-1])
        assert not batch.opening[part.proxy][~batch.action_mask].any()
        original(view)

    part.prepare = spy  # type: ignore[method-assign]
    made.update(buffer_of(groups(BigramPolicy())), 0)
    assert len(seen) == 2


def test_peaks_are_above_the_quantile_of_their_row_or_turn() -> None:
    values = torch.tensor([[1.0, 2.0, 3.0, 9.0, 0.1, 0.2], [0.0, 0.0, 0.0, 0.0, 0.0, 5.0]])
    mask = torch.tensor([[True, True, True, False, True, True], [True] * 5 + [False]])
    row = torch.where(mask, 0, -1)
    assert above_quantile(values, row, 0.5).nonzero().tolist() == [[0, 1], [0, 2]]
    turns = torch.tensor([[0, 0, 0, -1, 1, 1], [0, 0, 1, 1, 1, -1]])
    assert above_quantile(values, turns, 0.5).nonzero().tolist() == [[0, 2], [0, 5]]


def test_sirens_anchor_is_the_first_updates_and_is_kept() -> None:
    config = SIRENConfig(base=BARE, coef=0.5, top_p=0.95, quantile=0.3)
    policy = drifted(BigramPolicy())
    made = learner(build(config, RUN), policy, num_minibatches=2, lr=0.5)
    ((part, _),) = made.recipe["fresh"].regularizers
    assert isinstance(part, AnchoredNucleus)
    assert part.opening == (part.reading,)
    made.update(buffer_of(groups(BigramPolicy())), 0)
    first = part.anchor
    assert first is not None
    assert part.opening == ()
    before = policy.calls.count("logprobs")
    made.update(buffer_of(groups(BigramPolicy(), version=1), 1), 1)
    assert part.anchor == first
    assert policy.calls.count("logprobs") - before == 4, "a pass before each step, and the step: none before the update"
    assert 0 < part.acted().get("peak_share", 0.5) < 1
    state, tensors = made.state_dict()
    again = learner(build(config, RUN), BigramPolicy())
    again.load_state_dict(state, tensors)
    assert again.recipe["fresh"].regularizers[0][0].anchor == first  # type: ignore[attr-defined]


@pytest.mark.parametrize("average", ["rows", "tokens"])
def test_sirens_term_is_the_square_whatever_the_microbatches(average: Any) -> None:
    config = SIRENConfig(base=BARE, coef=1.0, top_p=0.95, quantile=0.3, anchor=0.2, average=average)
    made = groups(BigramPolicy())
    whole, parts = (gradient(config, made, microbatch_tokens=tokens) for tokens in (10_000, 8))
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-6)
    policy = drifted(BigramPolicy())
    metrics = learner(build(config, RUN), policy, microbatch_tokens=8).update(buffer_of(made), 0)
    level = metrics.mechanisms["AnchoredNucleus/peak_entropy"]
    assert metrics.regularizers["AnchoredNucleus"] == pytest.approx((level - 0.2) ** 2, rel=1e-4)


@pytest.mark.parametrize("own", [False, True])
def test_a_steps_norm_and_curvature_are_autograds_at_every_temperature(own: bool) -> None:
    """d = the gradient of ln p(y) by the head's weight: |d|^2, and the second derivative of p(y) / p(y) along d."""
    generator = torch.Generator().manual_seed(0)
    states, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((3, 4), (7, 4), (7,))
    )
    targets, heats, inside = torch.tensor([0, 3, 6]), [0.5] * 3, torch.ones(3, 7, dtype=torch.bool)
    drawn = None
    if own:  # the run's, 2 with four ids allowed, 0.8
        heats, inside[1] = [0.5, 2.0, 0.8], torch.tensor([True, False, True, True, False, True, False])
        which, offsets, but = torch.tensor([-1, 0, -1]), torch.tensor([0, 4]), torch.tensor([False])
        drawn = Drawn(which, offsets, torch.tensor([0, 2, 3, 5]), but, torch.tensor([0.0, 2.0, 0.8]))
    head = by_head(states, weight, bias)
    norm, curvature = read(states, targets, drawn, head, (StepNorm(), StepCurvature()), vocabulary=7, temperature=0.5)
    for n, heat in enumerate(heats):

        def logprob(along: torch.Tensor, n: int = n, heat: float = heat) -> torch.Tensor:
            logits = ((along @ states[n] + bias) / heat).masked_fill(~inside[n], -torch.inf)
            return logits.log_softmax(-1)[targets[n]]

        d = torch.autograd.functional.jacobian(logprob, weight)

        def share(size: torch.Tensor, n: int = n, d: torch.Tensor = d) -> torch.Tensor:
            return (logprob(weight + size * d) - logprob(weight)).exp()

        second = torch.autograd.functional.hessian(share, torch.zeros((), dtype=torch.float64))
        torch.testing.assert_close(norm[n], d.square().sum(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(curvature[n], second, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("two_sided", "kept"), [(True, [True, True, False, True]), (False, [True, False, False, True])]
)
def test_capo_leaves_out_large_steps(two_sided: bool, kept: list[bool]) -> None:
    """m_H = A^2 n / 10 + A^3 c / 200 with lr .1; m_F = A^2 n^2 / 200."""
    part = CurvatureMask(CAPOConfig(base=BARE, lr=0.1, fisher=0.04, hessian=0.25, two_sided=two_sided))
    mask = torch.ones(1, 4, dtype=torch.bool)
    batch = batch_of(mask, advantages=torch.tensor([[10.0, -10.0, 10.0, 0.0]]))
    norm, curvature = torch.tensor([[1.0, 1.0, 4.0, 90.0]]), torch.tensor([[0.0, 60.0, 0.0, 0.0]])
    ctx, view = context_of(batch, torch.zeros(1, 4))
    part.prepare(replace(view, unit=10.0, read=lambda readings: (norm, curvature)))
    assert part.kept.tolist() == [kept]
    assert part.acted()["left_out_share"] == pytest.approx(kept.count(False) / 4)
    weight = part.weight(ctx)
    assert (weight > 0).tolist() == [kept]
    assert float(weight.sum()) == pytest.approx(4.0), "the mean is one over the kept tokens"
    part.prepare(replace(view, unit=1.0, read=lambda readings: (norm, curvature)))
    assert part.kept.tolist() == [[False, False, False, True]], "ten times the advantage"
