"""What is read of the vocabulary: the numbers of whole logits and their gradients, a few tokens at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.models.test_head import Largest
from turnwise.models import reading as reading_module
from turnwise.models.reading import by_head, read, rows_at_once

torch.set_num_threads(1)


def logprob_read(logits: Tensor, targets: Tensor, states: Tensor) -> Tensor:
    return logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]


def entropy_read(logits: Tensor, targets: Tensor, states: Tensor) -> Tensor:
    logp = logits.log_softmax(-1)
    return -(logp.exp() * logp).sum(-1)


def norm_read(logits: Tensor, targets: Tensor, states: Tensor) -> Tensor:
    return states.square().sum(-1)


READINGS = (logprob_read, entropy_read, norm_read)


def problem(rows: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    states, weight, bias = (
        torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in ((rows, 3), (11, 3), (11,))
    )
    return states, weight, bias, torch.randint(11, (rows,), generator=generator)


@pytest.mark.parametrize("least", [1, 2, 64])
def test_values_and_gradients_are_those_of_whole_logits(least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading_module, "LEAST_ROWS", least)
    monkeypatch.setattr(reading_module, "TILE", {"cpu": 1})
    states, weight, bias, targets = problem(5)
    wrt, weights = (states, weight, bias), torch.arange(15.0, dtype=torch.float64).reshape(3, 5)
    found = read(states, targets, None, by_head(*wrt), READINGS, vocabulary=11, temperature=0.7)
    logits = (states @ weight.T + bias) / 0.7
    expected = tuple(each(logits, targets, states / 0.7) for each in READINGS)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    for ours, theirs in zip(
        torch.autograd.grad((torch.stack(found) * weights).sum(), wrt),
        torch.autograd.grad((torch.stack(expected) * weights).sum(), wrt),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_no_token_is_read_of_none() -> None:
    states, weight, bias, targets = problem(0, torch.bfloat16)
    found = read(states, targets, None, by_head(states, weight, bias), READINGS, vocabulary=11, temperature=1.0)
    assert [(len(each), each.dtype) for each in found] == [(0, torch.float32)] * 3


@pytest.mark.parametrize("grad", [True, False])
def test_the_logits_of_a_few_tokens_are_held_at_once(grad: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading_module, "LEAST_ROWS", 8)
    rows, width, vocabulary = 300, 8, 5000
    monkeypatch.setattr(reading_module, "TILE", {"cpu": 20 * vocabulary})
    states, weight = torch.randn(rows, width, requires_grad=True), torch.randn(vocabulary, width)
    with Largest() as largest, torch.set_grad_enabled(grad):
        (found,) = read(
            states,
            torch.arange(rows),
            None,
            by_head(states, weight, None),
            [entropy_read],
            vocabulary=vocabulary,
            temperature=1.0,
        )
        if grad:
            found.sum().backward()  # type: ignore[no-untyped-call]
    assert largest.size == 20 * vocabulary == rows_at_once(vocabulary, "cpu") * vocabulary
    assert rows_at_once(10**9, "cpu") == 8
