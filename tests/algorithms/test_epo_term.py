"""EPO's term on turns of unequal length, and the history that its corridor follows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.algorithms.fakes import BigramPolicy, Sampler, buffer_of, groups, learner, task
from tests.algorithms.test_update import drifted
from tests.golden.builders import context_of
from turnwise.algorithms.epo import EPOConfig
from turnwise.algorithms.grpo import GRPOConfig
from turnwise.algorithms.registry import build
from turnwise.learning.parts import Regularizer, Samples, Stream, Streams, UpdateContext
from turnwise.learning.recipe import Recipe
from turnwise.learning.rewards import raw_rewards
from turnwise.learning.settings import RunInfo
from turnwise.replay.batch import layout
from turnwise.trajectory import Group, Trajectory

RUN = RunInfo(num_updates=10, group_size=4)
BASE = GRPOConfig(kl_coef=0.0)


def uneven(sampler: Sampler, lengths: tuple[int, ...], sample: int) -> Trajectory:
    """An episode whose turns have the given numbers of action tokens."""
    turns = tuple(sampler.turn(4 + n % 4, length, continues=n > 0) for n, length in enumerate(lengths))
    return Trajectory(str(sample), task(), 0, sample, turns, "terminated", None, None)


def term_of(recipe: Recipe) -> Regularizer:
    return recipe["fresh"].regularizers[-1][0]


def context(group: Group, policy: BigramPolicy, update: int) -> UpdateContext:
    batch = layout((group,))
    scores = policy.score(batch, entropy=True)
    return context_of(batch, scores.logprobs, BASE.aggregate(), update=update, entropy=scores.entropies)[0]


def value(term: Regularizer, ctx: UpdateContext) -> float:
    """The term where the context is a whole minibatch."""
    term.prepare(context_of(ctx.batch, ctx.logprobs, update=ctx.update)[1])
    return term.term(ctx).item()


def mean_of_turns(ctx: UpdateContext, values: Tensor) -> float:
    """Mean over turns of token means; the episodes have equally many turns, so that they weigh the same as well."""
    means = []
    for row in range(len(ctx.batch)):
        for turn in range(int(ctx.batch.turn_index[row].max()) + 1):
            means.append(float(values[row][ctx.batch.turn_index[row] == turn].double().mean()))
    return float(np.mean(means))


def test_a_turn_weighs_the_same_whatever_its_length() -> None:
    policy = BigramPolicy(scale=2.0)
    sampler = Sampler.of(policy, np.random.default_rng(3))
    group = Group(task(), tuple(uneven(sampler, lengths, n) for n, lengths in enumerate([(1, 7), (5, 2), (4, 1)])))
    config = EPOConfig(base=BASE, corridor=(0.0, 1.0), corridor_coef=0.3)
    recipe = build(config, RUN)
    term, ctx = term_of(recipe), context(group, policy, update=1)
    assert ctx.entropy is not None
    entropy = ctx.entropy.detach()
    plain = float(entropy[ctx.mask].mean())
    bonus = mean_of_turns(ctx, entropy)
    assert abs(bonus - plain) > 0.05
    assert value(term, ctx) == pytest.approx(-bonus, rel=1e-5)
    made = learner(recipe, BigramPolicy(scale=2.0), lr=1e-9)
    metrics = made.update(buffer_of([group]), 0)
    sampled = np.concatenate([turn.entropies for t in group.trajectories for turn in t.turns])
    assert metrics.entropy == pytest.approx(float(sampled.mean()), rel=1e-6)
    outside = mean_of_turns(ctx, (entropy - metrics.entropy).relu())
    beta = 1 + float(np.exp(-3.0 / 5))
    assert value(term, ctx) == pytest.approx(beta * 0.3 * outside - bonus, rel=1e-5)


def test_the_corridor_follows_the_sampled_entropy_not_that_of_the_policy_in_training() -> None:
    """The policy has moved away from the one that sampled, and moves on within the update."""
    sampler, policy = BigramPolicy(), drifted(BigramPolicy(scale=2.0))
    recipe = build(EPOConfig(base=BASE, corridor=(0.0, 0.5), corridor_coef=1.0, schedule="constant"), RUN)
    term = term_of(recipe)
    made = learner(recipe, policy, lr=0.5, epochs=2)
    sampled = []
    for update in range(2):
        fresh = groups(sampler, version=update)
        metrics = made.update(buffer_of(fresh, update), update)
        tokens = np.concatenate([turn.entropies for g in fresh for t in g.trajectories for turn in t.turns])
        sampled.append(float(tokens.mean(dtype=np.float64)))
        assert metrics.policy_entropy is not None
        assert abs(metrics.policy_entropy - sampled[-1]) > 0.1
    group = Group(task(), tuple(uneven(Sampler.of(policy, np.random.default_rng(0)), (2, 3), n) for n in range(3)))
    ctx = context(group, policy, update=2)
    assert ctx.entropy is not None
    entropy = ctx.entropy.detach()
    outside = mean_of_turns(ctx, torch.relu(entropy - 0.5 * float(np.mean(sampled))))
    assert value(term, ctx) == pytest.approx(outside - mean_of_turns(ctx, entropy), rel=1e-5)


@pytest.mark.parametrize("weighting", ["trajectories", "turns"])
def test_rows_of_one_trajectory_count_as_their_share_of_it(weighting: str) -> None:
    """A windowed agent's rows, one a turn, dealt out to minibatches: an episode of three turns beside one of one."""
    policy = BigramPolicy(scale=2.0)
    sampler = Sampler.of(policy, np.random.default_rng(5))
    long, short = uneven(sampler, (2, 1, 3), 0), uneven(sampler, (2,), 1)
    long = replace(long, turns=tuple(replace(turn, continues=False) for turn in long.turns))
    group = Group(task(), (long, short))
    whole = context(group, policy, 0)
    assert whole.entropy is not None
    assert len(whole.batch) == 4
    part = term_of(build(EPOConfig(base=BASE, weighting=weighting), RUN))  # type: ignore[arg-type]
    stream = Stream(Samples((group,), raw_rewards(group.trajectories)), whole.batch)
    part.before_update(0, Streams((stream,)))
    means = [float(whole.entropy[row][whole.mask[row]].mean()) for row in range(4)]
    for rows, shares in (([0, 3], [1 / 3, 1.0]), ([0, 1, 2, 3], [1 / 3, 1 / 3, 1 / 3, 1.0]), ([1, 2], [1 / 3, 1 / 3])):
        batch = whole.batch.select(torch.tensor(rows))
        scores = policy.score(batch, entropy=True)
        ctx, view = context_of(batch, scores.logprobs, BASE.aggregate(), entropy=scores.entropies)
        part.prepare(view)
        weigh = shares if weighting == "trajectories" else [1.0] * len(rows)
        expected = -np.average([means[row] for row in rows], weights=weigh)
        assert float(part.term(ctx)) == pytest.approx(expected, rel=1e-5)
