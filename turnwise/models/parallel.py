"""Several engines in processes of their own, used as one engine.

While environments act on the replies of one engine, the others keep generating. An episode stays with its engine. Which
engine it gets, and which engine's replies come next, depends on counts and not on time, so that runs repeat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from turnwise.clock import Clock
from turnwise.models.drawing import LogitsError
from turnwise.models.engine import EngineCounts, Reply, Sampling
from turnwise.models.policy import Policy
from turnwise.models.processing import Processor
from turnwise.models.remote import RemoteEngine
from turnwise.trajectory import IntArray


class ParallelEngine:
    """An ``Engine`` (engine.py) made of one or more ``engines`` of the same model, whose weights ``sampler`` shares."""

    def __init__(self, engines: Sequence[RemoteEngine], sampler: Any = None) -> None:
        self.engines, self._sampler = tuple(engines), sampler
        self.num_slots = sum(engine.num_slots for engine in engines)
        self.max_length = min(engine.max_length for engine in engines)
        self.clock = Clock()
        self._places: dict[int, tuple[int, int]] = {}  # slot -> (number of its engine, what it is called there)
        self._slots: dict[tuple[int, int], int] = {}
        self._next_slot = self._next_engine = 0

    @property
    def weights(self) -> str:
        return str(getattr(self._sampler, "weights_hash", ""))

    def hold(self, policy: Policy) -> None:
        """Play a policy's present weights, which are in the memory that the engines share since ``sync``."""

    @property
    def num_free(self) -> int:
        return sum(engine.num_free for engine in self.engines)

    @property
    def counts(self) -> EngineCounts:
        """The work of all engines, summed."""
        counts = [engine.counts for engine in self.engines]
        return EngineCounts(
            sum(c.prefill_tokens for c in counts),
            sum(c.sampled_tokens for c in counts),
            sum(c.reused_tokens for c in counts),
            sum(c.steps for c in counts),
        )

    def open(self) -> int:
        """Open an empty context in the engine with the most free slots. Raises RuntimeError where none is free."""
        number = self._freest()
        return self._named(number, self.engines[number].open())

    def fork(self, slot: int) -> int:
        """Copy a slot: in the same engine where that has a free slot, else in another one, which computes it again."""
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

    def submit(
        self,
        slot: int,
        ids: IntArray,
        *,
        fresh: bool,
        key: int,
        sampling: Sampling,
        processor: Processor | None = None,
    ) -> None:
        number, own = self._places[slot]
        self.engines[number].submit(own, ids, fresh=fresh, key=key, sampling=sampling, processor=processor)

    def step(self) -> list[Reply]:
        """Start a step in every engine that has work, and wait for the engine whose turn it is.

        Returns the replies that this engine finished.
        """
        if not any(engine.is_stepping for engine in self.engines):
            self._next_engine = 0  # as after a resume, so that the order does not depend on earlier updates
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
        return [replace(reply, slot=self._slots[number, reply.slot]) for reply in replies]

    def _freest(self) -> int:
        return max(range(len(self.engines)), key=lambda number: self.engines[number].num_free)

    def _named(self, number: int, own: int) -> int:
        slot, self._next_slot = self._next_slot, self._next_slot + 1
        self._places[slot] = number, own
        self._slots[number, own] = slot
        return slot
