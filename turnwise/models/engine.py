"""Generation for many multi-turn episodes at once.

    slot = engine.open()
    engine.submit(slot, prompt_ids, fresh=True, key=1, sampling=Sampling(max_tokens=32))
    replies = engine.step()      # again and again, until a reply for the slot is in the list
    engine.submit(slot, observation_ids, fresh=False, key=2, sampling=Sampling(max_tokens=32))

An episode has a slot, which keeps its keys and values from turn to turn: a new turn computes only the tokens of the new
observation. ``step`` advances every slot that is generating. Long observations and single tokens go through the model
in one flat batch, so that no episode waits for another. Each sampled token comes with its log-probability and the
entropy of the full distribution. What a slot samples depends on its key. It does not depend on other slots or on time
(beyond the rounding of batched arithmetic).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from turnwise.clock import Clock
from turnwise.models.drawing import LogitsError, position_seeds, sample
from turnwise.models.drawing import Sampling as Sampling
from turnwise.models.kinds import check_length
from turnwise.models.paths import contexts_of
from turnwise.models.policy import Policy
from turnwise.models.processing import Course, Processor, processed
from turnwise.prefixes import common_prefix, loans
from turnwise.trajectory import FloatArray, IntArray, Processing

MIN_SHARED = 16
"""Tokens. A new context copies a common prefix from another slot where it is at least so long."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One finished reply.

    ``ids`` [A] int32 are the tokens exactly as sampled, the end token included. ``logprobs`` and ``entropies`` [A]
    float32 are the behaviour log-probabilities and entropies, in nats. ``processing`` says what a processor made of
    their distributions; None: nothing.
    """

    slot: int
    ids: IntArray
    logprobs: FloatArray
    entropies: FloatArray
    ended: bool  # True after an end token; False where the reply reached its token limit
    processing: Processing | None = None


class Engine(Protocol):
    """What the collector needs of an engine: ``num_slots`` contexts at once, of at most ``max_length`` tokens each.

    ``SlotEngine`` documents the methods. ``processes``: whether it can run a processor.
    """

    num_slots: int
    max_length: int
    clock: Clock

    @property
    def processes(self) -> bool: ...

    @property
    def weights(self) -> str: ...
    def hold(self, policy: Policy) -> None: ...
    @property
    def num_free(self) -> int: ...
    def open(self) -> int: ...
    def length(self, slot: int) -> int: ...
    def submit(
        self,
        slot: int,
        ids: IntArray,
        *,
        fresh: bool,
        key: int,
        sampling: Sampling,
        processor: Processor | None = None,
    ) -> None: ...
    def step(self) -> list[Reply]: ...
    def fork(self, slot: int) -> int: ...
    def close(self, slot: int) -> None: ...


@dataclass(slots=True)
class _Slot:
    """``context``: tokens whose keys and values the cache holds. ``pending``: tokens that still have to be computed.

    ``opening``: the tokens with which the context was opened (the prompt of the last ``fresh`` submit).
    """

    opening: IntArray = field(default_factory=lambda: np.zeros(0, np.int32))
    context: list[int] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)
    sampling: Sampling = field(default_factory=Sampling)
    seeds: list[int] = field(default_factory=list)  # of a reply's random draws, one for each position
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    active: bool = False
    course: Course | None = None

    def add(self, token: int, logprob: float, entropy: float) -> None:
        """The next token of the reply."""
        self.ids.append(token)
        self.logprobs.append(logprob)
        self.entropies.append(entropy)
        self.pending.append(token)
        if self.course is not None:
            self.course.take(token, logprob, entropy)


@dataclass(slots=True)
class EngineCounts:
    """Work since the engine was made: tokens, and ``steps``, which are forward passes.

    ``prefill_tokens`` were computed in inputs of several tokens, ``reused_tokens`` were copied instead of computed.
    """

    prefill_tokens: int = 0
    sampled_tokens: int = 0
    reused_tokens: int = 0
    steps: int = 0


class SlotEngine:
    """An engine that runs a Hugging Face causal LM in this process, on CPU or GPU.

    ``model`` is a ``...ForCausalLM``; ``paths.py`` says which code computes it. ``end_ids`` are the tokens that end a
    reply. ``threads`` is the number of torch threads during a step; None does not change it. The small products of
    decoding are fastest with one thread, even where training is faster with several.

    A slot is a handle. The row of ``contexts`` behind it may change, so that the rows in use stay adjacent.
    """

    processes = True

    def __init__(
        self, model: Any, *, num_slots: int, max_length: int, end_ids: frozenset[int], threads: int | None = None
    ) -> None:
        self.model, self.num_slots, self.max_length, self.end_ids = model, num_slots, max_length, end_ids
        self.threads = threads
        check_length(model.config, max_length)
        self.contexts = contexts_of(model, num_slots)
        self.counts = EngineCounts()
        self.clock = Clock()
        self._slots: dict[int, _Slot] = {}
        self._rows: list[int] = []  # row of the contexts -> slot; rows from 0 to the number of open slots are in use
        self._row_of: dict[int, int] = {}
        self._next_handle = 0

    @property
    def weights(self) -> str:
        """The hash of the weights that it plays (``Policy.adapter_hash``); "" where its model is not a policy's."""
        return str(getattr(self.model, "weights_hash", ""))

    def hold(self, policy: Policy) -> None:
        """Play a policy's present weights. Its sampler is this engine's model, which has them since ``sync``."""

    @property
    def num_free(self) -> int:
        return self.num_slots - len(self._rows)

    def open(self) -> int:
        """Open a slot with an empty context. Raises RuntimeError where all slots are in use."""
        if not self.num_free:
            raise RuntimeError(f"all {self.num_slots} slots of the engine are in use: close one first")
        handle, self._next_handle = self._next_handle, self._next_handle + 1
        self._row_of[handle] = len(self._rows)
        self._rows.append(handle)
        self._slots[handle] = _Slot()
        self.contexts.keep(self._row_of[handle], 0)
        return handle

    def close(self, slot: int) -> None:
        """Free a slot. The last row that is in use moves to the freed row."""
        row, last = self._row_of.pop(slot), len(self._rows) - 1
        del self._slots[slot]
        moved = self._rows.pop()
        if row != last:
            self.contexts.move(last, row)
            self._rows[row] = moved
            self._row_of[moved] = row
        self.contexts.clear(last)

    def fork(self, slot: int) -> int:
        """Copy a slot's context into a new slot. A reply in progress is not copied.

        After a fork in the middle of a reply, the first ``submit`` to the copy must be ``fresh``. It reuses the keys
        and values of the common prefix. Raises RuntimeError where all slots are in use.
        """
        state = self._slots[slot]
        handle = self.open()
        kept = self.contexts.copy(self._row_of[slot], self._row_of[handle])
        pending = [] if state.active else list(state.pending)
        context, pending = state.context[:kept], state.context[kept:] + pending
        self._slots[handle] = _Slot(opening=state.opening, context=context, pending=pending)
        return handle

    def length(self, slot: int) -> int:
        """The number of tokens in the slot's context, sampled ones included."""
        state = self._slots[slot]
        return len(state.context) + len(state.pending)

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
        """Append ``ids`` [P] to the slot's context and start a reply. With ``fresh`` they replace the context.

        ``key`` seeds the reply's random draws (its lower 64 bits are used). ``processor``, a fresh one for each reply,
        decides what its tokens are drawn from. A fresh context reuses the cached keys and values of the prefix that it
        has in common with the old one. Raises ValueError where context and reply could exceed ``max_length``.
        """
        state = self._slots[slot]
        new = ids.tolist()
        total = len(new) + sampling.max_tokens + (0 if fresh else self.length(slot))
        if total > self.max_length:
            raise ValueError(
                f"context of {total} tokens exceeds the engine's max_length {self.max_length} ({sampling.max_tokens} "
                "tokens of the reply included)"
            )
        if fresh:
            keep = common_prefix(np.asarray(state.context), np.asarray(new[:-1]))
            keep = self.contexts.keep(self._row_of[slot], keep)
            state.context, state.pending, state.opening = new[:keep], new[keep:], ids
            self.counts.reused_tokens += keep
        else:
            state.pending.extend(new)
        state.sampling = sampling
        if sampling.temperature > 0:
            state.seeds = position_seeds(key, sampling.max_tokens)
        state.ids, state.logprobs, state.entropies, state.active = [], [], [], True
        state.course = Course(processor) if processor is not None else None

    def step(self) -> list[Reply]:
        """Compute all pending tokens and sample one token for every active slot. Returns the replies that finished.

        Raises LogitsError, which names a slot, where the model's logits are nan or infinite. All replies in progress
        are abandoned then.
        """
        self.contexts.widen(len(self._rows))  # for all that are open at once
        finished = self._settled([h for h in self._rows if self._slots[h].course and not self._slots[h].ids])
        live = self._ready()
        if not live:
            return finished
        began, prefilled = self.clock.now(), self.counts.prefill_tokens
        alone = sum(len(self._slots[handle].pending) == 1 for handle in live)
        with torch_threads(self.threads):
            ids, logprobs, entropies = self._forward(live)
        self.clock.split(self.clock.now() - began, prefill=self.counts.prefill_tokens - prefilled, decode=alone)
        broken = [handle for handle, entropy in zip(live, entropies, strict=True) if math.isnan(entropy)]
        if broken:
            for handle in live:
                self._slots[handle].active = False
            raise LogitsError(broken[0], self._not_finite(self._slots[broken[0]]))
        for handle, token, logprob, entropy in zip(live, ids, logprobs, entropies, strict=True):
            self._slots[handle].add(token, logprob, entropy)
        self.counts.sampled_tokens += len(live)
        self.counts.steps += 1
        return finished + self._settled(live)

    def _settled(self, handles: list[int]) -> list[Reply]:
        """Append the tokens that are no choice, and return the replies that are finished."""
        finished = []
        for handle in handles:
            state = self._slots[handle]
            while state.active:
                ended = bool(state.ids) and state.ids[-1] in self.end_ids
                if ended or len(state.ids) == state.sampling.max_tokens:
                    state.active = False
                    finished.append(self._reply(handle, state, ended))
                elif state.course is not None and (token := state.course.only()) is not None:
                    state.add(token, 0.0, 0.0)
                else:
                    break
        return finished

    def _ready(self) -> list[int]:
        """The slots to compute in this step.

        Of new contexts with a common prefix only one is computed now. The others wait for the next step, where they
        copy the keys and values of the prefix.
        """
        live = [handle for handle in self._rows if self._slots[handle].active]
        new = [h for h in live if not self._slots[h].context and len(self._slots[h].opening) > MIN_SHARED]
        if not new or not self.contexts.lends:
            return live
        held = [h for h in self._rows if len(self._slots[h].context) >= len(self._slots[h].opening) >= MIN_SHARED]
        lent, asked = ([self._slots[h].opening for h in handles] for handles in (held, new))
        waiting = set()
        for handle, loan in zip(new, loans(lent, asked, MIN_SHARED), strict=True):
            if loan is None:
                waiting.add(handle)
            elif loan.length:
                state = self._slots[handle]
                kept = self.contexts.copy(self._row_of[held[loan.lender]], self._row_of[handle], loan.length)
                state.context, state.pending = state.pending[:kept], state.pending[kept:]
                self.counts.reused_tokens += kept
        return [handle for handle in live if handle not in waiting]

    @staticmethod
    def _reply(handle: int, state: _Slot, ended: bool) -> Reply:
        return Reply(
            slot=handle,
            ids=np.asarray(state.ids, np.int32),
            logprobs=np.asarray(state.logprobs, np.float32),
            entropies=np.asarray(state.entropies, np.float32),
            ended=ended,
            processing=state.course.record(state.sampling.temperature) if state.course is not None else None,
        )

    def _forward(self, live: list[int]) -> tuple[list[int], list[float], list[float]]:
        states = [self._slots[handle] for handle in live]
        rows = [self._row_of[handle] for handle in live]
        counts = [len(state.pending) for state in states]
        self.counts.prefill_tokens += sum(n for n in counts if n > 1)
        logits = self.contexts.logits(rows, [state.pending for state in states])
        with torch.inference_mode():
            ids, logprobs, entropies = self._sample(logits, states)
        for state in states:
            state.context.extend(state.pending)
            state.pending.clear()
        return ids.tolist(), logprobs.tolist(), entropies.tolist()

    def _sample(self, logits: Tensor, states: list[_Slot]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [R, V] -> sampled ids, their log-probabilities and the entropies, [R] each."""
        seeds = [state.seeds[len(state.ids)] if state.sampling.temperature else 0 for state in states]
        settings, courses = [state.sampling for state in states], [state.course for state in states]
        if any(courses):
            logits, settings = processed(logits, settings, courses)
        return sample(logits, settings, seeds)

    def _not_finite(self, state: _Slot) -> str:
        dtype = str(next(self.model.parameters()).dtype).removeprefix("torch.")
        return (
            f"the model's logits are nan or infinite at token {len(state.ids) + 1} of a reply (its weights are "
            f"{dtype}, the temperature is {state.sampling.temperature:g}): no token can be drawn from them. Check "
            "the dtype (float16 overflows where bfloat16 and float32 do not) and the checkpoint (weights that are nan "
            "or infinite, tensors that belong to another model)"
        )


@contextmanager
def torch_threads(num: int | None) -> Iterator[None]:
    """A context with ``num`` torch threads; None does not change their number."""
    before = torch.get_num_threads()
    if num is None or num == before:
        yield
        return
    torch.set_num_threads(num)
    try:
        yield
    finally:
        torch.set_num_threads(before)
