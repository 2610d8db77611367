"""Where worlds do their work: in between the steps of generation, or beside it in threads.

Threads serve worlds that wait: for a process of their own, a simulator, a server. What is admitted when must not
depend on how long anything took, or runs would not repeat: the rounding of batched arithmetic depends on who is in the
batch. So with ``order="fixed"`` work is admitted in the order in which it was begun, and at moments that counts alone
decide: as long as fewer episodes generate than wait for their worlds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from turnwise.clock import Clock

Order = Literal["fixed", "free"]
Failure = Exception | SystemExit
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Begun(Generic[_T]):
    tag: _T
    future: Future[Failure | None]


class WorldThreads:
    """``threads`` that worlds share; 0: their work is done at once, by whoever asks for it."""

    def __init__(self, threads: int = 0, order: Order = "fixed") -> None:
        self.order = order
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="world") if threads else None

    def run(self, work: Callable[[], None]) -> Future[Failure | None]:
        """What ``work`` raises is the future's result."""
        if self._pool is not None:
            return self._pool.submit(_outcome, work)
        done: Future[Failure | None] = Future()
        done.set_result(_outcome(work))
        return done

    @property
    def beside(self) -> bool:
        return self._pool is not None

    def close(self) -> None:
        """Wait for what runs, forget what does not yet."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


class WorldWork(Generic[_T]):
    """Work that was begun and not yet admitted; a ``tag`` says whose it is. Waiting is charged to ``clock``."""

    def __init__(self, threads: WorldThreads, clock: Clock) -> None:
        self._threads, self._clock = threads, clock
        self._begun: deque[_Begun[_T]] = deque()

    def __len__(self) -> int:
        return len(self._begun)

    def begin(self, tag: _T, work: Callable[[], None]) -> None:
        self._begun.append(_Begun(tag, self._threads.run(work)))

    def admitted(self, generating: Callable[[], int]) -> Iterator[tuple[_T, Failure | None]]:
        """What may go on now, with what it raised; ``generating`` counts the episodes that a reply is awaited for."""
        while self._begun:
            if self._threads.order == "free" and self._threads.beside:
                found = self._first_done(block=not generating())
            else:
                found = self._begun.popleft() if self._due(generating()) else None
            if found is None:
                return
            with self._clock.stage("environment", 0):
                error = found.future.result()
            yield found.tag, error

    def finish(self) -> None:
        """Wait until no work runs, and forget it all."""
        for begun in self._begun:
            begun.future.cancel()
        wait([begun.future for begun in self._begun if not begun.future.cancelled()])
        self._begun.clear()

    def wait_for(self, is_meant: Callable[[_T], bool]) -> None:
        """Return once no work of this tag runs; it is not admitted yet."""
        wait([begun.future for begun in self._begun if is_meant(begun.tag)])

    def _due(self, generating: int) -> bool:
        return not self._threads.beside or generating < len(self._begun)

    def _first_done(self, block: bool) -> _Begun[_T] | None:
        if block:
            with self._clock.stage("environment", 0):
                wait([begun.future for begun in self._begun], return_when=FIRST_COMPLETED)
        found = next((begun for begun in self._begun if begun.future.done()), None)
        if found is not None:
            self._begun.remove(found)
        return found


def _outcome(work: Callable[[], None]) -> Failure | None:
    try:
        work()
    except (Exception, SystemExit) as error:  # whatever a third party's world raises, also where it would leave
        return error
    return None
