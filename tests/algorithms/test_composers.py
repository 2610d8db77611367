"""A composer around another: the inner one hears whatever a part hears, and its state is saved with the outer one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from tests.algorithms.fakes import BigramPolicy, buffer_of, groups, learner
from turnwise.algorithms.common import FreshGroups
from turnwise.algorithms.composing import ComposerAround
from turnwise.algorithms.drbot import WidestGroups
from turnwise.algorithms.grpo import GRPOConfig
from turnwise.algorithms.registry import build
from turnwise.algorithms.selfimitation import SelfImitation
from turnwise.algorithms.spear import SPEARConfig
from turnwise.learning.metrics import Metrics
from turnwise.learning.optimizer import Parameters, make_optimizer
from turnwise.learning.parts import Composer, Samples, Streams
from turnwise.learning.planning import Scorer
from turnwise.learning.recipe import StreamRecipe
from turnwise.learning.rewards import raw_rewards
from turnwise.learning.settings import OptimizerConfig, RunInfo
from turnwise.replay.buffer import TrajectoryBuffer

RUN = RunInfo(num_updates=10, group_size=4)


class Witness(FreshGroups):
    """Writes down what it hears."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def attach(self, scorer: Scorer) -> None:
        self.heard.append("attach")

    def compose(self, update: int, samples: Samples, buffer: TrajectoryBuffer) -> Streams:
        self.heard.append(f"compose {update}")
        return super().compose(update, samples, buffer)

    def before_update(self, update: int, streams: Streams) -> None:
        self.heard.append(f"before {update} {len(streams.streams)}")

    def after_update(self, update: int, streams: Streams, metrics: Metrics) -> None:
        self.heard.append(f"after {update} {metrics.num_trajectories}")

    def state_dict(self) -> dict[str, Any]:
        return {"heard": list(self.heard)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.heard = list(state["heard"])


def around(kind: str, inner: Composer) -> Composer:
    if kind == "plain":
        return ComposerAround(inner)
    if kind == "widest":
        return WidestGroups(inner, 0.7)
    return SelfImitation(inner, SPEARConfig(), lambda update: 0.0, seed=0)


@pytest.mark.parametrize("kind", ["plain", "widest", "replay"])
def test_the_inner_composer_hears_everything_and_keeps_its_state(kind: str) -> None:
    witness = Witness()
    composer = around(kind, around("plain", witness))
    base = build(GRPOConfig(kl_coef=0.0), RUN)
    recipes = tuple(StreamRecipe(base["fresh"].estimator, clip=base["fresh"].clip, name=n) for n in composer.streams)
    made = learner(type(base)("witnessed", composer, recipes), BigramPolicy())
    made.update(buffer_of(groups(BigramPolicy())), 0)
    assert witness.heard == ["attach", "compose 0", "before 0 1", "after 0 12"]
    state = json.loads(json.dumps(composer.state_dict()))
    other = Witness()
    around(kind, around("plain", other)).load_state_dict(state)
    assert other.heard == witness.heard


def test_the_widest_groups_and_their_rewards_go_in_together() -> None:
    """Of five groups the three of the widest returns, in the order in which they came; the others are counted."""
    made = groups(BigramPolicy(), num_groups=5, size=3, num_turns=1)
    samples = Samples(tuple(made), raw_rewards([t for g in made for t in g.trajectories]))
    spread = [0.0, 3.0, 1.0, 9.0, 2.0]
    earned = tuple((spread[n // 3] * (n % 3),) for n in range(15))
    samples = Samples(samples.groups, type(samples.rewards)(earned, samples.rewards.own))
    composer = WidestGroups(FreshGroups(), 0.7)
    streams = composer.compose(0, samples, TrajectoryBuffer())
    kept = streams["fresh"].samples
    assert [group.task.index for group in kept.groups] == [1, 3, 4]
    assert kept.rewards.earned == (*earned[3:6], *earned[9:15])
    assert streams.dropped_groups == 2
    assert composer.acted() == {"dropped_share": 0.4}


def test_the_optimizer_starts_as_verl_agents() -> None:
    """AdamW at 1e-6 with decay 0.01 and torch's own betas, norms clipped at 1, one pass, a constant rate."""
    config = OptimizerConfig()
    assert (config.lr, config.weight_decay, config.betas, config.eps) == (1e-6, 0.01, (0.9, 0.999), 1e-8)
    assert (config.grad_clip, config.epochs, config.num_minibatches, config.schedule) == (1.0, 1, 1, "constant")
    assert (config.warmup_share, config.min_lr_share, config.minibatch_unit) == (0.0, 0.0, "row")
    policy = BigramPolicy()
    made = make_optimizer([Parameters([policy.table]), Parameters([BigramPolicy().table], 0.5)], config)
    assert [group["peak_lr"] for group in made.param_groups] == [1e-6, 0.5]
    assert made.param_groups[0]["weight_decay"] == 0.01
