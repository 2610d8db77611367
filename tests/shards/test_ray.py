"""Shards on a Ray cluster of two nodes, both on this machine."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import turnwise
from tests.faults.worlds import Lottery
from tests.shards.cluster import needs_ray, two_nodes
from tests.shards.hosts import Here
from tests.shards.plays import TREE, config, sharded
from turnwise.assembly.shards import host_of
from turnwise.config.sections import RayConfig
from turnwise.evaluation.evaluate import evaluate
from turnwise.shards.connection import ShardError
from turnwise.shards.ray_actors import Cluster, RayActors

TWO = "rollout.shards=2"
LOTTERY = "tests.faults.worlds:tests/Lottery-v0"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head and another node of one CPU each, so that each has one of two shards."""
    with two_nodes(1) as made:
        yield made


class LosesANode:
    """Actors. The second node is ended at a batch of the shard that it has, and another one takes its place."""

    def __init__(self, cluster: Any, host: RayActors, batch: int) -> None:
        self.cluster, self.host, self.batch = cluster, host, batch
        self.batches = 0
        self.lost = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.host, name)

    def place(self, number: int, seconds: float) -> Any:
        place: Any = self.host.place(number, seconds)
        (second,) = [node for node in self.cluster.list_all_nodes() if node is not self.cluster.head_node] or [None]
        if second is None or place.where(seconds)[0] != second.node_id:
            return place
        tell = place.tell

        def told(name: str, *arguments: Any) -> None:
            tell(name, *arguments)
            self.batches += name == "go"
            if self.batches == self.batch and not self.lost:
                self.lost = True
                self.cluster.remove_node(second, allow_graceful=False)
                self.cluster.add_node(num_cpus=1)  # where the shard finds room again

        place.tell = told
        return place


@needs_ray
@pytest.mark.slow
def test_actors_play_what_shards_here_play_and_a_node_may_go(model: Path, cluster: Any) -> None:
    made = config(model, TREE, TWO)
    ray = RayConfig(address=cluster.address)
    whole = sharded(made, model, Here(), 2)
    host = LosesANode(cluster, host_of(ray), 3)  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match=r"shard \d was lost \(The actor .*(died|unavailable)"):
        found = sharded(made, model, host, 2)
    assert host.lost
    for first, second in zip(whole, found, strict=True):
        assert first.records == second.records
        assert first.seen == second.seen


@needs_ray
@pytest.mark.slow
def test_an_evaluation_by_actors_has_the_report_of_one_process(
    model: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its model is named by a path that means another place in the directory that actors work in."""
    asked: dict[str, Any] = {"env": LOTTERY, "tasks": 4, "samples": 2, "agent": {"max_reply_tokens": 4}}
    whole = evaluate(model, **asked)
    monkeypatch.chdir(model.parent)
    found = evaluate(model.name, **asked, shards=2, ray=RayConfig(address=cluster.address))
    assert replace(found, name=whole.name) == whole
    assert (whole.num_tasks, whole.errors) == (4, 0)


@needs_ray
@pytest.mark.slow
def test_no_room_on_the_cluster_is_said(model: Path, cluster: Any) -> None:
    made = config(model, TWO, "rollout.shard_timeout_s=3", "rollout.shard_losses=1")
    with pytest.warns(UserWarning, match=r"shards \(1\) ask for 64 CPUs, and the cluster has 2 CPUs"):
        host = host_of(RayConfig(address=cluster.address, cpus_per_shard=64))
    with (
        pytest.warns(UserWarning, match="no node of the cluster may have room for it"),
        pytest.raises(ShardError, match=r"lost 2 times .* rollout\.shard_timeout_s = 3 s; .* no node"),
    ):
        sharded(made, model, host)


def test_ray_that_is_not_installed_is_said_before_anything_is_made(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "ray" else find(name, *more))
    with pytest.raises(ValueError, match=r"ray\.address needs Ray: pip install .*\[ray\]"):
        turnwise.train(
            "smoke",
            env=Lottery,
            model=model,
            settings=["warmstart=null", "ray.address=local", "eval.every=0", "eval.test_split=null"],
            out=tmp_path / "run",
            progress=False,
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("address", "advice"),
    [("auto", "Start one with `ray start --head`.* its token"), ("local", "the machine is busy, try again")],
)
def test_a_cluster_that_is_not_there_is_said_whatever_ray_raises(
    address: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that starts too slowly is an ``Exception`` and nothing else."""

    class Ray:
        def is_initialized(self) -> bool:
            return False

        def init(self, **given: Any) -> None:
            raise Exception("The current node\n timed out")

    monkeypatch.setitem(sys.modules, "ray", Ray())
    monkeypatch.setattr("turnwise.shards.ray_actors.check_installed", lambda: None)
    with pytest.raises(ValueError, match=rf"ray\.address={address}: .*\(The current node timed out\)\. .*{advice}"):
        Cluster(address)
