"""GiGPO's step credit by hand: anchors, discounted returns, penalties, likeness."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.algorithms.fakes import BigramPolicy, Sampler, buffer_of, episode, learner, task
from turnwise.algorithms.anchors import alike, anchor_groups
from turnwise.algorithms.gigpo import GiGPOConfig, StepAdvantage
from turnwise.algorithms.registry import build
from turnwise.learning.parts import Samples, Stream
from turnwise.learning.rewards import RewardTable
from turnwise.learning.settings import RunInfo
from turnwise.replay.batch import layout
from turnwise.trajectory import Group, Trajectory

RUN = RunInfo(num_updates=10, group_size=2)


def walk(sample: int, states: str, index: int = 0) -> Trajectory:
    """An episode that meets the given states, one letter a turn."""
    made = episode(Sampler.of(BigramPolicy(), np.random.default_rng(sample)), sample=sample, num_turns=len(states))
    turns = (replace(turn, observation=state) for turn, state in zip(made.turns, states, strict=True))
    return replace(made, task=task(index), turns=tuple(turns))


def step_credit(groups: tuple[Group, ...], rewards: RewardTable, part: StepAdvantage) -> list[list[float]]:
    """The part's addition, one number a turn."""
    batch = layout(groups)
    stream = Stream(Samples(groups, rewards), batch.with_columns(advantages=torch.zeros(batch.tokens.shape)))
    found = part.modify(stream)
    assert (found[~batch.action_mask] == 0).all()
    return [
        [float(found[row][batch.turn_index[row] == n].unique()) for n in range(int(batch.num_turns[row]))]
        for row in range(len(batch))
    ]


def test_turns_in_the_same_state_are_compared() -> None:
    groups = (Group(task(), (walk(0, "abc"), walk(1, "aba"))),)
    rewards = RewardTable(((0.0, 0.0, 8.0), (0.0, 0.0, 0.0)), ((0.0, -1.0, 0.0), (0.0, 0.0, 0.0)))
    part = StepAdvantage(1.0, 0.5, None, normalize_std=False, eps=0.0)
    # Step returns 2, 4 - 1, 8 and 0, 0, 0. State a: 2, 0, 0 (mean 2/3); b: 3, 0; c was met once.
    assert step_credit(groups, rewards, part) == [
        pytest.approx([4 / 3, 1.5, 0.0]),
        pytest.approx([-2 / 3, -1.5, -2 / 3]),
    ]
    half = step_credit(groups, rewards, StepAdvantage(0.5, 0.5, None, normalize_std=True, eps=0.0))
    std = float(np.std([2, 0, 0], ddof=1))
    assert half[0][0] == pytest.approx(0.5 * 4 / 3 / std, rel=1e-5)


def test_states_of_other_tasks_and_named_anchors_are_kept_apart() -> None:
    rewards = RewardTable(((1.0,), (0.0,)), ((0.0,), (0.0,)))
    part = StepAdvantage(1.0, 0.9, None, normalize_std=False, eps=0.0)
    apart = (Group(task(0), (walk(0, "a"),)), Group(task(1), (walk(1, "a", index=1),)))
    assert step_credit(apart, rewards, part) == [[0.0], [0.0]]
    first, second = walk(0, "a"), walk(1, "b")
    named = [replace(t, turns=(replace(t.turns[0], anchor="same place"),)) for t in (first, second)]
    assert step_credit((Group(task(), tuple(named)),), rewards, part) == [[0.5], [-0.5]]
    assert step_credit((Group(task(), (first, second)),), rewards, part) == [[0.0], [0.0]]


def test_likeness_is_to_the_first_of_a_group() -> None:
    texts = ["abcd", "abce", "abfe", "xyz"]  # each is like the one before it (3/4); the third is half like the first
    assert anchor_groups([(0, text) for text in texts], 0.75) == [0, 0, 1, 2]
    assert anchor_groups([(0, text) for text in texts], 0.5) == [0, 0, 0, 1]
    assert anchor_groups([(n, "same") for n in (0, 1, 0)], 0.1) == [0, 1, 0]
    assert anchor_groups([]) == []
    assert alike("abc", "abc", 1.0)
    assert not alike("abc", "abd", 1.0)


def test_equal_returns_still_teach_who_was_faster() -> None:
    """Both episodes win, so GRPO sees nothing; in the state that both met, the one that won at once did better."""
    group = (Group(task(), (walk(0, "ab"), walk(1, "a"))),)
    rewards = RewardTable(((0.0, 1.0), (1.0,)), ((0.0, 0.0), (0.0,)))
    found = step_credit(group, rewards, StepAdvantage(1.0, 0.95, None, normalize_std=False, eps=0.0))
    assert found == [pytest.approx([-0.025, 0.0]), pytest.approx([0.025])]


def test_the_recipe_adds_both_levels() -> None:
    groups = [Group(task(), (walk(0, "ab"), walk(1, "a")))]
    made = learner(build(GiGPOConfig(kl_coef=0.0), RUN), BigramPolicy())
    metrics = made.update(buffer_of(groups), 0)
    table = made.shape(groups[0].trajectories, 0)
    (stream,) = made.recipe.composer.compose(0, Samples(tuple(groups), table), buffer_of(groups))
    recipe = made.recipe["fresh"]
    assert recipe.estimator is not None
    episode_level = recipe.estimator.estimate(stream)
    both = recipe.modifiers[0].modify(stream.with_columns(advantages=episode_level))
    expected = both[stream.batch.action_mask].double()
    assert metrics.advantage_mean == pytest.approx(float(expected.mean()), abs=1e-6)
    assert not torch.equal(both, episode_level)
