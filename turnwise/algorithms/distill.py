"""On-policy distillation: a teacher judges every token of the student's own replies (PrimeIntellect-ai/prime-rl).

No reward counts. The student plays, and each of its tokens has the teacher's log-prob as its reward:

    A_t  = ln p_teacher(y_t) - ln p(y_t)                                    no gradient through A
    drop   p(y_t) < p_sampler(y_t) - drop_below                             a token that has fallen too far already
    loss = mean over action tokens of  -A p / p_sampler  (dropped: 0)  + square_coef (ln p - ln p_sampler)^2

In expectation that is the gradient of the reverse KL between student and teacher on what the student says. The teacher
sees the same contexts, at the same temperature and with the same allowed tokens.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from turnwise.algorithms.common import FreshGroups
from turnwise.learning.parts import Need, Objective, UpdateContext, required
from turnwise.learning.primitives import importance_ratio
from turnwise.learning.recipe import About, Recipe, StreamRecipe
from turnwise.learning.settings import RunInfo, Settings

ABOUT = About(
    title="On-policy distillation by the reverse KL to a reference, a loss of prime-rl",
    arxiv="",
    code="PrimeIntellect-ai/prime-rl 559b4477",
    kind="bases",
    differences=(
        "The log-ratio to the sampler is held within 20 nats in the exponent; released: not.",
        "The number of tokens is the minibatch's; released: the batch's.",
        "The teacher is scored under the student's temperature and allowed tokens.",
    ),
    sources={"drop_below, square_coef": "released", "teacher": "yours"},
)


class DistillConfig(Settings):
    """The settings of on-policy distillation."""

    type: Literal["distill"] = "distill"
    teacher: str | None = Field(
        default=None,
        description="Run, model folder, adapter or hub name that judges; it must have the student's tokenizer.",
    )
    drop_below: float = Field(
        default=0.2, ge=0, le=1, description="Fall of a token's probability since it was sampled that drops it."
    )
    square_coef: float = Field(default=1e-3, ge=0, description="Coefficient of the squared log-ratio (kl_tau).")


class ReverseKL(Objective):
    """The loss, in nats; gradient through the student's log-probs alone."""

    needs: frozenset[Need] = frozenset({"teacher"})
    claims: frozenset[str] = frozenset({"distance to a teacher"})

    def __init__(self, drop_below: float, square_coef: float) -> None:
        self.drop_below, self.square_coef = drop_below, square_coef

    def loss(self, ctx: UpdateContext) -> Tensor:
        now, sampled = ctx.logprobs, ctx.batch.behaviour_logprobs
        gain = (required(ctx.batch.teacher_logprobs, "teacher_logprobs") - now).detach()
        dropped = (now.detach().exp() < sampled.exp() - self.drop_below) & ctx.mask
        self.occurred.count("dropped_share", dropped, ctx.mask)
        self.occurred.count("reverse_kl", -gain * ctx.mask, ctx.mask)
        surrogate = (-gain * importance_ratio(now, sampled)).masked_fill(dropped, 0.0)
        return ctx.token_mean(surrogate + self.square_coef * (now - sampled).square())


def recipe(config: DistillConfig, run: RunInfo) -> Recipe:
    """Compose on-policy distillation: every sound episode is trained on, in groups of any size."""
    loss = ReverseKL(config.drop_below, config.square_coef)
    stream = StreamRecipe(objectives=((loss, 1.0),))
    return Recipe("distill", FreshGroups(), (stream,), teacher=config.teacher or "").checked()
