"""Room on a Ray cluster: what is asked for is compared with what is there, and a shard that waits is said to."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import pytest

from turnwise.assembly import learners
from turnwise.assembly.shards import host_of
from turnwise.config.sections import LearnerConfig, RayConfig
from turnwise.shards import ray_actors
from turnwise.shards.connection import ShardError, ShardLostError


class FakeRay:
    """A cluster of two CPUs, on which no actor is ever placed unless ``room``."""

    class exceptions:  # noqa: N801
        class RayError(Exception):
            pass

        class RayTaskError(RayError):
            pass

        class RayActorError(RayError):
            actor_init_failed = False

        class GetTimeoutError(RayError):
            pass

    def __init__(self, room: bool = False) -> None:
        self.room, self.inside, self.patience = room, False, list[float]()
        self.fault: Exception = self.exceptions.GetTimeoutError()
        self.util = type("Util", (), {"get_node_ip_address": lambda self: "10.0.0.1"})()

    def is_initialized(self) -> bool:
        return self.inside

    def init(self, **given: Any) -> None:
        self.inside = True

    def shutdown(self) -> None:
        self.inside = False

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0, "memory": 1e9}

    def remote(self, kind: type) -> Any:
        call = type("Call", (), {"remote": lambda self, *given: object()})
        actor = type("Actor", (), {"where": call(), "answer": call()})
        made = type("Made", (), {"remote": lambda self: actor()})
        return type("Kind", (), {"options": lambda self, **given: made()})()

    def wait(self, references: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return (references, []) if self.room else ([], references)

    def get(self, reference: Any, timeout: float) -> Any:
        self.patience.append(timeout)
        raise self.fault


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    made = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", made)
    monkeypatch.setattr(ray_actors, "check_installed", lambda: None)
    return made


def test_a_local_cluster_that_is_too_small_is_refused(ray: FakeRay) -> None:
    local = RayConfig(address="local")
    host_of(local, shards=2).close()
    with pytest.raises(ValueError, match=r"shards \(3\) ask for 3 CPUs, and the cluster has 2 CPUs: lower the number"):
        host_of(local, shards=3)
    with pytest.raises(ValueError, match=r"shards \(2\) and the other ranks \(1\) ask for 3 CPUs.*learner\.ranks"):
        host_of(local, shards=2, ranks=1)
    with pytest.raises(ValueError, match=r"1 GPUs, and the cluster has 0 GPUs"):
        host_of(RayConfig(address="local", gpus_per_shard=1))
    assert not ray.inside, "the cluster that was started is ended"


def test_a_cluster_that_may_grow_is_warned_of(ray: FakeRay) -> None:
    with pytest.warns(UserWarning, match=r"ask for 3 CPUs, and the cluster has 2 CPUs: .*, or add nodes"):
        host_of(RayConfig(address="auto"), shards=3)


def test_ranks_without_room_are_refused_and_the_cluster_is_left(
    ray: FakeRay, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run: Any = type("Run", (), {"path": tmp_path})
    with pytest.raises(ValueError, match=r"ranks beside the first \(3\) ask for 3 CPUs.*lower learner\.ranks"):
        learners.lead(LearnerConfig(ranks=4), "cpu", run, [""], RayConfig(address="local"))
    assert not ray.inside

    def full(*given: Any) -> Any:
        raise RuntimeError("no port is free")

    monkeypatch.setattr(learners, "_own_store", full)
    with pytest.raises(RuntimeError, match="no port is free"):
        learners.lead(LearnerConfig(ranks=2), "cpu", run, [""], RayConfig(address="local"))
    assert not ray.inside, "the cluster is left where the ranks have no place to meet"


def test_a_shard_that_waits_for_room_says_so_once(ray: FakeRay) -> None:
    place = host_of(RayConfig(address="local", cpus_per_shard=2)).place(1, 100)
    place.tell("build", None)
    with (
        pytest.warns(UserWarning, match=r"shard 1 has not started: no node has room for 2 CPUs yet"),
        pytest.raises(ShardLostError, match="no answer"),
    ):
        place.told(100)
    ray.room = True
    other = host_of(RayConfig(address="local")).place(0, 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for asked in (place, other):
            asked.tell("go", ())
            with pytest.raises(ShardLostError):
                asked.told(50)
    assert ray.patience == pytest.approx([100, 50, 50], abs=1)


def test_a_node_without_turnwise_is_named(ray: FakeRay) -> None:
    """Ray says so between tracebacks. Another actor would fail there too, so that it is no loss."""
    ray.room = True
    ray.fault = ray.exceptions.RayActorError(
        "The actor died because of an error raised in its creation task, ray::_Actor.__init__() (pid=1, ip=10.0.0.2, "
        "actor_id=4d)\n   ^^^^^^\nRuntimeError: The actor with name _Actor failed to import on the worker.\n\n"
        "ray::_Actor.__init__() (pid=1, ip=10.0.0.2)\n  ^^^^^\nModuleNotFoundError: No module named 'turnwise'\n"
    )
    place = host_of(RayConfig(address="local")).place(0, 100)
    place.tell("build", None)
    with pytest.raises(ShardLostError, match="The actor died"):
        place.told(100)
    ray.fault.actor_init_failed = True
    with pytest.raises(
        ShardError, match=r"not be made on 10\.0\.0\.2 \(ModuleNotFoundError: No module named 'turnwise'\): `ray start`"
    ):
        place.told(100)
