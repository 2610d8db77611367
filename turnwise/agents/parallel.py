"""Several engines that step at the same time, each in a thread with a core of its own, as one engine.

They share the model's weights and divide the slots. The operations of a step release Python's lock, so threads do what
would otherwise take processes, copies of the weights and a way to send them. An episode stays with its engine; which
one it gets depends on counts alone, so runs repeat.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait

from turnwise.agents.engine import EngineCounts, Reply, Sampling, SlotEngine
from turnwise.clock import Clock
from turnwise.trajectory import IntArray


class ParallelEngine:
    """An ``Engine`` (engine.py) made of ``engines``, at least one, of the same model."""

    def __init__(self, engines: Sequence[SlotEngine]) -> None:
        self.engines = tuple(engines)
        self.num_slots = sum(engine.num_slots for engine in engines)
        self.max_length = min(engine.max_length for engine in engines)
        self.clock = Clock()
        self._places: dict[int, tuple[SlotEngine, int]] = {}  # slot -> its engine, and what it is called there
        self._slots: dict[tuple[int, int], int] = {}  # (number of the engine, slot there) -> slot
        self._next = 0
        self._pool = ThreadPoolExecutor(max(1, len(engines) - 1), thread_name_prefix="engine")

    @property
    def num_free(self) -> int:
        return sum(engine.num_free for engine in self.engines)

    @property
    def counts(self) -> EngineCounts:
        """Work of all of them; ``steps`` are those of each."""
        counts = [engine.counts for engine in self.engines]
        return EngineCounts(
            sum(c.prefill_tokens for c in counts),
            sum(c.sampled_tokens for c in counts),
            sum(c.reused_tokens for c in counts),
            sum(c.steps for c in counts),
        )

    def open(self) -> int:
        """A new empty context, with the engine that has most free slots; raises RuntimeError where none has."""
        engine = self._freest()
        return self._named(engine, engine.open())

    def fork(self, slot: int) -> int:
        """A copy of a slot, with the same engine where it has room."""
        engine, own = self._places[slot]
        target = engine if engine.num_free else self._freest()
        return self._named(target, engine.fork(own, target))

    def close(self, slot: int) -> None:
        engine, own = self._places.pop(slot)
        del self._slots[self.engines.index(engine), own]
        engine.close(own)

    def length(self, slot: int) -> int:
        engine, own = self._places[slot]
        return engine.length(own)

    def submit(self, slot: int, ids: IntArray, *, fresh: bool, key: int, sampling: Sampling) -> None:
        engine, own = self._places[slot]
        engine.submit(own, ids, fresh=fresh, key=key, sampling=sampling)

    def step(self) -> list[Reply]:
        """A step of every engine that has something to do; the replies in the order of the engines."""
        busy = [engine for engine in self.engines if engine.is_busy]
        if not busy:
            return []
        began = self.clock.now()
        others = [self._pool.submit(engine.step) for engine in busy[1:]]
        try:
            found = [busy[0].step()]
        finally:
            wait(others)
        found += [other.result() for other in others]
        fed = [engine.clock.take().tokens for engine in busy]
        tokens = {stage: sum(each.get(stage, 0) for each in fed) for stage in ("prefill", "decode")}
        self.clock.split(self.clock.now() - began, **tokens)
        return [
            Reply(self._slots[self.engines.index(engine), r.slot], r.ids, r.logprobs, r.entropies, r.ended)
            for engine, replies in zip(busy, found, strict=True)
            for r in replies
        ]

    def _freest(self) -> SlotEngine:
        return max(self.engines, key=lambda engine: engine.num_free)

    def _named(self, engine: SlotEngine, own: int) -> int:
        slot, self._next = self._next, self._next + 1
        self._places[slot] = engine, own
        self._slots[self.engines.index(engine), own] = slot
        return slot
