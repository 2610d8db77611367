"""Recipes: rewards and credit of GRPO, EPO's two forms, contradictions, and algorithms from outside."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import BaseModel, ValidationError

from tests.algorithms.fakes import TEN, BigramPolicy, Sampler, buffer_of, episode, groups, learner, task
from tests.algorithms.variants import NAMED
from turnwise.algorithms.bapo import BAPOConfig
from turnwise.algorithms.cispo import CISPOConfig
from turnwise.algorithms.clip_cov import ClipCovConfig
from turnwise.algorithms.common import FreshGroups, GroupAdvantage, PPOClip, ReferenceKL
from turnwise.algorithms.composition import AnyAlgorithm
from turnwise.algorithms.cpl import CPLConfig
from turnwise.algorithms.dapo import DAPOConfig, OverlongSettings
from turnwise.algorithms.dpo import DPOConfig
from turnwise.algorithms.dppo import DPPOConfig
from turnwise.algorithms.drgrpo import DrGRPOConfig
from turnwise.algorithms.epo import EntropyCorridor, EPOConfig
from turnwise.algorithms.epo_released import EntropyIndicator, ReleasedSettings, turn_entropies
from turnwise.algorithms.grpo import GRPOConfig
from turnwise.algorithms.gspo import GSPOConfig
from turnwise.algorithms.kl_cov import KLCovConfig
from turnwise.algorithms.ppo import PPOConfig
from turnwise.algorithms.registry import ALGORITHMS, build, resolve
from turnwise.algorithms.reinforce_pp import ReinforcePPConfig
from turnwise.algorithms.sac import SACConfig
from turnwise.algorithms.spear import SPEARConfig
from turnwise.algorithms.tea import TEAConfig
from turnwise.learning.parts import Aggregation, MinibatchView, Samples, Stream, Streams, UpdateContext
from turnwise.learning.planning import GroupPlanner, RolloutFinished, Rollouts, Scorer, TurnFinished
from turnwise.learning.primitives import Counts, trajectory_weights
from turnwise.learning.recipe import Recipe, StreamRecipe
from turnwise.learning.rewards import InvalidActionPenalty, RewardScale, RewardTable, raw_rewards
from turnwise.learning.settings import OptimizerConfig, RewardSettings, RunInfo
from turnwise.replay.batch import layout
from turnwise.replay.buffer import TrajectoryBuffer
from turnwise.trajectory import Group, Task, Trajectory

RUN = RunInfo(num_updates=10, group_size=4, rewards=TEN)


def by_hand(rewards: Sequence[Sequence[float]], invalid: Sequence[int], windowed: bool = False) -> Group:
    """A group with the given raw rewards; ``invalid[i]`` turns of member i, its first ones, are invalid."""
    sampler, members = Sampler.of(BigramPolicy(), np.random.default_rng(0)), []
    for sample, (row, bad) in enumerate(zip(rewards, invalid, strict=True)):
        made = episode(sampler, sample=sample, num_turns=len(row), windowed=windowed)
        turns = (replace(t, reward=r, valid=n >= bad) for n, (t, r) in enumerate(zip(made.turns, row, strict=True)))
        members.append(replace(made, turns=tuple(turns)))
    return Group(task(), tuple(members))


def shaped(group: Group, config: GRPOConfig) -> RewardTable:
    return learner(build(config, RUN), BigramPolicy()).shape(group.trajectories, 0)


def test_shapers_make_new_tables_and_leave_the_trajectories_alone() -> None:
    group = by_hand([[0.0, 1.0], [0.0, 0.0, 0.5]], invalid=[1, 2])
    table = shaped(group, GRPOConfig())
    assert table.earned == ((0.0, 10.0), (0.0, 0.0, 5.0))
    assert table.own == ((-0.1, 0.0), (-0.1, -0.1, 0.0))
    assert (table.total(0), table.total(1)) == pytest.approx((9.9, 4.8))
    assert table.turns(1) == (-0.1, -0.1, 5.0)
    assert table.select([1]).earned == (table.earned[1],)
    assert [t.rewards for t in group.trajectories] == [[0.0, 1.0], [0.0, 0.0, 0.5]]
    bare = replace(RUN, rewards=RewardSettings(invalid_action_penalty=0.0))
    plain = learner(build(GRPOConfig(), bare), BigramPolicy(), bare).shape(group.trajectories, 0)
    assert plain == raw_rewards(group.trajectories)
    late = RewardScale(2.0).shape(group.trajectories, table, BigramPolicy())
    assert late.own[0] == (-0.2, 0.0)
    assert InvalidActionPenalty(1.0).shape(group.trajectories, table, BigramPolicy()).own[0] == (-1.1, 0.0)


def advantages(group: Group, config: GRPOConfig) -> dict[tuple[int, int], float]:
    """{(trajectory, first turn of the row): advantage}"""
    made = build(config, RUN)
    streams = made.composer.compose(0, Samples((group,), shaped(group, config)), TrajectoryBuffer())
    (stream,) = streams
    estimator = made["fresh"].estimator
    assert estimator is not None
    found, batch = estimator.estimate(stream), stream.batch
    assert (found[~batch.action_mask] == 0).all()
    rows = [found[b][batch.action_mask[b]] for b in range(len(batch))]
    assert all(bool((row == row[0]).all()) for row in rows)
    keys = zip(batch.trajectory.tolist(), batch.first_turn.tolist(), strict=True)
    return {key: float(row[0]) for key, row in zip(keys, rows, strict=True)}


def test_credit_over_trajectories_and_over_rows() -> None:
    group = by_hand([[0, 1], [0, 0, 0]], invalid=[0, 1], windowed=True)
    found = advantages(group, GRPOConfig(normalize_std=False))
    # returns 10 and -0.1: both 5.05 from their mean, whatever the number of rows
    assert found == pytest.approx({(0, 0): 5.05, (0, 1): 5.05, (1, 0): -5.05, (1, 1): -5.05, (1, 2): -5.05})
    found = advantages(group, GRPOConfig(normalize_std=False, group_stats="rows"))
    # rows 10, 10, -0.1, 0, 0: mean 3.98; the penalty stays with its own row
    assert found == pytest.approx({(0, 0): 6.02, (0, 1): 6.02, (1, 0): -4.08, (1, 1): -3.98, (1, 2): -3.98})
    std = float(np.std([10, 10, -0.1, 0, 0], ddof=1))
    found = advantages(group, GRPOConfig(group_stats="rows"))
    assert found[1, 0] == pytest.approx(-4.08 / std, rel=1e-4)


def test_uniform_groups_are_left_out_and_counted() -> None:
    equal, mixed = by_hand([[0.1, 0.2]] * 3, [0, 0, 0]), by_hand([[1.0], [0.0], [0.0]], [0, 0, 0])
    made = Samples((equal, mixed, equal), raw_rewards([*equal.trajectories, *mixed.trajectories, *equal.trajectories]))
    streams = FreshGroups(drop_uniform=True).compose(0, made, TrajectoryBuffer())
    assert streams.dropped_groups == 2
    assert streams["fresh"].samples.groups == (mixed,)
    assert streams["fresh"].samples.rewards.earned == ((1.0,), (0.0,), (0.0,))
    assert len(FreshGroups().compose(0, made, TrajectoryBuffer())["fresh"].batch) == 9


def test_a_group_of_one_learns_only_where_it_is_meant_to() -> None:
    lone = by_hand([[0.0, 1.0]], [0])
    with pytest.raises(ValueError, match="group_size"):
        build(GRPOConfig(), RunInfo(10, 1))
    released = build(GRPOConfig(singleton="reward"), RunInfo(10, 1))
    streams = released.composer.compose(0, Samples((lone,), raw_rewards(lone.trajectories)), TrajectoryBuffer())
    assert len(streams["fresh"].batch) == 1
    estimator = GroupAdvantage("trajectories", True, 1e-6, "reward")
    assert float(estimator.estimate(streams["fresh"]).max()) == 1.0


def context(update: int, stream: Stream, policy: BigramPolicy) -> UpdateContext:
    batch = stream.batch
    scores = policy.score(batch, entropy=True)
    counts = Counts.of(batch.action_mask, batch.turn_index)
    return UpdateContext(update, batch, scores.logprobs, scores.entropies, counts, Aggregation())


def streams_of(made: list[Group]) -> Streams:
    samples = Samples(tuple(made), raw_rewards([t for g in made for t in g.trajectories]))
    return Streams((Stream(samples, layout(made)),))


def test_epo_remembers_past_updates_and_decays_its_corridor() -> None:
    policy = BigramPolicy()
    config = EPOConfig(corridor=(0.0, 0.5), corridor_coef=0.1)
    recipe = build(config, RUN)
    (corridor, coef) = recipe["fresh"].regularizers[-1]
    assert isinstance(corridor, EntropyCorridor)
    assert (coef, recipe.name) == (1e-3, "epo")
    made = learner(recipe, policy)
    entropies: list[float] = []
    for update in range(3):
        fresh = groups(policy, version=update)
        tokens = np.concatenate([x.entropies for g in fresh for t in g.trajectories for x in t.turns])
        (stream,) = streams_of(fresh)
        ctx = context(update, stream, policy)
        corridor.before_update(update, Streams((stream,)))
        corridor.prepare(MinibatchView(update, stream.batch, ctx.counts, torch.Tensor))
        entropy = ctx.entropy
        assert entropy is not None
        weights = trajectory_weights(ctx.mask, ctx.batch.turn_index, ctx.batch.num_turns)
        expected = -(weights * entropy).sum().float()
        if update:
            past = float(np.mean(entropies))
            beta = 1 + math.exp(-3.0 * update / 5)
            expected = expected + beta * 0.1 * (weights * torch.relu(entropy - 0.5 * past)).sum().float()
        torch.testing.assert_close(corridor.term(ctx), expected)
        metrics = made.update(buffer_of(fresh, update), update)
        entropies.append(float(tokens.mean(dtype=np.float64)))
        assert metrics.entropy == pytest.approx(entropies[-1], rel=1e-6)
        assert corridor.state_dict() == pytest.approx({"past_sum": sum(entropies), "past_updates": update + 1})


def test_epo_released_keeps_its_quirks() -> None:
    policy = BigramPolicy()
    group = by_hand([[0.0] * 3, [0.0] * 2], [0, 0])
    streams = streams_of([group])
    vector = turn_entropies(streams["fresh"].batch, num_turns=5)
    third = group.trajectories[0].turns[2].entropies.astype(np.float64)
    assert vector[:2].tolist() == [0.0, 0.0]  # padded on the left: turn 0 sits at place 2
    assert vector[4] == pytest.approx(third.mean(), rel=1e-6)
    with pytest.raises(ValueError, match="history_turns=2"):
        turn_entropies(streams["fresh"].batch, num_turns=2)

    part = EntropyIndicator((0.0, 2.0), 0.05, lambda update: 0.5, ReleasedSettings(gate_turn=2, history_turns=5))
    part.before_update(0, streams)  # this update is in its own history
    ctx = context(0, streams["fresh"], policy)
    bonus = ctx.token_mean(ctx.entropy) if ctx.entropy is not None else torch.tensor(math.nan)
    for rows, outside in (([0, 1], True), ([1], False)):
        batch = streams["fresh"].batch.select(torch.tensor(rows))
        counts = Counts.of(batch.action_mask, batch.turn_index)
        part.prepare(MinibatchView(0, batch, counts, lambda: torch.empty(0)))
        assert part.gate_open is outside
    part.gate_open = True
    # Turns 0 and 1 meet the zeros of the padding: all their tokens are outside. Turn 2 meets turn 0.
    own = ctx.batch.turn_index < 2
    reference = float(vector[2])
    assert ctx.entropy is not None
    inside = (ctx.entropy < 2 * reference) & ~own & ctx.mask
    expected = 0.5 * 0.05 * float((ctx.mask & ~inside).sum()) / ctx.counts.action_tokens - float(bonus.detach())
    term = part.term(ctx)
    assert float(term.detach()) == pytest.approx(expected, rel=1e-5)
    penalised = torch.autograd.grad(term, policy.table, retain_graph=True)[0]
    torch.testing.assert_close(penalised, torch.autograd.grad(-bonus, policy.table)[0])
    again = EntropyIndicator((0.0, 2.0), 0.05, lambda update: 0.5, ReleasedSettings(history_turns=5))
    again.load_state_dict(part.state_dict())
    assert again.past_sum.tolist() == part.past_sum.tolist()
    with pytest.raises(ValueError, match="history_turns=50"):
        EntropyIndicator((0.0, 2.0), 0.05, lambda u: 1.0, ReleasedSettings()).load_state_dict(part.state_dict())


def test_epo_released_sequence_level_does_not_see_the_padding() -> None:
    policy = BigramPolicy()
    streams = streams_of([by_hand([[0.0] * 3, [0.0]], [0, 0])])
    details = ReleasedSettings(level="seq", gate_turn=0, history_turns=3)
    part = EntropyIndicator((0.8, 1.2), 0.1, lambda update: 1.0, details)
    part.before_update(0, streams)
    part.gate_open = True
    ctx = context(0, streams["fresh"], policy)
    narrow = replace(ctx, batch=ctx.batch.select(torch.tensor([1])))
    width = narrow.batch.tokens.shape[1]
    assert ctx.entropy is not None
    padded = replace(ctx, logprobs=ctx.logprobs[1:], entropy=ctx.entropy[1:], batch=_row(ctx, 1))
    narrow = replace(narrow, logprobs=ctx.logprobs[1:, :width], entropy=ctx.entropy[1:, :width])
    assert float(part.term(padded).detach()) == pytest.approx(float(part.term(narrow).detach()), rel=1e-6)


def _row(ctx: UpdateContext, row: int):  # type: ignore[no-untyped-def]
    """One row without trimming its padding."""
    full = replace(ctx.batch, lengths=torch.full_like(ctx.batch.lengths, ctx.batch.tokens.shape[1]))
    return full.select(torch.tensor([row]))


@pytest.mark.parametrize(
    ("config", "values", "message"),
    [
        (GRPOConfig, {"aggregation": "seq-mean-token-sum-norm"}, "aggregation_constant"),
        (GRPOConfig, {"aggregation_constant": 5.0}, "does not use it"),
        (GRPOConfig, {"importance_cap": 3.0}, "proximal only"),
        (GRPOConfig, {"kl_coef": 0.0, "kl_estimator": "k1"}, "no effect"),
        (GRPOConfig, {"clip_hihg": 0.3}, "clip_hihg"),
        (GRPOConfig, {"normalize_std": False, "std_eps": 1.0}, "no effect"),
        (DrGRPOConfig, {"aggregation": "token-mean"}, "does not use it"),
        (DAPOConfig, {"drop_uniform_groups": False, "max_tries": 3}, "replaces uniform groups"),
        (DAPOConfig, {"overlong": {"max_tokens": 8, "buffer_tokens": 9}}, "exceeds max_tokens"),
        (GSPOConfig, {"aggregation": "token-mean"}, "aggregation"),
        (GSPOConfig, {"dual_clip": 3.0}, "dual_clip"),
        (ReinforcePPConfig, {"baseline": "group", "gamma": 0.9}, "baseline=group"),
        (ReinforcePPConfig, {"group_stats": "rows"}, "baseline=none"),
        (PPOConfig, {"level": "turn", "gae_along": "row"}, "never leaves a row"),
        (ClipCovConfig, {"low": 5.0}, "low < high"),
        (EPOConfig, {"base": {"type": "gspo", "clip_hihg": 1.0}}, "clip_hihg"),
        (EPOConfig, {"corridor": (2.0, 1.0)}, "kappa_l"),
        (EPOConfig, {"released": {}}, "form=released"),
        (EPOConfig, {"form": "released", "gamma": 1.0}, "schedule=paper"),
        (EPOConfig, {"schedule": "constant", "schedule_updates": 150}, "constant"),
    ],
)
def test_impossible_settings_explain_themselves(
    config: type[BaseModel], values: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**values)


def test_every_field_is_described() -> None:
    every = [resolve(name).config for name in ALGORITHMS]
    for config in (*every, OverlongSettings, ReleasedSettings, OptimizerConfig):
        for name, field in config.model_fields.items():
            assert name == "type" or field.description, f"{config.__name__}.{name}"


def test_configurations_are_a_union_keyed_on_type() -> None:
    class Run(BaseModel):
        algorithm: AnyAlgorithm

    found = Run.model_validate({"algorithm": {"type": "epo", "base": {"kl_coef": 0.0}}}).algorithm
    assert found == EPOConfig(base=GRPOConfig(kl_coef=0.0, drop_uniform_groups=False)), "the neighbours stay"
    assert Run.model_validate_json(Run(algorithm=found).model_dump_json()).algorithm == found
    for config in NAMED.values():
        assert Run.model_validate_json(Run(algorithm=config).model_dump_json()).algorithm == config
    for name in ALGORITHMS:
        assert build(resolve(name).config(), RUN).name == name
    for text, message in (("17", "name of an algorithm"), ('"dopa"', "Did you mean 'dapo'"), ('{"clip": 1}', "clip")):
        with pytest.raises(ValidationError, match=message):
            Run.model_validate_json(f'{{"algorithm": {{"type": "empg", "base": {text}}}}}')


def test_parts_that_contradict_each_other_say_why() -> None:
    made = build(EPOConfig(), RUN)
    with pytest.raises(ValueError, match="both steer the entropy"):
        build(EPOConfig(base=EPOConfig()), RUN)
    with pytest.raises(ValueError, match="both steer the tokens of high covariance"):
        build(ClipCovConfig(base=KLCovConfig()), RUN)
    with pytest.raises(ValueError, match="its base has SequenceClip"):
        build(KLCovConfig(base=GSPOConfig()), RUN)
    for config in (SACConfig(base=EPOConfig()), TEAConfig(base=SACConfig()), EPOConfig(base=TEAConfig())):
        with pytest.raises(ValueError, match="both steer the entropy"):
            build(config, RUN)
    for base in (DPOConfig(), CPLConfig()):
        with pytest.raises(ValueError, match="tea shares its bonus out by advantages; its base has none"):
            build(TEAConfig(base=base), RUN)
    with pytest.raises(ValueError, match="cispo takes the place of PPO's clip; its base has BalancedBounds"):
        build(CISPOConfig(base=BAPOConfig()), RUN)
    with pytest.raises(ValueError, match="BalancedBounds and TrustRegion both steer the clip"):
        build(BAPOConfig(base=DPPOConfig()), RUN)
    with pytest.raises(ValueError, match="BalancedBounds and CovariancePenalty both steer the clip"):
        build(BAPOConfig(base=KLCovConfig()), RUN)
    with pytest.raises(ValueError, match="needs ratio_denominator=behaviour"):
        build(DPPOConfig(base=GRPOConfig(ratio_denominator="proximal")), RUN)
    ppo = build(PPOConfig(), RUN)["fresh"]
    bare = replace(ppo, objectives=())
    for stream, message in (
        (bare, "GeneralizedAdvantage needs values; add a critic"),
        (replace(ppo, objectives=ppo.objectives * 2), "two critics"),
        (replace(bare, estimator=None), "Whiten modifies advantages"),
    ):
        with pytest.raises(ValueError, match=message):
            Recipe("odd", FreshGroups(), (stream,)).checked()
    for config in (DrGRPOConfig(), DAPOConfig(), ReinforcePPConfig(baseline="group")):
        with pytest.raises(ValueError, match="compares attempts at one task"):
            build(config, RunInfo(10, 1))
    with pytest.raises(ValueError, match="EntropyCorridor and EntropyCorridor both steer the entropy"):
        made.with_regularizer(EntropyCorridor((0.0, 2.0), 0.1, lambda u: 1.0), 1.0)
    with pytest.raises(ValueError, match="ReferenceKL"):
        made.with_regularizer(ReferenceKL("k1"), 0.1)
    assert made.with_regularizer(ReferenceKL("k1"), 0.0) is made
    with pytest.raises(ValueError, match="exactly one StreamRecipe"):
        Recipe("odd", FreshGroups(), (StreamRecipe(name="replay"),)).checked()
    with pytest.raises(ValueError, match="nothing to optimize"):
        Recipe("odd", FreshGroups(), (StreamRecipe(),)).checked()
    with pytest.raises(ValueError, match="advantage estimator"):
        Recipe("odd", FreshGroups(), (StreamRecipe(clip=PPOClip(0.2, 0.2, None)),)).checked()

    class PerSequence(PPOClip):
        aggregations = frozenset({"seq-mean-token-mean"})

    stream = replace(made["fresh"], clip=PerSequence(0.2, 0.2, None))
    with pytest.raises(ValueError, match="seq-mean-token-mean"):
        Recipe("odd", FreshGroups(), (stream,)).checked()


class OutsideConfig(GRPOConfig):
    bonus: float = 1.0


def outside(config: OutsideConfig, run: RunInfo) -> Recipe:
    return build(GRPOConfig(), run).named("outside")


def test_algorithms_by_name_and_from_outside() -> None:
    assert resolve("epo").config is EPOConfig
    with pytest.raises(ValueError, match="Did you mean 'grpo'"):
        resolve("gpro")
    with pytest.raises(ValueError, match=r"Known: aepo, aepo_arbitrary, ares, arpo, .*clip_cov, "):
        resolve("zzzz")
    found = resolve("tests.algorithms.test_recipes:outside")
    assert found.config.__name__ == "OutsideConfig"
    assert found.recipe(found.config(), RUN).name == "outside"
    for bad, message in (
        ("no_such_module_of_ours:recipe", "cannot be imported"),
        ("tests.algorithms.fakes:nothing", "cannot be imported"),
        ("tests.algorithms.fakes:task", "expected a function"),
    ):
        with pytest.raises(ValueError, match=message):
            resolve(bad)


class FakeRollouts:
    """Finishes its rollouts in reverse order, one after another."""

    def __init__(self) -> None:
        self.started: list[tuple[Task, int]] = []

    def start(self, task: Task, sample: int, temperature: float | None = None) -> int:
        self.started.append((task, sample))
        return len(self.started) - 1

    def fork(self, rollout: int, turn: int) -> int:
        raise NotImplementedError

    def resume(self, stored: Trajectory, turn: int, beyond: int = 0) -> int:
        raise NotImplementedError

    def stop(self, rollout: int) -> None:
        raise NotImplementedError

    def events(self) -> Iterator[TurnFinished | RolloutFinished]:
        sampler = Sampler.of(BigramPolicy(), np.random.default_rng(0))
        for number, (_, sample) in reversed(list(enumerate(self.started))):
            yield TurnFinished(number, 0, np.zeros(2, np.float32))
            yield RolloutFinished(number, replace(episode(sampler, sample=sample), task=self.started[number][0]))


def test_group_planner_returns_trajectories_in_the_order_of_tasks() -> None:
    rollouts: Rollouts = FakeRollouts()
    found: list[Trajectory] = GroupPlanner(2).plan([task(3), task(1)], rollouts)
    assert [(t.task.index, t.sample) for t in found] == [(3, 0), (3, 1), (1, 0), (1, 1)]


def test_the_fake_policy_is_a_scorer() -> None:
    scorer: Scorer = BigramPolicy()
    assert list(scorer.parameters())


def test_settings_are_taken_as_they_are() -> None:
    made = SPEARConfig(tolerance=3)
    assert SPEARConfig.model_validate(made) is made
    with pytest.raises(ValueError, match="input_value='long'"):
        DAPOConfig(overlong="long")  # type: ignore[arg-type]
