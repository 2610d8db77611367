"""Ranks that Ray starts: a run whose learner has two of them, the second an actor on the second node of a cluster."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.faults.runs import config, timeless
from tests.shards.cluster import needs_ray, second_node, two_nodes
from turnwise.assembly import rank_actors
from turnwise.assembly.learners import lead
from turnwise.assembly.rank_actors import ActorRank, RankActors
from turnwise.jobs import resume, train
from turnwise.replay.codec import to_record
from turnwise.replay.store import TrajectoryReader
from turnwise.runs.directory import RunDirectory
from turnwise.training.leading import LostRankError
from turnwise.training.observing import Callback

pytestmark = [needs_ray, pytest.mark.slow]
TWO = ("learner.ranks=2", "optimizer.microbatch_tokens=24")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Only its second node has room for a rank of two CPUs, and the head has a shard."""
    with two_nodes(2) as made:
        yield made


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[ActorRank]:
    """The actors that runs of this test start."""
    found, start = list[ActorRank](), RankActors.start

    def noted(*given: Any) -> ActorRank:
        found.append(start(*given))
        return found[-1]

    monkeypatch.setattr(RankActors, "start", noted)
    return found


class Ends(Callback):
    """Calls a function with the node and the process of the second rank, once two updates are logged."""

    def __init__(self, started: list[ActorRank], end: Callable[[str, int], None]) -> None:
        self.started, self.end = started, end

    def update(self, record: dict[str, Any]) -> None:
        if record["update"] == 1:
            self.end(*self.started[-1].where(60))


def on(cluster: Any) -> tuple[str, ...]:
    return (*TWO, f"ray={{address: '{cluster.address}', cpus_per_rank: 2}}")


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """The run with a second rank that is a child process."""
    path = tmp_path_factory.mktemp("whole") / "run"
    train(config(model, *TWO), path)
    return RunDirectory.open(path)


def assert_same_run(ours: RunDirectory, theirs: RunDirectory) -> None:
    """Numbers, weights and episodes of two runs, to the bit; what only shards have is left out."""
    counted = ("shards/lost", "shards/messages_repeated", "tokens")
    lines = [[{k: v for k, v in line.items() if k not in counted} for line in run.metrics()] for run in (ours, theirs)]
    assert timeless(lines[0]) == timeless(lines[1])
    a, b = ours.load("last").tensors, theirs.load("last").tensors
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    played = [timeless([to_record(t) for t in TrajectoryReader(run.trajectories_path)]) for run in (ours, theirs)]
    assert played[0] == played[1]


@pytest.mark.parametrize("way", ["ddp", "fsdp2"])
def test_a_rank_on_another_node_gives_the_bits_of_a_child_process(
    way: str, model: Path, cluster: Any, whole: RunDirectory, started: list[ActorRank], tmp_path: Path
) -> None:
    nodes = list[str]()
    seen = Ends(started, lambda node, process: nodes.append(node))
    train(config(model, *on(cluster), f"learner.parallel={way}"), tmp_path / "run", seen)
    assert nodes == [second_node(cluster).node_id]
    assert_same_run(RunDirectory.open(tmp_path / "run"), whole)


def test_an_actor_that_cannot_begin_says_why(model: Path, cluster: Any, tmp_path: Path) -> None:
    made = config(model, *on(cluster))
    run = RunDirectory.create(tmp_path / "run", made, {})
    (tmp_path / "run" / "config.yaml").write_text("seed: much\n")
    leader = lead(made.learner, "cpu", run, [""], made.ray)
    with pytest.raises(LostRankError, match=r"rank 1 ended: ValueError: .*seed"):
        leader.wait_for("ready", 2)
    leader.close()


def test_a_rank_without_room_is_told_of(
    model: Path, cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_actors, "SAID_AFTER_S", 0.5)
    monkeypatch.setattr(rank_actors, "MEETING", rank_actors.MEETING / 600)
    made = config(model, *TWO, f"ray={{address: '{cluster.address}', cpus_per_rank: 64}}")
    run = RunDirectory.create(tmp_path / "run", made, {})
    told = "rank 1 has not started: no node has room for ray.cpus_per_rank=64 yet, or its process starts slowly"
    with pytest.warns(UserWarning, match=told), pytest.raises(LostRankError, match=told):
        lead(made.learner, "cpu", run, [""], made.ray)


LOST = r"rank 1 was lost: .*(died|unavailable).*turnwise train --resume .*broken"


def test_a_killed_actor_ends_the_run(model: Path, cluster: Any, started: list[ActorRank], tmp_path: Path) -> None:
    end = Ends(started, lambda node, process: os.kill(process, signal.SIGKILL))
    with pytest.raises(LostRankError, match=LOST):
        train(config(model, *on(cluster)), tmp_path / "broken", end)
    assert RunDirectory.open(tmp_path / "broken").load("last").update == 2


def test_a_run_that_lost_a_node_goes_on_to_the_same_numbers(
    model: Path, cluster: Any, whole: RunDirectory, started: list[ActorRank], tmp_path: Path
) -> None:
    def end(node: str, process: int) -> None:
        cluster.remove_node(second_node(cluster), allow_graceful=False)

    with pytest.raises(LostRankError, match=LOST):
        train(config(model, *on(cluster)), tmp_path / "broken", Ends(started, end))
    cluster.add_node(num_cpus=2)
    resume(tmp_path / "broken")
    assert_same_run(RunDirectory.open(tmp_path / "broken"), whole)
    assert len(started) == 2
