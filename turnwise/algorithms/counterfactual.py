"""Counterfactual turns: a turn judged by others from the same state (TRPO's vine, arXiv 1502.05477), on a base.

Where a world can be copied, a turn need not be judged by its episode. Some attempts at a task start from its beginning.
In states that they came to the turn is drawn anew, and each copy plays on to the end:

    s    = a state before a turn t > 0 of an attempt;   a_0: what the attempt did,  a_1 .. a_M: drawn anew
    R_k  = the return of the attempt that took a_k in s
    A_k  = norm over k = 0 .. M of R_k           of turn t and the turns after it (credited=turn: of turn t alone)
    A    = norm over the attempts from the task of their returns, on their own turns;   the two losses add up

norm is the base's comparison of a group: GRPO's, by default. The same state and the same past stand on both sides of
each difference: an estimate of Q(s, a_k) - V(s), by M + 1 samples. No other episode has to come to s by itself, as it
has to in GiGPO. The turns before t are a prompt in the copies, without a gradient.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from turnwise.algorithms.composition import AnyAlgorithm, base_recipe
from turnwise.algorithms.grpo import GRPOConfig
from turnwise.algorithms.starts import CounterfactualPlanner, FirstTurnOnly, Where, around, plain_base
from turnwise.learning.recipe import About, Recipe
from turnwise.learning.settings import RunInfo, Settings

ABOUT = About(
    title="Trust Region Policy Optimization (its vine scheme: several actions from each of some states)",
    arxiv="1502.05477",
    kind="planners",
    differences=(
        "The paper judges an action by rollouts from states that were visited before; here an action is a whole reply "
        "of a turn, and the first of a state's actions is the one that its attempt had taken.",
        "The paper weighs each action's Q by importance; here the base compares the returns, as it does in any group.",
        "The paper draws the same random numbers after each action; here every copy has draws of its own.",
        "VinePPO (arXiv 2410.01679) takes the mean of further rollouts as a value and trains on none of them; here "
        "copies are trained on from the turn at which they part (credited=turn: on that turn alone).",
        "The state's past is a prompt: a regularizer of the base does not see it a second time either.",
    ),
    sources={
        "base": "our own: GRPO without KL",
        "roots": "our own: half of the group",
        "actions": "our own; the paper takes as many as there are simple actions",
        "where": "our own; any: the paper's states are drawn as they are visited",
        "credited": "our own",
    },
)


class CounterfactualConfig(Settings):
    """The settings of counterfactual turns. A task has as many attempts as the group size says, copies included."""

    type: Literal["counterfactual"] = "counterfactual"
    base: AnyAlgorithm = Field(
        default=GRPOConfig(kl_coef=0.0), description="The algorithm that compares and trains the attempts."
    )
    roots: int | None = Field(
        default=None, ge=1, description="Attempts from the task; the others are copies. Null: half of the group."
    )
    actions: int = Field(default=2, ge=2, description="Actions from each state: the attempt's own and its copies'.")
    where: Where = Field(
        default="any", description="The states: before any turn but the first, or before the most uncertain ones."
    )
    credited: Literal["rest", "turn"] = Field(
        default="rest", description="What a state's comparison credits: all turns from there on, or the first alone."
    )


def recipe(config: CounterfactualConfig, run: RunInfo) -> Recipe:
    """Compose them on the base. Raises ValueError where the group has no room for a state, and for a base that plays
    trees of its own.
    """
    copies, wanted = config.actions - 1, config.roots or max(run.group_size // 2, 1)
    states = (run.group_size - wanted) // copies
    if states < 1:
        raise ValueError(
            f"counterfactual: {wanted} attempts from the task and {copies} more for each state do not fit into "
            f"group_size={run.group_size}: raise it to {wanted + copies} or more, or lower roots or actions"
        )
    roots = run.group_size - states * copies
    base = plain_base(base_recipe(config.base, run), "counterfactual")
    made = around(base, CounterfactualPlanner(roots, states, copies, config.where, run.seed))
    return made if config.credited == "rest" else made.with_modifier(FirstTurnOnly())
