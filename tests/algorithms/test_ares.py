"""ARES: windows, targets and rewards by hand; the KL's factors; what a checkpoint keeps."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.agents.test_collector import HOUSE, SAMPLING, collector, tasks
from tests.algorithms.fakes import TEN, BigramPolicy, Sampler, buffer_of, episode, task
from tests.algorithms.test_starts import tree
from turnwise.agents.rollouts import Rollouts
from turnwise.algorithms.ares import ARESConfig
from turnwise.algorithms.arpo import ARPOConfig
from turnwise.algorithms.counterfactual import CounterfactualConfig
from turnwise.algorithms.cure import CUREConfig
from turnwise.algorithms.effort import EffortKL, EffortTargets, difficulty, released_term, wrong_side
from turnwise.algorithms.etmr import ETMRConfig
from turnwise.algorithms.grpo import GRPOConfig
from turnwise.algorithms.pear import PEARConfig
from turnwise.algorithms.registry import build
from turnwise.algorithms.tree import TreePlanner
from turnwise.algorithms.windows import beginnings, mean_threshold, window_means, within_windows
from turnwise.algorithms.within import OwnParts, WithinReplies, with_beginnings
from turnwise.learning.parts import MinibatchView, Samples, Streams
from turnwise.learning.primitives import Counts
from turnwise.learning.recipe import Recipe
from turnwise.learning.rewards import raw_rewards
from turnwise.learning.settings import RewardSettings, RunInfo
from turnwise.trajectory import Fork, Group, Processing, Trajectory

RUN = RunInfo(num_updates=10, group_size=4, rewards=TEN)
SAMPLER = Sampler.of(BigramPolicy(), np.random.default_rng(0))


def reply(*entropies: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array(entropies, np.float32)


def attempt(windows: int, *, won: bool, index: int = 0, sample: int = 0) -> Trajectory:
    """An episode of one-token replies, ``windows`` of them of 1 nat, and 19 of none for each."""
    made = episode(SAMPLER, index=index, sample=sample, num_turns=20 * windows or 1, num_actions=1)
    turns = tuple(
        replace(t, entropies=reply(float(n < windows)), reward=0.0 if n else 10.0 * won)
        for n, t in enumerate(made.turns)
    )
    return replace(made, turns=turns, success=won)


def group(windows: list[int], won: list[bool], index: int = 0) -> Group:
    members = [attempt(n, won=w, index=index, sample=s) for s, (n, w) in enumerate(zip(windows, won, strict=True))]
    return Group(task(index), tuple(members))


def parts(**settings: Any) -> tuple[Recipe, EffortTargets]:
    recipe = build(ARESConfig(base=GRPOConfig(kl_coef=0.0, drop_uniform_groups=False), **settings), RUN)
    assert isinstance(recipe.composer, EffortTargets)
    return recipe, recipe.composer


def composed(composer: EffortTargets, *groups: Group) -> Streams:
    members = tuple(t for each in groups for t in each.trajectories)
    return composer.compose(0, Samples(groups, raw_rewards(members)), buffer_of(list(groups)))


def taken(composer: EffortTargets, *groups: Group) -> list[float]:
    """What each attempt's return changes by, in successes."""
    (stream,) = composed(composer, *groups)
    rewards = stream.samples.rewards
    return [rewards.extra(n) / 10.0 for n in range(len(rewards.earned))]


def test_windows_do_not_reach_beyond_a_reply_and_a_short_one_is_one() -> None:
    assert window_means(reply(1, 2, 3, 4), 3).tolist() == [2.0, 3.0]
    assert window_means(reply(1, 2), 3).tolist() == [1.5]
    assert window_means(reply(), 3).tolist() == []
    assert within_windows(reply(0, 0, 3, 3, 0), 2, 1.5).tolist() == [False, True, True, True, True]
    assert within_windows(reply(4), 2, 4.0).tolist() == [True]


def test_the_threshold_is_a_mean_over_attempts() -> None:
    """Quantiles 0.5: of tokens 1, 2, 3 (two replies) 2 and of 10 alone 10; of windows 1.5, 3 and 10."""
    attempts = [[reply(1, 2), reply(3)], [reply(10)]]
    assert [mean_threshold(attempts, width, 0.5) for width in (1, 2)] == [6.0, 6.125]
    _, windows = parts(window=2, quantile=0.5)
    _, tokens = parts(window=2, quantile=0.5, quantile_of="tokens")
    (turn,) = episode(SAMPLER, num_turns=1, num_actions=3).turns
    for targets in (windows, tokens):
        made = replace(attempt(0, won=False), turns=(replace(turn, entropies=reply(0, 1, 5)),))
        taken(targets, Group(task(), (made,)))
    assert (windows.threshold, tokens.threshold) == (1.75, 1.0)


@pytest.mark.parametrize(("won", "kind"), [(0.25, "hard"), (0.375, "medium"), (0.625, "medium"), (0.75, "easy")])
def test_difficulties_of_eight_attempts_are_the_papers(won: float, kind: str) -> None:
    assert difficulty(won, ARESConfig().levels) == kind


def test_directions() -> None:
    kinds = ("easy", "medium", "hard")
    assert [[wrong_side(kind, x) for x in (-2.0, 3.0)] for kind in kinds] == [[0, 3], [2, 3], [2, 0]]


def lost_easy(windows: list[int]) -> Group:
    """Three of four win, the last one does not."""
    return group(windows, [True, True, True, False])


def test_a_lost_attempt_pays_for_windows_beyond_what_was_usual_on_easy_tasks() -> None:
    """Usual: 2. Now 2, 2, 2, 6: mean 3, variance 3; lam = (3 - 2) / (3 + 1); 6 - 2 too many cost 1, at most 0.5.

    The next target is 0.5 * 2 + 0.5 * 3.
    """
    _, targets = parts(window=1, decay=0.5)
    assert taken(targets, lost_easy([2, 2, 2, 2])) == [0.0] * 4, "the first update has nothing to compare with"
    assert taken(targets, lost_easy([2, 2, 2, 6])) == [0.0, 0.0, 0.0, -0.5]
    assert targets.targets == {"easy": 2.5}
    _, bold = parts(window=1, decay=0.5, cap=3.0)
    taken(bold, lost_easy([2, 2, 2, 2]))
    assert taken(bold, lost_easy([2, 2, 2, 6])) == pytest.approx([0.0, 0.0, 0.0, -1.0])
    acted = bold.acted()
    assert acted["changed_share"] == pytest.approx(1 / 8)
    assert (acted["easy_share"], acted["hard_share"], acted["windows"]) == (1.0, 0.0, 20 / 8)


def test_on_hard_tasks_too_few_cost_and_on_easy_ones_do_not() -> None:
    """Usual: 4. Now 2, 2, 2, 4: mean 2.5, variance 0.75; lam = 1.5 / 1.75; 2 too few cost 3 / 1.75."""
    lost = [False] * 4
    _, targets = parts(window=1, cap=9.0)
    taken(targets, group([4] * 4, lost))
    assert taken(targets, group([2, 2, 2, 4], lost)) == pytest.approx([-3 / 1.75] * 3 + [0.0])
    _, easy = parts(window=1, cap=9.0)
    taken(easy, lost_easy([4, 4, 4, 4]))
    assert taken(easy, lost_easy([4, 4, 4, 2])) == [0.0] * 4


def test_each_difficulty_has_its_own_target() -> None:
    _, targets = parts(window=1)
    found = taken(targets, lost_easy([1, 1, 1, 1]), group([3] * 4, [False] * 4, index=1))
    assert found == [0.0] * 8
    assert targets.targets == {"easy": 1.0, "hard": 3.0}


def test_the_released_form_pays_lost_attempts_and_moves_its_coefficient() -> None:
    """One-token replies have no following window: 0 of a target of 0. Lost and easy: 0.6 * 0.5 * 0.5.

    Then 1, 1, 1 and 4 tokens have one: 1.75 in the mean, 2 are meant.
    """
    _, targets = parts(window=1, form="released")
    assert taken(targets, lost_easy([1, 1, 1, 1])) == pytest.approx([0.0, 0.0, 0.0, 0.15])
    members = []
    for trajectory, tokens in zip(lost_easy([1, 1, 1, 1]).trajectories, [2, 2, 2, 5], strict=True):
        (turn,) = episode(SAMPLER, num_turns=1, num_actions=tokens).turns
        turns = (replace(turn, entropies=reply(0, *[1] * (tokens - 1))),)
        members.append(replace(trajectory, turns=turns))
    found = taken(targets, Group(task(), tuple(members)))
    assert targets.alphas["easy"] == pytest.approx(0.5 + 0.05 * (1.75 - 2))
    assert found == pytest.approx([0.0] * 3 + [released_term("easy", False, 4, 2, targets.alphas["easy"])])
    assert found[3] > 0.15
    lost = Group(task(), tuple(replace(each, success=False) for each in members))
    taken(targets, lost)
    assert targets.alphas["hard"] == pytest.approx(0.5 - 0.05 * (1.75 - 2)), "with hard tasks the other way"


@pytest.mark.parametrize("form", ["paper", "released"])
def test_what_is_taken_is_a_share_of_a_success(form: Any) -> None:
    found = []
    for rewards in (RewardSettings(), TEN):
        targets = build(ARESConfig(window=1, form=form), replace(RUN, rewards=rewards)).composer
        assert isinstance(targets, EffortTargets)
        taken(targets, lost_easy([2, 2, 2, 2]))
        found.append([n * 10.0 / rewards.success for n in taken(targets, lost_easy([2, 2, 2, 4]))])
    assert found[0] == pytest.approx(found[1])
    assert found[0][3] != 0.0


def test_a_failed_episode_neither_counts_nor_pays() -> None:
    _, targets = parts(window=1)
    made = lost_easy([1, 1, 1, 5])
    failed = replace(made, trajectories=(*made.trajectories[:3], replace(made.trajectories[3], end="error")))
    taken(targets, failed)
    assert targets.targets == {"easy": 1.0}


def test_the_kl_is_relaxed_in_windows_and_by_difficulty() -> None:
    """A reply of four tokens, the second forced; the last two are a window."""
    recipe, targets = parts(window=2, quantile=0.5, kl_factors=(2.0, 1.0, 0.25), kl_relaxed=0.5)
    (part, _), *_ = recipe["fresh"].regularizers
    assert isinstance(part, EffortKL)
    made = episode(SAMPLER, num_turns=2, num_actions=4)
    forced = Processing(
        np.array([0, 1, 0, 0], np.int32), made.turns[1].action_ids[1:2], np.array([False, True, False, False])
    )
    turns = (
        replace(made.turns[0], entropies=reply(0, 0, 1, 1)),
        replace(made.turns[1], entropies=reply(0, 0, 1, 1), processing=forced),
    )
    streams = composed(targets, Group(task(), (replace(made, turns=turns, success=False),)))
    assert targets.threshold == 0.5
    part.before_update(0, streams)
    batch = streams["fresh"].batch
    counts = Counts.of(batch.action_mask, batch.turn_index)
    part.prepare(MinibatchView(0, batch, counts, lambda: batch.behaviour_logprobs))
    found = part.factors[batch.action_mask].tolist()
    assert found == [0.25, 0.125, 0.125, 0.125, 0.25, 0.125, 0.125]
    assert part.acted()["relaxed_share"] == pytest.approx(5 / 7)


def test_the_kl_has_the_difficulty_of_the_return_where_the_base_groups_attempts_by_state() -> None:
    """Two of five attempts win: 1 of 2 from the task, 1 of 4 from the state."""
    made = Group(task(), tuple(replace(t, success=n in (1, 4)) for n, t in enumerate(tree().trajectories)))
    recipe = build(ARESConfig(base=CounterfactualConfig(base=GRPOConfig(kl_coef=0.0))), replace(RUN, group_size=8))
    (part, _), *_ = recipe["fresh"].regularizers
    assert isinstance(recipe.composer, EffortTargets)
    assert isinstance(part, EffortKL)
    streams = composed(recipe.composer, made)
    assert len(streams["fresh"].samples.groups) == 2
    part.before_update(0, streams)
    assert recipe.composer.acted()["medium_share"] == 1.0, "two of five"
    assert part.by_attempt.tolist() == [1.0] * len(streams["fresh"].samples.trajectories)


def test_a_checkpoint_keeps_targets_and_threshold() -> None:
    first, second, third = lost_easy([2, 2, 2, 2]), lost_easy([2, 2, 2, 3]), lost_easy([1, 1, 1, 9])
    for form in ("paper", "released"):
        _, whole = parts(window=1, form=form)
        _, begun = parts(window=1, form=form)
        for each in (whole, begun):
            taken(each, first)
            taken(each, second)
        _, resumed = parts(window=1, form=form)
        resumed.load_state_dict(json.loads(json.dumps(begun.state_dict())))
        assert taken(resumed, third) == taken(whole, third)
        assert resumed.threshold == whole.threshold


def test_two_kl_terms_are_refused_and_a_tree_is_kept() -> None:
    with pytest.raises(ValueError, match="ReferenceKL and EffortKL both steer the distance to the reference"):
        build(ARESConfig(base=GRPOConfig()), RUN)
    assert isinstance(build(ARESConfig(base=ARPOConfig()), RUN).planner, TreePlanner)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levels": (0.7, 0.3)}, "levels needs"),
        ({"kl_factors": (1.0, -1.0, 1.0)}, "cannot be negative"),
        ({"form": "released", "eps": 2.0}, "eps: for form=paper only"),
        ({"kl_coef": 0.0, "kl_relaxed": 0.1}, "kl_relaxed: for kl_coef above 0 only"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ARESConfig(**settings)


@pytest.mark.parametrize("form", ["paper", "released"])
def test_certain_replies_have_no_windows(form: Any) -> None:
    _, targets = parts(window=1, form=form)
    (turn,) = episode(SAMPLER, num_turns=1, num_actions=3).turns
    made = replace(attempt(0, won=False), turns=(replace(turn, entropies=reply(0, 0, 0)),))
    taken(targets, Group(task(), (made,)))
    assert targets.acted()["windows"] == 0.0


def test_nothing_said_changes_nothing() -> None:
    _, targets = parts()
    silent = [episode(SAMPLER, sample=s, num_actions=0) for s in range(3)]
    assert taken(targets, Group(task(), tuple(silent))) == [0.0] * 3
    assert targets.threshold is None
    assert torch.isfinite(torch.tensor(list(targets.targets.values()))).all()


def spoken(*turns: list[float], forced: int = 0, **changes: Any) -> Trajectory:
    """An attempt with these entropies, turn by turn; the first ``forced`` tokens of the last turn were no choice."""
    made = episode(SAMPLER, num_turns=len(turns), num_actions=len(turns[0]))
    own = [replace(turn, entropies=reply(*nats)) for turn, nats in zip(made.turns, turns, strict=True)]
    counts = np.array([1] * forced + [0] * (len(turns[0]) - forced), np.int32)
    ids = own[-1].action_ids
    own[-1] = replace(own[-1], processing=Processing(counts, ids[:forced], counts == 1))
    return replace(made, turns=tuple(own), **changes)


def test_a_stretch_of_windows_begins_once() -> None:
    """Means of two: 1, 2, 2, 0, 0, 2, 4."""
    entropies = reply(0, 2, 2, 2, -2, 2, 2, 6)
    assert beginnings(entropies, 2, 2.0) == [1, 5]
    assert beginnings(entropies, 2, 0.0) == [0]
    assert beginnings(entropies, 2, 9.0) == beginnings(reply(), 2, 0.0) == []
    assert beginnings(reply(3), 2, 2.0) == [0]


def test_copies_begin_where_a_stretch_of_windows_does() -> None:
    _, composer = parts(window=2, branches=3)
    played = spoken([3.0, 3.0, 0.0, 3.0, 3.0], [3.0, 3.0, 0.0, 0.0, 0.0], [0.0, 3.0, 3.0, 0.0, 3.0])
    assert composer.places(played) == [], "before there is a threshold"
    composer.threshold = 2.0
    assert composer.places(played) == [(0, 3), (1, 0), (2, 1)], "not from the first token of the episode"
    held = spoken([0.0, 3.0, 3.0, 0.0, 0.0], forced=2)
    assert composer.places(held) == [], "it would come again"


def test_branches_are_played_within_replies_by_the_last_threshold() -> None:
    recipe, composer = parts(branches=3)
    planner = recipe.planner
    assert isinstance(planner, WithinReplies)
    assert (planner.roots, planner.forks, planner.copies, planner.remembers) == (1, 3, 1, True)
    assert planner.choice == composer.places
    assert isinstance(composer.inner, OwnParts)
    assert parts()[0].planner is None
    with pytest.raises(ValueError, match="ares decides from where attempts start, and so does arpo"):
        build(ARESConfig(base=ARPOConfig(base=GRPOConfig(kl_coef=0.0)), branches=2), RUN)
    with pytest.raises(ValueError, match="branches: for form=paper only"):
        ARESConfig(form="released", branches=2)


def test_a_copy_counts_the_windows_of_the_beginning_that_it_shares() -> None:
    """Both have the window of tokens 0 and 1, which the copy forced; its own entropies begin at token 2."""
    parent = spoken([2.0, 2.0, 0.0, 0.0], [2.0, 2.0, 0.0, 0.0], episode="parent")
    copy = spoken(
        [2.0, 2.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], forced=2, episode="copy", fork=Fork("parent", 1, tokens=2)
    )
    (both,) = with_beginnings([Group(task(), (parent, copy))])
    assert both.trajectories[0] is parent
    assert both.trajectories[1].turns[1].entropies.tolist() == [2.0, 2.0, 0.0, 0.0]
    (alone,) = with_beginnings([Group(task(), (copy,))])
    assert alone.trajectories[0] is copy, "a parent that was lost"
    for lost in (replace(copy, turns=copy.turns[:1], end="error"), replace(copy, turns=(), end="error")):
        (group,) = with_beginnings([Group(task(), (parent, lost))])
        assert group.trajectories[1] is lost, "its world failed before its own turn"
        composed(parts(window=2, branches=1)[1], Group(task(), (parent, lost)))  # no error
    short = replace(parent, turns=parent.turns[:1], end="error")
    (group,) = with_beginnings([Group(task(), (short, copy))])
    assert group.trajectories[1] is copy, "the parent's world failed, when it was played again"
    _, composer = parts(window=2, branches=1, quantile=1.0)
    streams = composed(composer, Group(task(), (parent, copy)))
    assert composer.threshold == 2.0
    assert composer.acted()["windows"] == 2.0
    (stream,) = streams
    assert [len(t.turns) for t in stream.samples.trajectories] == [2, 1], "the copy learns from its own turn"
    inside = EffortKL(composer, composer.config)
    inside.before_update(0, streams)
    assert inside.played[1].turns[0].entropies.tolist() == [2.0, 2.0, 0.0, 0.0]
    assert int(inside.windows(stream.batch).sum()) == 4, "of the parent alone: the copy chose none in a window"


def test_copies_do_not_raise_the_threshold_of_the_branches() -> None:
    low, high = spoken([1.0] * 4), spoken([5.0] * 4, episode="copy", fork=Fork("low", 0, tokens=1))
    for branches, expected in ((1, 1.0), (0, 3.0)):
        _, composer = parts(window=2, branches=branches, quantile=1.0)
        composed(composer, Group(task(), (low, high)))
        assert composer.threshold == expected


def test_copies_of_a_base_within_replies_are_read_with_their_beginnings() -> None:
    """Of a base; but not beneath one, where they have been cut."""
    raw = GRPOConfig(kl_coef=0.0, drop_uniform_groups=False)
    for base in (CUREConfig(base=raw), ETMRConfig(base=raw)):
        assert isinstance(build(ARESConfig(base=base), RUN).composer, EffortTargets)
    for config in (CUREConfig(base=ARESConfig(base=raw)), PEARConfig(base=ARESConfig(base=raw, branches=2))):
        with pytest.raises(ValueError, match=r"(EffortTargets|ThoughtPenalty) reads the entropies of whole replies"):
            build(config, RUN)


def test_attempts_branch_in_real_replies() -> None:
    """The first update has no threshold, and plays independent attempts; the second one has copies."""
    run = replace(RUN, group_size=6)
    recipe = build(ARESConfig(base=GRPOConfig(kl_coef=0.0, drop_uniform_groups=False), window=2, branches=2), run)
    assert isinstance(recipe.composer, EffortTargets)
    assert recipe.planner is not None
    source = collector(HOUSE, max_context_tokens=1024)
    first = recipe.planner.plan(tasks(1, HOUSE), Rollouts(source, SAMPLING, key=3))
    assert [t.fork for t in first] == [None] * 6
    composed(recipe.composer, Group(first[0].task, tuple(first)))
    second = recipe.planner.plan(tasks(1, HOUSE), Rollouts(source, SAMPLING, key=4))
    copies = [t for t in second if t.fork is not None]
    assert len(second) == 6
    assert 0 < len(copies) <= 4
    threshold = recipe.composer.threshold
    assert threshold is not None
    by_episode = {t.episode: t for t in second}
    for copy in copies:
        assert copy.fork is not None
        entropies = by_episode[copy.fork.parent].turns[copy.fork.turn].entropies
        assert copy.fork.tokens in beginnings(entropies, 2, threshold)
        assert copy.turns[copy.fork.turn].entropies[: copy.fork.tokens].tolist() == [0.0] * copy.fork.tokens
