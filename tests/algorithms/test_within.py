"""Copies that begin within a reply: where, how many, what is learned from them, and by which return."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.agents.test_collector import HOUSE, SAMPLING, collector, tasks
from tests.algorithms.fakes import BigramPolicy, Sampler, buffer_of, episode, learner, task
from tests.algorithms.test_starts import RAW, RUN, paid, scripted
from tests.algorithms.trees import ScriptedRollouts
from turnwise.agents.rollouts import Rollouts
from turnwise.algorithms.ares import ARESConfig
from turnwise.algorithms.arpo import ARPOConfig
from turnwise.algorithms.common import FreshGroups
from turnwise.algorithms.cure import CUREConfig
from turnwise.algorithms.dapo import DAPOConfig
from turnwise.algorithms.dynamic_sampling import DynamicSampling
from turnwise.algorithms.etmr import ETMRConfig
from turnwise.algorithms.pear import PEARConfig
from turnwise.algorithms.registry import build
from turnwise.algorithms.within import Choice, OwnParts, WithinReplies, roots_of
from turnwise.learning.learner import shaped_rewards
from turnwise.learning.parts import Samples, Stream
from turnwise.trajectory import Fork, Group, Processing, Trajectory


def planner(group_size: int = 8, **settings: Any) -> WithinReplies:
    made = build(CUREConfig(base=RAW, **settings), replace(RUN, group_size=group_size)).planner
    assert isinstance(made, WithinReplies)
    return made


def attempt(*entropies: list[float], forced: dict[tuple[int, int], int] | None = None) -> Trajectory:
    """An attempt whose turns have these entropies; ``forced`` are numbers of allowed tokens, by turn and token."""
    sampler = Sampler.of(BigramPolicy(), np.random.default_rng(0))
    made = episode(sampler, num_turns=len(entropies), num_actions=len(entropies[0]))
    turns = []
    for number, (turn, nats) in enumerate(zip(made.turns, entropies, strict=True)):
        counts = [(forced or {}).get((number, n), 0) for n in range(len(nats))]
        kept = [turn.action_ids[n] for n, count in enumerate(counts) for _ in range(count)]
        processing = Processing(np.array(counts, np.int32), np.array(kept, np.int32), np.array(counts) == 1)
        turns.append(replace(turn, entropies=np.array(nats, np.float32), processing=processing))
    return replace(made, turns=tuple(turns))


def test_places_are_the_least_certain_tokens_that_were_a_choice() -> None:
    made = attempt([9.0, 1.0, 3.0], [5.0, 4.0, 8.0], [2.0, 6.0, 0.5], forced={(1, 2): 1, (1, 0): 2})
    assert Choice(4)(made) == [(2, 1), (1, 0), (1, 1), (0, 2)], "not the first of the episode, not a forced one"
    assert len(Choice(20)(made)) == 7
    assert Choice(4, by="random")(made) == Choice(20)(made)
    assert Choice(20, among="turn")(made) == [(1, 0), (1, 1)], "of the turn with mean 4.5"
    word = int(made.turns[2].action_ids[1])
    texts = {word: " to"}
    assert set(Choice(20, text=lambda token: texts.get(token, " 1"))(made)) == {
        (n, at) for n, at in Choice(20)(made) if made.turns[n].action_ids[at] == word
    }
    assert Choice(3)(replace(made, turns=())) == []


@pytest.mark.parametrize(("group_size", "roots"), [(16, 4), (8, 2), (5, 2), (4, 1)])
def test_a_group_is_attempts_and_copies_of_each(group_size: int, roots: int) -> None:
    made, rollouts = planner(group_size), ScriptedRollouts(lengths=(5, 6))
    found = made.plan([scripted(0), scripted(1)], rollouts)
    assert roots_of(group_size, 3) == roots
    for index in (0, 1):
        members = [t for t in found if t.task.index == index]
        copies = Counter((t.fork.parent, t.fork.turn) for t in members if t.fork)
        assert (len(members), sum(t.fork is None for t in members)) == (group_size, roots)
        assert len({parent for parent, _ in copies}) == len(copies), "copies of one attempt begin at one place"
        assert max(copies.values(), default=0) <= 3
    assert made.acted()["copies_per_task"] == group_size - roots
    again = planner(group_size).plan([scripted(0), scripted(1)], ScriptedRollouts(lengths=(5, 6)))
    assert [t.fork for t in again] == [t.fork for t in found]


def test_an_attempt_from_the_task_takes_the_place_of_a_copy_that_has_none() -> None:
    short = planner().plan([scripted()], ScriptedRollouts(lengths=(1,)))
    assert [t.fork for t in short] == [None] * 8
    failed = planner().plan([scripted()], ScriptedRollouts(lengths=(5,), unforkable=frozenset({1})))
    assert sum(t.fork is None for t in failed) == 2 + 3
    with pytest.raises(ValueError, match="a game of several players"):
        planner().plan([scripted()], ScriptedRollouts(player="buyer"))


def test_cure_is_played_inside_dynamic_sampling_and_refuses_trees() -> None:
    made = build(CUREConfig(base=DAPOConfig()), RUN)
    assert isinstance(made.planner, DynamicSampling)
    assert isinstance(made.planner.inner, WithinReplies)
    with pytest.raises(ValueError, match="cure decides from where attempts start, and so does arpo"):
        build(CUREConfig(base=ARPOConfig()), RUN)


@pytest.mark.parametrize("reader", [ARESConfig, PEARConfig])
def test_entropies_of_whole_replies_are_read_nowhere_beneath_copies(reader: Any) -> None:
    """On top of them ARES completes what it reads."""
    on_top = [PEARConfig(base=CUREConfig(base=RAW))] if reader is PEARConfig else []
    for config in (*on_top, CUREConfig(base=reader(base=RAW)), ETMRConfig(base=reader(base=RAW))):
        with pytest.raises(ValueError, match=r"(EffortTargets|ThoughtPenalty) reads the entropies of whole replies"):
            build(config, RUN)


def test_copies_of_a_real_attempt_keep_what_came_before_the_place() -> None:
    made = planner(top=1)
    source = collector(HOUSE, max_context_tokens=1024)
    found = made.plan(tasks(2, HOUSE), Rollouts(source, SAMPLING, key=3))
    by_episode = {t.episode: t for t in found}
    copies = [t for t in found if t.fork is not None]
    assert len(copies) == 12
    for copy in copies:
        assert copy.fork is not None
        parent, (turn, tokens) = by_episode[copy.fork.parent], (copy.fork.turn, copy.fork.tokens)
        assert [(turn, tokens)] == Choice(1)(parent)
        for n in range(turn):
            assert copy.turns[n].action_ids.tolist() == parent.turns[n].action_ids.tolist()
        assert copy.turns[turn].action_ids[:tokens].tolist() == parent.turns[turn].action_ids[:tokens].tolist()
    acted = made.acted()
    assert 0 < acted["shared_token_share"] < 1
    assert acted["other_token_share"] > 0.5, "two random tokens seldom are the same"
    shared = sum(t.num_action_tokens - t.num_sampled_tokens for t in copies) / sum(t.num_action_tokens for t in copies)
    assert acted["shared_token_share"] == pytest.approx(shared)


def family() -> Group:
    """An attempt that earns 0.5 and 0.5, one that earns nothing, and two copies from token 1 of the first one's turn 1.

    These were paid 0.5 before they began, and 0 and 2.5 afterwards.
    """
    sampler = Sampler.of(BigramPolicy(), np.random.default_rng(1))
    first, second, *others = (episode(sampler, sample=n, num_turns=3) for n in range(4))
    parent = paid(first, 0.5, 0.0, 0.5)
    copies = []
    for each, last in zip(others, (0.0, 2.5), strict=True):
        own = paid(each, 0.5, 0.0, last)
        ids = np.concatenate([parent.turns[1].action_ids[:1], own.turns[1].action_ids[1:]])
        begun = Processing(np.array([1, 0], np.int32), ids[:1], np.array([True, False]))
        turn = replace(parent.turns[1], action_ids=ids, processing=begun)
        turns = (parent.turns[0], turn, own.turns[2])
        copies.append(replace(own, turns=turns, fork=Fork(parent.episode, 1, tokens=1)))
    return Group(task(), (parent, paid(second, 0.0, 0.0, 0.0), *copies))


def composed(group: Group, config: CUREConfig) -> Stream:
    recipe = build(config, replace(RUN, group_size=4))
    policy: Any = BigramPolicy()
    samples = Samples((group,), shaped_rewards(recipe, RUN, group.trajectories, policy, update=0))
    (stream,) = recipe.composer.compose(0, samples, buffer_of([group])).streams
    estimator = recipe["fresh"].estimator
    assert estimator is not None
    return stream.with_columns(advantages=estimator.estimate(stream))


def test_one_group_is_compared_by_whole_returns_and_no_token_is_learned_from_twice() -> None:
    """Returns 1, 0, 0.5 and 3: mean 1.125."""
    group = family()
    stream = composed(group, CUREConfig(base=RAW))
    batch = stream.batch
    assert [len(each.trajectories) for each in stream.samples.groups] == [4]
    assert batch.advantages is not None
    found = [batch.advantages[batch.trajectory == n] for n in range(4)]
    for advantages, expected in zip(found, (-0.125, -1.125, -0.625, 1.875), strict=True):
        assert advantages[advantages != 0].unique().tolist() == [pytest.approx(expected)]
    assert batch.num_action_tokens == sum(t.num_sampled_tokens for t in group.trajectories) == 6 + 6 + 3 + 3
    copies = batch.trajectory >= 2
    before = len(group.trajectories[0].turns[0].prompt_ids) + 2 + len(group.trajectories[0].turns[1].prompt_ids) + 1
    assert not batch.action_mask[copies][:, :before].any(), "the turn before, and the beginning of the reply"
    assert batch.action_mask[copies][:, before].all()
    parent = batch.tokens[batch.trajectory == 0][0, :before]
    assert (batch.tokens[copies][:, :before] == parent).all()


def test_what_was_paid_before_a_copy_began_is_no_turns_doing() -> None:
    recipe = build(CUREConfig(base=RAW), replace(RUN, group_size=4))
    group = family()
    samples = Samples((group,), shaped_rewards(recipe, RUN, group.trajectories, BigramPolicy(), update=0))  # type: ignore[arg-type]
    (stream,) = recipe.composer.compose(0, samples, buffer_of([group])).streams
    rewards = stream.samples.rewards
    assert rewards.earned == ((0.5, 0.0, 0.5), (0.0, 0.0, 0.0), (0.0, 0.0), (0.0, 2.5))
    assert [rewards.extra(n) for n in range(4)] == [0.0, 0.0, 0.5, 0.5]
    assert [rewards.total(n) for n in range(4)] == [1.0, 0.0, 0.5, 3.0]
    assert recipe.composer.acted()["left_out_share"] == pytest.approx(6 / 24)


def test_groups_are_uniform_by_whole_raw_returns() -> None:
    """Each copy is paid 0.5 after it began, as all attempts are in all; but it had 0.5 before."""
    parent, other, *copies = family().trajectories
    alike = (paid(parent, 0.5, 0.0, 0.0), paid(other, 0.5, 0.0, 0.0), *(paid(t, 0.5, 0.0, 0.5) for t in copies))
    group = Group(task(), alike)
    samples = Samples((group,), shaped_rewards(build(RAW, RUN), RUN, alike, BigramPolicy(), update=0))  # type: ignore[arg-type]
    composer = OwnParts(FreshGroups(drop_uniform=True, raw=True))
    assert composer.compose(0, samples, buffer_of([group])).dropped_groups == 0
    same = Group(task(), (*alike[:2], *(paid(t, 0.5, 0.0, 0.0) for t in copies)))
    samples = Samples((same,), shaped_rewards(build(RAW, RUN), RUN, same.trajectories, BigramPolicy(), update=0))  # type: ignore[arg-type]
    assert composer.compose(0, samples, buffer_of([same])).dropped_groups == 1


def test_a_better_continuation_becomes_likelier_and_what_it_shares_does_not() -> None:
    """The only gradient is that of the copies: their parent and the other attempt have no advantage."""
    policy, group = BigramPolicy(), family()
    parent, other, low, high = group.trajectories
    even = (
        paid(parent, 0.5, 0.0, 1.0),
        paid(other, 1.5, 0.0, 0.0),
        paid(low, 0.5, 0.0, 0.0),
        paid(high, 0.5, 0.0, 2.0),
    )
    made = learner(build(CUREConfig(base=RAW), RUN), policy, RUN)
    before = policy.table.detach().clone()
    made.update(buffer_of([Group(group.task, even)]), 0)
    moved = (policy.table.detach() - before).abs().sum(1) > 0
    contexts = set()
    for copy in (low, high):
        turn, later = copy.turns[1:]
        contexts |= {int(turn.action_ids[0]), int(later.prompt_ids[-1]), int(later.action_ids[0])}
    assert set(torch.nonzero(moved).flatten().tolist()) <= contexts
    assert moved.any()
