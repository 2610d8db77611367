"""Muon in float32: the same steps as torch's, whose products are in bfloat16."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from turnwise.cloning.muon import Muon, orthogonal

SHAPES = ((24, 64), (64, 24), (32, 32))


def _drawn(seed: int) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def _stepped(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], steps: int) -> list[Tensor]:
    for step in range(steps):
        for parameter, gradient in zip(parameters, _drawn(100 + step), strict=True):
            parameter.grad = gradient.data
        optimizer.step()
    return [parameter.data for parameter in parameters]


def test_its_steps_are_those_of_torch() -> None:
    start, ours, theirs = _drawn(0), _drawn(0), _drawn(0)
    ended = _stepped(Muon(ours, lr=0.02), ours, 4)
    library = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.0, adjust_lr_fn="original")
    for mine, other, began in zip(ended, _stepped(library, theirs, 4), start, strict=True):
        way = other - began.data
        assert (mine - other).norm() < 0.03 * way.norm(), "bfloat16 rounds to three digits"


@pytest.mark.parametrize("shape", SHAPES)
def test_directions_stay_and_singular_values_come_near_one(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.linalg.qr(torch.randn(n, min(shape), generator=generator))[0] for n in shape)
    matrix = left @ torch.diag(torch.logspace(0, -1.5, min(shape))) @ right.T
    made = orthogonal(matrix)
    values = torch.linalg.svdvals(made)
    assert float(values.min()) > 0.65
    assert float(values.max()) < 1.25
    along = left.T @ made @ right
    assert (along - torch.diag(torch.diagonal(along))).abs().max() < 1e-4


def test_it_goes_on_from_the_state_of_torch_s() -> None:
    """A warm start that was interrupted before there was this module goes on."""
    theirs = _drawn(0)
    library = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.0, adjust_lr_fn="original")
    _stepped(library, theirs, 2)
    ours = [nn.Parameter(parameter.data.clone()) for parameter in theirs]
    optimizer = Muon(ours, lr=0.02)
    kept = {"state": deepcopy(library.state_dict()["state"]), "param_groups": optimizer.state_dict()["param_groups"]}
    optimizer.load_state_dict(kept)
    begun = [parameter.data.clone() for parameter in theirs]
    for mine, other, began in zip(_stepped(optimizer, ours, 1), _stepped(library, theirs, 1), begun, strict=True):
        assert (mine - other).norm() < 0.03 * (other - began).norm()


def test_weights_in_half_precision_keep_their_kind() -> None:
    weight = nn.Parameter(torch.zeros(4, 8, dtype=torch.bfloat16))
    weight.grad = torch.eye(4, 8, dtype=torch.bfloat16)
    Muon([weight], lr=0.02).step()
    assert weight.dtype == torch.bfloat16
    assert torch.allclose(weight[:, :4].float(), -0.02 * orthogonal(torch.eye(4)), atol=1e-3)


def test_what_is_no_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Muon is for matrices; got the shape \(3,\)"):
        Muon([nn.Parameter(torch.zeros(3))], lr=0.02)
