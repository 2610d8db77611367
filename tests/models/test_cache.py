"""Room in the key/value cache follows the contexts, and how much of it is read changes no number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.models import tiny_model, tokenizer
from turnwise.models import cache as cache_module
from turnwise.models.cache import BLOCK, SlotCache, room
from turnwise.models.engine import Sampling, SlotEngine
from turnwise.trajectory import FloatArray, IntArray


def cache(device: str = "cpu") -> SlotCache:
    return SlotCache(3, 2, 2, 8, dtype=torch.float32, device=torch.device(device))


def test_room_is_taken_in_blocks_and_given_back() -> None:
    made = cache()
    assert made.rows == made.capacity == 0
    made.widen(3)
    made.reserve(BLOCK + 1)
    assert made.capacity == 2 * BLOCK
    made.reserve(5 * BLOCK)
    made.lengths[:] = [5 * BLOCK, 3, 0]
    made.reserve(4)
    assert made.capacity == 5 * BLOCK, "of the longest slot, not only of those in a step"
    made.clear(0)
    made.reserve(3 * BLOCK)
    assert made.capacity == 5 * BLOCK, "shrunk too early: contexts that grow again would copy it back"
    made.reserve(4)
    assert made.capacity == BLOCK
    made.clear(1)
    assert made.rows == made.capacity == 0
    assert sum(buffer.numel() for buffer in (*made.keys, *made.values)) == 0


def test_what_slots_hold_survives_every_change_of_room() -> None:
    made, rng = cache(), np.random.default_rng(0)
    held = torch.from_numpy(rng.normal(size=(2, 2, 50, 8)).astype(np.float32))
    made.widen(2)
    made.reserve(50)
    for layer in range(2):
        made.keys[layer][1, :, :50] = held[layer]
        made.values[layer][1, :, :50] = -held[layer]
    made.lengths[1] = 50
    for length in (50, 700, 65, 129, 1):
        made.widen(3 if length > 65 else 1)
        made.reserve(length)
        for layer in range(2):
            assert torch.equal(made.keys[layer][1, :, :50], held[layer])
            assert torch.equal(made.values[layer][1, :, :50], -held[layer])
            assert not made.keys[layer][:, :, 50:].any(), "what is read with a weight of 0 must be finite"
            assert not made.values[layer][:, :, 50:].any()


def test_sizes_on_a_gpu_double() -> None:
    gpu = torch.device("cuda")
    assert [room(length, gpu) for length in (1, 128, 129, 700)] == [128, 128, 256, 1024]


def conversations(model: Any, read_whole: bool | None) -> tuple[list[tuple[IntArray, FloatArray]], SlotEngine]:
    """Replies of six slots over three turns; the longest of them closes after the second, a short one opens."""
    engine = SlotEngine(model, num_slots=6, max_length=512, end_ids=frozenset())
    if read_whole is not None:
        engine.contexts.cache.read_whole = read_whole
    rng, found = np.random.default_rng(3), []
    slots = [engine.open() for _ in range(6)]
    for turn in range(3):
        if turn == 2:
            engine.close(slots[0])
            slots[0] = engine.open()
        for place, slot in enumerate(slots):
            fresh = turn == 0 or (turn == 2 and place == 0)
            size = {(0, 0): 150, (1, 1): 90, (1, 2): 64}.get((turn, place), 7 + 5 * place)
            ids = rng.integers(5, len(tokenizer()), size).astype(np.int32)
            engine.submit(slot, ids, fresh=fresh, key=10 * turn + place, sampling=Sampling(max_tokens=4 + place))
        replies = {}
        while len(replies) < 6:
            replies |= {reply.slot: reply for reply in engine.step()}
        found += [(replies[slot].ids, replies[slot].logprobs) for slot in slots]
    for slot in slots:
        engine.close(slot)
    return found, engine


def test_half_precision_reads_all_room_and_gets_the_same_bits() -> None:
    model = tiny_model().bfloat16()
    (part, _), (whole, engine) = conversations(model, False), conversations(model, None)
    assert engine.contexts.cache.read_whole
    for (ids, logprobs), (others, same) in zip(part, whole, strict=True):
        np.testing.assert_array_equal(ids, others)
        np.testing.assert_array_equal(logprobs, same)


def test_prompts_attend_by_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, where the other way has the same digits; shorter ones and single tokens are in the same steps."""
    model, seen = tiny_model(), []
    plain, _ = conversations(model, None)
    monkeypatch.setattr(cache_module, "in_blocks", lambda keys, num: not seen.append(num))
    blocks, _ = conversations(model, None)
    assert len(seen) == 14, "all but those of less than 16 tokens"
    for (ids, logprobs), (others, near) in zip(plain, blocks, strict=True):
        np.testing.assert_array_equal(ids, others)
        np.testing.assert_allclose(logprobs, near, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_is_held_between_rollouts(dtype: torch.dtype) -> None:
    _, engine = conversations(tiny_model().to(dtype), None)
    assert engine.contexts.cache.read_whole == (dtype == torch.bfloat16)
    assert engine.contexts.cache.capacity == 0
