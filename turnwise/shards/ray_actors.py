"""A Ray cluster (the extra ``ray``), of this machine or of many, and shards in its actors.

Ray starts the actors and carries the messages. It restarts and retries nothing by itself: whether a call was carried
out before its node died cannot be known, and a new actor that is told everything again needs no answer to that.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
from typing import Any

from turnwise.childprocess import answered
from turnwise.shards.connection import Place, ShardError, ShardLostError, reported
from turnwise.shards.shard import Served


def check_installed() -> None:
    """Raise ValueError where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise ValueError('ray.address needs Ray: pip install "turnwise-rl[ray]", or leave the section ray out')


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

        self.ray, self._ours = ray, not ray.is_initialized()
        if self._ours:
            local = {"include_dashboard": False} if address == "local" else {}
            try:
                ray.init(address=address, log_to_driver=False, configure_logging=False, **local)
            except Exception as error:  # Ray's own is no kind of error where a node starts too slowly
                advice = "Start one with `ray start --head`, or take ray.address=local"
                if address == "local":
                    advice = "Where the machine is busy, try again"
                raise ValueError(
                    f"ray.address={address}: no cluster can be reached there ({in_words(error)}). {advice}"
                ) from None

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
        self._cluster = Cluster(address)
        self._actor = self._cluster.spread(_Actor, cpus, gpus)

    def place(self, number: int, seconds: float) -> Place:
        """A new actor. It may still wait for a node with room: then its first answer comes late."""
        return _ActorPlace(self._cluster.ray, self._actor.remote())

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
    """An error of Ray's in one line."""
    return " ".join(str(error).split())[:300]


class _ActorPlace:
    def __init__(self, ray: Any, actor: Any) -> None:
        self._ray, self.actor = ray, actor
        self._reference: Any = None

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
            return self._ray.get(reference, timeout=seconds)
        except errors.GetTimeoutError:
            raise ShardLostError(
                f"it gave no answer within rollout.shard_timeout_s = {seconds:g} s; if it was not made yet, no node of "
                "the cluster may have room for it"
            ) from None
        except errors.RayActorError as error:
            raise ShardLostError(in_words(error)) from None
        except errors.RayTaskError as error:
            raise ShardError(f"a shard's actor failed: {error}") from None
        except errors.RayError as error:
            raise ShardLostError(in_words(error)) from None

    def leave(self) -> None:
        self.end()

    def end(self) -> None:
        if self.actor is not None:
            self._ray.kill(self.actor)
            self.actor = None
