"""AdamW with a learning-rate schedule over updates, a guarded step, and a state that needs no pickle."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import Parameter
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW

from turnwise.learning.recipe import Settings
from turnwise.learning.schedules import learning_rate_share


class OptimizerConfig(Settings):
    """How the parameters are moved; defaults of verl-agent (AdamW, constant rate, one epoch)."""

    lr: float = Field(default=1e-6, gt=0, description="Peak learning rate.")
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="AdamW's beta_1, beta_2.")
    eps: float = Field(default=1e-8, gt=0, description="AdamW's epsilon.")
    weight_decay: float = Field(default=0.01, ge=0, description="AdamW's decoupled weight decay.")
    grad_clip: float | None = Field(
        default=1.0, gt=0, description="Largest gradient norm of a step; null: no clipping."
    )
    epochs: int = Field(default=1, ge=1, description="Passes over the data of an update.")
    num_minibatches: int = Field(default=1, ge=1, description="Optimizer steps per epoch.")
    minibatch_unit: Literal["row", "group"] = Field(
        default="row",
        description="What is dealt out to the steps: rows, or whole groups, whose equal beginnings are computed once "
        "(rows where there are fewer groups than steps).",
    )
    microbatch_tokens: int = Field(
        default=8192,
        ge=1,
        description="Tokens in one forward, equal beginnings of rows once; memory only, no effect on the result.",
    )
    schedule: Literal["constant", "cosine", "linear"] = Field(
        default="constant", description="Course of the learning rate over the run's updates."
    )
    warmup_share: float = Field(default=0.0, ge=0, lt=1, description="Share of the run's updates with a rising rate.")
    min_lr_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Rate at the end of cosine or linear, as a share of lr (EPO: 0.2).",
    )


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
