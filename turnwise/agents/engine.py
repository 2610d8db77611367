"""Generation for many multi-turn episodes at once.

Every episode keeps its key/value cache across turns: a new turn feeds only the new observation. A step advances
every waiting slot - observations and single tokens go through the model in one flat batch - so no episode waits
for another. Log-probabilities and full-vocabulary entropies come with the sampled tokens. What a slot samples
depends on its own key, not on its neighbours or on time (beyond the rounding of batched arithmetic).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from turnwise.agents.cache import SlotCache, StepPlan
from turnwise.agents.decoder import Decoder
from turnwise.agents.layers import projected
from turnwise.agents.loading import check_length
from turnwise.clock import Clock
from turnwise.prefixes import common_prefix, loans
from turnwise.trajectory import FloatArray, IntArray

MIN_SHARED = 16
"""Tokens. What a new context shares with another is copied from there, where it is as long."""

_BLOCK = 1024  # tokens of a large vocabulary that are searched together
_WORD = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. ``temperature`` 0 is greedy; ``top_k`` 0 and ``top_p`` 1 do not truncate."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 32


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
    uniforms: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    active: bool = False


class _Uniforms:
    """Those of ``Generator(Philox(key=key))``, without making one, which asks the system for entropy each time."""

    def __init__(self) -> None:
        self._philox = np.random.Philox(key=0)
        self._generator, self._fresh = np.random.Generator(self._philox), self._philox.state

    def of(self, key: int, num: int) -> NDArray[np.float64]:
        """``num`` numbers in [0, 1). ``key`` has up to 128 bits."""
        self._fresh["state"]["key"][:] = key & _WORD, key >> 64
        self._philox.state = self._fresh
        return self._generator.random(num)


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
        self._uniforms = _Uniforms()
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

        ``key`` seeds the reply's draws. A fresh context reuses the cached prefix that it shares with the old.
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
            state.uniforms = self._uniforms.of(key, sampling.max_tokens)
        state.ids, state.logprobs, state.entropies, state.active = [], [], [], True

    def step(self) -> list[Reply]:
        """Feed what is pending, sample one token for every active slot; the replies that finished."""
        live = self._ready()
        if not live:
            return []
        began, prefilled = self.clock.now(), self.counts.prefill_tokens
        alone = sum(len(self._slots[handle].pending) == 1 for handle in live)
        with torch_threads(self.threads):
            ids, logprobs, entropies = self._forward(live)
        self.clock.split(self.clock.now() - began, prefill=self.counts.prefill_tokens - prefilled, decode=alone)
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
        settings = [state.sampling for state in states]
        if any(s.temperature not in (0, 1) for s in settings):
            logits = logits / torch.tensor([s.temperature or 1.0 for s in settings], device=self.device)[:, None]
        drawn_from = full = torch.log_softmax(logits, dim=-1)
        probabilities = full.exp()
        entropies = -torch.linalg.vecdot(probabilities, full)
        if any(s.top_p < 1 or s.top_k for s in settings):
            drawn_from = truncated_logprobs(full, settings)
            probabilities = drawn_from.exp()
        ids = self._draw(probabilities, states)
        return ids, drawn_from.gather(-1, ids[:, None])[:, 0], entropies

    def _draw(self, probabilities: Tensor, states: list[_Slot]) -> Tensor:
        """[R, V] -> [R]: by each slot's next uniform number, the most probable one where its temperature is 0."""
        greedy = [state.sampling.temperature == 0 for state in states]
        if all(greedy):
            return probabilities.argmax(-1)
        uniforms = [
            0.0 if is_greedy else state.uniforms[len(state.ids)]
            for is_greedy, state in zip(greedy, states, strict=True)
        ]
        ids = inverse_cdf(probabilities, torch.tensor(uniforms, dtype=torch.float64, device=self.device))
        if any(greedy):
            ids = torch.where(torch.tensor(greedy, device=self.device), probabilities.argmax(-1), ids)
        return ids


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


def inverse_cdf(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Draw one index per row of [R, V] from one uniform number in [0, 1) each: the same number, the same index.

    Cumulative sums are in float64 and scaled to their total, so rounding cannot point past the last possible token;
    tokens of probability 0 are never drawn. A large vocabulary is searched in two steps, a block and then a token of
    it: the cumulative sum of all would cost more than the head.
    """
    size = probabilities.shape[1]
    if size <= 2 * _BLOCK:
        return _search(probabilities, uniforms)[0]
    even = size - size % _BLOCK
    blocks = probabilities[:, :even].view(len(probabilities), -1, _BLOCK).sum(-1)
    block, share = _search(torch.cat([blocks, probabilities[:, even:].sum(1, keepdim=True)], dim=1), uniforms)
    places = block[:, None] * _BLOCK + torch.arange(_BLOCK, device=probabilities.device)
    inside = probabilities.gather(1, places.clamp(max=size - 1)).masked_fill_(places >= size, 0.0)
    return block * _BLOCK + _search(inside, share)[0]


def _search(weights: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """The place in each row of [R, N] that a number in [0, 1) of its sum falls to, and how far into it, in [0, 1)."""
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    targets = uniforms[:, None] * cumulative[:, -1:]
    place = torch.searchsorted(cumulative, targets, right=True).clamp_(max=weights.shape[1] - 1)
    weight = weights.gather(1, place).double()
    share = (targets - cumulative.gather(1, place) + weight) / weight
    return place[:, 0], share[:, 0].clamp_(0.0, 1.0 - 2.0**-53)


def truncated_logprobs(logprobs: Tensor, settings: list[Sampling]) -> Tensor:
    """Log-probs [R, V] renormalised after top-k, then top-p; -inf outside."""
    ordered, order = logprobs.sort(dim=-1, descending=True)
    rank = torch.arange(logprobs.shape[-1], device=logprobs.device)
    top_k = torch.tensor([s.top_k or logprobs.shape[-1] for s in settings], device=logprobs.device)
    top_p = torch.tensor([s.top_p for s in settings], device=logprobs.device)
    keep = rank < top_k[:, None]
    probabilities = torch.where(keep, ordered.exp(), 0.0)
    probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    before = probabilities.cumsum(-1) - probabilities
    keep &= (before < top_p[:, None]) | (rank == 0)
    kept = torch.zeros_like(keep).scatter_(-1, order, keep)
    return torch.log_softmax(logprobs.masked_fill(~kept, -torch.inf), dim=-1)
