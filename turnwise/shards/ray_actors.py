"""A Ray cluster (the extra ``ray``), of this machine or of many, and shards in its actors.

Ray starts the actors and carries the messages. It restarts and retries nothing by itself: whether a call was carried
out before its node died cannot be known, and a new actor that is told everything again needs no answer to that.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
import re
import time
import warnings
from typing import Any

from turnwise.childprocess import answered
from turnwise.shards.connection import Place, ShardError, ShardLostError, reported
from turnwise.shards.shard import Served

SAID_AFTER_S = 20.0
"""After which it is said that an actor has not started."""


def check_installed() -> None:
    """Raise ValueError where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise ValueError('ray.address needs Ray: pip install -e ".[ray]", or leave the section ray out')


class Cluster:
    """This process's connection to a cluster, as ``ray``; close it.

    ``address`` is ``local`` (a cluster of this machine, which ends with this object), ``auto`` (the one that this
    machine belongs to) or that of a head node. A process that is connected already keeps its connection. Raises
    ValueError where Ray is not installed, or no cluster is there.
    """

    def __init__(self, address: str) -> None:
        check_installed()
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_worker_niceness", "0")  # of a cluster that is started here: its own is 15
        import ray

        self.ray, self._ours, self._address = ray, not ray.is_initialized(), address
        if self._ours:
            local = {"include_dashboard": False} if address == "local" else {}
            try:
                ray.init(address=address, log_to_driver=False, configure_logging=False, **local)
            except Exception as error:  # Ray's own is no kind of error where a node starts too slowly
                advice = (
                    "Start one with `ray start --head`, or take ray.address=local; where one is there, put its token "
                    "into ~/.ray/auth_token of this machine too"
                )
                if address == "local":
                    advice = "Where the machine is busy, try again"
                raise ValueError(
                    f"ray.address={address}: no cluster can be reached there ({in_words(error)}). {advice}"
                ) from None

    def check_room(self, cpus: float, gpus: float, who: str, advice: str) -> None:
        """Compare what ``who`` ask for, all together, with what the whole cluster has.

        Raises ValueError where ``local`` has less. Any other cluster may grow, so that it is a warning there.
        """
        has = self.ray.cluster_resources()
        lacks = [name for name, wanted in (("CPU", cpus), ("GPU", gpus)) if wanted > has.get(name, 0)]
        if not lacks:
            return
        wanted, there = (
            " and ".join(f"{found.get(name, 0):g} {name}s" for name in lacks)
            for found in ({"CPU": cpus, "GPU": gpus}, has)
        )
        told = f"ray.address={self._address}: {who} ask for {wanted}, and the cluster has {there}: {advice}"
        if self._address == "local":
            raise ValueError(told)
        warnings.warn(f"{told}, or add nodes: until then some of them wait for room", stacklevel=2)

    def spread(self, kind: type, cpus: float, gpus: float) -> Any:
        """``kind`` as a class of actors that ask for so many CPUs and GPUs each, spread over the cluster's nodes."""
        return self.ray.remote(kind).options(
            num_cpus=cpus, num_gpus=gpus, max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD"
        )

    def close(self) -> None:
        """Leave the cluster where this object joined it."""
        if self._ours:
            self.ray.shutdown()
            self._ours = False


class RayActors:
    """Places shards in actors that ask for so many CPUs and GPUs each. ``address`` as of ``Cluster``."""

    def __init__(self, address: str, cpus: float, gpus: float) -> None:
        self._cluster, self._cpus, self._gpus = Cluster(address), cpus, gpus
        self._actor = self._cluster.spread(_Actor, cpus, gpus)

    def check_room(self, shards: int, ranks: int = 0, cpus_per_rank: float = 0, gpus_per_rank: float = 0) -> None:
        """See whether the cluster has room for so many shards, and for ``ranks`` of a learner beside them.

        Raises ValueError as ``Cluster.check_room`` does, and leaves the cluster then.
        """
        cpus, gpus = shards * self._cpus + ranks * cpus_per_rank, shards * self._gpus + ranks * gpus_per_rank
        who = f"shards ({shards}) and the other ranks ({ranks})" if ranks else f"shards ({shards})"
        which = "the number of shards, or ray.cpus_per_shard"
        if ranks:
            which = "rollout.shards, learner.ranks, ray.cpus_per_shard or ray.cpus_per_rank"
        try:
            self._cluster.check_room(cpus, gpus, who, f"lower {which}")
        except ValueError:
            self.close()
            raise

    def place(self, number: int, seconds: float) -> Place:
        """A new actor. It may still wait for a node with room: then its first answer comes late."""
        wanted = f"{self._cpus:g} CPUs" + (f" and {self._gpus:g} GPUs" if self._gpus else "")
        told = f"shard {number} has not started: no node has room for {wanted} yet, or its process starts slowly"
        return _ActorPlace(self._cluster.ray, self._actor.remote(), told)

    def shared(self, tensors: bytes) -> Any:
        """A reference to the bytes, which every node fetches once."""
        return self._cluster.ray.put(tensors)

    def close(self) -> None:
        """Leave the cluster where this object joined it."""
        self._cluster.close()


class _Actor(Served):
    """A ``Served`` whose answers are those of a child process (childprocess.py)."""

    def answer(self, name: str, *arguments: Any) -> bytes:
        return answered(self.call, name, *arguments)

    def where(self) -> tuple[str, int]:
        """The id of its node, and of its process there."""
        return node_and_process()


def node_and_process() -> tuple[str, int]:
    """The id of the node that this process is on, and of the process there."""
    import ray

    return ray.get_runtime_context().get_node_id(), os.getpid()


def in_words(error: Exception) -> str:
    """An error of Ray's in one line. Why an actor could not be made is the last line of what Ray says."""
    said = str(error)
    if not getattr(error, "actor_init_failed", False):
        return " ".join(said.split())[:300]
    machine = re.search(r"\bip=([^,)]+)", said)
    return (
        f"an actor could not be made on {machine[1] if machine else 'a node'} ({said.strip().splitlines()[-1]}): "
        "`ray start` has to run in an environment that has turnwise, with the extra ray, on every machine"
    )


class _ActorPlace:
    """``waits`` says that no node has room for it yet."""

    def __init__(self, ray: Any, actor: Any, waits: str) -> None:
        self._ray, self.actor, self._waits = ray, actor, waits
        self._reference: Any = None
        self._placed: Any = actor.where.remote()  # None once it is known, or was said

    def where(self, seconds: float) -> tuple[str, int]:
        """The id of the actor's node, and of its process there. To be asked between calls."""
        found: tuple[str, int] = self._got(self.actor.where.remote(), seconds)
        return found

    def tell(self, name: str, *arguments: Any) -> None:
        if self.actor is None:
            raise ShardLostError("its actor has ended")
        self._reference = self.actor.answer.remote(name, *arguments)

    def told(self, seconds: float) -> Any:
        succeeded, value = pickle.loads(self._got(self._reference, seconds))
        if not succeeded:
            raise reported(*value)
        return value

    def _got(self, reference: Any, seconds: float) -> Any:
        """The answer to a call. Raises ShardLostError where the actor or its node has ended, or does not answer."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference, timeout=self._left(seconds))
        except errors.GetTimeoutError:
            raise ShardLostError(
                f"it gave no answer within rollout.shard_timeout_s = {seconds:g} s; if it was not made yet, no node of "
                "the cluster may have room for it"
            ) from None
        except errors.RayActorError as error:
            kind = ShardError if error.actor_init_failed else ShardLostError  # another one would fail there too
            raise kind(in_words(error)) from None
        except errors.RayTaskError as error:
            raise ShardError(f"a shard's actor failed: {error}") from None
        except errors.RayError as error:
            raise ShardLostError(in_words(error)) from None

    def _left(self, seconds: float) -> float:
        """What is left of the seconds after it was seen that a node has the actor, or said that it waits for one."""
        if self._placed is None:
            return seconds
        began = time.monotonic()
        placed, _ = self._ray.wait([self._placed], timeout=min(SAID_AFTER_S, seconds))
        self._placed = None
        if not placed:
            warnings.warn(self._waits, stacklevel=2)
        return max(0.0, seconds - (time.monotonic() - began))

    def leave(self) -> None:
        self.end()

    def end(self) -> None:
        if self.actor is not None:
            self._ray.kill(self.actor)
            self.actor = None
