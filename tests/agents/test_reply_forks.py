"""Attempts that begin within a reply: what is forced and what is drawn, and what is recorded and learned from."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.agents.test_collector import HOUSE, SAMPLING, collector, tasks
from tests.models import tiny_model
from turnwise.agents.decoding import DecodingConfig, FloorConfig
from turnwise.agents.rollouts import Rollouts
from turnwise.heat import Heat, Spread
from turnwise.learning.planning import GroupPlanner
from turnwise.models.engine import Sampling, SlotEngine
from turnwise.models.processing import FREE, Continuing, Course, Step
from turnwise.replay.batch import layout
from turnwise.replay.codec import from_record, to_record
from turnwise.replay.store import TrajectoryReader, TrajectoryWriter
from turnwise.trajectory import Fork, Group, RolloutFinished, Trajectory

GREEDY = Sampling(temperature=0, max_tokens=6)
CUE = "tests.worlds:tests/Cue-v0"


def family(
    env_id: str, sampling: Sampling, places: list[tuple[int, int]], **settings: Any
) -> tuple[Trajectory, list[Trajectory], Any]:
    """An attempt, its copies from these places (turn, tokens of its reply), and the collector that played them."""
    source = collector(env_id, max_context_tokens=1024, **settings)
    made, found = Rollouts(source, sampling, key=3), dict[int, Trajectory]()
    first = made.start(tasks(1, env_id)[0], 0)
    for event in made.events():
        if isinstance(event, RolloutFinished):
            found[event.rollout] = event.trajectory
            if event.rollout == first:
                for turn, tokens in places:
                    made.fork(first, turn, tokens)
    return found.pop(first), [found[number] for number in sorted(found)], source


@pytest.mark.parametrize(
    ("env_id", "settings"),
    [
        (CUE, {}),
        (CUE, {"context": "window"}),
        (HOUSE, {}),
        (HOUSE, {"context": "window"}),
        (HOUSE, {"constrained": True, "max_reply_tokens": 24}),
    ],
)
def test_a_greedy_copy_goes_on_as_its_parent_did(env_id: str, settings: dict[str, Any]) -> None:
    """Its reply begins with the parent's tokens, and what restricts the rest goes on from there."""
    sampling = replace(GREEDY, max_tokens=settings.get("max_reply_tokens", 6))
    whole, _, _ = family(env_id, sampling, [], **settings)
    places = [(turn, len(whole.turns[turn].action_ids) - 1) for turn in (0, 2)] + [(1, 1)]
    parent, copies, _ = family(env_id, sampling, places, **settings)
    assert all(tokens > 0 for _, tokens in places)
    for (turn, tokens), child in zip(places, copies, strict=True):
        assert child.fork == Fork(parent.episode, turn, tokens=tokens)
        assert [t.action_ids.tolist() for t in child.turns] == [t.action_ids.tolist() for t in parent.turns]
        assert [t.observation for t in child.turns] == [t.observation for t in parent.turns]
        assert (child.end, child.success, child.rewards) == (parent.end, parent.success, parent.rewards)
        ours, theirs = child.turns[turn], parent.turns[turn]
        assert (ours.reply, ours.action, ours.thought_tokens) == (theirs.reply, theirs.action, theirs.thought_tokens)
        np.testing.assert_allclose(ours.logprobs[tokens:], theirs.logprobs[tokens:], atol=1e-4)
        np.testing.assert_allclose(ours.entropies[tokens:], theirs.entropies[tokens:], atol=1e-4)
        assert ours.processing is not None
        assert ours.processing.forced.tolist() == [n < tokens for n in range(len(ours.action_ids))]
        own = [set(ids.tolist()) for ids in ours.processing.sets()[tokens:]]
        before = theirs.processing
        assert own == ([set()] * len(own) if before is None else [set(ids.tolist()) for ids in before.sets()[tokens:]])


def scored(row: Tensor) -> Tensor:
    """Log-probs of a row's tokens but the first, by the model itself."""
    with torch.no_grad():
        return torch.log_softmax(tiny_model()(row).logits[0], -1)[:-1].gather(-1, row[0, 1:, None])[:, 0]


def test_copies_draw_the_rest_of_the_reply_and_score_as_it_was_drawn() -> None:
    parent, copies, source = family(HOUSE, SAMPLING, [(2, 2)] * 3)
    prefix = parent.turns[2].action_ids[:2].tolist()
    replies = [child.turns[2].action_ids.tolist() for child in copies]
    assert all(reply[:2] == prefix for reply in replies)
    assert len({tuple(reply) for reply in replies}) == 3
    own = [child.rest(2) for child in copies]
    batch = layout([Group(parent.task, tuple(own))])
    for n, child in enumerate(copies):
        row = batch.tokens[n : n + 1, : int(batch.lengths[n])]
        mask = batch.action_mask[n, 1 : row.shape[1]]
        assert int(mask.sum()) == child.num_sampled_tokens == sum(len(t.action_ids) for t in child.turns[2:]) - 2
        assert row[0, 1:][mask].tolist()[: len(replies[n]) - 2] == replies[n][2:]
        np.testing.assert_allclose(scored(row)[mask], batch.behaviour_logprobs[n, 1 : row.shape[1]][mask], atol=1e-4)
    engine = source.engines[0]
    assert isinstance(engine, SlotEngine)
    assert engine.counts.sampled_tokens == sum(t.num_sampled_tokens for t in (parent, *copies)), "no token twice"


def test_methods_of_decoding_are_not_asked_for_the_beginning_of_a_copy() -> None:
    """It counts for no choice of the copy, which draws the rest by the same rules."""
    heated = replace(SAMPLING, heat=Heat(Spread(5.0, 1.0, 1.0), 0.3))
    floor = DecodingConfig(floor=FloorConfig(probability=0.0005))
    parent, copies, source = family(HOUSE, heated, [(1, 3)] * 2, decoding=floor)
    assert source.numbers()["decoding/tokens"] == sum(t.num_sampled_tokens for t in (parent, *copies))
    for child in copies:
        made = child.turns[1].processing
        assert made is not None
        assert made.forced.tolist() == [n < 3 for n in range(len(made.forced))]
        assert (made.temperatures[:3] == 1.0).all()
        assert (made.temperatures[3:] != 1.0).any()


def test_a_retried_copy_begins_within_the_reply_too() -> None:
    """The world of the copy fails once, and the second attempt at it forces the same tokens."""
    source = collector(HOUSE, max_context_tokens=1024)
    made, found, failed = Rollouts(source, SAMPLING, key=3), dict[int, Trajectory](), list[int]()
    first = made.start(tasks(1, HOUSE)[0], 0)
    take_env = source.take_env

    def failing() -> Any:
        if found and not failed:
            failed.append(1)
            raise OSError("no room")
        return take_env()

    source.take_env = failing  # type: ignore[method-assign]
    for event in made.events():
        if isinstance(event, RolloutFinished):
            found[event.rollout] = event.trajectory
            if event.rollout == first:
                made.fork(first, 1, 3)
    assert source.failures == 1
    assert found[1].turns[1].action_ids[:3].tolist() == found[first].turns[1].action_ids[:3].tolist()
    assert found[1].fork == Fork(found[first].episode, 1, tokens=3)


def test_places_that_are_not_within_a_reply_are_refused() -> None:
    source = collector(HOUSE, max_context_tokens=1024)
    made = Rollouts(source, SAMPLING)
    first = made.start(tasks(1, HOUSE)[0], 0)
    (parent,) = (e.trajectory for e in made.events() if isinstance(e, RolloutFinished))
    size, last = len(parent.turns[1].action_ids), len(parent.turns)
    for tokens in (-1, size):
        with pytest.raises(ValueError, match=rf"after {tokens} tokens of turn 1, whose reply has {size}"):
            made.fork(first, 1, tokens)
    with pytest.raises(ValueError, match=rf"after {last} turns"):
        made.fork(first, last, 1)


def test_a_place_within_a_reply_is_in_the_file(tmp_path: Path) -> None:
    (made,) = GroupPlanner(1).plan(tasks(1), Rollouts(collector(), SAMPLING))
    within = replace(made, fork=Fork("parent", 1, tokens=2))
    between = replace(made, fork=Fork("parent", 1))
    assert "tokens" not in to_record(between)["fork"]
    assert [from_record(to_record(each)).fork for each in (within, between)] == [within.fork, between.fork]
    for name, each, version in (("within", within, 7), ("between", between, 3)):
        TrajectoryWriter(tmp_path / name).append(0, [each])
        assert [found.fork for found in TrajectoryReader(tmp_path / name)] == [each.fork]
        with gzip.open(tmp_path / name, "rt") as file:
            assert json.loads(file.readline())["version"] == version


class Alternating:
    """Allows even and odd tokens in turn, at the temperature that it reads off the logits."""

    needs_logits = True

    def __init__(self) -> None:
        self.seen: list[int] = []

    def before(self, logits: Tensor | None) -> Step:
        assert logits is not None
        odd = len(self.seen) % 2
        return Step(allowed=np.arange(odd, 8, 2, dtype=np.int32), temperature=float(logits[0]))

    def after(self, token: int, logprob: float, entropy: float) -> None:
        self.seen.append(token)


def test_what_restricts_a_reply_is_told_of_the_forced_tokens() -> None:
    inner = Alternating()
    course = Course(Continuing(np.array([2, 5], np.int32), inner))
    for token in (2, 5, 4):
        assert course.only() is None, "it reads logits"
        step = course.step(torch.full((8,), 1.5))
        assert step.only == (token if token != 4 else None)
        course.take(token, -1.0, 1.0)
    assert inner.seen == [2, 5, 4]
    made = course.record(1.0)
    assert made is not None
    assert (made.forced.tolist(), made.counts.tolist()) == ([True, True, False], [1, 1, 4])
    assert made.temperatures.tolist() == [1.0, 1.0, 1.5]
    free = Course(Continuing(np.array([3], np.int32)))
    assert free.only() == 3
    free.take(3, 0.0, 0.0)
    assert (free.only(), free.step()) == (None, FREE)
