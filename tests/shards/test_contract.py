"""Shards play what their number says: wherever they are, and however often one is lost."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.shards.hosts import Here, Moment, Mortal
from tests.shards.plays import SAMPLING, TREE, collector_here, collector_in_shards, config, here, sharded
from turnwise.agents.playing import Playing
from turnwise.assembly.shards import host_of
from turnwise.config.schema import RunConfig
from turnwise.envs.tasks import panel
from turnwise.grading.grader import Grader
from turnwise.grading.settings import GradingConfig
from turnwise.shards.shard import Served
from turnwise.trajectory import RolloutFinished

GROUPS = "algorithm=grpo"
FORKS = "algorithm=counterfactual"
WITHIN = "algorithm={type: cure, base: {type: grpo, drop_uniform_groups: false}}"
RESETS = "algorithm={type: drpo, share: 0.7}"
ONE = "rollout.shards=1"
TWO = "rollout.shards=2"


@pytest.mark.parametrize("algorithm", [GROUPS, TREE, "algorithm={type: aepo, pace: lockstep}", FORKS, WITHIN, RESETS])
def test_one_shard_plays_to_the_bit_what_a_collector_here_plays(model: Path, algorithm: str) -> None:
    made = config(model, algorithm)
    for alone, shard in zip(here(made, model, 2), sharded(made, model, Here(), 2), strict=True):
        assert alone.records == shard.records
        assert alone.seen == shard.seen
        assert len(set(shard.seen)) == len(shard.seen) >= 3 * 4


def heard_of(collector: Playing, made: RunConfig, attempts: int) -> list[tuple[str, int]]:
    """What a planner hears that starts another attempt for each of the first episodes that are graded."""
    rollouts, heard, more = collector.rollouts(SAMPLING, 0), list[tuple[str, int]](), iter(range(5, 9))
    with closing(made.env.make()) as world:
        tasks = panel(world, "train")[: made.rollout.num_tasks]
    for sample in range(attempts):
        for task in tasks:
            rollouts.start(task, sample)
    for event in rollouts.events():
        heard.append((type(event).__name__, event.rollout))
        if isinstance(event, RolloutFinished) and (sample := next(more, 0)):
            rollouts.start(event.trajectory.task, sample)
    return heard


@pytest.mark.parametrize(("attempts", "ended"), [(1, 2), (4, 3)])
def test_one_shard_tells_of_graded_episodes_when_a_collector_here_does(model: Path, attempts: int, ended: int) -> None:
    """Once more are graded than play. At most two play at once: what is queued holds nothing back."""
    made = config(model, GROUPS, "rollout.num_slots=2")
    grading = GradingConfig(functions={"tests.grading.rewards:length": 1.0}, threads=2)
    alone = heard_of(collector_here(made, model, Grader(grading)), made, attempts)
    shard = heard_of(collector_in_shards(made, model, Here(), grader=Grader(grading)), made, attempts)
    assert shard == alone
    first = next(at for at, (kind, _) in enumerate(shard) if kind == "RolloutFinished")
    assert [kind for kind, _ in shard[:first]].count("RolloutEnded") == ended
    assert len({number for _, number in shard}) == 3 * attempts + 4


def test_two_shards_play_the_same_episodes_in_batches_of_their_own(model: Path) -> None:
    made = config(model, GROUPS)
    (alone,), (two,) = here(made, model), sharded(config(model, GROUPS, TWO), model, Here())
    assert two.tokens == alone.tokens
    assert [t.episode for t in two.trajectories] == [t.episode for t in alone.trajectories]


@pytest.mark.parametrize("algorithm", [FORKS, WITHIN, RESETS])
def test_what_starts_within_episodes_does_so_in_shards(model: Path, algorithm: str) -> None:
    """Of two updates the second starts from what the first has won."""
    made = config(model, algorithm, TWO)
    first, second = sharded(made, model, Here(), 2)
    started = [t for t in (second if algorithm == RESETS else first).trajectories if t.fork is not None]
    assert len({t.task.key for t in started}) > 1
    assert all(t.end != "error" and len(t.turns) > t.fork.turn for t in started if t.fork)
    assert all((t.stored_start is not None) == (algorithm == RESETS) for t in started)
    assert any(t.fork.tokens for t in started if t.fork) == (algorithm == WITHIN)


@pytest.mark.parametrize("algorithm", [TREE, pytest.param(GROUPS, marks=pytest.mark.slow)])
def test_it_does_not_matter_where_shards_are(model: Path, algorithm: str) -> None:
    made = config(model, algorithm, TWO)
    for first, second in zip(sharded(made, model, Here(), 2), sharded(made, model, host_of(None), 2), strict=True):
        assert first.records == second.records
        assert first.seen == second.seen


def lost_at(place: int, number: int, moment: Moment) -> Mortal:
    """A host that loses one shard at one of the messages to it."""
    return Mortal(Here(), lambda *at: moment if (at[0], at[2]) == (number, place) else None)


def check_all_equal(made: RunConfig, model: Path, places: Callable[[int], Iterable[tuple[int, Moment]]]) -> None:
    """The last shard is lost at each of these places, which are counted without the last message, that closes it."""
    number, counted = made.rollout.shards - 1, Mortal(Here(), lambda *_: None)
    whole = sharded(made, model, counted, 2)
    assert any(t.fork is not None for played in whole for t in played.trajectories)
    for place, moment in places(counted.said[number] - 1):
        host = lost_at(place, number, moment)
        with pytest.warns(UserWarning, match=f"shard {number} was lost"):
            again = sharded(made, model, host, 2)
        assert len(host.killed) == 1
        for first, second in zip(whole, again, strict=True):
            assert first.records == second.records, (host.killed, moment)
            assert first.seen == second.seen, "nothing twice, and in the same order"


def test_a_shard_that_is_lost_is_made_again(model: Path) -> None:
    """While it is made, between its weights and the session, in the first batch, in a later one, in the last one."""

    def places(num: int) -> list[tuple[int, Moment]]:
        return [(0, "during"), (2, "before"), (3, "during"), (num // 3, "before"), (num - 1, "during")]

    check_all_equal(config(model, TREE, TWO), model, places)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before", "during"])
@pytest.mark.parametrize("shards", [ONE, TWO])
def test_a_shard_may_be_lost_at_any_message(model: Path, shards: str, moment: Moment) -> None:
    step = 4 if shards == ONE else 1  # one shard is asked for one event at a time
    check_all_equal(config(model, TREE, shards), model, lambda num: ((n, moment) for n in range(0, num, step)))


def test_a_shard_writes_no_loading_bars_into_the_display() -> None:
    from transformers.utils import logging

    seen = []

    def make() -> Any:
        seen.append(logging.is_progress_bar_enabled())
        warnings.warn_explicit(
            "an old name", FutureWarning, "modeling_utils.py", 1, module="transformers.modeling_utils"
        )
        return SimpleNamespace(described="described")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logging.enable_progress_bar()
        assert Served().call("build", make) == "described"
    logging.enable_progress_bar()
    assert seen == [False]
