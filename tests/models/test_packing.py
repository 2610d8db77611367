"""Equal beginnings computed once: the same log-probs, entropies and gradients as every row by itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models import tiny_model, tokenizer
from turnwise.models.packing import pack
from turnwise.models.policy import Policy
from turnwise.models.settings import LoRAConfig
from turnwise.prefixes import prefix_order
from turnwise.replay.batch import TokenBatch, layout, microbatches
from turnwise.trajectory import Group, Task, Trajectory, Turn

torch.set_num_threads(1)

CPU = torch.device("cpu")

Shape = tuple[int, int, int]  # tokens of a prompt, of a trunk after it that half of the rows share, of each row's own

# Mostly shared (masked attention on the rows' own tokens), mostly own (rows computed whole), both.
SHAPES: list[Shape] = [(40, 0, 6), (12, 0, 40), (20, 14, 16)]


def grown(shape: Shape, members: int = 6, seed: int = 0) -> TokenBatch:
    """A group whose rows share a prompt, every second one a trunk; one row twice; every third token sampled."""
    rng = np.random.default_rng(seed)

    def some(size: int) -> np.ndarray:
        return rng.integers(5, len(tokenizer()), size).astype(np.int32)

    prompt, trunk = some(shape[0]), some(shape[1])
    task, made = Task("env", "train", 0, "key"), list[Trajectory]()
    for member in range(members):
        ids = np.concatenate([prompt, trunk if member % 2 else some(3), some(shape[2] + member)])
        turns = []
        for start in range(0, len(ids) - 3, 9):
            reply = ids[start + 6 : start + 9]
            zeros = np.zeros(len(reply), np.float32)
            turns.append(Turn("", ids[start : start + 6], start > 0, reply, zeros, zeros, "", "", True, 0.0))
        made.append(Trajectory(str(member), task, 0, member, tuple(turns), "terminated", True, 1.0))
    return layout([Group(task, (*made, replace(made[-1], episode="again")))])


def policy(dtype: torch.dtype = torch.float32) -> Policy:
    found = Policy(tiny_model().to(dtype), tokenizer(), lora=LoRAConfig(rank=4, alpha=8.0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.data = parameter.to(dtype)
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=dtype))
    return found


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_sharing_changes_nothing(shape: Shape, dtype: torch.dtype, tolerance: float) -> None:
    scorer, batch = policy(dtype), grown(shape)
    found = []
    for sharing in ("never", "always"):
        scorer.sharing = sharing  # type: ignore[assignment]
        scores = scorer.score(batch, entropy=True, hidden=True)
        assert scores.entropies is not None
        assert scores.hidden is not None
        assert scores.logprobs.dtype == dtype
        weights = torch.linspace(-1, 1, scores.logprobs.numel(), dtype=dtype).view_as(scores.logprobs)
        loss = (weights * scores.logprobs).sum() + (weights * scores.entropies).sum()
        loss = loss + (scores.hidden * torch.linspace(-1, 1, scores.hidden.numel()).view_as(scores.hidden)).sum()
        gradients = torch.autograd.grad(loss, list(scorer.parameters()))
        found.append([scores.logprobs, scores.entropies, scores.hidden, *gradients])
    assert len(found[0]) > 10
    for plain, shared in zip(*found, strict=True):
        assert float(plain.norm()) > 0
        assert float((plain - shared).norm()) <= tolerance * float(plain.norm())


def test_the_stream_holds_each_beginning_once() -> None:
    batch = grown((40, 0, 6))
    rows = [tuple(t[:n].tolist()) for t, n in zip(batch.tokens, batch.lengths, strict=True)]
    distinct = {row[: i + 1] for row in rows for i in range(len(row))}
    packed = pack(batch.tokens, batch.lengths.tolist(), batch.action_mask, CPU, "always")
    assert packed.spread is not None
    assert len(packed.ids) == len(distinct) < sum(map(len, rows)) / 3
    assert torch.equal(packed.to_rows(packed.targets), batch.tokens[batch.action_mask])
    assert len(packed.targets) < batch.num_action_tokens


@pytest.mark.parametrize(("shape", "shares"), [((40, 0, 6), True), ((4, 0, 40), False), ((9, 0, 400), False)])
def test_beginnings_are_shared_where_it_pays(shape: Shape, shares: bool) -> None:
    batch = grown(shape).select(torch.arange(6))
    packed = pack(batch.tokens, batch.lengths.tolist(), batch.action_mask, CPU, "auto")
    assert (packed.spread is not None) == shares
    assert (len(packed.ids) < int(batch.lengths.sum())) == shares


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=12))
def test_no_beginning_is_missed(rows: list[list[int]]) -> None:
    order, shared = prefix_order([np.array(row) for row in rows])
    assert sorted(order.tolist()) == list(range(len(rows)))
    distinct = {tuple(row[: i + 1]) for row in rows for i in range(len(row))}
    assert sum(map(len, rows)) - shared.sum() == len(distinct)
    for i, (row, size) in enumerate(zip(order, shared, strict=True)):
        assert size == 0 or rows[row][:size] == rows[order[i - 1]][:size]


def test_microbatches_count_what_is_shared_once() -> None:
    batch = grown((40, 0, 6))
    whole = int(batch.lengths.sum())
    assert len(microbatches(batch, whole // 2)) == 1
    parts = microbatches(batch, 75)
    assert 1 < len(parts) < len(batch)
    backwards = batch.select(torch.arange(len(batch) - 1, -1, -1))
    rows = [[batch.tokens[parts_row].tolist() for parts_row in part] for part in parts]
    again = [[backwards.tokens[row].tolist() for row in part] for part in microbatches(backwards, 75)]
    assert rows == again
