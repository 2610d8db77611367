"""A scale on rewards changes no proportion of an update, whatever the algorithm: settings are shares of a success."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.algorithms.fakes import BigramPolicy, groups, learner
from tests.algorithms.variants import VARIANTS
from turnwise.algorithms.bapo import BAPOConfig
from turnwise.algorithms.capo import CAPOConfig
from turnwise.algorithms.cispo import CISPOConfig
from turnwise.algorithms.clip_cov import ClipCovConfig
from turnwise.algorithms.dapo import DAPOConfig, OverlongSettings
from turnwise.algorithms.dppo import DPPOConfig
from turnwise.algorithms.drgrpo import DrGRPOConfig
from turnwise.algorithms.ear import EARConfig
from turnwise.algorithms.empg import EMPGConfig
from turnwise.algorithms.entropy_advantage import EntropyAdvantageConfig
from turnwise.algorithms.epo import EPOConfig
from turnwise.algorithms.forking import ForkingConfig
from turnwise.algorithms.gigpo import GiGPOConfig
from turnwise.algorithms.kl_cov import KLCovConfig
from turnwise.algorithms.lp_reg import LpRegConfig
from turnwise.algorithms.ppo import PPOConfig
from turnwise.algorithms.registry import build
from turnwise.algorithms.sac import SACConfig
from turnwise.algorithms.siren import SIRENConfig
from turnwise.algorithms.spear import CovarianceSettings, SPEARConfig
from turnwise.algorithms.steer import STEERConfig
from turnwise.algorithms.tea import TEAConfig
from turnwise.learning.settings import RewardSettings, RunInfo, Settings
from turnwise.replay.buffer import TrajectoryBuffer
from turnwise.trajectory import Group, Trajectory

UPDATES = 3
PLAIN = DrGRPOConfig(kl_coef=0.3, aggregation_constant=8.0)
IN_SUCCESSES = {
    "clip-cov": ClipCovConfig(base=PLAIN, share=1.0, low=0.05, high=0.5),
    "kl-cov": KLCovConfig(base=PLAIN, share=0.3),
    "cispo": CISPOConfig(base=PLAIN, clip_low=0.2, clip_high=0.2),
    "dppo": DPPOConfig(base=PLAIN, delta_low=0.02, delta_high=0.02, square_coef=0.5),
    "forking": ForkingConfig(base=PLAIN, share=0.4),
    "steer": STEERConfig(base=PLAIN, weight_min=0.2),
    "entropy-advantage": EntropyAdvantageConfig(base=PLAIN, alpha=0.05),
    "ear-bounded": EARConfig(base=PLAIN, form="clip", bound=0.2),
    "sac": SACConfig(base=PLAIN, initial_coef=0.5, max_coef=2.0),
    "tea": TEAConfig(base=PLAIN, entropy_coef=0.5, gradient="kept"),
    "lp-reg": LpRegConfig(base=PLAIN, share=0.5, min_p=0.3, coef=0.5),
    "siren": SIRENConfig(base=PLAIN, coef=0.5, top_p=0.9, quantile=0.3),
    "capo": CAPOConfig(base=PLAIN, lr=0.1, fisher=2e-3, hessian=0.1),
    "bapo": BAPOConfig(base=PLAIN, target=0.6),
    "epo": EPOConfig(base=PLAIN, entropy_coef=0.5, corridor=(0.9, 1.1)),
    "empg": EMPGConfig(base=PLAIN, bonus_coef=0.5),
    "spear": SPEARConfig(base=PLAIN, fresh_clip=CovarianceSettings(share=1.0, low=0.05), bonus_coef=0.5),
    "spear-recalled": SPEARConfig(base=PLAIN, recalibrate=False, fresh_clip=None),
    "spear-on-gigpo": SPEARConfig(base=GiGPOConfig(normalize_std=False), fresh_clip=None, bonus_coef=0.5),
    "ppo": PPOConfig(whiten=False, share_trunk=True, value_clip=0.05),
    "ppo-hl-gauss": PPOConfig(critic="hl_gauss", whiten=False, share_trunk=True, value_bins=21),
    "dapo": DAPOConfig(normalize_std=False, overlong=OverlongSettings(max_tokens=8, buffer_tokens=6)),
}
"""On bases whose advantages are in reward, where every coefficient and bound beside them has a unit."""


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


@pytest.mark.parametrize(
    "config", [*VARIANTS, *(pytest.param(v, id=f"{k}-in-successes") for k, v in IN_SUCCESSES.items())]
)
def test_a_scale_on_rewards_leaves_every_proportion(config: Settings) -> None:
    """Ten times the gradient where advantages are rewards, the same where they are counted in deviations."""
    one, ten = (
        RunInfo(10, 4, rewards=RewardSettings(scale=scale, invalid_action_penalty=0.05)) for scale in (1.0, 10.0)
    )
    factor = build(config, ten)["fresh"].success(ten.rewards)
    small, large = gradients(config, one), gradients(config, ten)
    assert len(small) == len(large) >= 2 * UPDATES
    for of_one, of_ten in zip(small, large, strict=True):
        torch.testing.assert_close(of_ten / factor, of_one, rtol=1e-3, atol=1e-6)
