"""Choosing tokens over a minibatch: the same whatever the microbatches, drawn anew in every step."""

from __future__ import annotations

import torch

from tests.algorithms.fakes import BigramPolicy, buffer_of, groups, learner
from tests.algorithms.test_update import drifted
from turnwise.algorithms.clip_cov import ClipCovConfig, CovarianceFilter
from turnwise.algorithms.covariance import draw, top_share
from turnwise.algorithms.grpo import GRPOConfig
from turnwise.algorithms.registry import build
from turnwise.learning.parts import Aggregation, UpdateContext
from turnwise.learning.primitives import Counts
from turnwise.learning.settings import RunInfo
from turnwise.replay.batch import layout

MASK = torch.tensor([[True, True, False, True], [False, True, True, True]])


def test_the_draw_is_uniform_and_repeats_itself() -> None:
    eligible = MASK & torch.tensor([[True, True, True, False], [True, True, False, False]])  # three tokens
    assert torch.equal(draw(eligible, MASK, 1.0, (0,)), eligible)
    assert int(draw(eligible, MASK, 0.0001, (0,)).sum()) == 1  # at least one
    assert int(draw(eligible, MASK, 0.34, (0,)).sum()) == 2  # a share of the six action tokens
    assert not draw(torch.zeros_like(MASK), MASK, 1.0, (0,)).any()
    hits = torch.stack([draw(eligible, MASK, 0.17, (seed,)) for seed in range(300)]).sum(0)
    assert (hits[~eligible] == 0).all()
    assert hits[eligible].min() > 70
    assert torch.equal(draw(eligible, MASK, 0.34, (3, 1)), draw(eligible, MASK, 0.34, (3, 1)))


def test_the_highest_scores_are_taken() -> None:
    scores = torch.tensor([[1.0, 5.0, 99.0, 2.0], [99.0, 3.0, 4.0, 0.0]])
    assert top_share(scores, MASK, 0.5).nonzero().tolist() == [[0, 1], [1, 1], [1, 2]]
    assert top_share(scores, MASK, 0.01).nonzero().tolist() == [[0, 1]]
    nothing = torch.zeros(2, 0)
    assert top_share(nothing, nothing.bool(), 0.5).shape == (2, 0)


def test_a_microbatch_takes_its_own_part_of_the_choice() -> None:
    batch = layout(groups(BigramPolicy()))
    counts = Counts.of(batch.action_mask, batch.turn_index)
    chosen = torch.rand(batch.tokens.shape) < 0.5
    for rows in (torch.tensor([3, 1]), torch.tensor([0])):
        micro = batch.select(rows)
        ctx = UpdateContext(0, micro, micro.behaviour_logprobs, None, counts, Aggregation(), rows=rows)
        assert torch.equal(ctx.own(chosen), chosen[rows][:, : micro.tokens.shape[1]])
    whole = UpdateContext(0, batch, batch.behaviour_logprobs, None, counts, Aggregation())
    assert torch.equal(whole.own(chosen), chosen)


def test_every_step_draws_anew_and_a_repeated_run_alike() -> None:
    """Clip-Cov with a real draw: other tokens in each step, the same ones when the run is repeated."""

    def drawn(seed: int) -> list[torch.Tensor]:
        run = RunInfo(10, 4, seed)
        base = GRPOConfig(kl_coef=0.0, dual_clip=None)
        recipe = build(ClipCovConfig(base=base, share=0.1, low=0.0, high=9.0), run)
        part = next(p for p in recipe.parts() if isinstance(p, CovarianceFilter))
        seen: list[torch.Tensor] = []
        prepare = part.prepare
        part.prepare = lambda view: (prepare(view), seen.append(part.dropped.clone()))[0]  # type: ignore[method-assign]
        made = learner(recipe, drifted(BigramPolicy()), run, epochs=3, lr=1e-6)
        made.update(buffer_of(groups(BigramPolicy())), 0)
        return seen

    first, again, other = drawn(0), drawn(0), drawn(1)
    assert len(first) == 3
    assert all(map(torch.equal, first, again))
    assert not all(map(torch.equal, first, other))
    assert any(not torch.equal(first[0], later) for later in first[1:])
