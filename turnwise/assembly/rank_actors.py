"""Ranks of a learner in actors of a Ray cluster: Ray starts them, spreads them over the nodes, and tells of their end.

Ray carries no message of theirs. They find the first rank by its address, and then speak as all ranks do
(``training/ranks.py``).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

from turnwise.config.sections import RayConfig
from turnwise.shards.ray_actors import SAID_AFTER_S, Cluster, in_words, node_and_process
from turnwise.training.leading import MEETING


class RankActors:
    """Starts ranks on the cluster of ``ray.address``; close it after they have ended.

    ``host`` is the address by which the cluster's nodes reach this process. Raises ValueError as ``Cluster`` does.
    """

    def __init__(self, ray: RayConfig, device: str) -> None:
        self._cluster, self._cpus = Cluster(ray.address), ray.cpus_per_rank
        self.host: str = self._cluster.ray.util.get_node_ip_address()
        self._gpus = int(device != "cpu")

    def check_room(self, num: int) -> None:
        """See whether the cluster has room for ``num`` ranks. Raises ValueError as ``Cluster.check_room`` does."""
        who, advice = f"ranks beside the first ({num})", "lower learner.ranks or ray.cpus_per_rank"
        self._cluster.check_room(num * self._cpus, num * self._gpus, who, advice)

    def start(self, rank: int, follow: Callable[[], None]) -> ActorRank:
        """Have a new actor work as a rank, by ``follow``, to the end of the run."""
        actor = self._cluster.spread(_Rank, self._cpus, self._gpus).remote()
        wanted = f"ray.cpus_per_rank={self._cpus:g}" + (" and a GPU" if self._gpus else "")
        return ActorRank(self._cluster.ray, actor, rank, follow, wanted)

    def close(self) -> None:
        self._cluster.close()


class _Rank:
    """What an actor holds."""

    def where(self) -> tuple[str, int]:
        return node_and_process()

    def follow(self, work: Callable[[], None]) -> None:
        work()


class ActorRank:
    """A rank that is an actor (``training/leading.py``). ``wanted`` is what it takes of a node."""

    patience_s = 30.0  # a node counts as dead only after some seconds

    def __init__(self, ray: Any, actor: Any, rank: int, follow: Callable[[], None], wanted: str) -> None:
        self.rank, self.actor, self._ray, self._wanted = rank, actor, ray, wanted
        self._placed = actor.where.remote()
        self._end = actor.follow.remote(follow)
        self._began, self._said = time.monotonic(), False

    def where(self, seconds: float) -> tuple[str, int]:
        """The id of the actor's node, and of its process there."""
        found: tuple[str, int] = self._ray.get(self._placed, timeout=seconds)
        return found

    def fate(self) -> str | None:
        errors = self._ray.exceptions
        if not self._is_over(self._end, 0):
            return self._waiting()
        try:
            self._ray.get(self._end)
        except errors.RayTaskError as error:
            return f"rank {self.rank} ended: {type(error.cause).__name__}: {error.cause}"
        except errors.RayError as error:
            return f"rank {self.rank} was lost: {in_words(error)}"
        return f"rank {self.rank} ended"

    def end(self, seconds: float) -> None:
        self._is_over(self._end, seconds)
        self._ray.kill(self.actor)

    def _waiting(self) -> str | None:
        """What is wrong with an actor that no node has room for: said early, and an end where it is late."""
        waited = time.monotonic() - self._began
        if waited < SAID_AFTER_S or self._is_over(self._placed, 0):
            return None
        why = f"no node has room for {self._wanted} yet, or its process starts slowly"
        told = f"rank {self.rank} has not started: {why}"
        if waited > MEETING.total_seconds():
            return told
        if not self._said:
            self._said = True
            warnings.warn(told, stacklevel=2)
        return None

    def _is_over(self, reference: Any, seconds: float) -> bool:
        done, _ = self._ray.wait([reference], timeout=seconds)
        return bool(done)
