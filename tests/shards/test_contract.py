"""Shards play what their number says: wherever they are, and however often one is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.shards.hosts import Here, Moment, Mortal
from tests.shards.plays import TREE, config, here, sharded
from turnwise.shards.children import Children
from turnwise.shards.connection import Host

GROUPS = "algorithm=grpo"
ONE = "rollout.shards=1"
TWO = "rollout.shards=2"


@pytest.mark.parametrize("algorithm", [GROUPS, TREE, "algorithm={type: aepo, pace: lockstep}"])
def test_one_shard_plays_to_the_bit_what_a_collector_here_plays(model: Path, algorithm: str) -> None:
    made = config(model, algorithm)
    for alone, shard in zip(here(made, model, 2), sharded(made, model, Here(), 2), strict=True):
        assert alone.records == shard.records
        assert alone.seen == shard.seen
        assert len(set(shard.seen)) == len(shard.seen) >= 3 * 4


def test_two_shards_play_the_same_episodes_in_batches_of_their_own(model: Path) -> None:
    made = config(model, GROUPS)
    (alone,), (two,) = here(made, model), sharded(config(model, GROUPS, TWO), model, Here())
    assert two.tokens == alone.tokens
    assert [t.episode for t in two.trajectories] == [t.episode for t in alone.trajectories]


@pytest.mark.parametrize("algorithm", [GROUPS, TREE])
def test_it_does_not_matter_where_shards_are(model: Path, algorithm: str) -> None:
    made = config(model, algorithm, TWO)
    host: Host = Children("turnwise.assembly.shards")
    for first, second in zip(sharded(made, model, Here(), 2), sharded(made, model, host, 2), strict=True):
        assert first.records == second.records
        assert first.seen == second.seen


@pytest.mark.parametrize("moment", ["before", "during"])
@pytest.mark.parametrize("shards", [ONE, TWO])
def test_a_shard_that_is_lost_at_any_message_is_made_again(model: Path, shards: str, moment: Moment) -> None:
    """At its making, between its weights and the session, at a start, at a fork, at the last batch."""
    made = config(model, TREE, shards)
    whole = sharded(made, model, counted := Mortal(Here(), lambda *_: None), 2)
    assert any(t.fork is not None for played in whole for t in played.trajectories)
    last = made.rollout.shards - 1
    every = range(0, counted.said[last], 5 if shards == ONE else 1)
    for at in every:
        host = Mortal(Here(), lambda number, _, place, at=at: moment if (number, place) == (last, at) else None)
        with pytest.warns(UserWarning, match=f"shard {last} was lost"):
            again = sharded(made, model, host, 2)
        assert host.killed
        for first, second in zip(whole, again, strict=True):
            assert first.records == second.records, host.killed
            assert first.seen == second.seen, "nothing twice, and in the same order"
