"""AdamW with a learning-rate schedule over updates, a guarded step, and a state that needs no pickle."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import Parameter
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW

from turnwise.learning.schedules import learning_rate_share
from turnwise.learning.settings import OptimizerConfig


@dataclass(frozen=True, slots=True)
class Parameters:
    """What is optimized together: its gradient is clipped as one. ``lr`` None is the configuration's."""

    tensors: Sequence[Parameter]
    lr: float | None = None


def make_optimizer(groups: Sequence[Parameters], config: OptimizerConfig) -> AdamW:
    """AdamW over groups of parameters, each with its peak learning rate."""
    listed = [{"params": list(g.tensors), "peak_lr": config.lr if g.lr is None else g.lr} for g in groups]
    return AdamW(listed, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay)


def set_learning_rate(optimizer: AdamW, config: OptimizerConfig, update: int, num_updates: int) -> float:
    """Set the rates of an update and return the first group's; a function of its number: nothing needs saving."""
    share = learning_rate_share(
        update,
        num_updates,
        shape=config.schedule,
        warmup_share=config.warmup_share,
        floor=config.min_lr_share,
    )
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * share
    return config.lr * share


def step(optimizer: AdamW, config: OptimizerConfig) -> float:
    """Clip each group, step, clear the gradients; returns the first group's norm before clipping.

    If any group's norm is not finite there is no step, and that norm is returned.
    """
    limit = math.inf if config.grad_clip is None else config.grad_clip
    norms = [float(clip_grad_norm_(group["params"], limit)) for group in optimizer.param_groups]
    if all(map(math.isfinite, norms)):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return next((norm for norm in norms if not math.isfinite(norm)), norms[0])


def flat_state(optimizer: AdamW) -> dict[str, Tensor]:
    """Moments and step counts as ``optimizer.<parameter number>.<name>``."""
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    return {f"optimizer.{i}.{name}": value for i, values in state.items() for name, value in values.items()}


def load_flat_state(optimizer: AdamW, tensors: Mapping[str, Tensor]) -> None:
    """Take up what ``flat_state`` gave, ignoring other names; ValueError for parameters of another model."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "optimizer":
            number, _, moment = rest.partition(".")
            state.setdefault(int(number), {})[moment] = value.clone()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for place, moments in state.items():
        if place >= len(parameters) or moments["exp_avg"].shape != parameters[place].shape:
            raise ValueError(f"Saved optimizer state of parameter {place} fits no parameter of this model")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
