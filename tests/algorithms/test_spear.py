"""SPEAR: what is kept, what is imitated and with which advantage; its schedules; Dr.BoT's filters."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.algorithms.fakes import TEN, BigramPolicy, Sampler, episode, groups, learner, task
from tests.learning.test_learner import success
from turnwise.algorithms.clip_cov import ClipCovConfig
from turnwise.algorithms.common import FreshGroups, PPOClip
from turnwise.algorithms.drbot import DrBoTConfig, ReplyFilter, WidestGroups
from turnwise.algorithms.drgrpo import DrGRPOConfig
from turnwise.algorithms.epo import EPOConfig
from turnwise.algorithms.gigpo import GiGPOConfig
from turnwise.algorithms.grpo import GRPOConfig
from turnwise.algorithms.ppo import PPOConfig
from turnwise.algorithms.registry import build
from turnwise.algorithms.selfimitation import STREAM, RecentReturns, SelfImitation, Unit, rows_of, units
from turnwise.algorithms.spear import CovarianceSettings, SPEARConfig, StepBonus, on_behaviour
from turnwise.learning.learner import Learner
from turnwise.learning.metrics import Metrics
from turnwise.learning.parts import Samples, Stream
from turnwise.learning.rewards import RewardTable, raw_rewards
from turnwise.learning.schedules import constant_weight
from turnwise.learning.settings import RewardSettings, RunInfo, Settings
from turnwise.replay.batch import layout
from turnwise.replay.buffer import TrajectoryBuffer
from turnwise.trajectory import Group, Trajectory

RUN = RunInfo(num_updates=10, group_size=4, rewards=TEN)
BASE = GRPOConfig(kl_coef=0.0, drop_uniform_groups=False)
PLAIN: dict[str, Any] = {"base": BASE, "fresh_clip": None, "replay_clip": None, "bonus_coef": 0.0}


def made_by(
    config: Settings, policy: BigramPolicy, run: RunInfo = RUN, **optimizer: Any
) -> tuple[Learner, TrajectoryBuffer]:
    made = learner(build(config, run), policy, run, **optimizer)
    return made, TrajectoryBuffer(made.recipe.keep_updates)


def go(made: Learner, buffer: TrajectoryBuffer, policy: BigramPolicy, updates: range, **kind: Any) -> list[Metrics]:
    found = []
    for update in updates:
        buffer.add(groups(policy, seed=7, version=update, **kind), update)
        found.append(made.update(buffer, update))
    return found


def memory(made: Learner) -> SelfImitation:
    assert isinstance(made.recipe.composer, SelfImitation)
    return made.recipe.composer


def won(reward: float, sample: int, index: int = 0, num_turns: int = 2, version: int = 0) -> Trajectory:
    """An episode that earns ``reward`` at its end."""
    sampler = Sampler.of(BigramPolicy(), np.random.default_rng([sample, index]))
    made = episode(sampler, index=index, sample=sample, num_turns=num_turns, version=version)
    turns = (replace(t, reward=reward if n == num_turns - 1 else 0.0, valid=True) for n, t in enumerate(made.turns))
    return replace(made, turns=tuple(turns))


def group_of(*rewards: float, index: int = 0, version: int = 0) -> Group:
    members = (won(reward, sample, index, version=version) for sample, reward in enumerate(rewards))
    return Group(task(index), tuple(members))


@pytest.mark.parametrize("base", [BASE, DrBoTConfig(), GiGPOConfig(), PPOConfig()])
def test_neutral_settings_are_the_base_to_the_bit(base: Settings) -> None:
    neutral = SPEARConfig(base=base, fresh_clip=None, bonus_coef=0.0, replay_coef=0.0)
    tables = []
    for config in (base, neutral):
        policy = BigramPolicy()
        made, buffer = made_by(config, policy, num_minibatches=2)
        go(made, buffer, policy, range(3))
        tables.append(policy.table.detach().clone())
        assert len(buffer) == 0
    assert torch.equal(*tables)


def test_the_first_update_has_nothing_to_imitate() -> None:
    tables = []
    for config in (BASE, SPEARConfig(**PLAIN)):
        policy = BigramPolicy()
        made, buffer = made_by(config, policy)
        go(made, buffer, policy, range(1))
        tables.append(policy.table.detach().clone())
    assert torch.equal(*tables)
    assert buffer.entries(STREAM)
    assert all(entry.stream == STREAM for entry in buffer.entries())


def test_what_enters_and_what_is_imitated() -> None:
    """Rewards 3 1 1 1 | 5 5 5 5 | 0 0 0 2: the 3 and the 2 enter; P50 of the means 1.5, 5, 0.5 is 1.5."""
    policy = BigramPolicy()
    base = BASE.model_copy(update={"normalize_std": False})
    config = SPEARConfig(**PLAIN).model_copy(update={"base": base, "warmup_share": 0.2})
    made, buffer = made_by(config, policy, run=replace(RUN, rewards=RewardSettings()), lr=1e-9)
    kept = memory(made)
    buffer.add([group_of(3, 1, 1, 1), group_of(5, 5, 5, 5, index=1), group_of(0, 0, 0, 2, index=2)], 0)
    made.update(buffer, 0)
    assert [unit.total for unit in units(buffer)] == [3.0, 2.0]
    assert [mean for mean, _ in kept.returns.updates[0]] == [1.5, 5.0, 0.5]
    samples = Samples((group_of(0, 1, version=1),), RewardTable(((0.0, 0.0), (0.0, 1.0)), ((0.0, 0.0),) * 2))
    streams = kept.compose(1, samples, buffer)
    replay = streams[STREAM]
    assert replay.coef == pytest.approx(1.0)  # the second of ten updates, and a fifth of them is the rise
    assert replay.batch.staleness.tolist() == [1, 1]
    estimator = made.recipe[STREAM].estimator
    assert estimator is not None
    found = estimator.estimate(replay)
    assert [float(row[m][0]) for row, m in zip(found, replay.batch.action_mask, strict=True)] == [1.5, 0.5]
    assert (found[~replay.batch.action_mask] == 0).all()
    higher = RecentReturns(10)
    higher.add([[2.5, 2.5]])
    kept.returns = higher  # P50 = 2.5: the 2 is kept, and imitated no more
    assert kept.compose(1, samples, buffer)[STREAM].samples.trajectories == (
        buffer.entries(STREAM)[0].group.trajectories[0],
    )
    assert kept.compose(1, samples, buffer)[STREAM].batch.tokens.shape[0] == 1
    assert len(list(units(buffer))) == 2


def test_the_reward_table_is_that_of_the_time_of_collection() -> None:
    """The bonus of update 0 stays with its episodes, though it has fallen since."""
    config = SPEARConfig(**{**PLAIN, "bonus_coef": 0.2}, bonus_updates=4, bonus_per_turn=0.25)
    policy = BigramPolicy()
    made, buffer = made_by(config, policy, lr=1e-9)
    for update in range(2):
        buffer.add([group_of(1, 0, 0, version=update)], update)
        made.update(buffer, update)
    bonus = [2.0 * 0.5 * (1 + math.cos(math.pi * (u + 1) / 4)) / 2 for u in range(2)]  # two turns: half of it
    assert [unit.total for unit in units(buffer)] == pytest.approx([10 + b for b in bonus])
    assert [unit.trajectory.total_reward for unit in units(buffer)] == [1.0, 1.0]
    again = TrajectoryBuffer(5)
    again.load_state_dict(json.loads(json.dumps(buffer.state_dict())))
    assert [unit.rewards for unit in units(again)] == [unit.rewards for unit in units(buffer)]


def test_ages_capacity_and_baselines_are_bounded() -> None:
    policy = BigramPolicy()
    made, buffer = made_by(SPEARConfig(**PLAIN, tolerance=2, baseline_groups=7), policy, lr=1e-9)
    for update in range(6):
        go(made, buffer, policy, range(update, update + 1))
        ages = {update + 1 - entry.update for entry in buffer.entries(STREAM)}
        assert max(ages) <= 2
        assert len(memory(made).returns) <= 9  # at most one update's groups beyond the limit
    made, buffer = made_by(SPEARConfig(**PLAIN, buffer_size=3), policy, lr=1e-9)
    go(made, buffer, policy, range(4))
    assert 0 < len(list(units(buffer))) <= 3
    newest = max(entry.update for entry in buffer.entries(STREAM))
    assert newest == 3


def test_the_draw_is_bounded_seeded_and_without_repetition() -> None:
    def drawn(seed: int = 0, **settings: Any) -> list[list[str]]:
        policy = BigramPolicy()
        made = learner(build(SPEARConfig(**PLAIN, **settings), replace(RUN, seed=seed)), policy, lr=1e-9)
        buffer, found = TrajectoryBuffer(5), []
        for update in range(4):
            buffer.add(groups(policy, seed=7, version=update, num_groups=4), update)
            streams = memory(made).compose(update, Samples((), raw_rewards([])), buffer)
            found.append([t.episode for s in streams if s.name == STREAM for t in s.samples.trajectories])
            made.update(buffer, update)
        return found

    few = drawn(draw=3)
    assert [len(names) for names in few] == [0, 3, 3, 3]
    assert all(len(set(names)) == len(names) for names in few)
    assert drawn(draw=3) == few
    assert drawn(seed=1, draw=3) != few
    assert [len(names) for names in drawn(draw=1000, powers=True)][2] in (1, 2, 4, 8, 16)


def test_when_full_replays_and_empties() -> None:
    policy = BigramPolicy()
    config = SPEARConfig(**PLAIN, replay="when_full", buffer_size=2, phases="sequential", warmup_updates=1)
    made, buffer = made_by(config, policy, lr=1e-9)
    rows, held = [], []
    for update in range(5):
        (metrics,) = go(made, buffer, policy, range(update, update + 1))
        rows.append(metrics.stream_rows.get(STREAM, 0))
        held.append({entry.update for entry in buffer.entries(STREAM)})
    assert rows[0] == 0
    replays = [update for update, n in enumerate(rows) if n]
    assert replays
    assert all(held[update] == {update} for update in replays)
    assert all(n in (0, 1, 2) for n in rows)


def test_phases_share_or_have_their_own_steps() -> None:
    steps = {}
    for phases in ("joint", "sequential"):
        policy = BigramPolicy()
        made, buffer = made_by(SPEARConfig(**PLAIN, phases=phases), policy, num_minibatches=2)
        steps[phases] = [m.optimizer_steps for m in go(made, buffer, policy, range(2))]
    assert steps == {"joint": [2, 2], "sequential": [2, 4]}


def gradient_of(config: SPEARConfig, coef: float) -> Tensor:
    """Gradient of the second update's only step."""
    policy = BigramPolicy()
    made, buffer = made_by(config.model_copy(update={"replay_coef": coef}), policy, grad_clip=None)
    go(made, buffer, policy, range(1))
    policy.table.data += 0.2 * torch.randn(policy.table.shape, generator=torch.Generator().manual_seed(5))
    captured: list[Tensor] = []
    policy.table.register_post_accumulate_grad_hook(lambda p: captured.append(p.grad.clone()))  # type: ignore[no-untyped-call]
    go(made, buffer, policy, range(1, 2))
    return captured[-1]


def test_the_joint_loss_is_the_sum() -> None:
    """The replay's gradient is linear in its weight, by the schedule's value, and is not nothing."""
    config = SPEARConfig(**PLAIN, warmup_updates=4)
    base, one, two = (gradient_of(config, coef) for coef in (0.0, 1.0, 2.0))
    assert (one - base).abs().max() > 1e-4
    torch.testing.assert_close(two - base, 2 * (one - base), rtol=1e-4, atol=1e-6)
    full = gradient_of(config.model_copy(update={"warmup_updates": 2}), 1.0)
    torch.testing.assert_close(one - base, (full - base) * 0.5, rtol=1e-4, atol=1e-6)  # halfway up in update 2 of 4


@pytest.mark.parametrize("windowed", [False, True])
def test_replayed_ratios_start_from_the_sampling_policy(windowed: bool) -> None:
    """The replay's own loss by hand: its behaviour log-probs are those of the old policy."""
    policy = BigramPolicy()
    config = SPEARConfig(**{**PLAIN, "base": BASE.model_copy(update={"ratio_denominator": "proximal"})})
    made, buffer = made_by(config, policy, lr=1e-9)
    go(made, buffer, policy, range(1), windowed=windowed)
    policy.table.data += 0.3 * torch.randn(policy.table.shape, generator=torch.Generator().manual_seed(5))
    streams = made._credit(memory(made).compose(1, Samples((), raw_rewards([])), buffer))
    assert list(s.name for s in streams) == ["fresh"]  # nothing fresh: nothing drawn
    memory(made).rule = config.model_copy(update={"draw": 100})
    streams = made._credit(memory(made).compose(1, Samples((), raw_rewards([])), buffer))
    batch = streams[STREAM].batch
    assert batch.proximal_logprobs is None
    scores = policy.score(batch, entropy=False)
    assert (scores.logprobs - batch.behaviour_logprobs)[batch.action_mask].abs().max() > 0.05
    clip = made.recipe[STREAM].clip
    assert isinstance(clip, PPOClip)
    assert clip.needs == frozenset()
    assert "proximal" in made.recipe["fresh"].needs
    assert on_behaviour(clip) is not clip


@pytest.mark.parametrize("settings", [{}, {"unit": "row"}, {"replay": "when_full", "buffer_size": 2}])
@pytest.mark.parametrize("windowed", [False, True])
def test_resuming_equals_going_on(settings: dict[str, Any], windowed: bool) -> None:
    """Learner and buffer saved after two updates and loaded elsewhere: the same to the bit."""
    config = SPEARConfig(base=DrBoTConfig(), tolerance=2, warmup_updates=2, **settings)

    def fresh(policy: BigramPolicy) -> tuple[Learner, TrajectoryBuffer]:
        return made_by(config, policy, epochs=2, num_minibatches=2)

    straight = BigramPolicy()
    one, held = fresh(straight)
    expected = go(one, held, straight, range(5), windowed=windowed)
    assert any(m.stream_rows.get(STREAM) for m in expected[2:])
    first = BigramPolicy()
    stopped, kept = fresh(first)
    go(stopped, kept, first, range(2), windowed=windowed)
    state, tensors = stopped.state_dict()
    saved = json.loads(json.dumps({"learner": state, "buffer": kept.state_dict()}))
    second = BigramPolicy(seed=9)
    second.table.data.copy_(first.table.detach())
    resumed, again = fresh(second)
    resumed.load_state_dict(saved["learner"], {name: value.clone() for name, value in tensors.items()})
    again.load_state_dict(saved["buffer"])
    found = go(resumed, again, second, range(2, 5), windowed=windowed)
    assert torch.equal(second.table, straight.table)
    assert [m.as_dict() for m in found] == [m.as_dict() for m in expected[2:]]
    assert again.state_dict() == held.state_dict()


def test_a_row_earns_the_episode_and_answers_for_itself() -> None:
    made = won(0.0, 0, num_turns=3)
    turns = tuple(replace(turn, continues=n == 1) for n, turn in enumerate(made.turns))
    unit = Unit(replace(made, turns=turns), ((1.0, 2.0, 4.0), (-0.1, 0.0, -0.3)))
    rows = rows_of(unit)
    assert [len(row.trajectory.turns) for row in rows] == [2, 1]
    assert [row.total for row in rows] == pytest.approx([6.9, 6.7])
    assert [row.rewards[1] for row in rows] == [(-0.1, 0.0), (-0.3,)]
    assert len(layout([Group(task(), (row.trajectory,)) for row in rows])) == 2


def test_rows_are_kept_one_by_one() -> None:
    policy = BigramPolicy()
    base = BASE.model_copy(update={"group_stats": "rows"})
    made, buffer = made_by(SPEARConfig(**{**PLAIN, "base": base}, unit="row"), policy, lr=1e-9)
    mixed = group_of(1, 0, 0)
    windowed = [replace(t, turns=tuple(replace(x, continues=False) for x in t.turns)) for t in mixed.trajectories]
    bad = replace(windowed[0], turns=(replace(windowed[0].turns[0], valid=False), windowed[0].turns[1]))
    buffer.add([Group(mixed.task, (bad, *windowed[1:]))], 0)
    made.update(buffer, 0)
    assert [unit.total for unit in units(buffer)] == pytest.approx([9.9, 10.0])
    assert [len(unit.trajectory.turns) for unit in units(buffer)] == [1, 1]
    # A trajectory's value is its rows' mean: (9.95 + 0 + 0) / 3
    assert memory(made).returns.median() == pytest.approx((9.95 / 3, float(np.std([9.95, 0, 0]))))


def test_the_bonus_is_added_to_every_episode_and_earned_by_no_turn() -> None:
    bonus = StepBonus(2.0, 0.25, lambda update: 0.5)
    played = [
        won(1.0, 0, num_turns=3),
        won(0.0, 1, num_turns=1),
        replace(won(0.0, 2), turns=()),
        won(0.0, 3, num_turns=9),
    ]
    table = bonus.shape(played, raw_rewards(played), BigramPolicy())
    assert [table.total(n) for n in range(4)] == [1.75, 0.25, 0.0, 1.0]
    assert (table.earned, table.own) == (raw_rewards(played).earned, raw_rewards(played).own)
    assert table.turns(0) == (0.0, 0.0, 1.75), "where rewards run along tokens it comes last"
    assert table.select([3, 1]).total(0) == 1.0


def test_schedules_are_shares_of_the_run_or_counts() -> None:
    def weights(**settings: Any) -> list[float]:
        recipe = build(SPEARConfig(**{**PLAIN, **settings}), RUN)
        assert isinstance(recipe.composer, SelfImitation)
        return [recipe.composer.coef(update) for update in range(10)]

    def bonuses(**settings: Any) -> list[float]:
        (*_, bonus) = build(SPEARConfig(**{**PLAIN, "bonus_coef": 1.0, **settings}), RUN).shapers
        assert isinstance(bonus, StepBonus)
        return [bonus.course(update) for update in range(10)]

    rise = weights()
    assert rise == sorted(rise)
    assert rise[0] == pytest.approx((1 - math.cos(math.pi / 5)) / 2)
    assert rise[4:] == [1.0] * 6
    assert weights(warmup_updates=20)[9] == pytest.approx(0.5)
    assert weights(warmup_updates=20, replay_coef=3.0)[9] == pytest.approx(1.5)
    fall = bonuses()
    assert fall == sorted(fall, reverse=True)
    assert fall[9] == pytest.approx(0.0, abs=1e-12)
    assert bonuses(bonus_updates=4)[3:] == pytest.approx([0.0] * 7, abs=1e-12)
    assert bonuses(bonus_course="constant") == [1.0] * 10


def odd(policy: BigramPolicy) -> dict[str, list[Group]]:
    sampler = Sampler.of(policy, np.random.default_rng(0))
    silent = tuple(episode(sampler, sample=s, num_actions=0) for s in range(3))
    return {
        "nothing": [],
        "silent": [Group(task(), silent)],
        "lone": [group_of(1)],
        "all-won": [group_of(1, 1, 1)],
        "all-lost": [group_of(0, 0, 0)],
        "without-turns": [Group(task(), tuple(replace(t, turns=()) for t in silent))],
        "errors": [Group(task(), tuple(replace(t, end="error") for t in group_of(1, 0).trajectories))],
    }


@pytest.mark.parametrize("kind", odd(BigramPolicy()))
@pytest.mark.parametrize("settings", [{}, {"unit": "row", "normalize_std": True, "keep": "at_least"}])
def test_odd_batches_before_and_after_good_ones_stay_finite(kind: str, settings: dict[str, Any]) -> None:
    policy = BigramPolicy()
    made, buffer = made_by(SPEARConfig(warmup_updates=1, **settings), policy)
    for update, batch in enumerate(
        [odd(policy)[kind], groups(policy, version=1), odd(policy)[kind], odd(policy)[kind]]
    ):
        buffer.add(batch, update)
        metrics = made.update(buffer, update)
        assert all(math.isfinite(value) for value in metrics.as_dict().values())
        assert metrics.skipped_steps == 0
    assert torch.isfinite(policy.table).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"warmup_updates": 5, "warmup_share": 0.1}, "same thing"),
        ({"bonus_updates": 5, "bonus_share": 0.1}, "same thing"),
        ({"bonus_course": "constant", "bonus_updates": 5}, "never falls"),
        ({"replay_coef": 0.0, "tolerance": 3, "unit": "row"}, "tolerance, unit would have no effect"),
        ({"fresh_clip": {"shrae": 0.1}}, "shrae"),
        ({"base": {"type": "spaer"}}, "Did you mean 'spear'"),
    ],
)
def test_settings_that_contradict_each_other(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SPEARConfig(**values)


def test_parts_that_contradict_each_other() -> None:
    with pytest.raises(ValueError, match="replays already"):
        build(SPEARConfig(base=SPEARConfig(fresh_clip=None)), RUN)
    with pytest.raises(ValueError, match="high covariance"):
        build(SPEARConfig(base=ClipCovConfig()), RUN)
    assert build(SPEARConfig(base=ClipCovConfig(), fresh_clip=None), RUN).name == "spear"


def test_kl_and_entropy_are_means_over_the_tokens_that_have_them() -> None:
    """The replay has no reference and no entropy term. A policy that stands still reports the same without a replay."""
    base = GRPOConfig(kl_coef=0.01, drop_uniform_groups=False)
    found = []
    for config in (EPOConfig(base=base), EPOConfig(base=SPEARConfig(**{**PLAIN, "base": base}))):
        policy = BigramPolicy()
        made, buffer = made_by(config, policy, lr=1e-12)
        found.append(go(made, buffer, policy, range(3))[-1])
    alone, replaying = found
    assert replaying.stream_rows[STREAM] > 0
    assert replaying.kl_reference == pytest.approx(alone.kl_reference, rel=1e-5)
    assert replaying.policy_entropy == pytest.approx(alone.policy_entropy, rel=1e-5)


def test_clip_cov_is_on_both_streams() -> None:
    every = CovarianceSettings(share=1.0, low=-1e9, high=1e9)
    recipe = build(SPEARConfig(base=BASE, fresh_clip=every, replay_clip=every), RUN)
    assert [len(recipe[name].weighters) for name in ("fresh", STREAM)] == [1, 1]
    policy = BigramPolicy()
    made = learner(recipe, policy)
    before, buffer = policy.table.detach().clone(), TrajectoryBuffer(5)
    metrics = go(made, buffer, policy, range(2))
    assert metrics[1].stream_rows[STREAM] > 0
    torch.testing.assert_close(policy.table.detach(), before)  # every token is left out: nothing moves


@pytest.mark.parametrize("base", [DrBoTConfig(base=DrGRPOConfig(clip_high=0.28, aggregation_constant=4.0))])
def test_learns_the_world(base: Settings) -> None:
    policy, run = BigramPolicy(scale=0.0), RunInfo(40, 8)
    made = learner(build(EPOConfig(base=SPEARConfig(base=base, fresh_clip=None)), run), policy, run, lr=0.1)
    buffer = TrajectoryBuffer(made.recipe.keep_updates)
    for update in range(40):
        buffer.add(groups(policy, 1, num_groups=4, size=8, num_turns=2, version=update), update)
        made.update(buffer, update)
    assert success(policy) > 0.8


def stream_of(made: list[Group], config: DrBoTConfig) -> Stream:
    batch = layout(made)
    ones = batch.action_mask.float()
    stream = Stream(Samples(tuple(made), raw_rewards([t for g in made for t in g.trajectories])), batch)
    return stream.with_columns(advantages=ReplyFilter(config).modify(stream.with_columns(advantages=ones)))


@pytest.mark.parametrize("windowed", [False, True])
def test_filtered_replies_have_no_advantage(windowed: bool) -> None:
    (group,) = groups(BigramPolicy(), num_groups=1, size=1, num_turns=4, windowed=windowed)
    (whole,) = group.trajectories
    nats = np.zeros(4, np.float32)
    loop = np.array([1, 2, 1, 2], np.int32)
    turns = (
        replace(whole.turns[0], reply="<action>go</action>"),
        replace(whole.turns[1], reply="<action>go</action>", action_ids=loop, logprobs=nats, entropies=nats),
        replace(whole.turns[2], reply="<action>go</action> \N{REPLACEMENT CHARACTER}"),
        replace(whole.turns[3], reply="<action>go</action> <think></think>"),
    )
    made = [replace(group, trajectories=(replace(whole, turns=turns),))]

    def kept(**settings: Any) -> set[int]:
        stream = stream_of(made, DrBoTConfig(**settings))
        assert stream.batch.advantages is not None
        credit = stream.batch.advantages[stream.batch.action_mask]
        turn = stream.batch.turn_index[stream.batch.action_mask]
        return {n for n in set(turn.tolist()) if bool((credit[turn == n] == 1).all())}

    assert kept() == {0, 1, 3}
    assert kept(ngram=2, max_repeats=2, unreadable=False) == {0, 2, 3}
    assert kept(max_reply_tokens=4, unreadable=False) == {0, 2, 3}
    assert kept(action_tags=True, unreadable=False) == {0, 1, 2}
    assert kept(ngram=2, max_repeats=0, unreadable=False) == {0, 1, 2, 3}


def test_the_widest_groups_are_kept_in_order() -> None:
    made = (group_of(1, 1), group_of(1, 0, index=1), group_of(3, 0, index=2), group_of(2, 0, index=3))
    recipe = build(DrBoTConfig(base=GRPOConfig(drop_uniform_groups=False), group_share=0.5), RUN)
    assert isinstance(recipe.composer, WidestGroups)
    samples = Samples(made, raw_rewards([t for g in made for t in g.trajectories]))
    streams = recipe.composer.compose(0, samples, TrajectoryBuffer())
    assert [g.task.index for g in streams["fresh"].samples.groups] == [2, 3]
    assert streams["fresh"].samples.rewards.earned[0][-1] == 3.0
    assert streams.dropped_groups == 2
    failed = replace(made[2].trajectories[0], end="error")
    samples = replace(
        samples, groups=(*made[:2], replace(made[2], trajectories=(failed, made[2].trajectories[1])), made[3])
    )
    streams = recipe.composer.compose(0, samples, TrajectoryBuffer())
    assert [g.task.index for g in streams["fresh"].samples.groups] == [1, 3]
    assert build(DrBoTConfig(group_share=1.0), RUN).composer.streams == ("fresh",)


def test_the_buffer_keeps_what_a_replay_may_draw() -> None:
    assert build(SPEARConfig(tolerance=3), RUN).keep_updates == 3
    assert build(SPEARConfig(tolerance=3, age_from="newest"), RUN).keep_updates == RUN.num_updates
    with pytest.raises(ValueError, match="advantage_decay"):
        SPEARConfig(recalibrate=False, advantage_decay=1.5)


def test_the_replay_filters_replies_and_keeps_no_fresh_groups_for_others() -> None:
    assert [type(part) for part in build(SPEARConfig(), RUN)["replay"].modifiers] == [ReplyFilter]
    assert build(SPEARConfig(base=GRPOConfig()), RUN)["replay"].modifiers == ()
    assert SelfImitation(FreshGroups(), SPEARConfig(), constant_weight, 0).fresh_age == 0


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
