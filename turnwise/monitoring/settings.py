"""Settings of the watchdog: a threshold for each check, and what happens when one fires."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from turnwise.errors import unknown
from turnwise.monitoring.checks import CHECKS

Action = Literal["warn", "stop"]


class WatchdogConfig(BaseModel):
    """Checks for signs that training goes wrong. Each has a threshold; null switches it off. docs/watchdog.md."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    action: Action = Field("warn", description="what a check that fires does: warn, or stop the run with a checkpoint")
    actions: dict[str, Action] = Field(
        default_factory=dict, description="the same for single checks, such as {kl_behaviour: stop}"
    )
    window: int = Field(5, ge=1, description="updates that levels are averaged over, and that make the run's start")
    entropy_collapse: float | None = Field(0.1, gt=0, lt=1, description="entropy below this share of the start's")
    entropy_explosion: float | None = Field(3.0, gt=1, description="entropy above this multiple of the start's")
    entropy_noise: float | None = Field(4.0, gt=0, description="entropy in nats per token; uniform over 55 tokens: 4")
    uniform_groups: float | None = Field(0.9, gt=0, lt=1, description="share of groups that were rewarded alike")
    repeated_actions: float | None = Field(
        0.35, gt=0, lt=1, description="share of turns that repeat the last action in the same state"
    )
    invalid_actions: float | None = Field(0.9, gt=0, lt=1, description="share of turns with an invalid action")
    invalid_rise: float | None = Field(
        0.2, gt=0, lt=1, description="rise of the share of invalid actions since the start"
    )
    kl_behaviour: float | None = Field(
        0.1, gt=0, description="nats per token between the learner in its update and the sampler"
    )
    kl_reference: float | None = Field(1.0, gt=0, description="nats per token from the frozen reference")
    clip_share: float | None = Field(0.5, gt=0, lt=1, description="share of action tokens that the clip decides")
    reply_drift: float | None = Field(2.0, gt=1, description="factor by which replies grow or shrink, without success")
    turns_drift: float | None = Field(2.0, gt=1, description="factor by which episodes grow or shrink, without success")
    reward_hacking: float | None = Field(
        4.0, gt=0, description="rise of the shaped return in standard errors, while success does not rise"
    )
    grad_spike: float | None = Field(20.0, gt=1, description="gradient norm as a multiple of the recent median")
    skipped_steps: float | None = Field(0.0, ge=0, lt=1, description="share of optimizer steps that were skipped")
    sampler_drift: float | None = Field(
        10.0, gt=1, description="growth of the distance between sampler and learner on the same tokens"
    )
    cut_replies: float | None = Field(0.2, gt=0, lt=1, description="share of replies that reach agent.max_reply_tokens")
    full_contexts: float | None = Field(0.2, gt=0, lt=1, description="share of episodes ended by a full context")

    @field_validator("actions")
    @classmethod
    def _known(cls, actions: dict[str, Action]) -> dict[str, Action]:
        for name in actions:
            if name not in CHECKS:
                raise unknown("check", name, CHECKS, "watchdog.actions")
        return actions
