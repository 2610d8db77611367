"""Ranks that are threads of one process: what each does is that of a process, and nothing is sent anywhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Barrier, BrokenBarrierError
from typing import Any, TypeVar

from torch import Tensor

Made = TypeVar("Made")


@dataclass
class _Table:
    """What the ranks put down for each other."""

    barrier: Barrier
    given: dict[int, Any] = field(default_factory=dict)


@dataclass
class ThreadRank:
    """One of ``world`` threads. Sums are added in the order of the ranks."""

    rank: int
    world: int
    table: _Table
    lockstep: bool = False

    def _exchange(self, own: Any) -> list[Any]:
        self.table.given[self.rank] = own
        self.table.barrier.wait(20)
        found = [self.table.given[rank] for rank in range(self.world)]
        self.table.barrier.wait(20)
        return found

    def add_up(self, values: Tensor) -> None:
        first, *others = self._exchange(values.clone())
        total = first.clone()
        for other in others:
            total += other
        values.copy_(total)

    def gather(self, own: Any) -> list[Any]:
        return [json.loads(each) for each in self._exchange(json.dumps(own))]


def thread_ranks(world: int, *, lockstep: bool = False) -> list[ThreadRank]:
    table = _Table(Barrier(world))
    return [ThreadRank(rank, world, table, lockstep) for rank in range(world)]


def at_once(work: list[Callable[[], Made]]) -> list[Made]:
    """What the functions return, each called in a thread of its own."""
    with ThreadPoolExecutor(len(work)) as pool:
        done = [pool.submit(each) for each in work]
        failed = [error for each in done if (error := each.exception(60)) is not None]
        for error in sorted(failed, key=lambda error: isinstance(error, BrokenBarrierError)):
            raise error  # the first that failed by itself, and not because another one did not come
        return [each.result() for each in done]
