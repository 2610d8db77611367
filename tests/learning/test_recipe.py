"""What a stream's recipe says of its rows."""

from __future__ import annotations

from dataclasses import replace

import torch

from tests.golden.builders import batch_of
from turnwise.algorithms.grpo import GRPOConfig
from turnwise.algorithms.registry import build
from turnwise.learning.settings import RunInfo

RUN = RunInfo(num_updates=10, group_size=4)


def test_without_a_surrogate_every_row_is_computed() -> None:
    """Advantages are there for others to look at; an objective trains all rows."""
    batch = batch_of(torch.ones(3, 2, dtype=torch.bool), advantages=torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]]))
    stream = build(GRPOConfig(kl_coef=0.0), RUN)["fresh"]
    assert stream.learning(batch).tolist() == [1]
    assert replace(stream, clip=None).learning(batch).tolist() == [0, 1, 2]
