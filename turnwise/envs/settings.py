"""Settings of the world that a run plays in."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from turnwise.envs.given import is_given
from turnwise.envs.process import ProcessEnv
from turnwise.envs.tasks import TextEnv, make_env
from turnwise.errors import UnusedSettingError


class EnvConfig(BaseModel):
    """The world."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field("turnwise/Household-v0", description="gymnasium id, or module:ns/Id-v0")
    kwargs: dict[str, Any] = Field(default_factory=dict, description="arguments of gymnasium.make")
    split: str = Field("train", description="split that training draws tasks from")
    success_threshold: float | None = Field(
        None, description="total reward that counts as success, for worlds without info['success']"
    )
    process: bool = Field(
        False, description="each environment in a process of its own, so that one that hangs or dies is replaced"
    )
    step_timeout_s: float = Field(60.0, gt=0, description="seconds a step may take; with process=true")
    reset_timeout_s: float = Field(300.0, gt=0, description="seconds a reset may take; with process=true")

    def make(self) -> TextEnv:
        """A fresh environment. Raises ValueError for an unknown id, or settings that the world does not take."""
        if self.process and is_given(self.id):
            raise ValueError(
                f"env.process=true: another process does not know {self.id}, which was given as an object. Register it "
                'in a module (env="your_module:Your/Env-v0"), or leave env.process out'
            )
        if not self.process:
            return make_env(self.id, **self.kwargs)
        return ProcessEnv(
            self.id, self.kwargs, step_timeout_s=self.step_timeout_s, reset_timeout_s=self.reset_timeout_s
        )

    @model_validator(mode="after")
    def _limits_need_a_process(self) -> EnvConfig:
        default = type(self).model_fields
        for name in ("step_timeout_s", "reset_timeout_s"):
            if not self.process and getattr(self, name) != default[name].default:
                raise UnusedSettingError(name, f"env.{name} can only be kept with env.process=true")
        return self
