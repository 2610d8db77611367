"""Attention by blocks: the plain formula, forward and backward, and nearer to it than the fused kernel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.models import tiny_model, tokenizer
from tests.models.test_policy import batch
from turnwise.models import attention
from turnwise.models.attention import _causal
from turnwise.models.block_attention import BLOCK, LONGEST, attend_into, block_attention, in_blocks
from turnwise.models.policy import Policy

torch.set_num_threads(1)


def plain(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """The formula, head by head."""
    shared, before = query.shape[1] // key.shape[1], len(key) - len(query)
    key, value = (each.repeat_interleave(shared, 1) for each in (key, value))
    scores = scale * torch.einsum("nhd,mhd->hnm", query, key)
    hidden = torch.arange(len(key)) > before + torch.arange(len(query))[:, None]
    return torch.einsum("hnm,mhd->nhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), value)


def tensors(queries: int, keys: int, dtype: torch.dtype) -> list[Tensor]:
    drawn = torch.Generator().manual_seed(0)
    shapes = (queries, 6, 8), (keys, 2, 8), (keys, 2, 8)
    return [torch.randn(shape, generator=drawn, dtype=torch.float64).to(dtype) for shape in shapes]


def with_gradients(work: object, given: list[Tensor]) -> list[Tensor]:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in given]
    out = work(*leaves, 0.4)  # type: ignore[operator]
    weight = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape)
    (out * weight.to(out.dtype)).sum().backward()
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@pytest.mark.parametrize(
    ("queries", "keys"), [(1, 1), (5, 5), (BLOCK, BLOCK), (BLOCK + 1, BLOCK + 1), (3, 90), (2 * BLOCK + 9, 200)]
)
def test_it_is_the_formula(queries: int, keys: int) -> None:
    given = tensors(queries, keys, torch.float64)
    for ours, theirs in zip(with_gradients(block_attention, given), with_gradients(plain, given), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_written_into_a_part_of_a_tensor_it_has_the_same_bits(dtype: torch.dtype) -> None:
    """From parts of wider tensors, as the engine has them; what is given and what lies beside stay as they are."""
    query, key, value = tensors(BLOCK + 7, 90, dtype)
    wide = torch.cat((query, query), 1)
    held = [each.transpose(0, 1).contiguous().transpose(0, 1) for each in (key, value)]
    before = [each.clone() for each in (wide, *held)]
    out = torch.full((len(query) + 2, *query.shape[1:]), 7.0, dtype=dtype)
    attend_into(out[1:-1], wide[:, : query.shape[1]], *held, 0.4)
    assert torch.equal(out[1:-1], block_attention(query, key, value, 0.4))
    assert bool((out[[0, -1]] == 7).all())
    assert all(torch.equal(a, b) for a, b in zip((wide, *held), before, strict=True))


def test_gradients_are_nearer_to_the_truth_than_the_fused_kernels() -> None:
    given = tensors(150, 150, torch.bfloat16)
    truth = with_gradients(plain, [tensor.double() for tensor in given])

    def fused(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        return _causal(query, key, value, None, scale)

    def errors(work: object) -> list[float]:
        found = with_gradients(work, given)
        return [float((a.double() - b).norm() / b.norm()) for a, b in zip(found, truth, strict=True)]

    ours, theirs = errors(block_attention), errors(fused)
    assert max(ours) < 0.0025, "one rounding to bfloat16"
    assert all(a <= b for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("sharing", ["always", "never"])
def test_the_learner_s_rows_with_and_without_a_common_beginning(sharing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, where both attentions can be had."""
    found = []
    for used in (True, False):
        monkeypatch.setattr(attention, "in_blocks", lambda query, keys, used=used: used)
        policy = Policy(tiny_model(), tokenizer(), lora=None)
        policy.sharing = sharing  # type: ignore[assignment]
        rows = batch()
        rows.tokens[:, :4] = rows.tokens[0, :4]
        logprobs = policy.score(rows).logprobs
        logprobs.sum().backward()
        found.append([logprobs.detach(), *(p.grad for p in policy.parameters() if p.grad is not None)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def test_it_is_for_half_precision_on_a_cpu_and_rows_that_are_not_long() -> None:
    half = torch.ones(1, 1, 1, dtype=torch.bfloat16)
    assert in_blocks(half, LONGEST)
    assert not in_blocks(half, LONGEST + 1)
    assert not in_blocks(half.float(), 1), "numbers in float32 stay as they were"
    assert not in_blocks(half.to("meta"), 1)
