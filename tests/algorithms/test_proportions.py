"""A scale on rewards changes no proportion of an update, whatever the algorithm: settings are shares of a success."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.algorithms.fakes import BigramPolicy, groups, learner
from tests.algorithms.variants import VARIANTS
from turnwise.algorithms.recipe import RewardSettings, RunInfo, Settings
from turnwise.algorithms.registry import build
from turnwise.replay.buffer import TrajectoryBuffer
from turnwise.trajectory import Group, Trajectory

UPDATES = 3


def with_invalid(trajectory: Trajectory) -> Trajectory:
    """The same with every third turn without a valid action, so that penalties count."""
    turns = tuple(replace(t, valid=(n + trajectory.sample) % 3 > 0) for n, t in enumerate(trajectory.turns))
    return replace(trajectory, turns=turns)


def played(update: int) -> list[Group]:
    """What one fixed policy did."""
    fresh = groups(BigramPolicy(), seed=7, version=update)
    return [replace(group, trajectories=tuple(map(with_invalid, group.trajectories))) for group in fresh]


def gradients(config: Settings, run: RunInfo) -> list[torch.Tensor]:
    """The policy's gradients of every pass, over updates of two epochs: Adam takes the factor of the whole out."""
    policy = BigramPolicy(1)
    made = learner(build(config, run), policy, run, grad_clip=None, eps=1e-30, epochs=2)
    found: list[torch.Tensor] = []
    policy.table.register_hook(lambda gradient: found.append(gradient.detach().clone()))
    buffer = TrajectoryBuffer()
    for update in range(UPDATES):
        buffer.add(played(update), update)
        made.update(buffer, update)
    return found


@pytest.mark.parametrize("config", VARIANTS)
def test_a_scale_on_rewards_leaves_every_proportion(config: Settings) -> None:
    """Ten times the gradient where advantages are rewards, the same where they are counted in deviations."""
    one, ten = (
        RunInfo(10, 4, rewards=RewardSettings(scale=scale, invalid_action_penalty=0.05)) for scale in (1.0, 10.0)
    )
    factor = ten.unit(build(config, ten)["fresh"])
    small, large = gradients(config, one), gradients(config, ten)
    assert len(small) == len(large) >= 2 * UPDATES
    for of_one, of_ten in zip(small, large, strict=True):
        torch.testing.assert_close(of_ten / factor, of_one, rtol=1e-3, atol=1e-6)
