"""The settings of an update, and what a recipe may know about the run.

Importing this module does not import torch, so that a configuration is read quickly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from turnwise.errors import UnusedSettingError


class Settings(BaseModel):
    """Base class of an algorithm's settings. Unknown names are errors, and values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _keep_neighbours(cls, given: Any) -> Any:
        """Settings given for a nested section are laid over the section's default, which keeps its other settings."""
        if not isinstance(given, Mapping):
            return given
        made = dict(given)
        for name, info in cls.model_fields.items():
            if not isinstance(info.default, Settings):
                continue
            by_name = isinstance(made.get(name), str) and "type" in type(info.default).model_fields
            if by_name:  # a base without settings of its own
                made[name] = {"type": made[name]}
            if isinstance(made.get(name), Mapping):
                made[name] = laid_over(info.default.model_dump(), made[name])
        return made

    def changed(self, field: str) -> bool:
        """Whether a field differs from its default. (A resolved file names every field, changed or not.)"""
        return bool(getattr(self, field) != type(self).model_fields[field].default)


def laid_over(default: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` over ``default``, section by section. Where ``given`` has another ``type``, ``default`` is not used."""
    if given.get("type", default.get("type")) != default.get("type"):
        return dict(given)
    below = {
        name: laid_over(default[name], value)
        for name, value in given.items()
        if isinstance(value, Mapping) and isinstance(default.get(name), Mapping)
    }
    return {**default, **given, **below}


def setting_name(config: Settings, name: str) -> str:
    """The dotted name of an algorithm's setting, or else of the nearest base's: ``algorithm.base.heat``."""
    found, prefix = config, "algorithm"
    while name not in type(found).model_fields:
        below = getattr(found, "base", None)
        if not isinstance(below, Settings):
            return f"algorithm.{name}"
        found, prefix = below, f"{prefix}.base"
    return f"{prefix}.{name}"


class RewardSettings(Settings):
    """How an update changes the world's rewards. The trajectories keep the raw ones.

    In a world that pays 1 for a success, a success is worth ``scale``. Every other setting in units of reward is a
    share of that; ``docs/rewards.md`` lists them.
    """

    scale: float = Field(default=1.0, gt=0, description="Factor on the raw rewards: what a success is worth.")
    invalid_action_penalty: float = Field(
        default=0.01, ge=0, description="Taken from a turn without a valid action, as a share of a success."
    )

    @property
    def success(self) -> float:
        """What a success is worth, in units of shaped reward."""
        return self.scale


class OptimizerConfig(Settings):
    """AdamW and its schedule. The defaults are verl-agent's (constant rate, one epoch)."""

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


class StaleSettings(Settings):
    """What an update does about episodes that earlier weights played (``rollout.ahead``; algorithms/stale.py)."""

    correction: Literal["decoupled", "none"] = Field(
        default="none",
        description="none: clip around the policy that sampled, as the algorithm says; decoupled: clip around the "
        "policy at the start of the update, and weigh each token by how much more probable it is there than where it "
        "was sampled.",
    )
    cap: float | None = Field(
        default=2.0, gt=0, description="Largest of these weights; null: none. (w = π_proximal / π_behaviour.)"
    )
    beyond: Literal["truncate", "drop"] = Field(
        default="truncate", description="A token above the cap: truncate counts it with the cap, drop leaves it out."
    )

    @model_validator(mode="after")
    def _consistent(self) -> StaleSettings:
        unused = [name for name in ("cap", "beyond") if self.changed(name)]
        if self.correction == "none" and unused:
            raise UnusedSettingError(tuple(unused), f"{', '.join(unused)}: for correction=decoupled")
        if self.cap is None and self.beyond == "drop":
            raise UnusedSettingError("beyond", "beyond=drop is for tokens above cap, which is null")
        return self


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What a recipe may know about the run.

    ``num_updates`` is the span of schedules, ``group_size`` the number of attempts at a task. ``vocabulary`` is how
    many tokens the model chooses from, and ``token_text`` gives a token's text, "" for a special one; both are None
    where there is no model, as when a configuration is only checked. ``ahead`` is by how many updates episodes are
    played before they are learned from, ``stale`` what is done about it.
    """

    num_updates: int
    group_size: int
    seed: int = 0
    rewards: RewardSettings = field(default_factory=RewardSettings)
    vocabulary: int | None = None
    token_text: Callable[[int], str] | None = field(default=None, compare=False)
    ahead: int = 0
    stale: StaleSettings = field(default_factory=StaleSettings)
