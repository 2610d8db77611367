"""DPO and CPL: the pairs of a group, the loss by hand, and gradients that no layout changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from tests.algorithms.fakes import BigramPolicy, buffer_of, groups, learner
from turnwise.algorithms.cpl import CPLConfig
from turnwise.algorithms.dpo import DPOConfig
from turnwise.algorithms.preferences import PairLoss, PairRule
from turnwise.algorithms.registry import build
from turnwise.learning.settings import RunInfo, Settings
from turnwise.replay.batch import layout
from turnwise.trajectory import Group, Trajectory

RUN = RunInfo(10, 4)


def test_pairs_are_attempts_that_differ() -> None:
    assert PairRule("all", 0.5).of_group([1.0, 0.0, 0.4]) == [(0, 1), (0, 2)]
    assert PairRule("extremes", 0.0).of_group([0.0, 1.0, 0.4]) == [(1, 0)]
    assert PairRule("extremes", 0.0).of_group([0.0, 1.0, 0.4, 0.0]) == [(1, 0), (1, 3)]
    assert PairRule("all", 0.0).of_group([1.0, 1.0]) == []
    assert PairRule("extremes", 0.0).of_group([]) == []


def played() -> list[Group]:
    """Groups of four, of which the first attempt won, and the third of every second group too."""
    return [
        replace(group, trajectories=tuple(
            paid(t, float(n == 0 or (n == 2 and place % 2 == 1))) for n, t in enumerate(group.trajectories)))
        for place, group in enumerate(groups(BigramPolicy()))
    ]  # fmt: skip


def paid(trajectory: Trajectory, reward: float) -> Trajectory:
    """The same with a reward on its last turn alone."""
    *before, last = trajectory.turns
    silent = [replace(turn, reward=0.0, valid=True) for turn in before]
    return replace(trajectory, turns=(*silent, replace(last, reward=reward, valid=True)))


def expected(policy: BigramPolicy, made: list[Group], config: Any) -> Tensor:
    """The loss by the definition, with its gradient."""
    losses = []
    for group in made:
        sums = []
        for trajectory in group.trajectories:
            batch = layout([Group(group.task, (trajectory,))])
            scores = policy.score(batch, entropy=False).logprobs
            if config.type == "dpo":
                frozen = policy.score(batch, entropy=False, reference=True).logprobs
                sums.append(config.beta * ((scores - frozen) * batch.action_mask).sum())
            else:
                discount = config.gamma ** batch.turn_index.clamp(min=0)
                sums.append(config.alpha * (discount * scores * batch.action_mask).sum())
        returns = [t.total_reward for t in group.trajectories]
        for i, won in enumerate(returns):
            for j, lost in enumerate(returns):
                if won - lost >= config.margin and won > lost:
                    margin = sums[i] - getattr(config, "bias", 1.0) * sums[j]
                    smoothing = getattr(config, "smoothing", 0.0)
                    losses.append(-(1 - smoothing) * logsigmoid(margin) - smoothing * logsigmoid(-margin))
    return torch.stack(losses).mean()


CONFIGS = [DPOConfig(beta=0.7), DPOConfig(smoothing=0.2), CPLConfig(), CPLConfig(gamma=0.8, bias=0.9, alpha=0.6)]


def gradients(config: Settings, made: list[Group], **optimizer: Any) -> tuple[list[Tensor], float]:
    """The gradient of every optimizer step's backward passes, and the reported loss; nothing moves."""
    policy, found = BigramPolicy(), []
    trained = learner(build(config, RUN), policy, RUN, lr=1e-12, grad_clip=None, **optimizer)
    policy.table.register_hook(lambda gradient: found.append(gradient.detach().clone()))
    metrics = trained.update(buffer_of(made), 0)
    return found, metrics.loss


@pytest.mark.parametrize("config", CONFIGS)
def test_value_and_gradient_are_the_definitions(config: Settings) -> None:
    policy, made = BigramPolicy(), played()
    loss = expected(policy, made, config)
    (wanted,) = torch.autograd.grad(loss, policy.table)
    for tokens in (10_000, 8):  # one microbatch; one for nearly every row
        found, reported = gradients(config, made, microbatch_tokens=tokens)
        torch.testing.assert_close(sum(found), wanted, rtol=1e-4, atol=1e-6)
        assert reported == pytest.approx(loss.item(), rel=1e-4)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("unit", ["row", "group"])
def test_minibatches_share_the_loss(config: Settings, unit: str) -> None:
    """Of a policy that does not move, each pair counts as often over the minibatches, by its rows: the mean's own
    gradient, but for the different numbers of pairs in the minibatches."""
    made = [Group(g.task, g.trajectories) for g in played()]
    found, _ = gradients(config, made, num_minibatches=3, minibatch_unit=unit)
    (wanted,) = torch.autograd.grad(expected(policy := BigramPolicy(), made, config), policy.table)
    total = torch.stack(found).sum(0)
    alike = torch.nn.functional.cosine_similarity(total.flatten(), wanted.flatten(), dim=0)
    assert alike > 0.8
    assert torch.isfinite(total).all()


def test_attempts_that_won_become_likelier() -> None:
    policy, made = BigramPolicy(), played()
    trained = learner(build(DPOConfig(), RUN), policy, RUN, lr=0.1)
    (part,) = (part for part in trained.parts if isinstance(part, PairLoss))
    accuracy = [trained.update(buffer_of(made, n), n).mechanisms["PairLoss/accuracy"] for n in range(10)]
    assert accuracy[-1] > accuracy[0]
    assert accuracy[-1] > 0.9
    assert len(part.pairs.won) > 3


def test_an_episode_without_turns_is_in_no_pair() -> None:
    """A game that was lost or won before the first turn has no action to prefer. The others' numbers stay theirs."""
    first, *others = played()
    silent = replace(first.trajectories[1], turns=(), turnless_reward=2.0)
    made = [replace(first, trajectories=(first.trajectories[0], silent, *first.trajectories[2:])), *others]
    trained = learner(build(DPOConfig(), RUN), BigramPolicy(), RUN)
    trained.update(buffer_of(made), 0)
    (part,) = (part for part in trained.parts if isinstance(part, PairLoss))
    pairs = {(int(won), int(lost)) for won, lost in zip(*part.pairs, strict=True)}
    assert pairs >= {(0, 2), (0, 3), (8, 9)}
    assert not any(1 in pair for pair in pairs)


def test_groups_without_a_pair_teach_nothing_and_cost_nothing() -> None:
    made = [replace(g, trajectories=tuple(paid(t, 0.0) for t in g.trajectories)) for g in played()]
    policy = BigramPolicy()
    trained = learner(build(DPOConfig(), RUN), policy, RUN)
    metrics = trained.update(buffer_of(made), 0)
    assert (metrics.dropped_groups, metrics.num_rows) == (len(made), 0)
    assert np.isfinite(metrics.loss)


def test_a_lone_attempt_has_no_partner() -> None:
    for config in (DPOConfig(), CPLConfig()):
        with pytest.raises(ValueError, match="use a group_size of at least 2"):
            build(config, RunInfo(10, 1))


def test_only_dpo_asks_for_the_reference() -> None:
    assert build(DPOConfig(), RUN).needs_reference
    assert not build(CPLConfig(), RUN).needs_reference
