"""The key/value cache of many episodes at once, and the attention that reads it.

Each episode owns a *slot*: one row of every layer's [S, K, L, D] buffers, filled up to its length. A step feeds
each live slot a few tokens - one sampled token, or a whole observation - in one flat stream; slots that got one
token attend together as a view of the buffers (nothing is copied), longer inputs in small padded groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


class SlotCache:
    """``lengths`` [S] counts the tokens whose keys and values each slot holds. Buffers grow by doubling."""

    def __init__(
        self,
        num_slots: int,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        capacity: int = 128,
    ) -> None:
        self.lengths = np.zeros(num_slots, dtype=np.int64)
        self.capacity = capacity
        shape = (num_slots, num_kv_heads, capacity, head_dim)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]

    @property
    def num_slots(self) -> int:
        return len(self.lengths)

    def reserve(self, length: int) -> None:
        """Make room for ``length`` tokens in every slot."""
        if length <= self.capacity:
            return
        while self.capacity < length:
            self.capacity *= 2
        for buffers in (self.keys, self.values):
            for layer, old in enumerate(buffers):
                slots, heads, used, dim = old.shape
                buffers[layer] = old.new_zeros(slots, heads, self.capacity, dim)
                buffers[layer][:, :, :used] = old

    def copy(self, source: int, target: int, length: int | None = None) -> None:
        """Copy the first ``length`` tokens of one slot (all by default) into another: a fork or a move."""
        length = int(self.lengths[source]) if length is None else length
        for buffers in (self.keys, self.values):
            for buffer in buffers:
                buffer[target, :, :length] = buffer[source, :, :length]
        self.lengths[target] = length


@dataclass(frozen=True, slots=True)
class _PrefillGroup:
    """P rows with up to T new tokens each; positions beyond a row's own tokens are padding."""

    slots: Tensor  # [P]
    tokens: Tensor  # [P, T] index into the flat stream, clamped
    real: Tensor  # [P, T] bool
    mask: Tensor  # [P, 1, T, C] bool: key position visible
    width: int  # C


class StepPlan:
    """Attention of one engine step: write the new keys and values, then read each slot's whole history.

    ``slots[i]`` receives ``counts[i]`` new tokens; the flat stream holds them in that order.
    """

    def __init__(self, cache: SlotCache, slots: list[int], counts: list[int]) -> None:
        self.cache = cache
        starts = cache.lengths[slots]
        sizes = np.asarray(counts)
        cache.reserve(int((starts + sizes).max()))
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], sizes)
        device = cache.keys[0].device
        self.positions = torch.from_numpy(np.repeat(starts, sizes) + within).to(device)  # [N]
        self._rows = torch.from_numpy(np.repeat(np.asarray(slots), sizes)).to(device)  # [N]
        self.last = torch.from_numpy(offsets[1:] - 1).to(device)  # [R] last new token of each row

        single = [i for i, n in enumerate(counts) if n == 1]
        self._plan_decode([slots[i] for i in single], [int(offsets[i]) for i in single], device)
        longer = sorted((i for i, n in enumerate(counts) if n > 1), key=lambda i: (counts[i], i))
        self._groups = [
            self._prefill_group(members, slots, sizes, starts, offsets, device) for members in _similar(longer, counts)
        ]

    def _plan_decode(self, slots: list[int], tokens: list[int], device: torch.device) -> None:
        self._decode_tokens = torch.tensor(tokens, dtype=torch.long, device=device)
        self._decode_slots = torch.tensor(slots, dtype=torch.long, device=device)
        self._view = max(slots) + 1 if slots else 0
        self._aligned = slots == list(range(self._view)) and tokens == slots
        if not slots:
            return
        # Idle slots inside the view see one (stale) key, so that their unused rows stay finite.
        visible = np.ones(self._view, dtype=np.int64)
        visible[slots] = self.cache.lengths[slots] + 1
        self._width = int(visible.max())
        hidden = torch.arange(self._width, device=device) >= torch.from_numpy(visible).to(device)[:, None]
        dtype = self.cache.keys[0].dtype
        self._bias = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, -torch.inf)

    def _prefill_group(
        self,
        members: list[int],
        slots: list[int],
        sizes: np.ndarray,
        starts: np.ndarray,
        offsets: np.ndarray,
        device: torch.device,
    ) -> _PrefillGroup:
        steps = np.arange(int(sizes[members].max()))
        real = steps < sizes[members][:, None]
        tokens = np.where(real, offsets[:-1][members][:, None] + steps, 0)
        width = int((starts[members] + sizes[members]).max())
        last_visible = starts[members][:, None] + steps  # [P, T]
        mask = np.arange(width) <= last_visible[:, :, None]  # [P, T, C]
        return _PrefillGroup(
            slots=torch.tensor([slots[i] for i in members], device=device),
            tokens=torch.from_numpy(tokens).to(device),
            real=torch.from_numpy(real).to(device),
            mask=torch.from_numpy(mask).unsqueeze(1).to(device),
            width=width,
        )

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        keys[self._rows, :, self.positions] = key.transpose(0, 1)
        values[self._rows, :, self.positions] = value.transpose(0, 1)
        if self._aligned and not self._groups:
            return self._decode(query.transpose(0, 1), keys, values, scale)
        output = query.new_empty(query.shape[1], query.shape[0], query.shape[2])
        if self._view:
            tokens = query[:, self._decode_tokens].transpose(0, 1)
            output[self._decode_tokens] = self._decode(tokens, keys, values, scale)
        for group in self._groups:
            self._prefill(group, output, query, keys, values, scale)
        return output

    def _decode(self, query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """query [n, H, D] of the slots that got one token -> [n, H, D]."""
        heads, dim = query.shape[1:]
        kv_heads = keys.shape[1]
        if not self._aligned:
            spread = query.new_zeros(self._view, heads, dim)
            spread[self._decode_slots] = query
            query = spread
        # The query heads that share a key head act as its query positions: nothing is repeated.
        folded = query.reshape(self._view * kv_heads, heads // kv_heads, dim)
        past_keys = keys[: self._view].flatten(0, 1)[:, : self._width]
        past_values = values[: self._view].flatten(0, 1)[:, : self._width]
        scores = torch.bmm(folded, past_keys.transpose(1, 2)).mul_(scale)
        scores = scores.view(self._view, -1, self._width).add_(self._bias[:, None])
        # In float32, as the learner's attention sums, also where keys are stored in half precision.
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
        weights = weights.view(self._view * kv_heads, -1, self._width)
        output = torch.bmm(weights, past_values).view(self._view, heads, dim)
        return output if self._aligned else output[self._decode_slots]

    def _prefill(
        self, group: _PrefillGroup, output: Tensor, query: Tensor, keys: Tensor, values: Tensor, scale: float
    ) -> None:
        heads, kv_heads = query.shape[0], keys.shape[1]
        rows, steps = group.tokens.shape
        queries = query[:, group.tokens.flatten()].view(heads, rows, steps, -1).transpose(0, 1)
        folded = queries.reshape(rows, kv_heads, heads // kv_heads * steps, -1)
        found = scaled_dot_product_attention(
            folded,
            keys[group.slots, :, : group.width],
            values[group.slots, :, : group.width],
            attn_mask=group.mask.repeat(1, 1, heads // kv_heads, 1),
            scale=scale,
        )
        found = found.view(rows, heads, steps, -1).transpose(1, 2)  # [P, T, H, D]
        output[group.tokens[group.real]] = found[group.real]

    def commit(self, slots: list[int], counts: list[int]) -> None:
        """Count the tokens as held, once the forward pass has written them."""
        self.cache.lengths[slots] += counts


def _similar(rows: list[int], counts: list[int]) -> list[list[int]]:
    """Cut rows (sorted by count) into runs whose longest is at most 1.5 times the shortest."""
    groups: list[list[int]] = []
    for row in rows:
        if groups and counts[row] <= 1.5 * counts[groups[-1][0]]:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups
