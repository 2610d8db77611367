"""Losses on stored episodes against numbers of the official implementations."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.golden.builders import context_of, stream_of
from tests.golden.vectors import cases, tensor
from turnwise.algorithms.bellman import SoftBellman
from turnwise.algorithms.oreo import OREOConfig
from turnwise.learning.parts import Streams


@pytest.mark.parametrize("case", cases("oreo"))
def test_oreo(case: dict[str, Any]) -> None:
    """Both losses, and the gradient of each in what it trains; a state before a reply begins a turn."""
    hp, given, expected = case["hp"], case["inputs"], case["outputs"]
    mask, starts = tensor(given["action_mask"]).bool(), tensor(given["state_mask"]).bool()[:, :-1]
    turns = torch.where(mask, starts.cumsum(1) - 1, -1) if hp["step_level"] else torch.where(mask, 0, -1)
    logps, values = (tensor(given[name]).requires_grad_() for name in ("logps", "values"))
    stream = stream_of(mask, range(len(mask)), earned=given["rewards"])
    stream = stream.with_columns(
        turn_index=turns, proximal_logprobs=logps.detach(), reference_logprobs=tensor(given["ref_logps"])
    )
    part = SoftBellman(OREOConfig(beta=hp["beta"], level="turn" if hp["step_level"] else "token"), 0)
    part.before_update(0, Streams((stream,)))
    ctx, view = context_of(stream.batch, logps)
    part.prepare(view)
    value, policy = part.losses(ctx, values)
    close = {"rtol": 2e-4, "atol": 2e-6}
    torch.testing.assert_close(value.double(), torch.tensor(expected["value_loss"]).double(), **close)
    torch.testing.assert_close(policy.double(), torch.tensor(expected["policy_loss"]).double(), **close)
    (by_values,) = torch.autograd.grad(value, values, retain_graph=True)
    (by_logps,) = torch.autograd.grad(policy, logps)
    torch.testing.assert_close(by_values, tensor(expected["grad_values"]), **close)
    torch.testing.assert_close(by_logps, tensor(expected["grad_logps"]), **close)
