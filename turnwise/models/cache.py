"""The key/value cache of many episodes, and the attention that reads it.

Every layer has two buffers [S, K, L, D]: S slots, K key heads, room for L tokens, width D. An episode has one slot, of
which its first ``lengths[slot]`` tokens are filled. S follows the slots in use, L the longest context, in blocks of 64
tokens.

In one step, for example, slot 0 gets one token (the one sampled last), slot 1 gets a new observation of 40 tokens and
slot 2 gets one token. The model computes the 42 tokens in one flat stream. Attention handles two kinds of slots apart:
those with one new token together, reading the buffers in place, and those with several in small padded groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from turnwise.models.block_attention import LEAST, attend_into, in_blocks
from turnwise.models.layers import is_half

BLOCK = 64  # tokens by which buffers grow on a CPU: a copy for every 64 reads


def room(length: int, device: torch.device) -> int:
    """Tokens that a slot has room for while the longest context has ``length``.

    On a CPU these are whole blocks. On a GPU sizes start at 128 and double, since its allocator keeps each size.
    """
    if device.type == "cpu":
        return -(-length // BLOCK) * BLOCK
    return 128 << max(0, (length - 1).bit_length() - 7)


class SlotCache:
    """Keys and values of up to ``num_slots`` contexts.

    ``lengths`` [num_slots] int64 is the number of tokens that each slot holds. The buffers have room for ``rows`` slots
    of ``capacity`` tokens. ``rows`` follows the slots that were in use at once. On a CPU ``capacity`` shrinks where
    half of it is enough, and both are 0 while no slot holds a token.
    """

    def __init__(
        self,
        num_slots: int,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.lengths = np.zeros(num_slots, dtype=np.int64)
        self.rows = self.capacity = 0
        self.device = device
        # oneDNN's product in half precision takes no part of a buffer's tokens: torch would copy that part each time.
        # In float32 MKL takes it.
        self.read_whole = device.type == "cpu" and is_half(dtype)
        shape = (0, num_kv_heads, 0, head_dim)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]

    @property
    def num_slots(self) -> int:
        return len(self.lengths)

    def widen(self, rows: int) -> None:
        """Make room for the first ``rows`` slots. Beyond the first time it is a quarter more at least."""
        if rows > self.rows:  # forks come one at a time: not a copy of everything for each
            self._resize(min(max(rows, self.rows + self.rows // 4), self.num_slots), self.capacity)

    def reserve(self, length: int) -> None:
        """Make room for ``length`` tokens in every slot, and give back room that no slot needs."""
        needed = room(max(length, int(self.lengths.max())), self.device)
        if needed > self.capacity or (2 * needed <= self.capacity and self.device.type == "cpu"):
            self._resize(self.rows, needed)

    def clear(self, slot: int) -> None:
        """Forget the slot's tokens. On a CPU the memory is given back where that was the last slot with any."""
        self.lengths[slot] = 0
        if self.device.type == "cpu" and not self.lengths.any():
            self._resize(0, 0)

    def _resize(self, rows: int, capacity: int) -> None:
        kept = int(self.lengths.max())
        for buffers in (self.keys, self.values):
            for layer, old in enumerate(buffers):
                _, heads, _, dim = old.shape
                held = min(rows, self.rows)
                buffers[layer] = new = old.new_empty(rows, heads, capacity, dim)
                new[:held, :, :kept] = old[:held, :, :kept]
                new[:, :, kept:] = 0  # they are read with a weight of 0, so must be finite
                new[held:] = 0
        self.rows, self.capacity = rows, capacity

    def copy(self, source: int, target: int, length: int | None = None) -> None:
        """Copy keys and values of the first ``length`` tokens of one slot (by default all) to another slot."""
        length = int(self.lengths[source]) if length is None else length
        self.lengths[target] = length
        if not length:  # such a slot may have no row yet
            return
        self.widen(target + 1)
        for buffers in (self.keys, self.values):
            for buffer in buffers:
                buffer[target, :, :length] = buffer[source, :, :length]


@dataclass(frozen=True, slots=True)
class _Singles:
    """n slots with one query each. They read the buffers in place, without a copy."""

    slots: Tensor  # [n]
    view: int  # rows 0 to ``view`` of the buffers are read, including rows of slots that have no query
    width: int  # so many keys are read of each row: the most that a slot has, or all that there is room for
    bias: Tensor  # [view, 1, width], added to scores: -inf where a slot has no key
    whole: bool  # whether every row of the view has a query, in order


@dataclass(frozen=True, slots=True)
class _PrefillGroup:
    """P slots with up to T new tokens each, padded to T. C is the largest number of keys of a slot."""

    slots: Tensor  # [P]
    tokens: Tensor  # [P * T], places in the flat stream; 0 for padding
    real: Tensor  # [n], which of the P * T are no padding
    targets: Tensor  # [n], the places of those in the flat stream
    bias: Tensor  # [P, 1, shared_heads * T, C], added to scores: -inf where a key comes after the query
    width: int  # C


@dataclass(frozen=True, slots=True)
class _Prompt:
    """One slot with some new tokens, for the attention by blocks (block_attention.py): no padding, and no mask."""

    slot: int
    new: slice  # the places of its new tokens in the flat stream
    end: int  # its tokens, the new ones included


class StepPlan:
    """The attention of one engine step (an ``AttentionPlan``, attention.py).

    Each layer first writes the new keys and values into the cache; then each new token attends to all tokens of its
    slot up to itself. ``slots[i]`` gets ``counts[i]`` new tokens, and the flat stream holds them in that order.
    ``shared_heads`` is the number of query heads that share a key head, H / K.
    """

    def __init__(self, cache: SlotCache, slots: list[int], counts: list[int], shared_heads: int) -> None:
        self.cache, self._shared = cache, shared_heads
        starts = cache.lengths[slots]
        sizes = np.asarray(counts)
        cache.widen(max(slots) + 1)
        cache.reserve(int((starts + sizes).max()))
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], sizes)
        self._device = cache.device
        self.positions = self._put(np.repeat(starts, sizes) + within)  # [N]
        self._rows = self._put(np.repeat(np.asarray(slots), sizes))  # [N]
        self.last = self._put(offsets[1:] - 1)  # [R], the last new token of each slot
        ends = starts + sizes
        self._last = self._singles(np.asarray(slots), ends)
        single = np.flatnonzero(sizes == 1)
        self._tokens = None if len(single) == len(slots) else self._put(offsets[single])
        self._decode = self._last
        if self._tokens is not None and len(single):
            self._decode = self._singles(np.asarray(slots)[single], ends[single])
        long = [i for i, n in enumerate(counts) if n >= LEAST and in_blocks(cache.keys[0], int(ends[i]))]
        self._prompts = [_Prompt(slots[i], slice(offsets[i], offsets[i + 1]), int(ends[i])) for i in long]
        longer = sorted((i for i, n in enumerate(counts) if n > 1 and i not in long), key=lambda i: (counts[i], i))
        self._groups = [
            self._prefill_group(members, np.asarray(slots), sizes, starts, offsets)
            for members in _similar(longer, counts)
        ]

    def _put(self, values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values).to(self._device)

    def _singles(self, slots: NDArray[np.int64], lengths: NDArray[np.int64]) -> _Singles:
        view = int(slots.max()) + 1
        # Rows of the view without a query get one (stale) key. With none their softmax would be nan.
        visible = np.ones(view, dtype=np.int64)
        visible[slots] = lengths
        width = self.cache.capacity if self.cache.read_whole else int(visible.max())
        hidden = self._put(np.arange(width) >= visible[:, None])
        whole = len(slots) == view and bool((slots[1:] > slots[:-1]).all())
        return _Singles(self._put(slots), view, width, self._bias(hidden).unsqueeze(1), whole)

    def _bias(self, hidden: Tensor) -> Tensor:
        """What is added to scores: -inf where ``hidden`` is True, else 0."""
        return self.cache.keys[0].new_zeros(hidden.shape).masked_fill_(hidden, -torch.inf)

    def _prefill_group(
        self,
        members: list[int],
        slots: NDArray[np.int64],
        sizes: NDArray[np.int64],
        starts: NDArray[np.int64],
        offsets: NDArray[np.int64],
    ) -> _PrefillGroup:
        steps = np.arange(int(sizes[members].max()))
        real = steps < sizes[members][:, None]
        tokens = np.where(real, offsets[:-1][members][:, None] + steps, 0)
        width = int((starts[members] + sizes[members]).max())
        last_visible = starts[members][:, None] + steps  # [P, T]
        hidden = self._put(np.arange(width) > last_visible[:, :, None])  # [P, T, C]
        return _PrefillGroup(
            slots=self._put(slots[members]),
            tokens=self._put(tokens.reshape(-1)),
            real=self._put(np.flatnonzero(real)),
            targets=self._put(tokens[real]),
            bias=self._bias(hidden).unsqueeze(1).repeat(1, 1, self._shared, 1),
            width=width,
        )

    def _write(self, layer: int, key: Tensor, value: Tensor) -> None:
        self.cache.keys[layer][self._rows, :, self.positions] = key
        self.cache.values[layer][self._rows, :, self.positions] = value

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Write key and value [N, K, D], then attend with query [N, H, D] -> [N, H, D]."""
        self._write(layer, key, value)
        if self._tokens is None:
            return self._read(self._decode, layer, query, scale)
        output = torch.empty_like(query)
        if len(self._tokens):
            found = self._read(self._decode, layer, query.index_select(0, self._tokens), scale)
            output.index_copy_(0, self._tokens, found)
        for group in self._groups:
            self._prefill(group, output, layer, query, scale)
        for prompt in self._prompts:
            held = (buffers[layer][prompt.slot, :, : prompt.end] for buffers in (self.cache.keys, self.cache.values))
            key, value = (heads.transpose(0, 1) for heads in held)
            attend_into(output[prompt.new], query[prompt.new], key, value, scale)
        return output

    def attend_last(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        self._write(layer, key, value)
        return self._read(self._last, layer, query, scale)

    def _read(self, singles: _Singles, layer: int, query: Tensor, scale: float) -> Tensor:
        heads, dim = query.shape[1:]
        keys, values = (buffers[layer][: singles.view] for buffers in (self.cache.keys, self.cache.values))
        kv_heads = keys.shape[1]
        if not singles.whole:
            query = query.new_zeros(singles.view, heads, dim).index_copy_(0, singles.slots, query)
        # The query heads that share a key head are treated as its query positions, so that no key is repeated.
        folded = query.reshape(singles.view * kv_heads, heads // kv_heads, dim)
        scores = torch.bmm(folded, keys.flatten(0, 1)[:, : singles.width].transpose(1, 2)).mul_(scale)
        scores = scores.view(singles.view, -1, singles.width).add_(singles.bias)
        # The softmax is in float32, as in the learner's attention, also where keys are stored in half precision.
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
        weights = weights.view(singles.view * kv_heads, -1, singles.width)
        output = torch.bmm(weights, values.flatten(0, 1)[:, : singles.width]).view(singles.view, heads, dim)
        return output if singles.whole else output.index_select(0, singles.slots)

    def _prefill(self, group: _PrefillGroup, output: Tensor, layer: int, query: Tensor, scale: float) -> None:
        heads, dim = query.shape[1:]
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        rows, kv_heads = len(group.slots), keys.shape[1]
        # [P, T, K, shared, D] -> [P, K, shared * T, D]
        queries = query.index_select(0, group.tokens).view(rows, -1, kv_heads, self._shared, dim)
        queries = queries.permute(0, 2, 3, 1, 4).flatten(2, 3)
        # Not buffer[slots, :, :width]: on a CPU that takes five times as long.
        held, seen = (buffer[:, :, : group.width].index_select(0, group.slots) for buffer in (keys, values))
        found = scaled_dot_product_attention(queries, held, seen, attn_mask=group.bias, scale=scale)
        found = found.view(rows, kv_heads, self._shared, -1, dim).permute(0, 3, 1, 2, 4).reshape(-1, heads, dim)
        output.index_copy_(0, group.targets, found.index_select(0, group.real))

    def commit(self, slots: list[int], counts: list[int]) -> None:
        """Add the new tokens to ``lengths``. Call it after the forward pass, which has written them."""
        self.cache.lengths[slots] += counts


def _similar(rows: list[int], counts: list[int]) -> list[list[int]]:
    """Group rows, which are sorted by count, so that the largest count of a group is at most 1.5 times its smallest."""
    groups: list[list[int]] = []
    for row in rows:
        if groups and counts[row] <= 1.5 * counts[groups[-1][0]]:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups
