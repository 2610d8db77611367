"""The learner: invariances, gradients, state, and learning itself, on a bigram policy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.algorithms.fakes import (
    TEN,
    BigramPolicy,
    FakeScores,
    Sampler,
    buffer_of,
    episode,
    groups,
    learner,
    task,
)
from tests.algorithms.variants import NAMED, VARIANTS
from turnwise.algorithms.epo import EntropyCorridor, EPOConfig
from turnwise.algorithms.grpo import GRPOConfig
from turnwise.algorithms.ppo import PPOConfig
from turnwise.algorithms.registry import build
from turnwise.learning.learner import stream_loss
from turnwise.learning.metrics import Agreement, Metrics, Tally, deviations
from turnwise.learning.parts import (
    Composer,
    MinibatchView,
    Objective,
    Regularizer,
    Samples,
    Stream,
    Streams,
    UpdateContext,
)
from turnwise.learning.primitives import Counts
from turnwise.learning.recipe import Recipe, StreamRecipe
from turnwise.learning.rewards import raw_rewards
from turnwise.learning.settings import RewardSettings, RunInfo, Settings
from turnwise.replay.batch import TokenBatch, layout
from turnwise.replay.buffer import TrajectoryBuffer
from turnwise.trajectory import Group, Trajectory

RUN = RunInfo(num_updates=10, group_size=4, rewards=TEN)

UNSEEING = [v for v in VARIANTS if "observed" not in build(v.values[0], RUN)["fresh"].needs]
"""Those that declare no gradient on observations."""


def trained(config: Settings, made: list[Group], policy: BigramPolicy | None = None, **optimizer: Any) -> Tensor:
    """The table after one update, minus the table before."""
    policy = policy or BigramPolicy()
    before = policy.table.detach().clone()
    learner(build(config, RUN), policy, **optimizer).update(buffer_of(made), 0)
    return policy.table.detach() - before


def gradient(
    config: Settings,
    made: list[Group],
    policy: BigramPolicy | None = None,
    run: RunInfo | None = None,
    **optimizer: Any,
) -> Tensor:
    """Gradient of the table, as it stood before the last optimizer step."""
    policy = policy or drifted(BigramPolicy())
    captured: list[Tensor] = []
    policy.table.register_post_accumulate_grad_hook(lambda p: captured.append(p.grad.clone()))
    learner(build(config, run or RUN), policy, run or RUN, grad_clip=None, **optimizer).update(buffer_of(made), 0)
    return captured[-1]


def drifted(policy: Any) -> Any:
    """The policy moved away from the one that sampled: ratios differ from 1, and clips bind."""
    policy.table.data += 0.2 * torch.randn(policy.table.shape, generator=torch.Generator().manual_seed(5))
    return policy


@pytest.mark.parametrize("config", VARIANTS)
@pytest.mark.parametrize("windowed", [False, True])
def test_microbatching_changes_nothing(config: Settings, windowed: bool) -> None:
    made = groups(BigramPolicy(), windowed=windowed)
    whole = gradient(config, made)
    assert whole.abs().max() > 1e-5
    policy = drifted(BigramPolicy())
    captured: list[Tensor] = []
    policy.table.register_post_accumulate_grad_hook(lambda p: captured.append(p.grad.clone()))
    learner(build(config, RUN), policy, grad_clip=None, microbatch_tokens=10).update(buffer_of(made), 0)
    assert len(captured) > 2
    torch.testing.assert_close(captured[-1], whole, rtol=1e-4, atol=1e-6)


IN_TURN = {"rae", "canon-annealed", "riskpo", "riskpo-own", "riskpo-mixed"}
"""A baseline sees one episode after another; bundles and papers are made of what stands together; ``ties=order``."""


@pytest.mark.parametrize("config", [config for config in VARIANTS if config.id not in IN_TURN])
def test_order_of_groups_and_members_changes_nothing(config: Settings) -> None:
    made = groups(BigramPolicy())
    shuffled = [Group(g.task, g.trajectories[::-1]) for g in reversed(made)]
    torch.testing.assert_close(gradient(config, shuffled), gradient(config, made), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("config", UNSEEING)
def test_longer_observations_change_nothing(config: Settings) -> None:
    """Inserted observation tokens carry no loss: the bigram policy sees the last one only."""
    made = groups(BigramPolicy())
    longer = []
    for number, group in enumerate(made):
        members = []
        for t in group.trajectories:
            filler = np.full(2 + number, 8, np.int32)
            turns = (replace(x, prompt_ids=np.concatenate([filler, x.prompt_ids])) for x in t.turns)
            members.append(replace(t, turns=tuple(turns)))
        longer.append(Group(group.task, tuple(members)))
    torch.testing.assert_close(gradient(config, longer), gradient(config, made), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("config", [*VARIANTS, GRPOConfig(kl_coef=0, drop_uniform_groups=False)])
def test_rows_that_are_not_computed_had_no_gradient(config: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first group fails and the last succeeds in every attempt; most algorithms leave them out themselves."""
    made = groups(BigramPolicy())
    for place, reward in ((0, 0.0), (-1, 1.0)):
        flat = [
            replace(t, turns=tuple(replace(x, reward=reward * (x is t.turns[-1])) for x in t.turns))
            for t in made[place].trajectories
        ]
        made[place] = Group(made[place].task, tuple(flat))
    found = gradient(config, made)
    monkeypatch.setattr(StreamRecipe, "learning", lambda self, batch: torch.arange(len(batch)))
    torch.testing.assert_close(found, gradient(config, made), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("kl_coef", "computed"), [(0.0, 4), (0.1, 12)])
def test_only_rows_with_credit_are_computed_where_nothing_else_trains(kl_coef: float, computed: int) -> None:
    made, seen = groups(BigramPolicy()), list[int]()
    returns = [[sum(turn.reward for turn in t.turns) for t in group.trajectories] for group in made]
    assert [len(set(of)) > 1 for of in returns] == [False, True, False]

    class Counting(BigramPolicy):
        def score(self, batch: TokenBatch, **asked: bool) -> FakeScores:
            if torch.is_grad_enabled():
                seen.append(len(batch))
            return super().score(batch, **asked)

    config = GRPOConfig(kl_coef=kl_coef, drop_uniform_groups=False)
    run = replace(RUN, rewards=RewardSettings(invalid_action_penalty=0))
    learner(build(config, run), Counting(), run, num_minibatches=1).update(buffer_of(made), 0)
    assert seen == [computed]


class Unmasked(BigramPolicy):
    """A careless scorer: it scores observation tokens and padding as well."""

    def score(self, batch: TokenBatch, *, entropy: bool, reference: bool = False, **asked: Any) -> FakeScores:
        everything = replace(batch, action_mask=torch.ones_like(batch.action_mask))
        scores = super().score(everything, entropy=entropy, reference=reference)
        masked = super().score(batch, entropy=False, **asked)
        scores = replace(scores, hidden=masked.hidden, readings=masked.readings)
        for found in (scores.logprobs, scores.entropies):
            if found is not None and found.requires_grad:
                found.register_hook(lambda grad: self.seen.append((grad, batch.action_mask)))
        return scores

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor]] = []


@pytest.mark.parametrize("config", UNSEEING)
def test_observation_tokens_get_no_gradient(config: Settings) -> None:
    careless, made = drifted(Unmasked()), groups(BigramPolicy())
    torch.testing.assert_close(gradient(config, made, careless), gradient(config, made))
    assert careless.seen
    for grad, mask in careless.seen:
        assert (grad[~mask] == 0).all()
        assert (grad[mask] != 0).any()


def prepared(config: Settings, policy: BigramPolicy, reference: bool = True) -> tuple[Recipe, TokenBatch, FakeScores]:
    recipe, made = build(config, RUN), groups(BigramPolicy())
    batch = layout(made)
    scores = policy.score(batch, entropy=True)
    columns = {"advantages": torch.linspace(-1, 1, len(batch)).unsqueeze(1) * batch.action_mask}
    if reference:
        columns["reference_logprobs"] = policy.score(batch, entropy=False, reference=True).logprobs
    return recipe, batch.with_columns(**columns), scores


def test_every_loss_term_has_gradient_when_active() -> None:
    """Each term alone, through the policy's table; the corridor's two sides and the bonus apart."""
    policy = BigramPolicy(seed=3)
    recipe, batch, scores = prepared(EPOConfig(), policy)
    fresh = recipe["fresh"]
    counts = Counts.of(batch.action_mask, batch.turn_index)
    ctx = UpdateContext(0, batch, scores.logprobs, scores.entropies, counts, fresh.aggregation)
    (kl, _), (corridor, _) = fresh.regularizers
    assert isinstance(corridor, EntropyCorridor)
    view = MinibatchView(0, batch, counts, lambda: scores.logprobs)
    corridor.prepare(view)
    bare = replace(fresh, regularizers=())
    terms: dict[str, Tensor] = {
        "surrogate": stream_loss(bare, ctx, Tally()),
        "kl": kl.term(ctx),
        "bonus": corridor.term(ctx),
    }
    for name, past in (("above", 0.01), ("below", 100.0)):
        one = EntropyCorridor((0.5, 2.0), 1.0, lambda update: 1.0)
        one.past_sum, one.past_updates = past, 1
        one.prepare(view)
        terms[name] = one.term(ctx) - corridor.term(ctx)  # the penalty alone
    for name, term in terms.items():
        (found,) = torch.autograd.grad(term, policy.table, retain_graph=True)
        assert found.abs().max() > 1e-4, name
    up = torch.autograd.grad(terms["below"], policy.table, retain_graph=True)[0]
    bonus = torch.autograd.grad(terms["bonus"], policy.table, retain_graph=True)[0]
    down = torch.autograd.grad(terms["above"], policy.table, retain_graph=True)[0]
    torch.testing.assert_close(up, bonus)  # below the corridor it pushes as the bonus does
    torch.testing.assert_close(down, -bonus)  # above it the other way


def test_on_policy_ratio_is_one_and_sampler_agrees() -> None:
    policy = BigramPolicy()
    seen: list[Agreement] = []
    metrics = learner(build(GRPOConfig(), RUN), policy, epochs=2).update(buffer_of(groups(policy)), 0, seen.append)
    assert len(seen) == 1
    assert seen[0].num_tokens == metrics.num_action_tokens
    assert seen[0].max_abs < 1e-6
    assert metrics.agreement == seen[0]
    single = learner(build(GRPOConfig(), RUN), BigramPolicy()).update(buffer_of(groups(BigramPolicy())), 0)
    assert single.ratio_mean == pytest.approx(1.0, abs=1e-6)
    assert single.ratio_max == pytest.approx(1.0, abs=1e-6)
    assert (single.clip_share, single.skipped_steps) == (0.0, 0)
    assert single.kl_behaviour == pytest.approx(0.0, abs=1e-9)
    assert metrics.ratio_max > 1.0


def test_agreement_looks_at_the_learners_own_version_only() -> None:
    policy = BigramPolicy()
    made = groups(policy, version=0) + groups(policy, seed=5, version=1)
    batch = layout(made, version=1)
    logprobs = policy.score(batch, entropy=False).logprobs.detach().clone()
    logprobs[batch.staleness == 1] += 5.0
    fresh = Agreement.of(deviations(logprobs, batch))
    assert fresh.max_abs < 1e-6
    row = int((batch.staleness == 0).nonzero()[0])
    column = int(batch.action_mask[row].nonzero()[0])
    logprobs[row, column] += 0.5
    found = Agreement.of(deviations(logprobs, batch))
    assert found.max_abs == pytest.approx(0.5, abs=1e-5)
    assert found.mean_abs == pytest.approx(0.5 / fresh.num_tokens, rel=1e-3)
    assert Agreement.of(deviations(logprobs[:0, :0], batch.select(torch.zeros(0, dtype=torch.long)))).num_tokens == 0


class Witness(BigramPolicy):
    """Remembers which groups it was asked to score, batch by batch."""

    seen: list[list[int]]

    def score(self, batch: TokenBatch, **asked: Any) -> FakeScores:
        self.seen = [*getattr(self, "seen", []), batch.group.tolist()]
        return super().score(batch, **asked)


@pytest.mark.parametrize(("steps", "unit", "whole"), [(2, "group", True), (2, "row", False), (6, "group", False)])
def test_groups_stay_whole_where_there_are_enough_of_them(steps: int, unit: str, whole: bool) -> None:
    policy = Witness()
    made = groups(policy)
    config = GRPOConfig(kl_coef=0.0, drop_uniform_groups=False)
    metrics = learner(build(config, RUN), policy, num_minibatches=steps, minibatch_unit=unit).update(buffer_of(made), 0)
    assert metrics.optimizer_steps == steps == len(policy.seen)
    assert sorted(group for part in policy.seen for group in part) == [
        place for place, group in enumerate(made) for _ in group.trajectories
    ]
    met = [group for part in policy.seen for group in set(part)]
    assert (len(met) == len(set(met))) == whole


def test_a_failed_verification_stops_before_the_step() -> None:
    policy = BigramPolicy()
    made = groups(policy)
    policy.table.data += torch.randn(policy.table.shape)
    before = policy.table.detach().clone()

    def verify(found: Agreement) -> None:
        raise RuntimeError(f"disagree by {found.max_abs}")

    with pytest.raises(RuntimeError, match="disagree"):
        learner(build(GRPOConfig(), RUN), policy).update(buffer_of(made), 0, verify)
    assert torch.equal(policy.table.detach(), before)


def proved(recipe: Recipe, made: list[Group], update: int = 0, **optimizer: Any) -> tuple[list[Agreement], Metrics]:
    """What ``verify`` hears, and the metrics."""
    heard: list[Agreement] = []
    buffer = buffer_of(made, update)
    return heard, learner(recipe, BigramPolicy(), **optimizer).update(buffer, update, heard.append)


class _Replaying(Composer):
    """Trains on ``old`` in the place of what was sampled for the update."""

    streams = ("fresh",)

    def __init__(self, old: list[Group]) -> None:
        self.old = tuple(old)

    def compose(self, update: int, samples: Samples, buffer: TrajectoryBuffer) -> Streams:
        rewards = raw_rewards(tuple(t for group in self.old for t in group.trajectories))
        batch = layout(self.old, rewards=rewards.earned, version=update)
        return Streams((Stream(Samples(self.old, rewards), batch),))


def test_where_nothing_fresh_is_trained_on_something_fresh_is_compared_all_the_same() -> None:
    policy = BigramPolicy()
    old, fresh = groups(policy, version=0), groups(policy, version=3, seed=1)
    recipe = build(GRPOConfig(kl_coef=0.0), RUN)
    heard, metrics = proved(replace(recipe, composer=_Replaying(old)), fresh, update=3)
    assert metrics.optimizer_steps == 1
    assert [found.num_tokens for found in heard] == [int(layout(fresh).action_mask.sum())]
    assert metrics.agreement == heard[0]
    assert heard[0].max_abs < 1e-5


def test_where_nothing_is_learned_nothing_is_compared_or_logged_as_equal() -> None:
    (group,) = groups(BigramPolicy(), num_groups=1)
    alike = tuple(replace(group.trajectories[0], sample=sample) for sample in range(3))
    heard, metrics = proved(build(GRPOConfig(), RUN), [Group(group.task, alike)])
    assert heard == []
    assert metrics.optimizer_steps == metrics.agreement.num_tokens == 0
    assert {key for key in metrics.as_dict() if key.startswith("agreement/")} == {"agreement/num_tokens"}


def test_scores_cost_what_the_parts_ask_for() -> None:
    calls = {}
    for name, config in {
        "plain": GRPOConfig(kl_coef=0.0),
        "kl": GRPOConfig(),
        "epo": EPOConfig(),
        "off": EPOConfig(entropy_coef=0.0),
    }.items():
        policy = BigramPolicy()
        learner(build(config, RUN), policy).update(buffer_of(groups(policy)), 0)
        calls[name] = policy.calls
    assert calls == {
        "plain": ["logprobs"],
        "kl": ["reference", "logprobs"],
        "epo": ["reference", "entropy"],
        "off": ["reference", "logprobs"],
    }


def test_zero_coefficient_is_the_base() -> None:
    made = groups(BigramPolicy())
    base = trained(GRPOConfig(), made)
    assert torch.equal(trained(EPOConfig(entropy_coef=0.0), made), base)
    assert not torch.equal(trained(EPOConfig(), made), base)


DROPPING = GRPOConfig()


@pytest.mark.parametrize(
    "config",
    [DROPPING, EPOConfig(base=DROPPING), EPOConfig(base=DROPPING, form="released")],
    ids=["grpo", "epo", "old"],
)
def test_nothing_to_learn_is_finite_and_moves_nothing(config: Settings) -> None:
    policy = BigramPolicy()
    sampler = Sampler.of(policy, np.random.default_rng(0))
    silent = tuple(episode(sampler, sample=s, num_actions=0) for s in range(3))
    lone = episode(sampler)
    equal = tuple(replace(lone, turns=tuple(replace(x, reward=0.1) for x in lone.turns)) for _ in range(3))
    empty = tuple(replace(lone, turns=()) for _ in range(2))
    for members in (silent, (lone,), equal, empty, ()):
        before = policy.table.detach().clone()
        kept = Group(task(), members)
        metrics = learner(build(config, RUN), policy).update(buffer_of([kept] if members else []), 0)
        assert all(math.isfinite(v) for v in metrics.as_dict().values())
        assert torch.equal(policy.table.detach(), before)
        assert metrics.optimizer_steps == 0


def test_epo_acts_where_every_attempt_was_lost() -> None:
    """The paper's base keeps groups with equal returns: no credit, but the entropy's term has its step."""
    policy = BigramPolicy()

    def lose(trajectory: Trajectory) -> Trajectory:
        return replace(trajectory, turns=tuple(replace(turn, reward=0.0, valid=True) for turn in trajectory.turns))

    lost = [replace(group, trajectories=tuple(map(lose, group.trajectories))) for group in groups(policy)]
    before = policy.table.detach().clone()
    config = EPOConfig(base=GRPOConfig(kl_coef=0.0, drop_uniform_groups=False))
    metrics = learner(build(config, RUN), policy).update(buffer_of(lost), 0)
    assert (metrics.optimizer_steps, metrics.dropped_groups) == (1, 0)
    assert metrics.regularizers["EntropyCorridor"] == pytest.approx(-metrics.policy_entropy, rel=0.2)
    assert not torch.equal(policy.table.detach(), before)
    assert EPOConfig().base.drop_uniform_groups is False  # type: ignore[attr-defined]


UNITS = {"deviation": GRPOConfig(kl_coef=0.1), "success": GRPOConfig(kl_coef=0.1, normalize_std=False)}
CONSTANT = {"aggregation": "seq-mean-token-sum", "aggregation_constant": 3000.0}


@pytest.mark.parametrize("name", UNITS)
def test_the_scale_of_rewards_changes_no_proportion(name: str) -> None:
    """A success worth 10 and one worth 1: the same gradient but for the factor of the whole, terms included."""
    made = groups(BigramPolicy())
    values = PPOConfig(whiten=name == "deviation", share_trunk=True, kl_coef=0.1, value_coef=3.0)
    for config in (EPOConfig(base=UNITS[name], entropy_coef=0.3, corridor=(0.9, 1.1)), values):
        one, ten = (  # the second epoch's: the value head has left 0
            gradient(config, made, run=replace(RUN, rewards=RewardSettings(scale=scale)), epochs=2, eps=1e-30)
            for scale in (1.0, 10.0)
        )
        torch.testing.assert_close(ten, one * (1.0 if name == "deviation" else 10.0), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("weighting", ["trajectories", "turns"])
def test_added_terms_keep_their_proportion_to_the_surrogate(weighting: str) -> None:
    """A base that divides a row's sum by a constant shrinks the terms with it, and not the surrogate alone.

    (Rows of equal length, six tokens: there the two aggregations weigh tokens alike.)
    """
    sampler = Sampler.of(BigramPolicy(), np.random.default_rng(1))
    made = [Group(task(), tuple(episode(sampler, sample=s, num_turns=3) for s in range(4)))]
    base = GRPOConfig(kl_coef=0.1, drop_uniform_groups=False)
    settings = {"entropy_coef": 0.3, "corridor": (0.9, 1.1), "weighting": weighting}
    mean = gradient(EPOConfig(base=base, **settings), made)  # type: ignore[arg-type]
    summed = gradient(EPOConfig(base=base.model_copy(update=CONSTANT), **settings), made)  # type: ignore[arg-type]
    torch.testing.assert_close(summed * 3000 / 6, mean, rtol=1e-4, atol=1e-6)


def test_empty_rows_do_not_disturb_the_others() -> None:
    made = groups(BigramPolicy())
    config = GRPOConfig(drop_uniform_groups=False)
    sampler = Sampler.of(BigramPolicy(), np.random.default_rng(0))
    silent = Group(task(9), tuple(episode(sampler, index=9, num_actions=0) for _ in range(2)))
    torch.testing.assert_close(gradient(config, [*made, silent]), gradient(config, made))


def test_an_error_shrinks_its_group_and_two_are_the_least() -> None:
    policy = BigramPolicy()
    made = groups(policy, num_groups=2, size=3, num_turns=3)
    first = [replace(t, end="error") if i == 0 else t for i, t in enumerate(made[0].trajectories)]
    second = [replace(t, end="error") if i < 2 else t for i, t in enumerate(made[1].trajectories)]
    broken = [Group(made[0].task, tuple(first)), Group(made[1].task, tuple(second))]
    metrics = learner(build(GRPOConfig(drop_uniform_groups=False), RUN), policy).update(buffer_of(broken), 0)
    assert (metrics.dropped_groups, metrics.num_rows, metrics.num_trajectories) == (1, 2, 6)
    torch.testing.assert_close(
        gradient(GRPOConfig(drop_uniform_groups=False), broken),
        gradient(GRPOConfig(drop_uniform_groups=False), [Group(made[0].task, made[0].trajectories[1:])]),
    )


def test_a_gradient_that_is_not_finite_skips_its_step() -> None:
    policy = BigramPolicy()
    made = groups(policy)
    bad = replace(made[0].trajectories[0].turns[0], reward=math.nan)
    poisoned = replace(made[0].trajectories[0], turns=(bad, *made[0].trajectories[0].turns[1:]))
    made[0] = Group(made[0].task, (poisoned, *made[0].trajectories[1:]))
    before = policy.table.detach().clone()
    made_learner = learner(build(GRPOConfig(), RUN), policy)
    metrics = made_learner.update(buffer_of(made), 0)
    assert (metrics.skipped_steps, metrics.optimizer_steps) == (1, 0)
    assert torch.equal(policy.table.detach(), before)
    assert made_learner.update(buffer_of(groups(policy, version=1), 1), 1).optimizer_steps == 1
    assert torch.isfinite(policy.table).all()


class Baseline(Objective):
    """A toy value loss with a module of its own."""

    def __init__(self) -> None:
        self.module = nn.Linear(1, 1)

    def loss(self, ctx: UpdateContext) -> Tensor:
        assert self.module is not None
        return ctx.token_mean((self.module(torch.ones(1)) - 3.0).square().expand_as(ctx.logprobs))


def with_baseline(config: Settings) -> Recipe:
    torch.manual_seed(0)
    recipe = build(config, RUN)
    return replace(recipe, streams=(replace(recipe["fresh"], objectives=((Baseline(), 1.0),)),))


@pytest.mark.parametrize(
    ("make", "config"),
    [
        *(pytest.param(build, config, id=name) for name, config in NAMED.items()),
        pytest.param(lambda config, run: with_baseline(config), GRPOConfig(), id="module"),
    ],
)
def test_resuming_equals_going_on(config: Settings, make: Callable[[Settings, RunInfo], Recipe]) -> None:
    """4 updates = 2 updates, state saved and loaded elsewhere, 2 updates: to the bit."""

    def run(made: Any, policy: BigramPolicy, updates: range) -> list[Metrics]:
        return [made.update(buffer_of(groups(policy, seed=7, version=u), u), u) for u in updates]

    def fresh(policy: BigramPolicy) -> Any:
        return learner(make(config, RUN), policy, epochs=2, num_minibatches=3, schedule="cosine", warmup_share=0.2)

    straight = BigramPolicy()
    one = fresh(straight)
    expected = run(one, straight, range(4))
    first = BigramPolicy()
    stopped = fresh(first)
    run(stopped, first, range(2))
    state, tensors = stopped.state_dict()
    second = BigramPolicy(seed=99)
    second.table.data.copy_(first.table.detach())
    resumed = fresh(second)
    resumed.load_state_dict(state, {name: value.clone() for name, value in tensors.items()})
    found = run(resumed, second, range(2, 4))
    assert torch.equal(second.table, straight.table)
    assert [m.as_dict() for m in found] == [m.as_dict() for m in expected[2:]]
    assert resumed.state_dict()[0] == one.state_dict()[0]
    for name, value in one.state_dict()[1].items():
        assert torch.equal(resumed.state_dict()[1][name], value), name


def test_a_foreign_state_is_refused() -> None:
    state, tensors = learner(build(GRPOConfig(), RUN), BigramPolicy()).state_dict()
    with pytest.raises(ValueError, match="EntropyCorridor"):
        learner(build(EPOConfig(), RUN), BigramPolicy()).load_state_dict(state, tensors)
    made = learner(build(GRPOConfig(), RUN), BigramPolicy())
    other: Mapping[str, Tensor] = {"optimizer.0.exp_avg": torch.zeros(2), "optimizer.0.step": torch.zeros(())}
    with pytest.raises(ValueError, match="parameter 0"):
        made.load_state_dict(state, other)


def success(policy: BigramPolicy) -> float:
    """Probability of the right action, averaged over the four observations."""
    return float(policy.table.detach().softmax(-1)[[4, 5, 6, 7], [0, 1, 2, 3]].mean())


@pytest.mark.parametrize("config", [GRPOConfig(kl_coef=0.001), EPOConfig(base=GRPOConfig(kl_coef=0.001))])
@pytest.mark.parametrize("windowed", [False, True])
def test_learns_the_world(config: Settings, windowed: bool) -> None:
    policy = BigramPolicy(scale=0.0)
    made = learner(build(config, RunInfo(40, 8)), policy, RunInfo(40, 8), lr=0.1)
    assert success(policy) == pytest.approx(1 / 9)
    for update in range(40):
        batch = groups(policy, 1, num_groups=4, size=8, num_turns=2, windowed=windowed, version=update)
        made.update(buffer_of(batch, update), update)
    assert success(policy) > 0.8


def test_without_credit_nothing_is_learnt() -> None:
    """The crippled copy: rewards that tell nothing."""
    policy = BigramPolicy(scale=0.0)
    made = learner(build(GRPOConfig(kl_coef=0.001), RunInfo(40, 8)), policy, RunInfo(40, 8), lr=0.1)
    rng = np.random.default_rng(0)
    for update in range(40):
        batch = groups(policy, 1, num_groups=4, size=8, num_turns=2, version=update)
        noise = [
            Group(g.task, tuple(
                replace(t, turns=tuple(replace(x, reward=float(rng.random() < 0.3)) for x in t.turns))
                for t in g.trajectories))
            for g in batch
        ]  # fmt: skip
        made.update(buffer_of(noise, update), update)
    assert success(policy) < 0.4


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


class _Twice(Composer):
    """Fresh rows, and the same ones as a stream of their own."""

    streams = ("fresh", "again")

    def compose(self, update: int, samples: Samples, buffer: TrajectoryBuffer) -> Streams:
        made = (Stream(samples, layout(samples.groups, version=update, stream=name)) for name in self.streams)
        return Streams(tuple(made))


class Three(Regularizer):
    """A mean over tokens that is 3, whatever the tokens are."""

    def term(self, ctx: UpdateContext) -> Tensor:
        return ctx.token_mean(torch.full_like(ctx.logprobs, 3.0)) + 0.0 * ctx.logprobs.sum()


@pytest.mark.parametrize("phases", ["joint", "sequential"])
@pytest.mark.parametrize("both", [True, False])
def test_a_term_is_a_mean_over_the_steps_on_its_own_stream(phases: Any, both: bool) -> None:
    """Neither the steps on another stream dilute it, nor is it added to the term of the same name there."""
    policy = BigramPolicy()
    base = build(GRPOConfig(kl_coef=0.0, drop_uniform_groups=False), RUN)["fresh"]
    fresh = replace(base, regularizers=((Three(), 0.1),))
    again = replace(base, name="again", regularizers=((Three(), 0.1),) if both else ())
    recipe = Recipe("twice", _Twice(), (fresh, again), phases=phases)
    made = learner(recipe, policy, RUN, epochs=2, num_minibatches=3, microbatch_tokens=10)
    metrics = made.update(buffer_of(groups(policy)), 0)
    assert metrics.optimizer_steps == (6 if phases == "joint" else 12)
    wanted = {"Three": 3.0, "again.Three": 3.0} if both else {"Three": 3.0}
    assert metrics.regularizers == pytest.approx(wanted)
    assert "regularizers/Three" in metrics.as_dict()


def test_what_a_failed_episode_was_paid_is_in_no_return() -> None:
    policy = BigramPolicy()
    (group,) = groups(policy, num_groups=1, size=4, num_turns=3)
    paid = [
        replace(t, turns=tuple(replace(x, reward=float(n)) for x in t.turns)) for n, t in enumerate(group.trajectories)
    ]
    paid[0] = replace(paid[0], end="error")
    made = learner(build(GRPOConfig(), RUN), policy, RUN)
    metrics = made.update(buffer_of([Group(group.task, tuple(paid))]), 0)
    invalid = sum(not turn.valid for t in paid[1:] for turn in t.turns) / 3
    assert metrics.return_mean == pytest.approx(10 * 3 * (1 + 2 + 3) / 3 - 0.1 * invalid)
    assert metrics.num_trajectories == 4


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


def test_an_update_of_nothing_counts_nothing() -> None:
    metrics = learner(build(GRPOConfig(), RUN), BigramPolicy(), RUN).update(TrajectoryBuffer(), 0)
    assert (metrics.grad_norm, metrics.return_mean, metrics.loss) == (0.0, None, 0.0), "no return is no return of 0"
    assert (metrics.advantage_mean, metrics.advantage_std, metrics.ratio_max) == (0.0, 0.0, 0.0)
    assert (metrics.clip_share, metrics.dual_clip_share, metrics.ratio_mean, metrics.kl_behaviour) == (0.0,) * 4
    assert (metrics.policy_entropy, metrics.kl_reference, metrics.entropy) == (None, None, None)
    assert all(map(math.isfinite, metrics.as_dict().values()))


@pytest.mark.parametrize("config", VARIANTS)
def test_an_update_of_nothing(config: Settings) -> None:
    policy = BigramPolicy()
    before = policy.table.detach().clone()
    metrics = learner(build(config, RUN), policy).update(TrajectoryBuffer(), 0)
    assert all(math.isfinite(value) for value in metrics.as_dict().values())
    assert (metrics.optimizer_steps, metrics.num_rows, metrics.num_trajectories) == (0, 0, 0)
    assert torch.equal(policy.table.detach(), before)
