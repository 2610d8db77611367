"""Generation for many multi-turn episodes at once.

Every episode keeps its key/value cache across turns: a new turn feeds only the new observation. A step advances
every waiting slot - observations and single tokens go through the model in one flat batch - so no episode waits
for another. Log-probabilities and full-vocabulary entropies come with the sampled tokens. What a slot samples
depends on its own key, not on its neighbours or on time (beyond the rounding of batched arithmetic).
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
from turnwise.models.cache import SlotCache, StepPlan
from turnwise.models.decoder import Decoder
from turnwise.models.drawing import LogitsError, position_seeds, sample
from turnwise.models.drawing import Sampling as Sampling
from turnwise.models.layers import projected
from turnwise.models.loading import check_length
from turnwise.prefixes import common_prefix, loans
from turnwise.trajectory import FloatArray, IntArray

MIN_SHARED = 16
"""Tokens. What a new context shares with another is copied from there, where it is as long."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One finished reply: token ids [A] exactly as sampled, behaviour log-probs and entropies [A] (nats)."""

    slot: int
    ids: IntArray
    logprobs: FloatArray
    entropies: FloatArray
    ended: bool  # False where the token limit cut it


class Engine(Protocol):
    """What the collector needs. ``num_slots`` episodes at once, each with at most ``max_length`` tokens."""

    num_slots: int
    max_length: int
    clock: Clock

    @property
    def num_free(self) -> int: ...
    def open(self) -> int: ...
    def length(self, slot: int) -> int: ...
    def submit(self, slot: int, ids: IntArray, *, fresh: bool, key: int, sampling: Sampling) -> None: ...
    def step(self) -> list[Reply]: ...
    def fork(self, slot: int) -> int: ...
    def close(self, slot: int) -> None: ...


@dataclass(slots=True)
class _Slot:
    """``context`` are the tokens the cache holds, ``pending`` those still to be fed, ``opening`` the first of both."""

    opening: IntArray = field(default_factory=lambda: np.zeros(0, np.int32))
    context: list[int] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)
    sampling: Sampling = field(default_factory=Sampling)
    seeds: list[int] = field(default_factory=list)  # of the draws of a reply, by position
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    active: bool = False


@dataclass(slots=True)
class EngineCounts:
    """Work done since the engine was made; tokens, and forward passes."""

    prefill_tokens: int = 0
    sampled_tokens: int = 0
    reused_tokens: int = 0
    steps: int = 0


class SlotEngine:
    """The engine that runs a Hugging Face causal LM in this process, on CPU or GPU.

    ``threads`` is the number of torch threads of a step; None leaves them as they are. The small products of decoding
    run fastest on one, also where training gains from more.

    ``model`` is a ``...ForCausalLM`` of a family that the decoder knows. Slots are handles: the physical row of the
    cache behind one may change, so that live rows stay together.
    """

    def __init__(
        self, model: Any, *, num_slots: int, max_length: int, end_ids: frozenset[int], threads: int | None = None
    ) -> None:
        self.model, self.num_slots, self.max_length, self.end_ids = model, num_slots, max_length, end_ids
        self.threads = threads
        config = model.config
        check_length(config, max_length)
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        weight = next(model.parameters())
        self.device = weight.device
        self.cache = SlotCache(
            num_slots,
            config.num_hidden_layers,
            config.num_key_value_heads,
            head_dim,
            dtype=weight.dtype,
            device=self.device,
        )
        self._decoder = Decoder(model)
        self._shared_heads = config.num_attention_heads // config.num_key_value_heads
        self.counts = EngineCounts()
        self.clock = Clock()
        self._slots: dict[int, _Slot] = {}
        self._rows: list[int] = []  # row -> handle: rows [0, live) are in use
        self._row_of: dict[int, int] = {}
        self._next_handle = 0

    @property
    def num_free(self) -> int:
        return self.num_slots - len(self._rows)

    def open(self) -> int:
        """A new empty context; raises RuntimeError when all slots are taken."""
        if not self.num_free:
            raise RuntimeError(f"all {self.num_slots} slots of the engine are in use: close one first")
        handle, self._next_handle = self._next_handle, self._next_handle + 1
        self._row_of[handle] = len(self._rows)
        self._rows.append(handle)
        self._slots[handle] = _Slot()
        self.cache.lengths[self._row_of[handle]] = 0
        return handle

    def close(self, slot: int) -> None:
        """Free a slot. The last live row moves into its place."""
        row, last = self._row_of.pop(slot), len(self._rows) - 1
        del self._slots[slot]
        moved = self._rows.pop()
        if row != last:
            self.cache.copy(last, row)
            self._rows[row] = moved
            self._row_of[moved] = row

    def fork(self, slot: int) -> int:
        """A copy of a slot under a new handle, as far as its context is computed; a reply in progress is not copied.

        The next ``submit`` to a copy of a slot in the middle of a reply must be ``fresh``: what both share is reused.
        """
        state = self._slots[slot]
        handle = self.open()
        self.cache.copy(self._row_of[slot], self._row_of[handle])
        pending = [] if state.active else list(state.pending)
        self._slots[handle] = _Slot(opening=state.opening, context=list(state.context), pending=pending)
        return handle

    def length(self, slot: int) -> int:
        """Tokens in the slot's context, the sampled ones included."""
        state = self._slots[slot]
        return len(state.context) + len(state.pending)

    def submit(self, slot: int, ids: IntArray, *, fresh: bool, key: int, sampling: Sampling) -> None:
        """Add ``ids`` to the context (or, ``fresh``, make them the whole context) and start a reply.

        ``key`` seeds the reply's draws (its lower 64 bits count). A fresh context reuses the cached prefix that it
        shares with the old.
        Raises ValueError where context and reply could exceed ``max_length``.
        """
        state = self._slots[slot]
        new = ids.tolist()
        total = len(new) + sampling.max_tokens + (0 if fresh else self.length(slot))
        if total > self.max_length:
            raise ValueError(f"context of {total} tokens exceeds the engine's max_length {self.max_length}")
        if fresh:
            keep = common_prefix(np.asarray(state.context), np.asarray(new[:-1]))
            self.cache.lengths[self._row_of[slot]] = keep
            state.context, state.pending, state.opening = new[:keep], new[keep:], ids
            self.counts.reused_tokens += keep
        else:
            state.pending.extend(new)
        state.sampling = sampling
        if sampling.temperature > 0:
            state.seeds = position_seeds(key, sampling.max_tokens)
        state.ids, state.logprobs, state.entropies, state.active = [], [], [], True

    def step(self) -> list[Reply]:
        """Feed what is pending, sample one token for every active slot; the replies that finished.

        Raises LogitsError, which names a slot, where the model's logits are nan or infinite; the replies in progress
        are given up then.
        """
        live = self._ready()
        if not live:
            return []
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
        finished = []
        for handle, token, logprob, entropy in zip(live, ids, logprobs, entropies, strict=True):
            state = self._slots[handle]
            state.ids.append(token)
            state.logprobs.append(logprob)
            state.entropies.append(entropy)
            state.pending.append(token)
            ended = token in self.end_ids
            if ended or len(state.ids) == state.sampling.max_tokens:
                state.active = False
                finished.append(self._reply(handle, state, ended))
        self.counts.sampled_tokens += len(live)
        self.counts.steps += 1
        return finished

    def _ready(self) -> list[int]:
        """The slots to feed now. Of new contexts that begin alike one is fed; the others copy what it computed then."""
        live = [handle for handle in self._rows if self._slots[handle].active]
        new = [h for h in live if not self._slots[h].context and len(self._slots[h].opening) > MIN_SHARED]
        if not new:
            return live
        held = [h for h in self._rows if len(self._slots[h].context) >= len(self._slots[h].opening) >= MIN_SHARED]
        lent, asked = ([self._slots[h].opening for h in handles] for handles in (held, new))
        waiting = set()
        for handle, loan in zip(new, loans(lent, asked, MIN_SHARED), strict=True):
            if loan is None:
                waiting.add(handle)
            elif loan.length:
                state = self._slots[handle]
                self.cache.copy(self._row_of[held[loan.lender]], self._row_of[handle], loan.length)
                state.context, state.pending = state.pending[: loan.length], state.pending[loan.length :]
                self.counts.reused_tokens += loan.length
        return [handle for handle in live if handle not in waiting]

    @staticmethod
    def _reply(handle: int, state: _Slot, ended: bool) -> Reply:
        return Reply(
            slot=handle,
            ids=np.asarray(state.ids, np.int32),
            logprobs=np.asarray(state.logprobs, np.float32),
            entropies=np.asarray(state.entropies, np.float32),
            ended=ended,
        )

    def _forward(self, live: list[int]) -> tuple[list[int], list[float], list[float]]:
        states = [self._slots[handle] for handle in live]
        rows = [self._row_of[handle] for handle in live]
        counts = [len(state.pending) for state in states]
        self.counts.prefill_tokens += sum(n for n in counts if n > 1)
        plan = StepPlan(self.cache, rows, counts, self._shared_heads)
        stream = np.fromiter((t for state in states for t in state.pending), np.int64, sum(counts))
        with torch.inference_mode():
            hidden = self._decoder.states(torch.from_numpy(stream).to(self.device), plan)
            logits = projected(self.model.lm_head, hidden).float()
            ids, logprobs, entropies = self._sample(logits, states)
        plan.commit(rows, counts)
        for state in states:
            state.context.extend(state.pending)
            state.pending.clear()
        return ids.tolist(), logprobs.tolist(), entropies.tolist()

    def _sample(self, logits: Tensor, states: list[_Slot]) -> tuple[Tensor, Tensor, Tensor]:
        """logits [R, V] -> sampled ids, their log-probs and the entropies, each [R]."""
        seeds = [state.seeds[len(state.ids)] if state.sampling.temperature else 0 for state in states]
        return sample(logits, [state.sampling for state in states], seeds)

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
    """``num`` torch threads for a while; None changes nothing."""
    before = torch.get_num_threads()
    if num is None or num == before:
        yield
        return
    torch.set_num_threads(num)
    try:
        yield
    finally:
        torch.set_num_threads(before)
