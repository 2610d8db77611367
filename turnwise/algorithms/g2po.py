"""G2PO: group-graph policy optimisation (Wang et al. 2026, arXiv 2606.22995), beside GiGPO.

The turns of a group make a graph of states. A state's value is the mean over its visits of what the episodes won from
there on. A turn is judged by where it led, among the turns from the same state, and by what it gained, among all turns
of the task:

    V(s)  = mean over visits (episode e, turn n) of s:  gamma^(L_e - n) R_e        L turns, R the environment's return
    V'_n  = V(s_{n+1});   after the last turn: a success's worth, or 0
    A_1   = norm over the turns from one state of (V' - penalty [turn n invalid])   a state met once: 0
    A_2   = norm over all turns of the task of (V' - V(s_n))
    A     = A_E + step_coef (A_1 + A_2);   A_E: GRPO's advantage of the episode

norm(x) = (x - mean) / (std + eps), or x - mean. A_2 tells something of states that were met once, too.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from turnwise.algorithms.anchors import anchor_groups, on_tokens, states_of
from turnwise.algorithms.common import succeeded
from turnwise.algorithms.settings import ClipSettings, StandardScoreSettings
from turnwise.learning.credit import group_advantages, group_statistics
from turnwise.learning.parts import AdvantageModifier, Stream, required
from turnwise.learning.recipe import About, Recipe, StreamRecipe
from turnwise.learning.settings import RunInfo

ABOUT = About(
    title="Group-Graph Policy Optimization for Long-Horizon Agentic Reinforcement Learning",
    arxiv="2606.22995",
    kind="credit",
    code="Nala-YN/G2PO b8ffaf56",
    differences=(
        "A won episode ends in a success's worth; released: 10, if the return is exactly 10. Where the world does not "
        "say whether an episode was won, a return of a success's worth is a win.",
        "gamma and the invalid action's penalty are the run's; released: .95 and .1, whatever is configured.",
        "A_E compares one return per trajectory; released: one per step row (group_stats=rows).",
        "A task with one turn has A_2 = 0; released: nan with the std.",
        "Statistics run over the turns that were played; released: over rows that were copied to fit the devices.",
        "Released scripts divide by the std on ALFWorld and not on WebShop (normalize_std).",
    ),
    sources={
        "step_coef": "released",
        "gamma": "a constant of the released code",
        "normalize_std": "released: true on ALFWorld, false on WebShop",
    },
)


class G2POConfig(StandardScoreSettings, ClipSettings):
    """G2PO's settings; ``normalize_std`` and ``std_eps`` hold for all three advantages."""

    type: Literal["g2po"] = "g2po"
    step_coef: float = Field(default=1.0, ge=0, description="Weight of the turns' two advantages (w); 0: GRPO.")
    gamma: float = Field(default=0.95, ge=0, le=1, description="Discount per turn of a visit's value (gamma).")


class StateValues(AdvantageModifier):
    """Adds ``coef`` * (A_1 + A_2) to the advantage of each turn's tokens; ``success`` is a success's worth."""

    reads_success = True

    def __init__(self, config: G2POConfig, success: float) -> None:
        self.config, self.success = config, success

    def modify(self, stream: Stream) -> Tensor:
        advantages = required(stream.batch.advantages, "advantages")
        states = states_of(stream)
        if not states:
            return advantages
        anchors = torch.tensor(anchor_groups(states))
        values, following = self.values(stream, anchors)
        own = torch.tensor([o for row in stream.samples.rewards.own for o in row], dtype=torch.float64)
        local = self._norm(following + own, anchors)
        gained = self._norm(following - values, torch.tensor([task for task, _ in states]))
        self.occurred.count("compared_share", local != 0, len(local))
        self.occurred.count("gain_share", gained != 0, len(gained))
        return advantages + (self.config.step_coef * on_tokens(stream, local + gained)).to(advantages.dtype)

    def values(self, stream: Stream, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """(V(s_n), V'_n) of every turn, [N] float64 in units of reward."""
        table, ends, visits = stream.samples.rewards, list[float](), list[float]()
        for number, trajectory in enumerate(stream.samples.trajectories):
            total, length = table.paid(number), len(trajectory.turns)
            won = succeeded(trajectory, total, self.success)
            visits += [total * self.config.gamma ** (length - n) for n in range(length)]
            ends += ([math.nan] * (length - 1) + [self.success if won else 0.0])[:length]
        values = group_statistics(torch.tensor(visits, dtype=torch.float64), anchors).mean
        ending = torch.tensor(ends, dtype=torch.float64)
        return values, torch.where(ending.isnan(), values.roll(-1), ending)

    def _norm(self, values: Tensor, group: Tensor) -> Tensor:
        eps = self.config.std_eps * self.success
        return group_advantages(values, group, normalize_std=self.config.normalize_std, eps=eps)


def recipe(config: G2POConfig, run: RunInfo) -> Recipe:
    """Compose G2PO. Raises ValueError where the group size leaves nothing to learn from."""
    stream = StreamRecipe(estimator=config.advantage(run), clip=config.clip(), aggregation=config.aggregate())
    made = config.compose("g2po", config.groups("G2PO", run), stream, config.planner(run))
    return made.with_modifier(StateValues(config, run.rewards.success)) if config.step_coef else made
