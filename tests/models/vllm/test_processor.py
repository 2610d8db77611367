"""``Draws`` in both of vLLM's interfaces: rows that come, go and move, and slots. No model is needed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("vllm", reason="vLLM is not installed here: scripts/vllm_env.py makes an environment for it")

from vllm import SamplingParams
from vllm.v1.sample.logits_processor.interface import BatchUpdate, MoveDirectionality

from tests.models.vllm.test_drawn import reported
from turnwise.models.drawing import Sampling, position_seeds, sample
from turnwise.models.vllm.drawn import ARGUMENT, Drawing, heard
from turnwise.models.vllm.processor import Draws

pytestmark = pytest.mark.slow

SWAP, ONE_WAY = MoveDirectionality.SWAP, MoveDirectionality.UNIDIRECTIONAL


def asked(key: int | None) -> SamplingParams:
    words = None if key is None else {ARGUMENT: Drawing(key, Sampling(max_tokens=8)).plain()}
    return SamplingParams(temperature=0.0, extra_args=words)


def update(removed: Any = (), added: Any = (), moved: Any = (), size: int = 4) -> BatchUpdate:
    return BatchUpdate(batch_size=size, removed=removed, added=added, moved=moved)


def drawn(logits: Tensor, keys: dict[int, tuple[int, int]], made: Draws, ctx: Any = None) -> None:
    """Rows are drawn by (key, position), and others stay."""
    before = logits.clone()
    made.apply(logits, ctx)
    found = reported(logits)
    for row in range(len(logits)):
        if row not in keys:
            assert torch.equal(logits[row], before[row])
            continue
        key, position = keys[row]
        ids, logprobs, entropies = sample(before[[row]], [Sampling()], [position_seeds(key, 8)[position]])
        assert found[row][0] == ids[0]
        assert heard(*found[row]) == (float(logprobs[0]), float(entropies[0]))


def logits(rows: int = 4) -> Tensor:
    return torch.randn(rows, 200, generator=torch.Generator().manual_seed(3)) * 2


def test_rows_come_go_and_move() -> None:
    made = Draws(None, torch.device("cpu"), False)
    assert not made.is_argmax_invariant()
    made.update_state(None)
    replies: list[list[int]] = [[], [1, 2], [], [7]]
    params = [asked(10), asked(11), asked(None), asked(13)]
    made.update_state(update(added=[(n, p, None, r) for n, (p, r) in enumerate(zip(params, replies, strict=True))]))
    drawn(logits(), {0: (10, 0), 1: (11, 2), 3: (13, 1)}, made)
    replies[0].append(5)
    drawn(logits(), {0: (10, 1), 1: (11, 2), 3: (13, 1)}, made)
    made.update_state(update(moved=[(0, 1, SWAP)]))
    drawn(logits(), {1: (10, 1), 0: (11, 2), 3: (13, 1)}, made)
    made.update_state(update(removed=[0], moved=[(3, 0, ONE_WAY)], size=3))
    drawn(logits(3), {0: (13, 1), 1: (10, 1)}, made)
    made.update_state(update(removed=[1], added=[(1, asked(None), None, [])], size=3))
    drawn(logits(3), {0: (13, 1)}, made)
    made.update_state(update(moved=[(0, 2, SWAP)], size=3))
    drawn(logits(3), {2: (13, 1)}, made)


def test_slots_are_found_by_the_batch() -> None:
    prompts = SimpleNamespace(np=torch.tensor([4, 9, 6, 5]).numpy())
    made = Draws(None, SimpleNamespace(prompt_len=prompts))
    assert made.add_request(2, asked(20))
    assert made.add_request(0, asked(21))
    assert made.add_request(1, asked(22))
    assert not made.add_request(3, asked(None))

    def batch(slots: list[int], ends: list[int]) -> Any:
        return SimpleNamespace(expanded_idx_mapping=torch.tensor(slots), pos=torch.tensor(ends))

    drawn(logits(3), {0: (20, 0), 2: (21, 3)}, made, batch([2, 3, 0], [5, 8, 6]))
    drawn(logits(2), {1: (20, 1)}, made, batch([1, 2], [7, 6]))  # slot 1 still reads its prompt
    drawn(logits(1), {0: (22, 0)}, made, batch([1], [8]))
    assert not made.add_request(2, asked(None)), "the slot is another request's now"
    drawn(logits(1), {}, made, batch([2], [9]))


def test_words_that_say_nothing_are_refused_before_they_reach_a_batch() -> None:
    Draws.validate_params(asked(None))
    Draws.validate_params(asked(5))
    with pytest.raises(ValueError, match=r"expected .key, temperature, top_p, top_k, max_tokens."):
        Draws.validate_params(SamplingParams(extra_args={ARGUMENT: ["hot"]}))
