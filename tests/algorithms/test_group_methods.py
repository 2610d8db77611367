"""Credit of groups, bundles and seats by hand: MaxRL, BNPO, CANON, RiskPO, RAE."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.algorithms.fakes import BigramPolicy, Sampler, buffer_of, episode, groups, learner
from tests.golden.builders import credit_of, recipe_of, stream_of
from turnwise.algorithms.bnpo import BNPOConfig
from turnwise.algorithms.bundles import BundleCredit
from turnwise.algorithms.canon import CANONConfig
from turnwise.algorithms.drgrpo import DrGRPOConfig
from turnwise.algorithms.halves import HalvesCredit
from turnwise.algorithms.maxrl import MaxRLConfig
from turnwise.algorithms.opo import OPOConfig
from turnwise.algorithms.rae import RAEConfig, SeatBaselines
from turnwise.algorithms.registry import build
from turnwise.algorithms.riskpo import RiskPOConfig
from turnwise.learning.parts import Samples, Stream
from turnwise.learning.rewards import RewardScale, RewardTable, raw_rewards
from turnwise.learning.settings import RewardSettings, RunInfo, Settings
from turnwise.replay.batch import layout
from turnwise.trajectory import Group, Processing

RUN = RunInfo(10, 4)
ONE = torch.ones(1, 1, dtype=torch.bool)


def credit(config: Settings, group: list[int], earned: list[float], own: list[float] | None = None) -> list[float]:
    """The advantages of episodes of one token."""
    stream = stream_of(ONE.expand(len(group), 1), group, earned=earned, own=own)
    return [float(value) for value in credit_of(recipe_of(config), stream)[:, 0]]


def test_a_lone_winner_counts_by_its_rarity() -> None:
    assert credit(MaxRLConfig(), [0] * 8, [1.0] + [0.0] * 7) == pytest.approx([7.0] + [-1.0] * 7)
    assert credit(MaxRLConfig(), [0, 0, 1, 1], [0.0, 0.0, 1.0, 1.0]) == [0.0] * 4


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (DrGRPOConfig(), [-1 / 3, -1 / 3]),  # the mean of 1, 0, 0 is 1 / 3, and a lost episode is that far below
        (MaxRLConfig(), [-1.0, -1.0]),
        (RAEConfig(decay=0.5), [-0.5, -0.25]),  # the baseline follows the returns 1, 0, 0 from 0 on
    ],
)
def test_a_group_compares_what_an_episode_without_turns_was_paid(config: Settings, expected: list[float]) -> None:
    """A player won as the other one lost in its first move; in the group's other games it moved, and lost."""
    sampler = Sampler.of(BigramPolicy(), np.random.default_rng(0))
    lost = [episode(sampler, sample=s, num_turns=1, num_actions=1) for s in range(3)]
    lost = [replace(each, turns=(replace(each.turns[0], reward=0.0),)) for each in lost]
    members = (replace(lost[0], turns=(), turnless_reward=0.1), *lost[1:])
    table = RewardScale(10.0).shape(members, raw_rewards(members), BigramPolicy()).select(range(3)).after([0] * 3)
    assert [table.total(n) for n in range(3)] == [table.paid(n) for n in range(3)] == [1.0, 0.0, 0.0]
    made = (Group(lost[0].task, members),)
    found = credit_of(recipe_of(config), Stream(Samples(made, table), layout(made)))
    assert [float(row.sum()) for row in found] == pytest.approx(expected)


@pytest.mark.parametrize("stats", ["trajectories", "rows"])
def test_lengths_count_tokens_that_were_chosen(stats: str) -> None:
    """Two replies of four tokens. Three of the first one's were the only ones allowed, so its length is 1, not 4."""
    sampler = Sampler.of(BigramPolicy(), np.random.default_rng(0))
    held, free = (episode(sampler, sample=s, num_turns=1, num_actions=4) for s in range(2))
    ids = held.turns[0].action_ids[:3]
    only = Processing(np.array([1, 1, 1, 0], np.int32), ids, np.zeros(4, np.bool_))
    held = replace(held, turns=(replace(held.turns[0], processing=only),))
    made = (Group(held.task, (held, free)),)
    rewards = RewardTable(((1.0,), (0.0,)), ((0.0,), (0.0,)))
    found = credit_of(recipe_of(OPOConfig(group_stats=stats)), Stream(Samples(made, rewards), layout(made)))
    assert [float(row[row != 0].unique()) for row in found] == pytest.approx([1 - 1 / 5, -1 / 5])


def test_penalties_come_after_the_division() -> None:
    found = credit(MaxRLConfig(), [0, 0, 1, 1], [1.0, 0.0, 0.0, 0.0], [-0.1, 0.0, -0.2, 0.0])
    assert found == pytest.approx([1.0 - 0.05, -1.0 + 0.05, -0.1, 0.1])


def test_a_mean_near_zero_explodes_nothing() -> None:
    assert max(map(abs, credit(MaxRLConfig(), [0, 0, 0], [1.0, -0.99, 0.0]))) < 3.0


def test_rates_alike_or_alone_are_not_weighed() -> None:
    alone = credit(BNPOConfig(), [0, 0, 0, 0], [1.0, 0.0, 0.0, 0.0])
    assert alone == pytest.approx([0.75, -0.25, -0.25, -0.25])
    alike = credit(BNPOConfig(), [0, 0, 1, 1], [1.0, 0.0, 0.0, 1.0])
    assert alike == pytest.approx([0.5, -0.5, -0.5, 0.5])


def test_a_rare_rate_counts_for_more_and_is_capped() -> None:
    """Rates 0, 0, 0, 1/2: their density at 1/2 is low."""
    group, earned = [0, 0, 1, 1, 2, 2, 3, 3, 3, 3], [0.0] * 6 + [1.0, 1.0, 0.0, 0.0]
    found = credit(BNPOConfig(), group, earned)
    u, s2 = 1 / 8, 1 / 16
    k = u * (1 - u) / s2 - 1
    alpha, beta = 1 + k * u / 3, 1 + k * (1 - u) / 3
    density = torch.distributions.Beta(torch.tensor(alpha), torch.tensor(beta)).log_prob(torch.tensor(0.5)).exp()
    assert found[6] == pytest.approx(0.5 / float(density), rel=1e-5)
    assert found[:6] == [0.0] * 6
    assert credit(BNPOConfig(weight_cap=0.25), group, earned)[6] == pytest.approx(0.125)


def test_the_weight_is_of_what_the_world_paid_alone() -> None:
    """The lost groups differ by a penalty, which their rare rate does not magnify."""
    group, earned = [0, 0, 1, 1, 2, 2, 3, 3, 3, 3], [0.0] * 6 + [1.0, 1.0, 0.0, 0.0]
    found = credit(BNPOConfig(), group, earned, [-0.1, 0.0, *[0.0] * 8])
    assert found[:6] == pytest.approx([-0.05, 0.05, 0.0, 0.0, 0.0, 0.0])
    assert found[6:] == pytest.approx(credit(BNPOConfig(), group, earned)[6:])


def halves(config: CANONConfig, lengths: list[int], earned: list[float]) -> list[float]:
    """A group of episodes with as many turns; the advantage of each one's first turn."""
    owner = [name for name, n in enumerate(lengths) for _ in range(n)]
    paid = [value if turn == n - 1 else 0.0 for n, value in zip(lengths, earned, strict=True) for turn in range(n)]
    stream = stream_of(ONE.expand(len(owner), 1), [0] * len(owner), owner, earned=paid)
    return [float(v) for v in credit_of(recipe_of(config), stream)[torch.tensor(lengths).cumsum(0) - 1, 0]]


def test_halves_by_turns_are_compared_with_each_other() -> None:
    """1, 1, 3, 3 turns with the returns 1, 1, 1, 0: short ones are compared with 1/2, long ones with 1."""
    config = CANONConfig(metric="turns")
    lengths, earned = [3, 1, 3, 1], [1.0, 1.0, 0.0, 1.0]
    assert halves(config, lengths, earned) == pytest.approx([0.0, 0.5, -1.0, 0.5])
    own = config.model_copy(update={"mu": 0.0})
    assert halves(own, lengths, earned) == pytest.approx([0.5, 0.0, -0.5, 0.0])
    favoured = config.model_copy(update={"favour": 0.9})  # few turns: 1 - .9 / 2, and .9 R - 1
    assert halves(favoured, lengths, earned) == pytest.approx([-0.1, 0.55, -1.0, 0.55])


def test_a_metric_that_does_not_differ_splits_nothing() -> None:
    assert halves(CANONConfig(), [2, 2, 2], [1.0, 0.0, 0.0]) == pytest.approx([2 / 3, -1 / 3, -1 / 3])
    recipe = recipe_of(CANONConfig())
    credit_of(recipe, stream_of(ONE.expand(2, 1), [0, 0], earned=[1.0, 0.0]))
    assert recipe.estimator is not None
    assert recipe.estimator.acted() == {"split_share": 0.0}


def test_ties_on_the_border_are_in_both_halves() -> None:
    """1, 2, 2, 3 turns: each of the middle two is half in either, so that the halves' means are 3/4 and 1/4."""
    earned = [1.0, 1.0, 0.0, 0.0]
    found = halves(CANONConfig(), [1, 2, 2, 3], earned)
    low, high = (1.0 + 0.5) / 2, 0.5 / 2
    assert found == pytest.approx([1 - high, 1 - (low + high) / 2, -(low + high) / 2, -low])
    assert halves(CANONConfig(), [2, 3, 1, 2], [0.0, 0.0, 1.0, 1.0])[0] == pytest.approx(found[2])


def test_a_course_goes_on_with_the_updates() -> None:
    policy = BigramPolicy()
    made = learner(build(CANONConfig(course="intra_first"), RUN), policy, RUN)
    (part,) = (part for part in made.parts if isinstance(part, HalvesCredit))
    assert part.course(0, torch.zeros(0)) == pytest.approx(1 - 0.6 / 2)  # the warmup is two of ten updates
    made.update(buffer_of(groups(policy)), 0)
    assert part.state_dict() == {"update": 1}
    assert CANONConfig(course="constant", mu=0.3).mu == 0.3
    with pytest.raises(ValueError, match="course=annealed sets mu"):
        CANONConfig(course="annealed", mu=0.5)


def bundled(config: RiskPOConfig, *returns: list[float]) -> tuple[BundleCredit, list[float]]:
    """The advantages of groups with the given returns."""
    group = [n for n, row in enumerate(returns) for _ in row]
    recipe = recipe_of(config)
    assert isinstance(recipe.estimator, BundleCredit)
    stream = stream_of(ONE.expand(len(group), 1), group, earned=[value for row in returns for value in row])
    return recipe.estimator, [float(value) for value in credit_of(recipe, stream)[:, 0]]


PLAIN: dict[str, Any] = {"quantiles": "own", "cvar_weight": 0.0, "normalize_std": False, "credit": "uniform"}


def test_groups_that_all_lost_learn_from_the_papers_that_they_are_in() -> None:
    part, found = bundled(RiskPOConfig(bundle=2, levels=(0.0, 1.0), **PLAIN), [0.0, 0.0, 0.0], [0.0, 1.0, 0.5])
    assert found == pytest.approx([0.0, 1.0, 0.5, 0.0, 1.0, 0.5], abs=1e-5)  # q_a = 0, q_b = 1: the scores themselves
    assert part.acted() == {"flat_share": 0.0, "credited_share": 4 / 6, "uniform_credited_share": 2 / 3}


def test_a_flat_bundle_teaches_nothing_and_nothing_is_without_bounds() -> None:
    assert bundled(RiskPOConfig(bundle=2), [0.0, 0.0], [0.0, 0.0])[1] == [0.0] * 4
    tiny = bundled(RiskPOConfig(bundle=1, flat_std=0.0, cvar_weight=0.0, credit="std"), [0.0, 1e-4, 1.0], [0.0])[1]
    assert max(map(abs, tiny)) <= 5.0
    unpaired = bundled(RiskPOConfig(bundle=2, **PLAIN), [0.0, 1.0, 0.0], [0.0, 1.0])[1]
    assert unpaired[2] == 0.0  # two papers: the third attempt is in none


def test_quantiles_follow_the_scores_and_are_kept() -> None:
    part, _ = bundled(RiskPOConfig(bundle=1, levels=(0.2, 0.8)), [0.0, 0.0, 1.0, 1.0, 1.0])
    assert part.tracked == pytest.approx((0.0 + 0.1 * 0.2, 1.0 + 0.1 * (0.8 - 0.4)))
    again = BundleCredit(RiskPOConfig(), 1.0)
    again.load_state_dict(part.state_dict())
    assert again.tracked == part.tracked
    with pytest.raises(ValueError, match="levels: 0 <= a < b <= 1"):
        RiskPOConfig(levels=(0.8, 0.2))
    with pytest.raises(ValueError, match="group_size of at least 2"):
        build(RiskPOConfig(), RunInfo(10, 1))


def test_types_stand_together_in_bundles() -> None:
    stream = stream_of(ONE.expand(4, 1), [0, 0, 1, 1], earned=[0.0, 1.0, 1.0, 0.0])
    kinds = ("b", "a")
    made = tuple(
        replace(g, task=replace(g.task, type=kind)) for g, kind in zip(stream.samples.groups, kinds, strict=True)
    )
    typed = replace(stream, samples=replace(stream.samples, groups=made))
    for by_type in (True, False):
        recipe = recipe_of(RiskPOConfig(bundle=2, by_type=by_type, levels=(0.0, 1.0), **PLAIN))
        assert (credit_of(recipe, typed) == 0).all()  # every paper scores 1, in either order


def seated(stream: Stream, players: str) -> Stream:
    """The stream's episodes as those of the given seats, a letter each."""
    letters = iter(players)
    made = tuple(
        replace(g, trajectories=tuple(replace(t, player=next(letters)) for t in g.trajectories))
        for g in stream.samples.groups
    )
    return replace(stream, samples=replace(stream.samples, groups=made))


def test_a_seat_is_held_against_its_own_past() -> None:
    recipe = recipe_of(RAEConfig(decay=0.5))
    stream = seated(stream_of(ONE.expand(4, 1), [0, 1, 2, 3], earned=[1.0, -1.0, 1.0, -1.0]), "xoxo")
    assert credit_of(recipe, stream)[:, 0].tolist() == [1.0, -1.0, 0.5, -0.5]
    part = recipe.estimator
    assert isinstance(part, SeatBaselines)
    assert part.baselines == {"golden/x": 0.75, "golden/o": -0.75}
    assert part.acted() == {"seats": 2.0, "baseline_magnitude": 0.25}


@pytest.mark.parametrize("config", [CANONConfig(), RAEConfig()])
def test_advantages_are_in_units_of_reward(config: Settings) -> None:
    for scale in (1.0, 10.0):
        run = RunInfo(10, 4, rewards=RewardSettings(scale=scale))
        assert build(config, run)["fresh"].success(run.rewards) == scale
    assert build(DrGRPOConfig(), RUN)["fresh"].unit == build(config, RUN)["fresh"].unit
