"""Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): steps of equal size along every direction of a matrix.

``torch.optim.Muon`` is the same method with products in bfloat16. A processor without instructions for bfloat16 takes
thirty times as long for them, which made a whole warm start five times as slow. Here they are in float32 everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_EPS = 1e-7


class Muon(torch.optim.Optimizer):
    """Nesterov momentum (.95) of the gradients of matrices, made orthogonal.

    A step changes a matrix [rows, columns] by ``lr * sqrt(max(1, rows / columns))`` along each of its singular
    directions, within some 30 %. There is no weight decay. Raises ValueError for what is no matrix.
    """

    def __init__(self, params: Iterable[Tensor], lr: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": 0.95})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 2:
                    raise ValueError(f"Muon is for matrices; got the shape {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # without a closure, which nobody gives
        """Take a step with the gradients that are there."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update = orthogonal(self._nesterov(parameter, parameter.grad, group["momentum"]))
                    rows, columns = parameter.shape
                    parameter.sub_(update, alpha=group["lr"] * math.sqrt(max(1.0, rows / columns)))

    def _nesterov(self, parameter: Tensor, gradient: Tensor, momentum: float) -> Tensor:
        """The gradient with its running mean, which takes it in first."""
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        mean: Tensor = state["momentum_buffer"]
        mean.lerp_(gradient, 1 - momentum)
        return gradient.lerp(mean, momentum)


def orthogonal(matrix: Tensor) -> Tensor:
    """The matrix with all singular values near 1 (.7 to 1.2), in float32, by five Newton-Schulz iterations.

    Singular values below a thousandth of the matrix's norm stay smaller.
    """
    wide = matrix.float() if matrix.shape[0] <= matrix.shape[1] else matrix.float().T
    found = wide / wide.norm().clamp(min=_EPS)
    for _ in range(_ITERATIONS):
        gram = found @ found.T
        gram = torch.addmm(gram, gram, gram, beta=_COEFFICIENTS[1], alpha=_COEFFICIENTS[2])
        found = torch.addmm(found, gram, found, beta=_COEFFICIENTS[0])
    made: Tensor = found if matrix.shape[0] <= matrix.shape[1] else found.T
    return made
