"""HGPO's, G2PO's and GraphGPO's credit of turns by hand: histories, values of states, distances to the goal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from tests.algorithms.fakes import task
from tests.algorithms.test_gigpo import step_credit, walk
from turnwise.algorithms.anchors import goal_distances, same_histories
from turnwise.algorithms.g2po import G2POConfig, StateValues
from turnwise.algorithms.gigpo import StepAdvantage
from turnwise.algorithms.graphgpo import GoalDistance, GraphGPOConfig
from turnwise.algorithms.hgpo import HGPOConfig, NestedCredit
from turnwise.learning.parts import Samples, Stream
from turnwise.learning.rewards import RewardTable
from turnwise.replay.batch import layout
from turnwise.trajectory import Group, Trajectory

RAW = {"normalize_std": False}


def of(*trajectories: Trajectory) -> tuple[Group, ...]:
    return (Group(task(), trajectories),)


def table(*earned: tuple[float, ...]) -> RewardTable:
    return RewardTable(earned, tuple((0.0,) * len(row) for row in earned))


def credit(
    part: NestedCredit | StateValues | GoalDistance, groups: tuple[Group, ...], rewards: RewardTable
) -> list[list[float]]:
    return step_credit(groups, rewards, part)  # type: ignore[arg-type]


def test_histories_of_a_task_are_numbered_by_their_last_states() -> None:
    groups = (*of(walk(0, "aba"), walk(1, "cba")), Group(task(1), (walk(2, "aba", index=1),)))
    stream = Stream(Samples(groups, table((0.0,) * 3, (0.0,) * 3, (0.0,) * 3)), layout(groups))
    numbers = [same_histories(stream, k).tolist() for k in (1, 2, 3)]
    assert [numbers[0][i] for i in (0, 2, 5)] == [0, 0, 0]  # a, wherever it was met
    assert numbers[1][2] == numbers[1][5]  # ba
    assert len(set(numbers[1])) == 8
    assert len(set(numbers[2])) == 9  # aba and cba differ; so do the tasks


def test_levels_are_weighed_by_their_length() -> None:
    """State b: returns 4 and 1, so +-1.5; with its history ab the same pair: the mean of equal levels is 1.5."""
    groups, rewards = of(walk(0, "ab"), walk(1, "ab"), walk(2, "cb")), table((0.0, 4.0), (0.0, 1.0), (0.0, 1.0))
    part = NestedCredit(HGPOConfig(history=1, gamma=1.0, episode_level=False, **RAW), 0.0)  # type: ignore[arg-type]
    found = credit(part, groups, rewards)
    # b: 4, 1, 1 of mean 2; ab: 4, 1 of mean 2.5. Weights 2 and 3. The first turns: a: 4, 1 (level 1 only); c: alone.
    assert found[0] == pytest.approx([1.5, (2 * 2.0 + 3 * 1.5) / 5], rel=1e-5)
    assert found[1] == pytest.approx([-1.5, (2 * -1.0 + 3 * -1.5) / 5], rel=1e-5)
    assert found[2] == pytest.approx([0.0, -1.0], rel=1e-5)
    assert part.acted() == {"compared_share": 5 / 6, "history_share": 2 / 6}


def test_one_level_beside_the_episodes_is_the_mean_of_gigpos_two() -> None:
    groups = of(walk(0, "ab"), walk(1, "ab"), walk(2, "a"))
    rewards = table((0.0, 4.0), (0.0, 1.0), (9.0,))
    step = step_credit(groups, rewards, StepAdvantage(1.0, 0.9, None, normalize_std=False, eps=0.0))
    config = HGPOConfig(history=0, length_weight=0.0, gamma=0.9, **RAW)  # type: ignore[arg-type]
    batch = layout(groups)
    given = torch.tensor([0.3, -0.5, 0.2]).unsqueeze(1) * batch.action_mask
    found = NestedCredit(config, 0.0).modify(Stream(Samples(groups, rewards), batch.with_columns(advantages=given)))
    for row, episode in enumerate((0.3, -0.5, 0.2)):
        for n, value in enumerate(step[row]):
            mine = found[row][batch.turn_index[row] == n]
            torch.testing.assert_close(mine, torch.full_like(mine, (episode + value) / 2), rtol=1e-5, atol=1e-6)


def test_rounding_is_no_difference() -> None:
    """Six equal returns of 10 * .95^2, one a rounding apart: no level tells them apart."""
    value = 10 * 0.95**2
    groups = of(*(walk(s, "a") for s in range(6)))
    rewards = table(*([(value,)] * 5), (value * (1 + 2e-16),))
    part = NestedCredit(HGPOConfig(episode_level=False), 1e-6)
    assert credit(part, groups, rewards) == [[0.0]] * 6


def values_of(part: StateValues, groups: tuple[Group, ...], rewards: RewardTable) -> tuple[list[float], list[float]]:
    stream = Stream(Samples(groups, rewards), layout(groups))
    values, following = part.values(stream, same_histories(stream, 1))
    return values.tolist(), following.tolist()


def test_values_are_means_over_visits_and_end_in_the_success() -> None:
    """ab wins 8 and is a success, cb loses: b is worth half of gamma * 8."""
    won = replace(walk(0, "ab"), success=True)
    lost = replace(walk(1, "cb"), success=False)
    part = StateValues(G2POConfig(gamma=0.5, **RAW), 8.0)  # type: ignore[arg-type]
    values, following = values_of(part, of(won, lost), table((0.0, 8.0), (0.0, 0.0)))
    assert values == [2.0, 2.0, 0.0, 2.0]  # a: .25 * 8; b: (.5 * 8 + 0) / 2; c: 0
    assert following == [2.0, 8.0, 2.0, 0.0]
    found = credit(part, of(won, lost), table((0.0, 8.0), (0.0, 0.0)))
    # A_1 in b: 8 against 0. A_2: gains 0, 6, 2, -2 of mean 1.5. The lost episode's first turn gained.
    assert found == [pytest.approx([0.0 - 1.5, 4.0 + 4.5]), pytest.approx([0.5, -4.0 - 3.5])]
    assert part.acted() == {"compared_share": 0.5, "gain_share": 1.0}


def test_a_world_that_tells_no_success_is_won_by_its_reward() -> None:
    unknown = [replace(walk(s, "a"), success=None) for s in range(2)]
    part = StateValues(G2POConfig(**RAW), 8.0)  # type: ignore[arg-type]
    assert values_of(part, of(*unknown), table((8.0,), (7.9,)))[1] == [8.0, 0.0]


def test_penalties_are_compared_in_the_state_and_nowhere_else() -> None:
    groups = of(walk(0, "a"), walk(1, "a"))
    rewards = RewardTable(((0.0,), (0.0,)), ((-1.0,), (0.0,)))
    part = StateValues(G2POConfig(**RAW), 1.0)  # type: ignore[arg-type]
    assert credit(part, groups, rewards) == [[-0.5], [0.5]]


def ended(sample: int, states: str, last: str, success: bool | None) -> Trajectory:
    return replace(walk(sample, states), success=success, last_anchor=last)


def test_distances_go_along_edges_of_different_episodes() -> None:
    """a-b-c is won. A lost episode goes from a to c directly: a is two turns away. d leads nowhere."""
    states = [(0, s) for s in "abcad"] + [(1, "a")]
    following = [(0, "b"), (0, "c"), (0, None), (0, "c"), (0, "e"), (1, "b")]
    assert goal_distances(states, following) == {
        **{(0, None): 0, (0, "c"): 1, (0, "b"): 2, (0, "a"): 2, (0, "d"): 3, (0, "e"): 3},
        **{(1, None): 0, (1, "a"): 1, (1, "b"): 1},
    }


@pytest.mark.parametrize("last", ["c", ""])
def test_a_lost_episode_is_judged_by_where_it_ended(last: str) -> None:
    """From a: to b, two turns away, or to c, one turn away, where a lost episode stopped if its record says so."""
    won, lost = ended(0, "abc", "won", True), ended(1, "a", last, False)
    part = GoalDistance(GraphGPOConfig(gamma=0.5, **RAW), 8.0)  # type: ignore[arg-type]
    found = credit(part, of(won, lost), table((0.0, 0.0, 8.0), (0.0,)))
    nearer = 8 * (0.5 - 0.25) if last else 8 * (0.5**4 - 0.25)  # else a state of its own, farther than all known ones
    assert found == [pytest.approx([-nearer / 2, 0.0, 0.0]), pytest.approx([nearer / 2])]
    assert part.acted()["compared_share"] == 0.5


def test_what_a_turn_gained_and_what_an_episode_counts() -> None:
    """relative: every return is gamma^0 on the shortest path, gamma^1 for a turn that stays."""
    won, other = ended(0, "aab", "won", True), ended(1, "ab", "won", None)
    config = GraphGPOConfig(gamma=0.5, relative=True, episode_coef=0.5, **RAW)  # type: ignore[arg-type]
    part, groups, rewards = GoalDistance(config, 8.0), of(won, other), table((0.0, 0.0, 8.0), (0.0, 8.0))
    batch = layout(groups)
    stream = Stream(Samples(groups, rewards), batch.with_columns(advantages=2.0 * batch.action_mask))
    assert part.returns(stream).tolist() == [4.0, 8.0, 8.0, 8.0, 8.0]
    found = part.modify(stream)[1][batch.action_mask[1]].unique().tolist()  # from a: 4, 8, 8 of mean 20 / 3; from b: 0
    assert found == pytest.approx([1.0, 1.0 + 4 / 3])


def in_states(trajectory: Trajectory, keys: Sequence[str], actions: str) -> Trajectory:
    """The episode in a world that tells the keys of its states, the last one too, with these actions."""
    told = zip(trajectory.turns, keys[:-1], actions, strict=True)
    turns = tuple(replace(turn, state_key=key, action=action) for turn, key, action in told)
    return replace(trajectory, turns=turns, last_state_key=keys[-1])


@pytest.mark.parametrize("states", ["key", "anchor"])
def test_no_way_leads_through_a_text_that_states_share(states: str) -> None:
    """The text n answers what fails, in states 1 and 2. The won episode met it one turn before its goal.

    A lost episode fails in its first state, and another one goes on to state 2. By the text, failing led next to the
    goal. By the keys it led nowhere, and going on led nearer.
    """
    won = in_states(ended(0, "abn", "won", True), "1223", "gfg")
    failed = in_states(ended(1, "a", "n", False), "11", "f")
    went = in_states(ended(2, "a", "b", False), "12", "g")
    config = GraphGPOConfig(gamma=0.5, states=states, **RAW)  # type: ignore[arg-type]
    part, groups = GoalDistance(config, 8.0), of(won, failed, went)
    rewards = table((0.0, 0.0, 8.0), (0.0,), (0.0,))
    returns = part.returns(Stream(Samples(groups, rewards), layout(groups))).tolist()
    found = [credits[0] for credits in credit(part, groups, rewards)]
    if states == "key":
        assert returns == [4.0, 4.0, 8.0, 2.0, 4.0]  # 1 is two turns away, 2 is one
        assert found == pytest.approx([2 / 3, -4 / 3, 2 / 3])
        assert part.acted() == {"compared_share": 1.0, "contradicted_share": 0.0}
    else:
        assert returns == [2.0, 4.0, 8.0, 4.0, 2.0]  # by the text: b two turns away, n one
        assert found == pytest.approx([-2 / 3, 4 / 3, -2 / 3])
        assert part.acted() == {"compared_share": 0.6, "contradicted_share": 0.0}


def test_turns_that_contradict_each_other_are_counted() -> None:
    """From a the same action led to b and to c: a stands for several states."""
    groups = of(*(in_states(ended(n, "a", last, False), ["", ""], "g") for n, last in enumerate("bcb")))
    other = in_states(ended(3, "a", "d", False), ["", ""], "f")
    part = GoalDistance(GraphGPOConfig(), 1.0)
    credit(part, of(*groups[0].trajectories, other), table((0.0,), (0.0,), (0.0,), (0.0,)))
    assert part.acted()["contradicted_share"] == 3 / 4


@pytest.mark.parametrize(("goal", "values"), [("success", [4.0, 4.0, 4.0]), ("reward", [8.0, 4.0, 4.0])])
def test_what_reaches_the_goal(goal: str, values: list[float]) -> None:
    """A part of a success's worth does so on request only; with no goal every state is equally far."""
    some, none = ended(0, "a", "b", None), ended(1, "ac", "d", False)
    part = GoalDistance(GraphGPOConfig(gamma=0.5, goal=goal, **RAW), 8.0)  # type: ignore[arg-type]
    groups = of(some, none)
    found = part.returns(Stream(Samples(groups, table((4.0,), (0.0, 0.0))), layout(groups)))
    assert found[0] == values[0]
    assert (found[1:] <= 4.0).all()
