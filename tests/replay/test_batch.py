"""Rows, masks and columns of the token layout; minibatches and microbatches."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.algorithms.fakes import BigramPolicy, Sampler, episode, groups, task
from turnwise.replay.batch import TokenBatch, layout, microbatches, minibatches
from turnwise.trajectory import Group, Trajectory


def some(windowed: bool = False) -> list[Group]:
    return groups(BigramPolicy(), num_groups=2, size=3, windowed=windowed)


def flat(made: list[Group]) -> list[Trajectory]:
    return [t for group in made for t in group.trajectories]


@pytest.mark.parametrize("windowed", [False, True])
def test_layout_holds_every_sampled_token_exactly_once(windowed: bool) -> None:
    made = some(windowed)
    rewards = [[10.0 * i + n for n in range(len(t.turns))] for i, t in enumerate(flat(made))]
    batch = layout(made, rewards=rewards, version=2)
    assert len(batch) == sum(len(t.turns) if windowed else 1 for t in flat(made))
    for i, trajectory in enumerate(flat(made)):
        rows = batch.trajectory == i
        for n, turn in enumerate(trajectory.turns):
            own = (batch.turn_index == n) & rows.unsqueeze(1)
            assert batch.tokens[own].tolist() == turn.action_ids.tolist()
            assert batch.behaviour_logprobs[own].tolist() == turn.logprobs.tolist()
            assert batch.behaviour_entropies[own].tolist() == turn.entropies.tolist()
            assert batch.rewards is not None
            assert batch.rewards[own].tolist() == [0.0] * (len(turn.action_ids) - 1) + [rewards[i][n]]
        assert int(batch.lengths[rows].sum()) == trajectory.num_tokens
        assert int(batch.num_turns[rows].sum()) == len(trajectory.turns)
    assert torch.equal(batch.action_mask, batch.turn_index >= 0)
    assert (batch.behaviour_logprobs[~batch.action_mask] == 0).all()
    assert batch.staleness.tolist() == [2] * len(batch)
    assert batch.group.tolist() == [int(i >= 3) for i in batch.trajectory.tolist()]
    assert (batch.reference_logprobs, batch.values, batch.advantages) == (None, None, None)


def test_a_row_is_the_context_token_by_token() -> None:
    trajectory = episode(Sampler.of(BigramPolicy(), np.random.default_rng(0)), num_turns=4)
    turns = list(trajectory.turns)
    turns[2] = replace(turns[2], continues=False)  # an overflow restarted the context
    batch = layout([Group(task(), (replace(trajectory, turns=tuple(turns)),))])
    assert batch.first_turn.tolist() == [0, 2]
    assert batch.num_turns.tolist() == [2, 2]
    for row, part in zip(range(2), (turns[:2], turns[2:]), strict=True):
        expected = np.concatenate([ids for t in part for ids in (t.prompt_ids, t.action_ids)])
        assert batch.tokens[row, : batch.lengths[row]].tolist() == expected.tolist()
        assert (batch.tokens[row, batch.lengths[row] :] == 0).all()


def test_no_turns_no_row() -> None:
    empty = replace(flat(some())[0], turns=())
    assert len(layout([Group(task(), (empty,))])) == 0
    assert layout([]).tokens.shape == (0, 0)
    made = some()
    mixed = [Group(task(), (empty, *made[0].trajectories))]
    assert layout(mixed).trajectory.tolist() == [1, 2, 3]


def test_a_broken_trajectory_is_refused() -> None:
    first = flat(some())[0]
    turn = first.turns[0]
    broken = {
        "continues": replace(turn, continues=True),
        "prompt token": replace(turn, prompt_ids=turn.prompt_ids[:0]),
        "as many log-probs": replace(turn, logprobs=turn.logprobs[1:]),
    }
    for message, bad in broken.items():
        with pytest.raises(ValueError, match=message):
            layout([Group(task(), (replace(first, turns=(bad,)),))])
    with pytest.raises(ValueError, match="rewards"):
        layout([Group(task(), (first,))], rewards=[[0.0] * (len(first.turns) + 1)])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), budget=st.integers(1, 200), num=st.integers(1, 9))
def test_every_row_is_trained_once(seed: int, budget: int, num: int) -> None:
    batch = layout(groups(BigramPolicy(), seed, num_groups=2, size=3))
    parts = minibatches(range(len(batch)), num, np.random.default_rng(seed))
    assert sorted(torch.cat(parts).tolist()) == list(range(len(batch)))
    sizes = [len(p) for p in parts]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) > 0
    micro = microbatches(batch, budget)
    assert sorted(torch.cat(micro).tolist()) == list(range(len(batch)))
    for rows in micro:
        part = batch.select(rows)
        distinct = {
            tuple(t[: i + 1].tolist()) for t, n in zip(part.tokens, part.lengths, strict=True) for i in range(n)
        }
        assert len(rows) == 1 or len(distinct) <= budget
        assert part.tokens.shape[1] == int(part.lengths.max())


def test_select_keeps_all_columns_together() -> None:
    batch = layout(some(), rewards=[[1.0] * len(t.turns) for t in flat(some())])
    rows = torch.tensor([4, 1])
    part = batch.select(rows)
    for field in fields(TokenBatch):
        whole, piece = getattr(batch, field.name), getattr(part, field.name)
        if isinstance(whole, torch.Tensor):
            expected = whole[rows, : part.tokens.shape[1]] if whole.ndim == 2 else whole[rows]
            assert torch.equal(piece, expected), field.name
        else:
            assert piece == whole
    assert len(batch.select(torch.zeros(0, dtype=torch.long))) == 0
    assert torch.equal(batch.to("cpu").tokens, batch.tokens)


@given(seed=st.integers(0, 1000), units=st.lists(st.integers(0, 5), min_size=1, max_size=30), num=st.integers(1, 9))
def test_units_stay_whole(seed: int, units: list[int], num: int) -> None:
    parts = [part.tolist() for part in minibatches(units, num, np.random.default_rng(seed))]
    assert sorted(row for part in parts for row in part) == list(range(len(units)))
    held = [{units[row] for row in part} for part in parts]
    assert sum(map(len, held)) == len(set(units)), "no unit is in two parts"
    assert len(parts) == min(num, len(set(units)))
    assert max(map(len, held)) - min(map(len, held)) <= 1


def test_every_sampled_token_needs_its_entropy() -> None:
    (group,) = groups(BigramPolicy(), num_groups=1, size=1)
    (whole,) = group.trajectories
    short = replace(whole.turns[0], entropies=whole.turns[0].entropies[:-1])
    broken = replace(group, trajectories=(replace(whole, turns=(short, *whole.turns[1:])),))
    with pytest.raises(ValueError, match="need as many log-probs and entropies"):
        layout((broken,))
