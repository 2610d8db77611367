"""GraphGPO: turns judged by the distance to the goal in a graph of states (arXiv 2605.26684), beside GiGPO.

The turns of a group make a graph of states: an edge leads from the state that a turn answered to the one that it
brought about, and from the last state of a won episode to the goal. A turn is judged by how near to the goal it led:

    d(s)  = the fewest turns from s to the goal, along edges of the graph
            (where none leads there: one more than the largest distance that is known)
    R_n   = success * gamma^d(s_{n+1}) - penalty [turn n invalid]     relative: gamma^(d(s_{n+1}) - d(s_n) + 1)
    A_S   = norm over the turns from one state of R                   a state met once: 0
    A     = episode_coef A_E + step_coef A_S;   A_E: GRPO's advantage of the episode

norm(x) = (x - mean) / (std + eps), or x - mean. A lost episode that crosses the path of a won one earns credit there.

A state is the world's ``info["state_key"]``, else its anchor. The anchor is often the observation's text, which states
share. Ways that nobody can go then lead to the goal: docs/algorithms/graphgpo.md.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from turnwise.algorithms.anchors import (
    State,
    anchor_groups,
    contradicted,
    following_states,
    goal_distances,
    on_tokens,
    states_of,
)
from turnwise.algorithms.common import succeeded
from turnwise.algorithms.settings import ClipSettings, StandardScoreSettings
from turnwise.learning.credit import group_advantages
from turnwise.learning.parts import AdvantageModifier, Stream, required
from turnwise.learning.recipe import About, Recipe, StreamRecipe
from turnwise.learning.settings import RunInfo

ABOUT = About(
    title="Beyond Trajectory-Level Attribution: Graph-Based Credit Assignment for Agentic Reinforcement Learning",
    arxiv="2605.26684",
    kind="credit",
    code="zzj1111/alfworldauto 37aec781 (verl-agent's recipe/GraphGPO, pull request 256)",
    differences=(
        "The goal is a success, or where the world tells none a return of its worth; released: any positive return "
        "(goal=reward).",
        "The paper counts the turn itself, too: a constant factor, gone where the std divides.",
        "Its runs add where the player is and what it holds to the observation, and compare that and the admissible "
        "actions; here a state is the key that the world tells, else its anchor (states=anchor).",
        "A_E compares one return per trajectory; released: one per step row (group_stats=rows).",
        "Texts that are merely alike are different states.",
    ),
    sources={
        "step_coef, episode_coef": "released",
        "gamma": "released on Sokoban; .1 on ALFWorld, .2 on WebShop, where a penalty of .01 outweighs two turns",
        "relative": "released",
        "goal": "ours; released: reward",
        "states": "ours; released: the observation, longer than the world's own, and the admissible actions",
        "normalize_std": "released",
    },
)


class GraphGPOConfig(StandardScoreSettings, ClipSettings):
    """GraphGPO's settings; ``normalize_std`` and ``std_eps`` hold for both advantages."""

    type: Literal["graphgpo"] = "graphgpo"
    step_coef: float = Field(default=1.0, ge=0, description="Weight of the turns' advantage (w_S); 0: GRPO.")
    episode_coef: float = Field(default=1.0, ge=0, description="Weight of the episode's advantage (w_E).")
    gamma: float = Field(default=0.8, ge=0, le=1, description="Factor per turn of distance to the goal (gamma).")
    relative: bool = Field(
        default=False,
        description="Whether the state that a turn left counts too: what it gained, not where it led. Where the std "
        "divides this changes the weight of penalties alone.",
    )
    goal: Literal["success", "reward"] = Field(
        default="success", description="Which episodes reach the goal: those that succeed, or all of positive return."
    )
    states: Literal["key", "anchor"] = Field(
        default="key",
        description="What tells states apart: the key that the world tells, else the anchor; or the anchor alone.",
    )


class GoalDistance(AdvantageModifier):
    """``episode_coef`` times the advantage that it finds, plus ``step_coef`` * A_S; ``success``: a success's worth."""

    def __init__(self, config: GraphGPOConfig, success: float) -> None:
        self.config, self.success = config, success
        self.reads_success = config.goal == "success"
        self.by_key = config.states == "key"

    def modify(self, stream: Stream) -> Tensor:
        advantages = required(stream.batch.advantages, "advantages") * self.config.episode_coef
        states = states_of(stream, by_key=self.by_key)
        if not states:
            return advantages
        own = torch.tensor([o for row in stream.samples.rewards.own for o in row], dtype=torch.float64)
        anchors = torch.tensor(anchor_groups(states))
        eps = self.config.std_eps * self.success
        step = group_advantages(self.returns(stream) + own, anchors, normalize_std=self.config.normalize_std, eps=eps)
        self.occurred.count("compared_share", step != 0, len(step))
        actions = [turn.action for t in stream.samples.trajectories for turn in t.turns]
        apart = contradicted(states, actions, self._following(stream))
        self.occurred.count("contradicted_share", sum(apart), len(apart))
        return advantages + (self.config.step_coef * on_tokens(stream, step)).to(advantages.dtype)

    def returns(self, stream: Stream) -> Tensor:
        """R of every turn without its penalty, [N] float64 in units of reward."""
        states, following = states_of(stream, by_key=self.by_key), self._following(stream)
        distances = goal_distances(states, following)
        before = torch.tensor([distances[s] for s in states], dtype=torch.float64)
        after = torch.tensor([distances[s] for s in following], dtype=torch.float64)
        exponent = after - before + 1 if self.config.relative else after
        return self.success * self.config.gamma**exponent

    def _following(self, stream: Stream) -> list[State]:
        return following_states(stream, self._won(stream), by_key=self.by_key)

    def _won(self, stream: Stream) -> list[bool]:
        found = []
        for number, trajectory in enumerate(stream.samples.trajectories):
            paid = stream.samples.rewards.paid(number)
            found.append(paid > 0 if self.config.goal == "reward" else succeeded(trajectory, paid, self.success))
        return found


def recipe(config: GraphGPOConfig, run: RunInfo) -> Recipe:
    """Compose GraphGPO. Raises ValueError where the group size leaves nothing to learn from."""
    stream = StreamRecipe(estimator=config.advantage(run), clip=config.clip(), aggregation=config.aggregate())
    made = config.compose("graphgpo", config.groups("GraphGPO", run), stream, config.planner(run))
    neutral = not config.step_coef and config.episode_coef == 1.0
    return made if neutral else made.with_modifier(GoalDistance(config, run.rewards.success))
