"""Attempts that start within episodes: counterfactual turns and DR-PO, their planners, groups and credit."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.algorithms.fakes import BigramPolicy, Sampler, buffer_of, episode, groups, learner, task
from tests.algorithms.trees import Played, ScriptedRollouts
from turnwise.algorithms.arpo import ARPOConfig
from turnwise.algorithms.counterfactual import CounterfactualConfig
from turnwise.algorithms.dapo import DAPOConfig
from turnwise.algorithms.drpo import DRPOConfig
from turnwise.algorithms.dynamic_sampling import DynamicSampling
from turnwise.algorithms.gigpo import GiGPOConfig
from turnwise.algorithms.grpo import GRPOConfig
from turnwise.algorithms.registry import build
from turnwise.algorithms.starts import CounterfactualPlanner, starts_of
from turnwise.algorithms.stored import RememberedWins, StoredStarts, WonEpisodes
from turnwise.learning.learner import shaped_rewards
from turnwise.learning.metrics import Metrics
from turnwise.learning.parts import Samples, Stream, Streams
from turnwise.learning.planning import PlannerAround
from turnwise.learning.settings import RewardSettings, RunInfo
from turnwise.trajectory import Fork, Group, Task, Trajectory

RUN = RunInfo(num_updates=10, group_size=8, rewards=RewardSettings(invalid_action_penalty=0.0))
RAW = GRPOConfig(kl_coef=0.0, normalize_std=False, drop_uniform_groups=False)


def planner(**settings: Any) -> CounterfactualPlanner:
    made = build(CounterfactualConfig(**settings), RUN).planner
    assert isinstance(made, CounterfactualPlanner)
    return made


def scripted(index: int = 0) -> Task:
    return Task("scripted", "train", index, key=f"task-{index}")


@pytest.mark.parametrize(
    ("settings", "roots", "states"),
    [({}, 4, 4), ({"roots": 2}, 2, 6), ({"actions": 3}, 4, 2), ({"roots": 1, "actions": 4}, 2, 2)],
)
def test_a_group_is_attempts_and_copies_of_them(settings: dict[str, Any], roots: int, states: int) -> None:
    """Copies start before a turn that their parent has played, other than its first, in states of their own."""
    made, rollouts = planner(**settings), ScriptedRollouts(lengths=(5, 6))
    found = made.plan([scripted(0), scripted(1)], rollouts)
    by_task = [[t for t in found if t.task.index == n] for n in (0, 1)]
    assert found == by_task[0] + by_task[1]
    for attempts in by_task:
        parents = {t.episode: t for t in attempts if t.fork is None}
        copies = [t for t in attempts if t.fork is not None]
        assert (len(attempts), len(parents)) == (8, roots)
        where = Counter((t.fork.parent, t.fork.turn) for t in copies if t.fork)
        assert (len(where), set(where.values())) == (states, {settings.get("actions", 2) - 1})
        dealt = Counter(parent for parent, _ in where)
        assert max(dealt.values()) - min(dealt.get(p, 0) for p in parents) <= 1
        assert all(0 < turn < len(parents[parent].turns) for parent, turn in where)
    assert made.acted()["states_per_task"] == states
    again = planner(**settings).plan([scripted(0), scripted(1)], ScriptedRollouts(lengths=(5, 6)))
    assert [t.fork for t in again] == [t.fork for t in found]


def test_the_least_certain_turns_are_drawn_anew() -> None:
    rollouts = ScriptedRollouts(lambda key, attempt, turn: float(turn in (2, 0)) + 0.1 * turn, (6,))
    found = planner(where="entropy", roots=2).plan([scripted()], rollouts)
    turns: dict[str, list[int]] = {}
    for fork in (t.fork for t in found if t.fork is not None):
        turns.setdefault(fork.parent, []).append(fork.turn)
    assert list(turns.values()) == [[2, 5, 4], [2, 5, 4]]


def test_any_turn_may_be_drawn_anew() -> None:
    seen = set()
    for index in range(40):
        found = planner(roots=4).plan([scripted(index)], ScriptedRollouts(lengths=(4,)))
        seen |= {t.fork.turn for t in found if t.fork is not None}
    assert seen == {1, 2, 3}


def test_an_attempt_from_the_task_takes_the_place_of_a_copy_that_cannot_be_made() -> None:
    short = planner().plan([scripted()], ScriptedRollouts(lengths=(1,)))
    assert [t.fork for t in short] == [None] * 8
    assert len({t.episode for t in short}) == 8
    failed = planner().plan([scripted()], ScriptedRollouts(lengths=(5,), unforkable=frozenset({1})))
    assert [t.fork is None for t in failed].count(True) == 5
    assert len({t.episode for t in failed}) == 8


def test_games_are_refused_by_name() -> None:
    game = ScriptedRollouts(player="buyer")
    for config in (CounterfactualConfig(), DRPOConfig()):
        made = build(config, RUN).planner
        assert made is not None
        with pytest.raises(ValueError, match="a game of several players, where no attempt can start within"):
            made.plan([scripted()], replace(game, played=[], running=[]))


@pytest.mark.parametrize("algorithm", ["counterfactual", "drpo"])
def test_bases_are_played_inside_what_wraps_them_and_trees_are_refused(algorithm: str) -> None:
    kinds: dict[str, Any] = {"counterfactual": CounterfactualConfig, "drpo": DRPOConfig}
    made = build(kinds[algorithm](base=DAPOConfig()), RUN)
    assert isinstance(made.planner, DynamicSampling)
    assert isinstance(made.planner, PlannerAround)
    assert isinstance(made.planner.inner, CounterfactualPlanner | StoredStarts)
    with pytest.raises(ValueError, match=rf"{algorithm} decides from where attempts start, and so does arpo"):
        build(kinds[algorithm](base=ARPOConfig()), RUN)
    with pytest.raises(ValueError, match=rf"{algorithm} decides from where attempts start, and so does counterfactual"):
        build(kinds[algorithm](base=CounterfactualConfig()), RUN)


def test_a_group_needs_room_for_a_state() -> None:
    with pytest.raises(ValueError, match="do not fit into group_size=8: raise it to 10 or more"):
        build(CounterfactualConfig(roots=8, actions=3), RUN)
    with pytest.raises(ValueError, match="raise it to 2 or more"):
        build(CounterfactualConfig(), replace(RUN, group_size=1))


def paid(made: Trajectory, *rewards: float) -> Trajectory:
    turns = tuple(replace(turn, reward=reward) for turn, reward in zip(made.turns, rewards, strict=True))
    return replace(made, turns=turns)


def tree(windowed: bool = False) -> Group:
    """Two attempts that earn 1 and 0; the first, after its turn 1, also 0.5 twice and 3 by other turns."""
    sampler = Sampler.of(BigramPolicy(), np.random.default_rng(1))
    first, second, *others = (episode(sampler, sample=n, num_turns=3, windowed=windowed) for n in range(5))
    parent = paid(first, 0.5, 0.0, 0.5)
    fork = Fork(parent.episode, 1)
    copies = [
        replace(paid(each, 0.5, 0.0, last), turns=(parent.turns[0], *paid(each, 0.5, 0.0, last).turns[1:]), fork=fork)
        for each, last in zip(others, (0.0, 0.0, 2.5), strict=True)
    ]
    return Group(task(), (parent, paid(second, 0.0, 0.0, 0.0), *copies))


def credited(config: CounterfactualConfig, group: Group) -> Stream:
    recipe = build(config, RUN)
    policy: Any = BigramPolicy()
    samples = Samples((group,), shaped_rewards(recipe, RUN, group.trajectories, policy, update=0))
    (stream,) = recipe.composer.compose(0, samples, buffer_of([group])).streams
    plan = recipe["fresh"]
    assert plan.estimator is not None
    stream = stream.with_columns(advantages=plan.estimator.estimate(stream))
    for modifier in plan.modifiers:
        stream = stream.with_columns(advantages=modifier.modify(stream))
    return stream


def by_turn(stream: Stream) -> list[list[float]]:
    """[trajectory][turn]: the advantage of the turn's tokens, which all have the same."""
    batch = stream.batch
    found: list[list[float]] = []
    for n, trajectory in enumerate(stream.samples.trajectories):
        here = batch.trajectory == n
        assert batch.advantages is not None
        advantages, turns = batch.advantages[here], batch.turn_index[here]
        values: list[Tensor] = [advantages[turns == k].unique() for k in range(len(trajectory.turns))]
        assert all(len(value) == 1 for value in values)
        found.append([round(float(value), 6) for value in values])
    return found


@pytest.mark.parametrize("windowed", [False, True])
def test_credit_is_the_difference_within_the_state(windowed: bool) -> None:
    """From the task: 1 and 0, mean 0.5. From the state: 1, 0.5, 0.5 and 3, mean 1.25."""
    stream = credited(CounterfactualConfig(base=RAW), tree(windowed))
    assert [len(g.trajectories) for g in stream.samples.groups] == [2, 4]
    assert by_turn(stream) == [[0.5] * 3, [-0.5] * 3, [-0.25] * 2, [-0.75] * 2, [-0.75] * 2, [1.75] * 2]
    alone = credited(CounterfactualConfig(base=RAW, credited="turn"), tree(windowed))
    state = [[-0.25, 0.0], [-0.75, 0.0], [-0.75, 0.0], [1.75, 0.0]]
    assert by_turn(alone) == [[0.5] * 3, [-0.5] * 3, *state]
    assert credited(CounterfactualConfig(), tree(windowed)).batch.num_action_tokens == 2 * (3 + 3 + 4 * 2)


def test_step_returns_of_a_base_see_the_turns_of_their_state_alone() -> None:
    """GiGPO's anchors compare turns of one start: what a copy shares with its parent is no second visit."""
    stream = credited(CounterfactualConfig(base=GiGPOConfig(kl_coef=0.0)), tree())
    assert [len(t.turns) for t in stream.samples.trajectories] == [3, 3, 2, 2, 2, 2]
    assert stream.samples.rewards.earned[2:] == ((0.0, 0.5), (0.0, 0.0), (0.0, 0.0), (0.0, 2.5))


def test_no_gradient_flows_into_what_copies_share() -> None:
    """The prompts of the state's group are the tokens of the past; with all credit there, the past learns nothing."""
    group = tree()
    parent = group.trajectories[0]
    losing = Group(group.task, tuple(paid(t, 0.0, 0.0, 0.0) if t.fork is None else t for t in group.trajectories))
    stream = credited(CounterfactualConfig(base=RAW), losing)
    batch = stream.batch
    assert batch.advantages is not None
    own = batch.trajectory >= 2
    past = len(parent.turns[0].prompt_ids) + len(parent.turns[0].action_ids)
    first = batch.tokens[own][:, :past]
    assert (first == first[0]).all()
    assert not batch.action_mask[own][:, :past].any()
    assert not batch.observed[own][:, : past + len(parent.turns[1].prompt_ids)].any()  # type: ignore[index]
    assert (batch.advantages[~own] == 0).all()
    assert (batch.advantages[own] != 0).any()


def test_a_lost_parent_leaves_its_copies_a_group() -> None:
    group = tree()
    found = starts_of(group.trajectories[1:])
    assert [[turn for _, turn in members] for members in found] == [[0], [1, 1, 1]]
    errors = (replace(group.trajectories[0], end="error"), *group.trajectories[1:])
    stream = credited(CounterfactualConfig(base=RAW), Group(group.task, errors))  # type: ignore[arg-type]
    assert [len(g.trajectories) for g in stream.samples.groups] == [3]  # of the task's attempts one is left: no group


def test_better_turns_become_likelier() -> None:
    policy = BigramPolicy()
    made = learner(build(CounterfactualConfig(base=RAW), RUN), policy, RUN)
    group = tree()
    winner = group.trajectories[-1].turns[1]

    def likelihood() -> float:
        context = [int(winner.prompt_ids[-1]), *winner.action_ids[:-1].tolist()]
        table = policy.table.detach().log_softmax(-1)
        return float(table[context, torch.from_numpy(winner.action_ids).long()].sum())

    before = likelihood()
    made.update(buffer_of([group]), 0)
    assert likelihood() > before


def won(index: int, num_turns: int, success: bool | None = True, version: int = 0) -> Trajectory:
    sampler = Sampler.of(BigramPolicy(), np.random.default_rng(index))
    return replace(episode(sampler, index=index, num_turns=num_turns, version=version), success=success)


def test_won_episodes_are_kept_the_shortest_of_each_task() -> None:
    memory = WonEpisodes(capacity=2)
    memory.add([won(0, 4), won(0, 3, version=1), won(0, 3, version=2), won(1, 5, False), won(2, 5, None)])
    assert {key: (len(t.turns), t.policy_version) for key, t in memory.by_task.items()} == {"task-0": (3, 1)}
    memory.add([replace(won(3, 2), end="error"), replace(won(4, 2), sample=-1), replace(won(3, 2), num_refused=1)])
    assert list(memory.by_task) == ["task-0"]
    memory.add([won(5, 2), won(6, 6)])
    assert list(memory.by_task) == ["task-5", "task-6"]
    other = WonEpisodes(capacity=2)
    other.count(3, 4)
    other.load({**memory.state(), "depth": 3, "lost": 2})
    assert (list(other.by_task), other.depth, other.lost) == (["task-5", "task-6"], 3, 2)
    assert other.take() == (0, 0), "an update that is begun again counts anew"
    assert other.by_task["task-6"].turns[0].action_ids.tolist() == memory.by_task["task-6"].turns[0].action_ids.tolist()


def test_starts_go_backwards_or_are_any() -> None:
    memory = WonEpisodes(capacity=9, depth=2)
    memory.add([won(0, 2), won(1, 3), won(2, 6)])
    draws = np.random.default_rng(0)
    found = {t.task.key: turn for t, turn in memory.starts(9, "backwards", draws)}
    assert found == {"task-1": 1, "task-2": 4}, "an episode of two turns would start at its beginning"
    assert len(memory.starts(1, "backwards", draws)) == 1
    seen = {(t.task.key, turn) for _ in range(60) for t, turn in memory.starts(9, "any", draws)}
    assert seen == {("task-0", 1), ("task-1", 1), ("task-1", 2), *(("task-2", n) for n in range(1, 6))}


def stored_starts(**settings: Any) -> tuple[StoredStarts, RememberedWins]:
    made = build(DRPOConfig(**settings), replace(RUN, group_size=4))
    assert isinstance(made.planner, StoredStarts)
    assert isinstance(made.composer, RememberedWins)
    return made.planner, made.composer


def end_update(composer: RememberedWins) -> None:
    composer.after_update(0, Streams(()), cast(Metrics, None))


@pytest.mark.parametrize(("wins", "depth"), [(0, 1), (1, 1), (2, 2), (8, 2)])
def test_tasks_give_their_places_to_stored_states(wins: int, depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 4 tasks 2: 8 attempts, of which 2 must be won, a fifth being 1.6."""
    made, composer = stored_starts()
    made.won.add([won(10, 5), won(11, 3)])
    rollouts = ScriptedRollouts(lengths=(6,))
    finish, left = rollouts._trajectory, iter(range(wins))
    monkeypatch.setattr(
        rollouts,
        "_trajectory",
        lambda played: replace(finish(played), success=played.fork is not None and next(left, None) is not None),
    )
    found = made.plan([scripted(n) for n in range(4)], rollouts)
    assert [t.task.index for t in found[:8]] == [0] * 4 + [1] * 4
    assert all(t.stored_start is None for t in found[:8])
    assert Counter(t.stored_start for t in found[8:]) == {("10-0-0", 4): 4, ("11-0-0", 2): 4}
    assert len({(t.task.key, t.sample) for t in found}) == 16
    counted = made.acted()
    assert (counted["stored_share"], counted["won_share"], counted["depth"]) == (0.5, wins / 8, 1)
    assert made.won.depth == 1, "the update is not over"
    end_update(composer)
    assert made.won.depth == composer.own_state()["depth"] == depth


def test_nothing_is_reset_while_nothing_is_won_and_any_state_goes_nowhere_back() -> None:
    made, _ = stored_starts(order="any", share=1.0)
    first = made.plan([scripted(0)], ScriptedRollouts())
    assert [t.stored_start for t in first] == [None] * 4
    assert made.acted()["stored_share"] == 0.0
    made.won.add([won(10, 5)])
    found = made.plan([scripted(0)], ScriptedRollouts(lengths=(6,)))
    assert {t.task.key for t in found} == {"task-10"}
    assert made.won.depth == 1


def failing(rollouts: ScriptedRollouts, monkeypatch: pytest.MonkeyPatch, *episodes: str) -> None:
    """Attempts from the stored states of these episodes end in an error; other stored starts are won."""
    finish = rollouts._trajectory

    def ended(played: Played) -> Trajectory:
        if played.fork is None:
            return finish(played)
        lost = played.fork.parent in episodes
        return replace(finish(played), success=not lost or None, end="error" if lost else "terminated")

    monkeypatch.setattr(rollouts, "_trajectory", ended)


def test_an_episode_that_cannot_be_repeated_is_forgotten_and_its_task_played(monkeypatch: pytest.MonkeyPatch) -> None:
    made, composer = stored_starts()
    made.won.add([won(10, 5), won(11, 3)])
    rollouts = ScriptedRollouts(lengths=(6,))
    failing(rollouts, monkeypatch, "10-0-0")
    found = made.plan([scripted(n) for n in range(4)], rollouts)
    places = Counter((t.task.index, t.stored_start is not None, t.end) for t in found)
    sound = {(t.task.index, t.stored_start is not None) for t in found if t.end != "error"}
    assert list(places.values()) == [4] * 5
    assert sound == {(0, False), (1, False), (11, True), *(sound & {(2, False), (3, False)})}
    assert len(sound) == 4, "the update has as many groups as it has tasks"
    assert "task-10" not in made.won.by_task
    assert "task-11" in made.won.by_task
    assert (made.acted()["lost_share"], made.won.lost) in ((0.5, 0), (0.5, 1))
    end_update(composer)
    assert made.won.depth == 2, "the four that ended soundly were won"


def test_no_two_attempts_have_one_number_where_every_group_starts_in_a_stored_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tasks are begun in a second wave and in the place of a lost state, after attempts from states of them."""
    made, _ = stored_starts(share=1.0, order="any")
    made.won.add([won(10, 5), won(11, 5)])
    rollouts = ScriptedRollouts(lengths=(6,))
    failing(rollouts, monkeypatch, "12-0-0")
    found = made.plan([scripted(20), scripted(21)], rollouts)
    made.won.by_task.clear()
    found += made.plan([scripted(10), scripted(11)], rollouts)
    made.won.add([won(12, 5)])
    found += made.plan([scripted(12)], rollouts)
    assert Counter(t.task.index for t in found) == {10: 8, 11: 8, 12: 8}
    assert len({t.episode for t in found}) == 24
    made.won.by_task.clear()
    made.won.add([won(12, 5)])
    rollouts = ScriptedRollouts(lengths=(6,))
    failing(rollouts, monkeypatch, "12-0-0")
    assert len({t.episode for t in made.plan([scripted(12)], rollouts)}) == 8


def test_a_world_that_never_repeats_itself_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    made, _ = stored_starts(share=1.0)
    with pytest.raises(ValueError, match=r"none of the last 16 stored states could be started from"):  # noqa: PT012
        for update in range(4):
            made.won.add([won(n, 5) for n in range(8 * update, 8 * update + 8)])
            rollouts = ScriptedRollouts(lengths=(6,))
            failing(rollouts, monkeypatch, *(t.episode for t in made.won.by_task.values()))
            assert update < 2
            made.plan([scripted(n) for n in range(100, 108)], rollouts)
            assert made.won.lost == 8


def test_several_waves_are_one_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dynamic sampling plays wave after wave. The depth grows by the wins of all of them, once."""
    made = build(DRPOConfig(base=DAPOConfig()), replace(RUN, group_size=4))
    assert isinstance(made.planner, DynamicSampling)
    stored, composer = made.planner.inner, made.composer
    assert isinstance(stored, StoredStarts)
    assert isinstance(composer, RememberedWins)
    stored.won.add([won(n, 6) for n in range(10, 20)])
    rollouts = ScriptedRollouts(lengths=(7,))
    finish = rollouts._trajectory
    monkeypatch.setattr(  # every group is uniform, so that further tasks are played
        rollouts,
        "_trajectory",
        lambda played: replace(
            finish(played),
            success=played.fork is not None,
            turns=tuple(replace(turn, reward=0.0) for turn in played.turns),
        ),
    )
    found = made.planner.plan([scripted(n) for n in range(4)], rollouts, (scripted(n) for n in range(4, 60)))
    begun_at = {len(won(t.task.index, 6).turns) - t.stored_start[1] for t in found if t.stored_start is not None}
    assert begun_at == {1}
    assert len(found) > 4 * 4, "there were several waves"
    end_update(composer)
    assert stored.won.depth == 2


@pytest.mark.parametrize(("share", "num_tasks"), [(0.05, 8), (0.5, 1), (0.3, 5), (1.0, 3)])
def test_a_small_share_is_a_group_in_some_updates(share: float, num_tasks: int) -> None:
    made, _ = stored_starts(share=share, order="any")
    made.won.add([won(n, 5) for n in range(100, 110)])
    kept, shares = dict(made.won.by_task), []
    for update in range(100):
        found = made.plan([scripted(update * num_tasks + n) for n in range(num_tasks)], ScriptedRollouts())
        shares.append(sum(t.stored_start is not None for t in found) / 4 / num_tasks)
        made.won.by_task = dict(kept)
    assert np.mean(shares) == pytest.approx(share, abs=0.12 / num_tasks)
    assert max(shares) - min(shares) <= 1 / num_tasks + 1e-9


def test_settings_of_the_way_back_are_unused_without_one() -> None:
    with pytest.raises(ValueError, match="stride say how order=backwards goes back"):
        DRPOConfig(order="any", stride=2)


def test_groups_from_stored_states_are_compared_and_trained_on_their_own_turns() -> None:
    (group,) = groups(BigramPolicy(), num_groups=1, num_turns=3)
    fork = Fork("an earlier one", 2, stored=True)
    later = tuple(paid(replace(t, fork=fork), 0.0, 0.0, float(n == 0)) for n, t in enumerate(group.trajectories))
    metrics = learner(build(DRPOConfig(base=RAW), RUN), BigramPolicy(), RUN).update(
        buffer_of([Group(group.task, later)]), 0
    )
    assert metrics.num_action_tokens == sum(len(t.turns[2].action_ids) for t in later)
    assert metrics.advantage_std == pytest.approx(np.std([0.75, -0.25, -0.25, -0.25]))
