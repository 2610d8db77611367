"""A setting reaches the part that it is for, in every algorithm that has it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.algorithms.fakes import BigramPolicy, groups, learner
from tests.algorithms.test_spear import PLAIN, group_of, won
from tests.algorithms.trees import ScriptedRollouts, task
from turnwise.algorithms.arpo import ARPOConfig
from turnwise.algorithms.common import (
    FreshGroups,
    GroupAdvantage,
    GroupCredit,
    PPOClip,
    ReferenceKL,
    TruncatedImportance,
)
from turnwise.algorithms.grpo import GRPOConfig
from turnwise.algorithms.gspo import GSPOConfig, SequenceClip
from turnwise.algorithms.registry import ALGORITHMS, build, resolve
from turnwise.algorithms.selfimitation import SelfImitation
from turnwise.algorithms.spear import SPEARConfig
from turnwise.learning.parts import Aggregation, Samples
from turnwise.learning.planning import GroupPlanner
from turnwise.learning.recipe import Recipe, StreamRecipe
from turnwise.learning.rewards import RewardTable, raw_rewards
from turnwise.learning.settings import RunInfo, Settings
from turnwise.replay.buffer import TrajectoryBuffer
from turnwise.trajectory import Group

RUN = RunInfo(num_updates=10, group_size=4)
CLIPPED = [name for name in ALGORITHMS if "aggregation" in resolve(name).config.model_fields]
GROUPED = [name for name in ALGORITHMS if "singleton" in resolve(name).config.model_fields]


def recipe(name: str, run: RunInfo = RUN, **values: Any) -> Recipe:
    config: Settings = resolve(name).config(**values)
    return build(config, run)


def fresh(name: str, **values: Any) -> StreamRecipe:
    return recipe(name, **values)["fresh"]


def ppo_clip(stream: StreamRecipe) -> PPOClip:
    """A stream's clip, or the one whose bounds it changes (HAPO)."""
    clip = getattr(stream.clip, "clip", stream.clip)
    assert isinstance(clip, PPOClip)
    return clip


def test_there_are_such_algorithms() -> None:
    assert {"grpo", "drgrpo", "dapo", "rloo", "opo", "reinforce_pp", "ppo", "gigpo"} <= set(CLIPPED)
    assert {"grpo", "gspo", "gigpo"} <= set(GROUPED)


@pytest.mark.parametrize("name", CLIPPED)
def test_clip_and_aggregation(name: str) -> None:
    stream_recipe = fresh(
        name, clip_low=0.11, clip_high=0.37, dual_clip=2.5, aggregation="seq-mean-token-sum", aggregation_constant=7.0
    )
    clip = ppo_clip(stream_recipe)
    assert (clip.low, clip.high, clip.dual) == (0.11, 0.37, 2.5)
    assert clip.needs == frozenset()
    assert stream_recipe.aggregation == Aggregation("seq-mean-token-sum", 7.0)
    assert not [part for part in stream_recipe.weighters if isinstance(part, TruncatedImportance)]
    others = fresh(name, dual_clip=None, aggregation="seq-mean-token-mean", aggregation_constant=None)
    assert ppo_clip(others).dual is None
    assert others.aggregation == Aggregation("seq-mean-token-mean", None)


@pytest.mark.parametrize("name", [*CLIPPED, "gspo"])
def test_recomputed_log_probs_and_the_distance_to_the_reference(name: str) -> None:
    stream_recipe = fresh(name, ratio_denominator="proximal", importance_cap=3.5, kl_coef=0.3, kl_estimator="k2")
    assert stream_recipe.clip is not None
    assert "proximal" in stream_recipe.clip.needs
    assert [part.cap for part in stream_recipe.weighters if isinstance(part, TruncatedImportance)] == [3.5]
    assert [(p.estimator, c) for p, c in stream_recipe.regularizers if isinstance(p, ReferenceKL)] == [("k2", 0.3)]
    bare = fresh(name, kl_coef=0.0)
    assert not [part for part, _ in bare.regularizers if isinstance(part, ReferenceKL)]
    assert "reference" not in bare.needs


def test_gspo_spans_a_row_or_a_turn() -> None:
    for level in ("row", "turn"):
        clip = fresh("gspo", clip_low=0.1, clip_high=0.3, level=level).clip
        assert isinstance(clip, SequenceClip)
        assert (clip.low, clip.high, clip.level) == (0.1, 0.3, level)
    assert build(GSPOConfig(), RUN)["fresh"].aggregation == Aggregation("seq-mean-token-mean")


@pytest.mark.parametrize("name", GROUPED)
def test_groups(name: str) -> None:
    for values in ({"drop_uniform_groups": False}, {"drop_uniform_groups": True, "max_tries": 1}):
        composer = recipe(name, **values).composer
        assert isinstance(composer, FreshGroups)
        assert composer.drop_uniform is values["drop_uniform_groups"]
        alone = recipe(name, RunInfo(10, 1), singleton="reward", **values)
        assert isinstance(alone.composer, FreshGroups)
        assert not alone.composer.drop_uniform  # a group of one is always uniform
        with pytest.raises(ValueError, match="group_size=1 with singleton=zero"):
            recipe(name, RunInfo(10, 1), **values)
    assert recipe(name, drop_uniform_groups=True, max_tries=1).planner is None
    replacing = recipe(name, drop_uniform_groups=True, max_tries=3).planner
    assert (replacing.max_tries, replacing.inner) == (3, GroupPlanner(4))  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["grpo", "dapo", "gspo", "gigpo"])
def test_group_credit(name: str) -> None:
    part = fresh(name, group_stats="rows").estimator
    assert isinstance(part, GroupAdvantage)
    assert part.stats == "rows"


@pytest.mark.parametrize("wrong", [lambda returns: returns[:1], lambda returns: returns[:, None], torch.sum])
@pytest.mark.parametrize("stats", ["trajectories", "rows"])
def test_advantages_of_another_shape_are_refused(stats: Any, wrong: Any) -> None:
    """Those of a sum, or of a column, would be broadcast to tokens that they are not of."""
    credit = GroupCredit(stats, lambda returns, group, lengths: wrong(returns))
    stream = StreamRecipe(credit, clip=PPOClip(0.2, 0.2, dual=None), aggregation=Aggregation("token-mean"))
    made = learner(Recipe("own", FreshGroups(drop_uniform=False), (stream,)), BigramPolicy(), lr=1e-9)
    buffer = TrajectoryBuffer(5)
    buffer.add([group_of(0.0, 0.0, 0.0, 5.0)], 0)
    with pytest.raises(ValueError, match=r"made advantages of shape \[.*\] from \d+ returns: expected one for each"):
        made.update(buffer, 0)


@pytest.mark.parametrize("num_minibatches", [1, 4])
def test_a_stream_with_fewer_rows_takes_part_in_the_first_steps_and_the_others_follow(num_minibatches: int) -> None:
    """One good episode to imitate beside twelve fresh ones: as many optimizer steps as the fresh ones fill."""
    settings = SPEARConfig(**{**PLAIN, "base": GRPOConfig(kl_coef=0.0, drop_uniform_groups=False)}, warmup_updates=1)
    made = learner(build(settings, RUN), BigramPolicy(), lr=1e-9, num_minibatches=num_minibatches)
    buffer = TrajectoryBuffer(5)
    buffer.add([group_of(0.0, 0.0, 0.0, 5.0)], 0)
    made.update(buffer, 0)
    buffer.add(groups(BigramPolicy(), version=1), 1)
    metrics = made.update(buffer, 1)
    assert metrics.stream_rows["replay"] == 1
    assert metrics.optimizer_steps == num_minibatches


def test_what_is_replayed_has_the_rewards_of_its_time_in_their_two_kinds() -> None:
    """An invalid action's penalty stays the turn's own."""
    recipe = build(SPEARConfig(**PLAIN, warmup_updates=1), RUN)
    composer = recipe.composer
    assert isinstance(composer, SelfImitation)
    composer.returns.add([[0.0, 1.0]])
    buffer, episode = TrajectoryBuffer(5), won(3.0, 0)
    kept = Group(episode.task, (episode,))
    buffer.keep(kept, 0, "replay", (((0.5, 3.0), (-0.25, 0.0)),))
    every = groups(BigramPolicy(), num_groups=1)
    table = raw_rewards([t for g in every for t in g.trajectories])
    replayed = composer.compose(1, Samples(tuple(every), table), buffer)["replay"]
    assert replayed.samples.rewards == RewardTable(((0.5, 3.0),), ((-0.25, 0.0),))
    assert replayed.batch.rewards is not None
    assert replayed.batch.rewards[replayed.batch.action_mask].tolist() == [0.0, 0.25, 0.0, 3.0]


@pytest.mark.parametrize(("budget", "expected"), [(1, 1), (2, 1), (3, 1), (5, 2), (8, 4)])
def test_half_of_the_budget_starts_from_the_root(budget: int, expected: int) -> None:
    running: list[int] = []

    def pick(among: list[int]) -> int:
        running.append(len(among))
        return min(among)

    planner = build(ARPOConfig(base=GRPOConfig(singleton="reward")), RunInfo(10, budget)).planner
    assert planner is not None
    planner.plan([task()], ScriptedRollouts(lengths=(2,), pick=pick))
    assert running[0] == expected


def test_ages_are_not_negative() -> None:
    assert TrajectoryBuffer(0).max_age == 0
    with pytest.raises(ValueError, match="cannot be negative; got -1"):
        TrajectoryBuffer(-1)
