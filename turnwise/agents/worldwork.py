"""Where environments are reset and stepped: in the calling thread, or in threads of their own.

With ``WorldThreads(0)`` an environment's step runs at once, between two steps of the engine. With ``WorldThreads(8)``
up to eight environments step in threads while the engine generates. That helps environments that wait: for a process
of their own, a simulator, a server.

The order in which results are processed must not depend on time. It decides which episodes share a batch, batched
arithmetic is rounded differently in another batch, and so a run would not repeat. With ``order="fixed"`` results are
therefore processed ("admitted") in the order in which the work was begun, and only while more than a share of the
running episodes waits for environments: half of them, or ``waiting_share``. These are counts. With ``order="free"``
results are processed as they come, and runs do not repeat (docs/adr/011-answers-are-admitted-by-counts.md).
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from turnwise.clock import Clock

Order = Literal["fixed", "free"]
Failure = Exception | SystemExit
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Begun(Generic[_T]):
    tag: _T
    future: Future[Failure | None]


class WorldThreads:
    """``threads`` threads that all environments share. With 0 their work runs at once, in the calling thread.

    ``order`` is "fixed" (runs repeat) or "free" (see above). ``waiting_share``, above 0 and at most 0.5, is the share
    of the running episodes that may wait for their environments in fixed order. Nobody waits for ``daemon`` threads
    when they are closed or the process ends: they are for work that holds nothing, such as a request to a server.
    """

    def __init__(
        self, threads: int = 0, order: Order = "fixed", *, waiting_share: float = 0.5, daemon: bool = False
    ) -> None:
        self.order, self.waiting_share = order, waiting_share
        self._pool: ThreadPoolExecutor | _DaemonPool | None = None
        if threads:
            self._pool = _DaemonPool(threads) if daemon else ThreadPoolExecutor(threads, thread_name_prefix="world")

    def run(self, work: Callable[[], None]) -> Future[Failure | None]:
        """Start ``work``. The future's result is the exception that it raised, or None. It is not raised here."""
        if self._pool is not None:
            return self._pool.submit(_outcome, work)
        done: Future[Failure | None] = Future()
        done.set_result(_outcome(work))
        return done

    @property
    def concurrent(self) -> bool:
        """Whether there are threads."""
        return self._pool is not None

    def close(self) -> None:
        """Wait for the work that runs (not in ``daemon`` threads), and cancel what has not begun to run."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


class _DaemonPool:
    """``num`` daemon threads, which begin with the first work. ``ThreadPoolExecutor`` waits for its threads at exit."""

    def __init__(self, num: int) -> None:
        self._num = num
        self._threads: list[threading.Thread] = []
        self._waiting: queue.SimpleQueue[tuple[Future[Failure | None], Callable[[], None]] | None] = queue.SimpleQueue()

    def submit(self, outcome: Callable[[Callable[[], None]], Failure | None], work: Callable[[], None]) -> Any:
        if not self._threads:
            self._threads = [
                threading.Thread(target=self._work, args=(outcome,), daemon=True) for _ in range(self._num)
            ]
            for thread in self._threads:
                thread.start()
        future: Future[Failure | None] = Future()
        self._waiting.put((future, work))
        return future

    def _work(self, outcome: Callable[[Callable[[], None]], Failure | None]) -> None:
        while (found := self._waiting.get()) is not None:
            future, work = found
            if future.set_running_or_notify_cancel():
                future.set_result(outcome(work))

    def shutdown(self, cancel_futures: bool = True) -> None:
        with contextlib.suppress(queue.Empty):
            while cancel_futures:
                if (found := self._waiting.get_nowait()) is not None:
                    found[0].cancel()
        for _ in self._threads:
            self._waiting.put(None)
        self._threads = []


class WorldWork(Generic[_T]):
    """Work of environments that was begun and whose results were not yet processed.

    A ``tag`` names each piece of work. The seconds in which the caller waits for results count as ``stage`` in
    ``clock``.
    """

    def __init__(self, threads: WorldThreads, clock: Clock, stage: str = "environment") -> None:
        self._threads, self._clock, self._stage = threads, clock, stage
        self._begun: deque[_Begun[_T]] = deque()

    def __len__(self) -> int:
        return len(self._begun)

    def begin(self, tag: _T, work: Callable[[], None]) -> None:
        """Start ``work`` under this tag."""
        self._begun.append(_Begun(tag, self._threads.run(work)))

    def admitted(self, generating: Callable[[], int]) -> Iterator[tuple[_T, Failure | None]]:
        """The results to process now: the tag of each, and the exception that its work raised (or None).

        ``generating()`` is the number of episodes that wait for a reply of a model. It is asked anew for each result.
        """
        while self._begun:
            if self._threads.order == "free" and self._threads.concurrent:
                found = self._first_done(block=not generating())
            else:
                found = self._begun.popleft() if self._due(generating()) else None
            if found is None:
                return
            with self._clock.stage(self._stage, 0):
                error = found.future.result()
            yield found.tag, error

    def finish(self) -> None:
        """Wait until no work runs, and drop all results."""
        wait(self.drop())

    def drop(self) -> list[Future[Failure | None]]:
        """Cancel what has not begun to run, and drop all results. Returns the work that still runs."""
        running = [begun.future for begun in self._begun if not begun.future.cancel()]
        self._begun.clear()
        return running

    def wait_for(self, is_meant: Callable[[_T], bool]) -> None:
        """Wait until no work runs whose tag satisfies ``is_meant``. Its results are not processed yet."""
        wait([begun.future for begun in self._begun if is_meant(begun.tag)])

    def _due(self, generating: int) -> bool:
        share, waiting = self._threads.waiting_share, len(self._begun)
        return not self._threads.concurrent or generating * share < waiting * (1 - share)

    def _first_done(self, block: bool) -> _Begun[_T] | None:
        if block:
            with self._clock.stage(self._stage, 0):
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
