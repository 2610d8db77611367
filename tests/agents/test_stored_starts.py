"""Attempts that start in the state of a stored episode: what is played, recorded and learned from."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.agents.test_collector import HOUSE, SAMPLING, collector, tasks
from tests.algorithms.fakes import BigramPolicy, Sampler, episode, groups
from tests.models import tiny_model
from turnwise.agents.jobs import Past
from turnwise.agents.rollouts import Rollouts
from turnwise.learning.rewards import raw_rewards
from turnwise.models.engine import Sampling
from turnwise.monitoring.record import episode_numbers
from turnwise.replay.batch import layout
from turnwise.replay.buffer import TrajectoryBuffer
from turnwise.replay.codec import from_record, to_record
from turnwise.replay.store import TrajectoryReader, TrajectoryWriter
from turnwise.trajectory import Fork, Grading, Group, RolloutFinished, Trajectory, group_by_task

GREEDY = Sampling(temperature=0, max_tokens=6)


def played(rollouts: Rollouts) -> dict[int, Trajectory]:
    return {e.rollout: e.trajectory for e in rollouts.events() if isinstance(e, RolloutFinished)}


def stored(env_id: str, sampling: Sampling = SAMPLING, **settings: Any) -> Trajectory:
    """An attempt at a task in update 3, from its beginning."""
    made = Rollouts(collector(env_id, **settings), sampling, key=3)
    number = made.start(tasks(1, env_id)[0], 0)
    return played(made)[number]


@pytest.mark.parametrize("context", ["full", "window"])
@pytest.mark.parametrize("env_id", ["tests.worlds:tests/Cue-v0", HOUSE])
def test_an_episode_goes_on_from_a_stored_state_as_it_went_on_then(env_id: str, context: str) -> None:
    """Greedily, in another update, by another collector: the world is reset with the stored seed."""
    settings: dict[str, Any] = {"context": context, "max_context_tokens": 1024}
    parent = stored(env_id, GREEDY, **settings)
    made = Rollouts(collector(env_id, **settings), GREEDY, key=7)
    numbers = [made.resume(parent, turn) for turn in range(min(3, len(parent.turns)))]
    found = played(made)
    assert len(numbers) > 1
    for turn, number in enumerate(numbers):
        child = found[number]
        assert child.fork == Fork(parent.episode, turn, stored=True)
        assert (child.seed, child.sample, child.stored_start) == (parent.seed, number, (parent.episode, turn))
        assert [t.action_ids.tolist() for t in child.turns] == [t.action_ids.tolist() for t in parent.turns]
        assert [t.observation for t in child.turns] == [t.observation for t in parent.turns]
        assert [t.prompt_ids.tolist() for t in child.turns] == [t.prompt_ids.tolist() for t in parent.turns]
        assert (child.end, child.success, child.rewards) == (parent.end, parent.success, parent.rewards)


def test_attempts_from_one_state_draw_their_own_turns_and_score_as_they_were_drawn() -> None:
    parent = stored(HOUSE, max_context_tokens=1024)
    made = Rollouts(collector(HOUSE, max_context_tokens=1024), SAMPLING, key=4)
    numbers = [made.resume(parent, 2, beyond) for beyond in (0, 5)]
    found = played(made)
    assert [found[number].sample for number in numbers] == [0, 6]
    own = [found[number].rest(2) for number in numbers]
    assert own[0].turns[0].action_ids.tolist() != own[1].turns[0].action_ids.tolist()
    batch, model = layout([Group(parent.task, tuple(own))]), tiny_model()
    for n in range(2):
        row = batch.tokens[n : n + 1, : int(batch.lengths[n])]
        with torch.no_grad():
            full = torch.log_softmax(model(row).logits[0], -1)[:-1].gather(-1, row[0, 1:, None])[:, 0]
        mask = batch.action_mask[n, 1 : row.shape[1]]
        assert mask.sum() == sum(len(turn.action_ids) for turn in found[numbers[n]].turns[2:])
        np.testing.assert_allclose(full[mask], batch.behaviour_logprobs[n, 1 : row.shape[1]][mask], atol=1e-4)


def test_a_world_that_does_not_repeat_itself_fails() -> None:
    parent = stored("tests.worlds:tests/Drifting-v0")
    made = Rollouts(collector("tests.worlds:tests/Drifting-v0"), SAMPLING, key=4)
    number = made.resume(parent, 2)
    found = played(made)[number]
    assert (found.end, found.fork) == ("error", Fork(parent.episode, 2, stored=True))
    assert "did not repeat itself" in found.end_reason


def test_states_that_nobody_acted_in_are_refused() -> None:
    parent = stored("tests.worlds:tests/Echo-v0")
    made = Rollouts(collector(), SAMPLING)
    for turn in (-1, len(parent.turns)):
        with pytest.raises(
            ValueError, match=rf"after turn {turn} of train-0-3-0: expected 0 to {len(parent.turns) - 1}"
        ):
            made.resume(parent, turn)
    with pytest.raises(ValueError, match="a game of several players"):
        made.resume(replace(parent, player="buyer"), 0)


def test_stored_turns_pay_what_their_world_paid() -> None:
    """Graders pay the whole episode again when it ends."""
    made = episode(Sampler.of(BigramPolicy(), np.random.default_rng(0)), num_turns=3)
    paid = replace(made, grading=Grading((5.0, 6.0, 7.0), None, ()))
    assert [turn.reward for turn in Past.of(paid, 2).turns] == [5.0, 6.0]


@pytest.mark.parametrize("windowed", [False, True])
def test_the_rest_of_an_episode_has_its_tokens_and_learns_from_its_own_turns(windowed: bool) -> None:
    for whole in (t for g in groups(BigramPolicy(), num_turns=4, windowed=windowed) for t in g.trajectories):
        rest = whole.rest(2)
        full, cut = (layout([Group(whole.task, (each,))]) for each in (whole, rest))
        assert rest.num_sampled_tokens == rest.num_action_tokens == sum(len(t.action_ids) for t in whole.turns[2:])
        if windowed:
            assert cut.tokens.tolist() == full.select(torch.tensor([2, 3])).tokens.tolist()
        else:
            assert cut.tokens.tolist() == full.tokens.tolist()
            own = full.turn_index >= 2
            assert cut.action_mask.tolist() == own.tolist()
            assert cut.turn_index[own].tolist() == (full.turn_index[own] - 2).tolist()
            assert cut.observed is not None
            assert full.observed is not None
            after = own.cumsum(1) > 0
            assert (cut.observed == full.observed & after).all()
        assert rest.rest(1).turns[0].action_ids.tolist() == whole.turns[3].action_ids.tolist()
        graded = replace(whole, grading=Grading((1.0, 2.0, 3.0, 4.0), None, ())).rest(2)
        assert graded.grading is not None
        assert graded.grading.world == (3.0, 4.0)
        table = raw_rewards([whole]).with_extra([0.5]).after([2])
        assert table == raw_rewards([rest]).with_extra([0.5])
        assert raw_rewards([whole]).with_extra([0.5]).after([4]).total(0) == 0.0


def from_stored(whole: Trajectory, turn: int, sample: int) -> Trajectory:
    fork = Fork("an earlier one", turn, stored=True)
    return replace(whole, sample=sample, episode=f"{whole.episode}-{sample}", fork=fork)


def test_attempts_from_a_stored_state_are_a_group_and_the_buffer_holds_their_own_turns() -> None:
    (group,) = groups(BigramPolicy(), num_groups=1, num_turns=3)
    whole = group.trajectories[0]
    made = [whole, *(from_stored(whole, turn, n) for n, turn in enumerate((1, 1, 2), 10))]
    found = group_by_task(made)
    assert [[t.sample for t in g.trajectories] for g in found] == [[0], [10, 11], [12]]
    buffer = TrajectoryBuffer()
    buffer.add(found, 0)
    assert [[len(t.turns) for t in g.trajectories] for g in buffer.fresh(0)] == [[3], [2, 2], [1]]
    again = TrajectoryBuffer()
    again.load_state_dict(buffer.state_dict())
    assert [[len(t.turns) for t in g.trajectories] for g in again.fresh(0)] == [[3], [2, 2], [1]]


def test_the_record_tells_of_episodes_from_the_beginning() -> None:
    (group,) = groups(BigramPolicy(), num_groups=1, num_turns=3)
    lost, won = (replace(group.trajectories[0], success=success) for success in (False, True))
    made = group_by_task([lost, from_stored(won, 2, 10)])
    numbers = episode_numbers(made)
    own = sum(len(turn.action_ids) for turn in won.turns[2:])
    assert (numbers["success"], numbers["episodes"]) == (0.0, 2)
    assert numbers["sampled_tokens"] == lost.num_action_tokens + own
    assert episode_numbers(made[1:])["success"] == 1.0


def test_a_stored_start_is_in_the_file(tmp_path: Path) -> None:
    (group,) = groups(BigramPolicy(), num_groups=1, num_turns=3)
    made = from_stored(group.trajectories[0], 2, 10)
    branch = replace(made, fork=Fork("parent", 2))
    assert "stored" not in to_record(branch)["fork"]
    assert [from_record(to_record(each)).fork for each in (made, branch)] == [made.fork, branch.fork]
    for name, each, version in (("stored", made, 6), ("branch", branch, 1)):
        TrajectoryWriter(tmp_path / name).append(0, [each])
        assert [found.fork for found in TrajectoryReader(tmp_path / name)] == [each.fork]

        with gzip.open(tmp_path / name, "rt") as file:
            assert json.loads(file.readline())["version"] == version
