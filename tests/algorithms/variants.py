"""Every algorithm of the registry, and compositions of them, as settings whose parts all have something to do.

The property tests run over ``VARIANTS``: a new algorithm is in them by being registered. Add it to ``ACTIVE`` where
its defaults would leave a part idle on a small batch (a random draw, a gate, a share of a few tokens).
"""

from __future__ import annotations

from typing import Any

import pytest

from turnwise.algorithms.aepo import AEPOConfig
from turnwise.algorithms.aepo_arbitrary import ArbitraryAEPOConfig
from turnwise.algorithms.ares import ARESConfig
from turnwise.algorithms.bapo import BAPOConfig
from turnwise.algorithms.bnpo import BNPOConfig
from turnwise.algorithms.canon import CANONConfig
from turnwise.algorithms.capo import CAPOConfig
from turnwise.algorithms.cispo import CISPOConfig
from turnwise.algorithms.clip_cov import ClipCovConfig
from turnwise.algorithms.copo import COPOConfig
from turnwise.algorithms.cpl import CPLConfig
from turnwise.algorithms.d3s import D3SConfig
from turnwise.algorithms.dapo import DAPOConfig, OverlongSettings
from turnwise.algorithms.distill import DistillConfig
from turnwise.algorithms.dpo import DPOConfig
from turnwise.algorithms.dppo import DPPOConfig
from turnwise.algorithms.drbot import DrBoTConfig
from turnwise.algorithms.drgrpo import DrGRPOConfig
from turnwise.algorithms.ear import EARConfig
from turnwise.algorithms.echo import ECHOConfig
from turnwise.algorithms.empg import EMPGConfig
from turnwise.algorithms.empo import EMPOConfig
from turnwise.algorithms.entropy_advantage import EntropyAdvantageConfig
from turnwise.algorithms.epo import EPOConfig
from turnwise.algorithms.epo_released import ReleasedSettings
from turnwise.algorithms.forking import ForkingConfig
from turnwise.algorithms.funrl import FunRLConfig
from turnwise.algorithms.g2po import G2POConfig
from turnwise.algorithms.gigpo import GiGPOConfig
from turnwise.algorithms.graphgpo import GraphGPOConfig
from turnwise.algorithms.grpo import GRPOConfig
from turnwise.algorithms.gspo import GSPOConfig
from turnwise.algorithms.hapo import HAPOConfig
from turnwise.algorithms.hgpo import HGPOConfig
from turnwise.algorithms.igpo import IGPOConfig
from turnwise.algorithms.kl_cov import KLCovConfig
from turnwise.algorithms.lp_reg import LpRegConfig
from turnwise.algorithms.maxrl import MaxRLConfig
from turnwise.algorithms.pear import PEARConfig
from turnwise.algorithms.ppo import PPOConfig
from turnwise.algorithms.registry import ALGORITHMS, resolve
from turnwise.algorithms.reinforce_pp import ReinforcePPConfig
from turnwise.algorithms.riskpo import RiskPOConfig
from turnwise.algorithms.sac import SACConfig
from turnwise.algorithms.seed_grpo import SEEDConfig
from turnwise.algorithms.siren import SIRENConfig
from turnwise.algorithms.spear import CovarianceSettings, SPEARConfig
from turnwise.algorithms.steer import STEERConfig
from turnwise.algorithms.tea import TEAConfig
from turnwise.learning.settings import Settings

LONG = OverlongSettings(max_tokens=8, buffer_tokens=6)

NO_DRAW = CovarianceSettings(share=1.0, low=0.1, high=9.0)  # all eligible tokens

ACTIVE: dict[str, Settings] = {
    "clip_cov": ClipCovConfig(share=1.0, low=0.1, high=9.0),  # all eligible tokens: no draw
    "kl_cov": KLCovConfig(share=0.3),
    "drbot": DrBoTConfig(base=GRPOConfig(), ngram=1, max_repeats=2),
    "spear": SPEARConfig(base=GRPOConfig(), fresh_clip=NO_DRAW, replay_clip=None),
    "epo": EPOConfig(entropy_coef=0.5, corridor=(0.9, 1.1)),
    "bnpo": BNPOConfig(aggregation_constant=8.0),
    "canon": CANONConfig(aggregation_constant=8.0),
    "dapo": DAPOConfig(overlong=LONG),
    "gspo": GSPOConfig(clip_low=0.2, clip_high=0.2),
    "cispo": CISPOConfig(clip_low=0.2, clip_high=0.2),
    "forking": ForkingConfig(base=GRPOConfig(), share=0.5),
    "steer": STEERConfig(weight_min=0.2),
    "sac": SACConfig(initial_coef=0.5, max_coef=2.0, coef_lr=0.1),
    "tea": TEAConfig(entropy_coef=0.5, bound=2.0),
    "dppo": DPPOConfig(delta_low=0.02, delta_high=0.02),
    "lp_reg": LpRegConfig(share=0.5, min_p=0.3),
    "siren": SIRENConfig(base=DrGRPOConfig(aggregation_constant=8.0), coef=0.5, top_p=0.9, quantile=0.3, anchor=0.3),
    "ares": ARESConfig(window=2, quantile=0.5, decay=0.5, eps=0.1, kl_coef=0.5),
    "seed_grpo": SEEDConfig(base=DrGRPOConfig(aggregation_constant=8.0)),
    "capo": CAPOConfig(lr=0.1, fisher=2e-3, hessian=0.1),
}

MORE: dict[str, Settings] = {
    "grpo-released": GRPOConfig(ratio_denominator="proximal", group_stats="rows", normalize_std=False),
    "grpo-sequences": GRPOConfig(aggregation="seq-mean-token-mean", kl_coef=0.5),
    "grpo-sums": GRPOConfig(aggregation="seq-mean-token-sum", dual_clip=None),
    "grpo-normed": GRPOConfig(aggregation="seq-mean-token-sum-norm", aggregation_constant=50.0),
    "gspo-turns": GSPOConfig(clip_low=0.2, clip_high=0.2, level="turn", ratio_denominator="proximal"),
    "dapo-turns": DAPOConfig(overlong=LONG.model_copy(update={"scope": "turn", "max_tokens": 2, "buffer_tokens": 1})),
    "reinforce-group": ReinforcePPConfig(baseline="group"),
    "reinforce-discounted": ReinforcePPConfig(gamma=0.9),
    "reinforce-rows": ReinforcePPConfig(returns_along="row"),
    "ppo-turns": PPOConfig(level="turn", gamma=0.9, lam=0.8, share_trunk=True),
    "ppo-hl-gauss": PPOConfig(critic="hl_gauss", lam=0.9, share_trunk=True, value_bins=21),
    "ppo-rows": PPOConfig(gae_along="row", whiten=False, value_clip=None),
    "gigpo-similar": GiGPOConfig(similarity=0.8, normalize_std=False, step_coef=0.5),
    "epo-released": EPOConfig(form="released", entropy_coef=0.5, released=ReleasedSettings(gate_turn=0)),
    "epo-on-ppo": EPOConfig(base=PPOConfig(lam=0.9), entropy_coef=0.1),
    "epo-on-gigpo": EPOConfig(base=GiGPOConfig(), entropy_coef=0.1),
    "empg-on-dapo": EMPGConfig(base=DAPOConfig(), bonus_coef=0.5),
    "epo-on-empg-on-dapo": EPOConfig(base=EMPGConfig(base=DAPOConfig()), entropy_coef=0.1),
    "clip-cov-on-ppo": ClipCovConfig(base=PPOConfig(), share=1.0, low=0.1, high=9.0),
    "aepo-part": AEPOConfig(clip_share=0.5, shared="once"),
    "epo-on-spear-on-aepo-on-gigpo": EPOConfig(
        base=SPEARConfig(base=AEPOConfig(base=GiGPOConfig()), fresh_clip=None), entropy_coef=0.1
    ),
    "hgpo-raw": HGPOConfig(normalize_std=False, length_weight=0.0, episode_level=False),
    "g2po-raw": G2POConfig(normalize_std=False, step_coef=0.5),
    "graphgpo-gains": GraphGPOConfig(normalize_std=False, relative=True, goal="reward", episode_coef=0.5),
    "hapo-released": HAPOConfig(sign="released", pivot=0.5, group_stats="rows", ratio_denominator="proximal"),
    "epo-on-hapo": EPOConfig(base=HAPOConfig(average="attempts"), entropy_coef=0.1),
    "echo-on-ppo": ECHOConfig(base=PPOConfig(share_trunk=True), coef=0.5),
    "epo-on-echo": EPOConfig(base=ECHOConfig(base=GRPOConfig(aggregation="seq-mean-token-sum")), entropy_coef=0.1),
    "epo-on-pear": EPOConfig(base=PEARConfig(lost=0.1, floor="none"), entropy_coef=0.1),
    "funrl-on-ppo": FunRLConfig(base=PPOConfig(), kappa=1.0),
    "maxrl-rows": MaxRLConfig(group_stats="rows"),
    "canon-entropy": CANONConfig(metric="entropy", course="inter_first", favour=0.9, aggregation_constant=8.0),
    "canon-annealed": CANONConfig(metric="tokens", course="annealed", ties="order", aggregation_constant=8.0),
    "riskpo-own": RiskPOConfig(bundle=2, quantiles="own", credit="uniform", baseline=True),
    "riskpo-mixed": RiskPOConfig(bundle=3, quantiles="mixed", credit="std", normalize_std=False),
    "copo-zero": COPOConfig(base=DrGRPOConfig(kl_coef=0.3, aggregation_constant=8.0), blend="soft_zero"),
    "ares-released": ARESConfig(form="released", window=1, quantile=0.5, kl_coef=0.0),
    "ares-on-ppo": ARESConfig(
        base=PPOConfig(kl_coef=0.0), window=2, quantile=0.5, kl_factors=(1.0, 0.5, 0.25), kl_relaxed=0.2
    ),
    "seed-exponential": SEEDConfig(base=GRPOConfig(), form="exponential", answer="last"),
    "epo-on-empo": EPOConfig(base=EMPOConfig(vote="majority"), entropy_coef=0.1),
    "d3s-on-gigpo": D3SConfig(base=GiGPOConfig(), first_attempts=0.5, first_tokens=0.4, batch_share=0.8),
    "d3s-sequences": D3SConfig(base=GRPOConfig(aggregation="seq-mean-token-mean"), first_attempts=0.5),
    "dpo-extremes": DPOConfig(pairs="extremes", smoothing=0.1, margin=0.1),
    "cpl-discounted": CPLConfig(gamma=0.9, bias=1.0, alpha=0.5),
    "epo-on-dpo": EPOConfig(base=DPOConfig(), entropy_coef=0.1),
    "epo-on-copo-on-hgpo": EPOConfig(base=COPOConfig(base=HGPOConfig()), entropy_coef=0.1),
    "cispo-on-ppo": CISPOConfig(base=PPOConfig(ratio_denominator="proximal"), clip_low=0.2, clip_high=0.2),
    "dppo-kl": DPPOConfig(
        base=GRPOConfig(normalize_std=False), divergence="kl", delta_low=0.01, delta_high=0.01, square_coef=0.1
    ),
    "bapo-released": BAPOConfig(criterion="odds", order="low_first", count="released", weighting="none", target=1.0),
    "bapo-on-empg": BAPOConfig(base=EMPGConfig(), target=0.6),
    "forking-by-turn": ForkingConfig(base=DAPOConfig(), share=0.4, within="turn", keep_first=True),
    "forking-by-row": ForkingConfig(base=GRPOConfig(aggregation="seq-mean-token-mean"), share=0.4),
    "steer-linear": STEERConfig(base=GiGPOConfig(), form="linear", quantile=0.9, weight_min=0.2),
    "entropy-advantage-on-ppo": EntropyAdvantageConfig(base=PPOConfig(), kappa=2.0),
    "ear-bounded": EARConfig(base=DAPOConfig(), form="clip", bound=0.5),
    "sac-on-gigpo": SACConfig(base=GiGPOConfig(), target=1.0, initial_coef=0.1, max_coef=0.2),
    "tea-with-gradients": TEAConfig(base=GRPOConfig(), entropy_coef=0.5, gradient="kept"),
    "aepo-arbitrary-beside": ArbitraryAEPOConfig(base=GiGPOConfig(), mix="append", coef=0.5),
    "epo-on-distill": EPOConfig(base=DistillConfig(drop_below=0.05, square_coef=0.1), entropy_coef=0.1),
    "lp-reg-on-ppo": LpRegConfig(base=PPOConfig(), share=0.9, min_p=0.3, estimator="k2"),
    "siren-by-turn": SIRENConfig(base=GRPOConfig(), within="turn", coef=0.5, average="tokens", quantile=0.3),
    "siren-on-echo": SIRENConfig(base=ECHOConfig(base=GRPOConfig(), coef=0.5), coef=0.5, quantile=0.3, anchor=0.3),
    "capo-one-sided": CAPOConfig(base=GiGPOConfig(), lr=0.1, fisher=1.0, hessian=0.05, two_sided=False),
    "igpo-by-turn": IGPOConfig(baseline="turn", normalize_std=False, gamma=0.9, gain_coef=2.0),
    "epo-on-igpo": EPOConfig(base=IGPOConfig(baseline="episode", belief="log"), entropy_coef=0.1),
    "kl-cov-on-gigpo": KLCovConfig(base=GiGPOConfig(kl_coef=0.0), share=0.3),
}

NAMED: dict[str, Settings] = {
    **{name: ACTIVE.get(name, resolve(name).config()) for name in ALGORITHMS},
    **MORE,
}

VARIANTS: list[Any] = [pytest.param(config, id=name) for name, config in NAMED.items()]
