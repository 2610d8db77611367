"""Counts and first places: what an off-by-one in a mechanism would move."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.algorithms.fakes import BigramPolicy, Sampler, buffer_of, episode, groups, learner, task
from tests.algorithms.test_epo_term import context, uneven
from tests.algorithms.test_spear import PLAIN, group_of, made_by, memory
from tests.algorithms.test_update import drifted
from tests.algorithms.trees import ScriptedRollouts
from tests.golden.builders import batch_of, context_of
from turnwise.algorithms.aepo import AEPOConfig, BalancedClip, EntropyAdvantage, aepo_paper
from turnwise.algorithms.arpo import arpo_paper, arpo_released
from turnwise.algorithms.branching import PathWise, Segment, Shape
from turnwise.algorithms.common import FreshGroups, PPOClip
from turnwise.algorithms.dapo import DAPOConfig
from turnwise.algorithms.drbot import ReplyFilter
from turnwise.algorithms.epo import EntropyCorridor
from turnwise.algorithms.epo_released import EntropyIndicator, ReleasedSettings
from turnwise.algorithms.grpo import GRPOConfig
from turnwise.algorithms.ppo import PPOConfig
from turnwise.algorithms.registry import build
from turnwise.algorithms.selfimitation import SelfImitation, units
from turnwise.algorithms.spear import SPEARConfig
from turnwise.algorithms.tree import TreePlanner
from turnwise.algorithms.trunks import SharedTrunks
from turnwise.learning.metrics import Agreement, Occurrences
from turnwise.learning.parts import Composer, Samples, Stream, Streams
from turnwise.learning.primitives import importance_ratio
from turnwise.learning.rewards import raw_rewards
from turnwise.learning.schedules import constant_weight, epo_released_weight, learning_rate_share
from turnwise.learning.settings import RunInfo
from turnwise.replay.batch import layout
from turnwise.replay.buffer import TrajectoryBuffer
from turnwise.trajectory import Fork, Group

RUN = RunInfo(num_updates=10, group_size=4)


def test_every_turn_is_held_against_its_own_history() -> None:
    """The first turn's is far away, the others' where they are: only the first turn's tokens pay."""
    policy = BigramPolicy()
    sampler = Sampler.of(policy, np.random.default_rng(0))
    ctx = context(Group(task(), (uneven(sampler, (2, 3, 1), 0),)), policy, 0)
    assert ctx.entropy is not None
    part = EntropyIndicator((0.5, 1.5), 1.0, lambda update: 1.0, ReleasedSettings(gate_turn=0, history_turns=3))
    part.gate_open, part.past_updates = True, 1
    own = float(ctx.entropy[ctx.mask].mean())
    for turn, tokens in enumerate((2, 3, 1)):
        part.past_sum = np.array([own] * 3)
        part.past_sum[turn] = 100.0
        bonus = float(ctx.token_mean(ctx.entropy))
        inside = ((ctx.entropy > 0.5 * own) & (ctx.entropy < 1.5 * own))[ctx.mask]
        assert bool(inside.all()), "else the arithmetic below is not the turn's alone"
        assert float(part.term(ctx)) == pytest.approx(tokens / 6 - bonus, rel=1e-5)


def test_occurrences_add_up_until_they_are_taken() -> None:
    found = Occurrences()
    found.count("share", 1.0, 4.0)
    found.count("share", torch.tensor([True, True, False]), torch.tensor([True, True, True]))
    found.count("never", 0.0, 0.0)
    assert found.take() == {"share": 3.0 / 7.0, "never": 0.0}
    assert found.take() == {}


@pytest.mark.parametrize(("rise", "branches"), [(0.5, True), (0.49, False), (2.0, True), (-1.0, False)])
def test_readiness_grows_with_the_rise(rise: float, branches: bool) -> None:
    """alpha + gamma rise > tau with .2 + .5 rise > .449: from a rise of .498 on."""
    assert arpo_paper(rise, 0, 0.0, bias=0.2, weight=0.5, threshold=0.449) is branches
    assert aepo_paper(rise, 0, 0.0, bias=0.2, weight=0.5, threshold=0.449, penalty=0.0) is branches


def test_the_smallest_share_is_one_token() -> None:
    batch = batch_of(torch.ones(1, 6, dtype=torch.bool))
    entropies = torch.tensor([[0.1, 0.5, 0.3, 0.9, 0.2, 0.4]])
    batch = batch.with_columns(behaviour_entropies=entropies)
    part = BalancedClip(PPOClip(0.2, 0.2, None), share=0.01)
    part.prepare(context_of(batch, torch.zeros(1, 6))[1])
    assert part.chosen.tolist() == [[False, False, False, True, False, False]]


@pytest.mark.parametrize(
    ("update", "num", "expected"), [(1, 3, 1 - 0.2 * (1 - math.exp(-2))), (0, 1, 1.0), (7, 0, 1.0)]
)
def test_the_released_weight_of_short_runs(update: int, num: int, expected: float) -> None:
    assert epo_released_weight(update, num) == pytest.approx(expected)


def test_trunks_of_unequal_episodes_are_shared() -> None:
    """The child left after one of the parent's three turns and took one more."""
    (group,) = groups(BigramPolicy(), num_groups=1, size=2, num_turns=3)
    parent, other = group.trajectories
    child = replace(other, turns=(parent.turns[0], other.turns[1]), fork=Fork(parent.episode, 1))
    made = Group(group.task, (child, parent))
    batch = layout((made,))
    own = torch.tensor([3.0, -1.0])
    batch = batch.with_columns(advantages=own[batch.trajectory].unsqueeze(1) * batch.action_mask)
    found = SharedTrunks("hard").modify(Stream(Samples((made,), raw_rewards(made.trajectories)), batch))
    per_turn = [
        [float(found[row][batch.turn_index[row] == turn].unique()) for turn in range(turns)]
        for row, turns in enumerate((2, 3))
    ]
    assert per_turn == [[1.0, 3.0], [1.0, -1.0, -1.0]]


def test_tokens_that_are_not_chosen_keep_the_plain_bound() -> None:
    """Ratio 1.5 everywhere, bound 1.2, advantage 1: the loss is -1.2 on each token, chosen or not."""
    batch = batch_of(torch.ones(1, 2, dtype=torch.bool), advantages=torch.ones(1, 2))
    batch = batch.with_columns(behaviour_entropies=torch.tensor([[0.1, 0.5]]))
    logprobs = torch.full((1, 2), math.log(1.5)).requires_grad_()
    ctx, view = context_of(batch, logprobs)
    part = BalancedClip(PPOClip(0.2, 0.2, None), share=0.5)
    part.prepare(view)
    found = part.surrogate(ctx)
    assert torch.as_tensor(found.high).tolist() == [pytest.approx([1.2, 1.2])]


def test_changed_signs_are_counted() -> None:
    """Entropies 0, 1, 1, 2: z is -1.22, 0, 0, 1.22, so that a weight of 5 flips the first of four."""
    batch = batch_of(torch.ones(1, 4, dtype=torch.bool), advantages=torch.ones(1, 4))
    batch = batch.with_columns(behaviour_entropies=torch.tensor([[0.0, 1.0, 1.0, 2.0]]))
    part = EntropyAdvantage(5.0)
    part.modify(Stream(Samples((), raw_rewards(())), batch))
    assert part.acted() == {"flipped_share": 0.25}


def test_what_lies_on_a_border_is_not_outside() -> None:
    policy = BigramPolicy()
    ctx = context(Group(task(), (uneven(Sampler.of(policy, np.random.default_rng(0)), (2, 2), 0),)), policy, 0)
    assert ctx.entropy is not None
    part = EntropyCorridor((0.0, 1.0), 1.0, lambda update: 1.0)
    highest = ctx.entropy[ctx.mask].topk(2).values
    part.past_sum, part.past_updates = float(highest.mean()), 1
    part.prepare(context_of(ctx.batch, ctx.logprobs)[1])
    part.term(ctx)
    assert part.acted() == {"outside_share": 0.25}


def test_a_run_begins_with_seed_0_and_a_replay_keeps_what_it_may_draw() -> None:
    assert RunInfo(1, 2).seed == 0
    assert build(SPEARConfig(tolerance=3), RUN).keep_updates == 3
    assert build(SPEARConfig(tolerance=3, age_from="newest"), RUN).keep_updates == RUN.num_updates
    with pytest.raises(ValueError, match="advantage_decay"):
        SPEARConfig(recalibrate=False, advantage_decay=1.5)


def test_where_the_dual_clip_decides_is_counted() -> None:
    policy = drifted(BigramPolicy())
    config = GRPOConfig(kl_coef=0.0, drop_uniform_groups=False, dual_clip=1.01)
    metrics = learner(build(config, RUN), policy, RUN).update(buffer_of(groups(BigramPolicy())), 0)
    assert 0.0 < metrics.dual_clip_share < 1.0


class _BesideSilence(Composer):
    """What was sampled, and a second stream of episodes without an action token."""

    streams = ("fresh", "silent")

    def compose(self, update: int, samples: Samples, buffer: TrajectoryBuffer) -> Streams:
        sampler = Sampler.of(BigramPolicy(), np.random.default_rng(0))
        silent = Group(task(9), (episode(sampler, index=9, num_actions=0),))
        rewards = raw_rewards(silent.trajectories)
        fresh = [samples.rewards.turns(n) for n in range(len(samples.trajectories))]
        return Streams(
            (
                Stream(samples, layout(samples.groups, rewards=fresh, version=update)),
                Stream(Samples((silent,), rewards), layout((silent,), rewards=rewards.earned, stream="silent")),
            )
        )


def test_a_step_of_several_streams_is_proved_if_any_of_them_learns() -> None:
    policy = BigramPolicy()
    recipe = build(GRPOConfig(kl_coef=0.0, drop_uniform_groups=False), RUN)
    both = (recipe["fresh"], replace(recipe["fresh"], name="silent"))
    recipe = replace(recipe, composer=_BesideSilence(), streams=both)
    heard: list[Agreement] = []
    learner(recipe, policy, RUN).update(buffer_of(groups(policy)), 0, heard.append)
    assert [found.num_tokens > 0 for found in heard] == [True]


def test_ratios_are_bounded_at_twenty_nats() -> None:
    found = importance_ratio(torch.tensor([25.0, -25.0, 3.0]), torch.zeros(3))
    torch.testing.assert_close(found.log(), torch.tensor([20.0, -20.0, 3.0]))


def test_one_turn_is_its_own_mean() -> None:
    policy = BigramPolicy()
    ctx = context(Group(task(), (uneven(Sampler.of(policy, np.random.default_rng(2)), (3,), 0),)), policy, 0)
    assert ctx.entropy is not None
    assert float(ctx.turn_mean(ctx.entropy)) == pytest.approx(float(ctx.entropy[ctx.mask].mean()))


def test_a_composer_that_drops_nothing_need_not_say_so() -> None:
    assert Streams(()).dropped_groups == 0


def test_the_value_head_gives_a_number_a_token() -> None:
    policy = BigramPolicy()
    made = learner(build(PPOConfig(), RUN), policy, RUN)
    critic = made.recipe["fresh"].critic
    assert critic is not None
    assert critic.module is not None
    assert critic.module(torch.zeros(5, policy.hidden_size)).shape == (5, 1)


def test_a_path_that_ends_without_a_turn_is_not_asked() -> None:
    """Its context was full after two turns: nothing is branched off, and what is left starts from the root."""
    shape = Shape(budget=3, branches=1, rule=lambda rise, streak, draw: True, origin="root", resamples=True)
    expander = PathWise(shape, lambda: 0.0)
    (root,) = expander.start([1])
    assert expander.expand(root.path, Segment(0, 1.0, True)) == []
    assert expander.paths[root.path].turns == 1
    assert [branch.parent for branch in expander.expand(root.path, Segment(1, None, False))] == [None, None]


@pytest.mark.parametrize("shape", ["constant", "cosine", "linear"])
def test_a_schedule_beyond_its_span_stays_at_its_end(shape: str) -> None:
    """Also where all of the span is warm-up."""
    for warmup in (0.9, 0.5, 0.0):
        end = learning_rate_share(1, 1, shape=shape, warmup_share=warmup, floor=0.25)
        assert end == learning_rate_share(50, 1, shape=shape, warmup_share=warmup, floor=0.25)
        assert end == (1.0 if shape == "constant" else 0.25)


def test_settings_are_taken_as_they_are() -> None:
    made = SPEARConfig(tolerance=3)
    assert SPEARConfig.model_validate(made) is made
    with pytest.raises(ValueError, match="input_value='long'"):
        DAPOConfig(overlong="long")  # type: ignore[arg-type]


def test_the_released_readiness_is_a_probability() -> None:
    """A fall of entropy makes it 1 at most, so that a threshold of 1 lets every path branch."""
    assert arpo_released(-10.0, 0, 0.9, weight=0.2, threshold=1.0)
    assert not arpo_released(-10.0, 0, 0.9, weight=0.2, threshold=0.99)
    assert arpo_released(10.0, 0, 0.9, weight=0.2, threshold=0.0)


def test_the_replay_filters_replies_and_keeps_no_fresh_groups_for_others() -> None:
    assert [type(part) for part in build(SPEARConfig(), RUN)["replay"].modifiers] == [ReplyFilter]
    assert build(SPEARConfig(base=GRPOConfig()), RUN)["replay"].modifiers == ()
    assert SelfImitation(FreshGroups(), SPEARConfig(), constant_weight, 0).fresh_age == 0


def test_two_tries_are_tries() -> None:
    with pytest.raises(ValueError, match="max_tries replaces uniform groups"):
        GRPOConfig(drop_uniform_groups=False, max_tries=2)


def test_branches_are_counted_among_what_is_trained_on() -> None:
    """Two attempts from the root, one beside them that is only looked at, and the branches: a share, and no more."""
    planner = build(AEPOConfig(), RunInfo(10, 4)).planner
    assert isinstance(planner, TreePlanner)
    found = planner.plan([task(1)], ScriptedRollouts(lambda key, attempt, turn: 1.0 + turn))
    acted = planner.acted()
    trained = [trajectory for trajectory in found if not trajectory.only_looked_at]
    forks = sum(trajectory.fork is not None for trajectory in trained)
    assert (len(trained), len(found)) == (4, 5)
    assert acted["branch_share"] == pytest.approx(forks / 4)
    assert forks > 0


def test_every_sampled_token_needs_its_entropy() -> None:
    (group,) = groups(BigramPolicy(), num_groups=1, size=1)
    (whole,) = group.trajectories
    short = replace(whole.turns[0], entropies=whole.turns[0].entropies[:-1])
    broken = replace(group, trajectories=(replace(whole, turns=(short, *whole.turns[1:])),))
    with pytest.raises(ValueError, match="need as many log-probs and entropies"):
        layout((broken,))


def test_without_a_surrogate_every_row_is_computed() -> None:
    """Advantages are there for others to look at; an objective trains all rows."""
    batch = batch_of(torch.ones(3, 2, dtype=torch.bool), advantages=torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]]))
    stream = build(GRPOConfig(kl_coef=0.0), RUN)["fresh"]
    assert stream.learning(batch).tolist() == [1]
    assert replace(stream, clip=None).learning(batch).tolist() == [0, 1, 2]


def test_a_streams_loss_counts_once() -> None:
    policy = BigramPolicy()
    config = GRPOConfig(kl_coef=0.0, drop_uniform_groups=False)
    metrics = learner(build(config, RUN), policy, RUN).update(buffer_of(groups(policy, seed=3)), 0)
    assert metrics.policy_loss != 0.0
    assert metrics.loss == pytest.approx(metrics.policy_loss)


def test_a_skipped_step_has_no_part_in_the_norms() -> None:
    """The first of two optimizer steps blows up; the other's norm is what is reported."""
    policy = BigramPolicy()
    steps: list[int] = []

    def explode(gradient: torch.Tensor) -> torch.Tensor:
        steps.append(1)
        return gradient * (math.inf if len(steps) == 1 else 1.0)

    policy.table.register_hook(explode)
    config = GRPOConfig(kl_coef=0.0, drop_uniform_groups=False)
    made = learner(build(config, RUN), policy, RUN, num_minibatches=2, microbatch_tokens=100_000)
    metrics = made.update(buffer_of(groups(policy)), 0)
    assert (metrics.optimizer_steps, metrics.skipped_steps) == (1, 1)
    assert 0.0 < metrics.grad_norm < math.inf


def test_the_replay_reports_how_many_it_took_and_trims_nothing_else() -> None:
    """One unit fits: of two good ones the older goes. What others keep in the buffer stays."""
    policy = BigramPolicy()
    settings = SPEARConfig(**{**PLAIN, "buffer_size": 1, "warmup_share": 0.2})
    made, buffer = made_by(settings, policy, lr=1e-9)
    kept = memory(made)
    kept.fresh_age = 5
    buffer.max_age = 5
    for update in range(3):
        buffer.add([group_of(4, 0, 0, 0, version=update)], update)
        metrics = made.update(buffer, update)
    assert metrics.mechanisms["SelfImitation/replayed"] == 1.0
    assert len(list(units(buffer))) == 1
    assert [entry.update for entry in buffer.entries("fresh")] == [0, 1, 2]


def test_an_update_of_nothing_counts_nothing() -> None:
    metrics = learner(build(GRPOConfig(), RUN), BigramPolicy(), RUN).update(TrajectoryBuffer(), 0)
    assert (metrics.grad_norm, metrics.return_mean, metrics.loss) == (0.0, 0.0, 0.0)
    assert (metrics.advantage_mean, metrics.advantage_std, metrics.ratio_max) == (0.0, 0.0, 0.0)
    assert (metrics.clip_share, metrics.dual_clip_share, metrics.ratio_mean, metrics.kl_behaviour) == (0.0,) * 4
    assert (metrics.policy_entropy, metrics.kl_reference, metrics.entropy) == (None, None, None)
    assert all(map(math.isfinite, metrics.as_dict().values()))
