"""Several engines in processes, as one: while the replies of one are acted on, the others go on generating.

An episode stays with its engine; which one it gets, and whose replies come next, depends on counts alone, so runs
repeat.
"""

from __future__ import annotations

from collections.abc import Sequence

from turnwise.clock import Clock
from turnwise.models.drawing import LogitsError
from turnwise.models.engine import EngineCounts, Reply, Sampling
from turnwise.models.remote import RemoteEngine
from turnwise.trajectory import IntArray


class ParallelEngine:
    """An ``Engine`` (engine.py) made of ``engines``, at least one, of the same model."""

    def __init__(self, engines: Sequence[RemoteEngine]) -> None:
        self.engines = tuple(engines)
        self.num_slots = sum(engine.num_slots for engine in engines)
        self.max_length = min(engine.max_length for engine in engines)
        self.clock = Clock()
        self._places: dict[int, tuple[int, int]] = {}  # slot -> (number of its engine, what it is called there)
        self._slots: dict[tuple[int, int], int] = {}
        self._next_slot = self._next_engine = 0

    @property
    def num_free(self) -> int:
        return sum(engine.num_free for engine in self.engines)

    @property
    def counts(self) -> EngineCounts:
        """Work of all of them."""
        counts = [engine.counts for engine in self.engines]
        return EngineCounts(
            sum(c.prefill_tokens for c in counts),
            sum(c.sampled_tokens for c in counts),
            sum(c.reused_tokens for c in counts),
            sum(c.steps for c in counts),
        )

    def open(self) -> int:
        """A new empty context, with the engine that has most free slots; raises RuntimeError where none has."""
        number = self._freest()
        return self._named(number, self.engines[number].open())

    def fork(self, slot: int) -> int:
        """A copy of a slot, with the same engine where it has room, else with another that computes it again."""
        number, own = self._places[slot]
        target = number if self.engines[number].num_free else self._freest()
        return self._named(target, self.engines[number].fork(own, self.engines[target]))

    def close(self, slot: int) -> None:
        number, own = self._places.pop(slot)
        del self._slots[number, own]
        self.engines[number].close(own)

    def length(self, slot: int) -> int:
        number, own = self._places[slot]
        return self.engines[number].length(own)

    def submit(self, slot: int, ids: IntArray, *, fresh: bool, key: int, sampling: Sampling) -> None:
        number, own = self._places[slot]
        self.engines[number].submit(own, ids, fresh=fresh, key=key, sampling=sampling)

    def step(self) -> list[Reply]:
        """Let every engine that has something to do begin a step, and take the replies of the one whose turn it is."""
        if not any(engine.is_stepping for engine in self.engines):
            self._next_engine = 0  # as after a resume: what comes next must not depend on what came long before
        for engine in self.engines:
            engine.begin_step()
        for _ in self.engines:
            number, self._next_engine = self._next_engine, (self._next_engine + 1) % len(self.engines)
            if self.engines[number].is_stepping:
                return self._taken(number)
        return []

    def _taken(self, number: int) -> list[Reply]:
        began = self.clock.now()
        try:
            replies, tokens = self.engines[number].end_step()
        except LogitsError as error:
            raise LogitsError(self._slots[number, error.slot], str(error)) from None
        self.clock.split(self.clock.now() - began, **tokens)
        return [
            Reply(self._slots[number, reply.slot], reply.ids, reply.logprobs, reply.entropies, reply.ended)
            for reply in replies
        ]

    def _freest(self) -> int:
        return max(range(len(self.engines)), key=lambda number: self.engines[number].num_free)

    def _named(self, number: int, own: int) -> int:
        slot, self._next_slot = self._next_slot, self._next_slot + 1
        self._places[slot] = number, own
        self._slots[number, own] = slot
        return slot
