"""What holds for every algorithm: neutral settings give the base, layouts and odd batches change or break nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.algorithms.fakes import TEN, BigramPolicy, Sampler, buffer_of, episode, groups, learner, task
from tests.algorithms.variants import NAMED, VARIANTS
from tests.learning.test_learner import drifted, gradient
from turnwise.algorithms.ares import ARESConfig
from turnwise.algorithms.bapo import BAPOConfig
from turnwise.algorithms.canon import CANONConfig
from turnwise.algorithms.capo import CAPOConfig
from turnwise.algorithms.cispo import CISPOConfig
from turnwise.algorithms.clip_cov import ClipCovConfig
from turnwise.algorithms.d3s import D3SConfig
from turnwise.algorithms.dapo import DAPOConfig
from turnwise.algorithms.description import describe
from turnwise.algorithms.dppo import DPPOConfig
from turnwise.algorithms.drgrpo import DrGRPOConfig
from turnwise.algorithms.ear import EARConfig
from turnwise.algorithms.echo import ECHOConfig
from turnwise.algorithms.empg import EMPGConfig
from turnwise.algorithms.entropy_advantage import EntropyAdvantageConfig
from turnwise.algorithms.epo import EPOConfig
from turnwise.algorithms.forking import ForkingConfig
from turnwise.algorithms.funrl import FunRLConfig
from turnwise.algorithms.g2po import G2POConfig
from turnwise.algorithms.gigpo import GiGPOConfig
from turnwise.algorithms.graphgpo import GraphGPOConfig
from turnwise.algorithms.grpo import GRPOConfig
from turnwise.algorithms.gspo import GSPOConfig
from turnwise.algorithms.hapo import HAPOConfig
from turnwise.algorithms.igpo import IGPOConfig
from turnwise.algorithms.kl_cov import KLCovConfig
from turnwise.algorithms.lp_reg import LpRegConfig
from turnwise.algorithms.opo import OPOConfig
from turnwise.algorithms.pear import PEARConfig
from turnwise.algorithms.ppo import PPOConfig
from turnwise.algorithms.registry import ALGORITHMS, build, resolve
from turnwise.algorithms.reinforce_pp import ReinforcePPConfig
from turnwise.algorithms.rloo import RLOOConfig
from turnwise.algorithms.sac import SACConfig
from turnwise.algorithms.seed_grpo import SEEDConfig
from turnwise.algorithms.siren import SIRENConfig
from turnwise.algorithms.steer import STEERConfig
from turnwise.algorithms.tea import TEAConfig
from turnwise.learning.learner import stream_loss
from turnwise.learning.metrics import Tally
from turnwise.learning.parts import Aggregation, MinibatchView, UpdateContext
from turnwise.learning.primitives import Counts
from turnwise.learning.settings import RunInfo, Settings
from turnwise.replay.batch import layout
from turnwise.trajectory import Group, Trajectory

RUN = RunInfo(num_updates=10, group_size=4, rewards=TEN)
PLAIN = GRPOConfig(drop_uniform_groups=False)
UNCLIPPED = GRPOConfig(drop_uniform_groups=False, clip_low=1.0, clip_high=1e9, dual_clip=None)
BASES = [PLAIN, DAPOConfig(), GiGPOConfig(), PPOConfig(), GSPOConfig(), ReinforcePPConfig()]
NEUTRAL: dict[str, tuple[Settings, Settings]] = {
    "gigpo": (GiGPOConfig(step_coef=0.0), PLAIN),
    "g2po": (G2POConfig(step_coef=0.0), PLAIN),
    "graphgpo": (GraphGPOConfig(step_coef=0.0), PLAIN),
    "hapo": (HAPOConfig(alpha=0.0, beta=0.0, average="attempts", dual_clip=3.0, kl_coef=0.01), PLAIN),
    "canon": (CANONConfig(mu=0.5, clip_high=0.2, aggregation_constant=8.0), DrGRPOConfig(aggregation_constant=8.0)),
    "d3s": (D3SConfig(base=PLAIN, first_attempts=1.0, first_tokens=1.0), PLAIN),
    "igpo-without-gains": (IGPOConfig(gain_coef=0.0, kl_coef=0.01), PLAIN),
    "dapo": (DAPOConfig(clip_high=0.2, dual_clip=3.0, kl_coef=0.01, drop_uniform_groups=False), PLAIN),
    "drgrpo": (
        DrGRPOConfig(aggregation="token-mean", aggregation_constant=None, dual_clip=3.0, kl_coef=0.01),
        GRPOConfig(normalize_std=False, drop_uniform_groups=False),
    ),
    "kl_cov": (
        KLCovConfig(base=GRPOConfig(dual_clip=None), penalty_coef=0.0),
        GRPOConfig(clip_low=1.0, clip_high=1e9, dual_clip=None),
    ),
    "clip_cov-out-of-reach": (ClipCovConfig(base=PLAIN, low=1e8, high=1e9), PLAIN),
    "cispo-out-of-reach": (CISPOConfig(base=PLAIN, clip_low=1.0, clip_high=1e9), UNCLIPPED),
    "dppo-out-of-reach": (DPPOConfig(base=PLAIN, delta_low=2.0, delta_high=2.0), UNCLIPPED),
    "bapo-without-a-target": (BAPOConfig(base=PLAIN, target=0.0, low=(0.8, 0.9), high=(1.2, 3.0)), PLAIN),
    "sac-of-next-to-nothing": (SACConfig(base=PLAIN, initial_coef=1e-12, max_coef=1e-12), PLAIN),
    "ares-with-one-factor": (
        ARESConfig(base=PLAIN.model_copy(update={"kl_coef": 0.0}), cap=0.0, kl_factors=(1.0, 1.0, 1.0), kl_relaxed=1.0),
        PLAIN,
    ),
    "ppo-without-values": (PPOConfig(), ReinforcePPConfig()),  # the head starts at 0, and lambda is 1
    **{
        f"{name}-{base.type}": (modifier, base)  # type: ignore[attr-defined]
        for base in BASES
        for name, modifier in {
            "epo": EPOConfig(base=base, entropy_coef=0.0),
            "empg": EMPGConfig(base=base, scaling=0.0, bonus_coef=0.0, centre=False),
            "clip_cov": ClipCovConfig(base=base, share=0.0),
            "forking": ForkingConfig(base=base, share=1.0),
            "steer": STEERConfig(base=base, weight_min=1.0),
            "entropy_advantage": EntropyAdvantageConfig(base=base, alpha=0.0),
            "ear": EARConfig(base=base, form="clip", bound=1e9),
            "funrl": FunRLConfig(base=base, alpha=0.0),
            "pear-without-thoughts": PEARConfig(base=base),
            "ares": ARESConfig(base=base, cap=0.0, kl_coef=0.0),
            "seed_grpo": SEEDConfig(base=base, alpha=0.0),
            "echo": ECHOConfig(base=base, coef=0.0),
            "lp_reg": LpRegConfig(base=base, share=0.0),
            "siren": SIRENConfig(base=base, coef=0.0),
            "capo": CAPOConfig(base=base, fisher=1e9, hessian=1e9),
            "tea": TEAConfig(base=base, entropy_coef=0.0),
        }.items()
    },
}


@pytest.mark.parametrize(("config", "base"), NEUTRAL.values(), ids=NEUTRAL)
def test_neutral_settings_are_the_base(config: Settings, base: Settings) -> None:
    made = groups(BigramPolicy())
    expected = gradient(base, made)
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(gradient(config, made), expected, rtol=1e-6, atol=1e-6)


def test_equal_lengths_and_sizes_make_baselines_alike() -> None:
    """With n attempts of equal length OPO is Dr.GRPO by token means, and RLOO n/(n-1) times that."""
    made = groups(BigramPolicy(), num_turns=3)
    base = GRPOConfig(normalize_std=False, kl_coef=0.0, drop_uniform_groups=False)
    plain = gradient(base, made)
    torch.testing.assert_close(gradient(RLOOConfig(kl_coef=0.0), made), plain * 4 / 3, rtol=1e-5, atol=1e-6)
    without = gradient(base.model_copy(update={"dual_clip": None}), made)
    torch.testing.assert_close(gradient(OPOConfig(), made), without, rtol=1e-5, atol=1e-6)


def test_gspo_of_single_tokens_is_ppo_by_sequences() -> None:
    rng = np.random.default_rng(0)
    sampler = Sampler.of(BigramPolicy(), rng)
    made = [
        Group(task(g), tuple(episode(sampler, index=g, sample=s, windowed=True, num_actions=1) for s in range(4)))
        for g in range(3)
    ]
    wide = {"clip_low": 0.1, "clip_high": 0.1}
    expected = gradient(
        GRPOConfig(aggregation="seq-mean-token-mean", dual_clip=None, kl_coef=0.0, drop_uniform_groups=False, **wide),
        made,
    )
    for level in ("row", "turn"):
        torch.testing.assert_close(gradient(GSPOConfig(level=level, **wide), made), expected, rtol=1e-5, atol=1e-6)  # type: ignore[arg-type]


BY_ROWS = {
    "grpo-released",
    "grpo-sequences",
    "grpo-sums",
    "gspo",
    "gspo-turns",
    "drgrpo",
    "reinforce-rows",
    "ppo-rows",
    "bnpo",
    "canon",
    "canon-entropy",
    "canon-annealed",
    "maxrl-rows",
    "hapo-released",
    "copo-zero",
    "d3s-sequences",
    "forking-by-row",
    "siren",
    *("capo", "capo-one-sided"),
    "seed_grpo",
    "tea",
    "tea-with-gradients",
    *("echo", "echo-on-ppo", "epo-on-echo", "siren-on-echo"),
}


@pytest.mark.parametrize("name", [name for name in NAMED if name not in BY_ROWS])
def test_rows_are_no_matter(name: str) -> None:
    """A turn in a row of its own, or the episode in one: the same tokens, the same credit, the same update."""
    windowed, whole = (groups(BigramPolicy(), windowed=w) for w in (True, False))
    torch.testing.assert_close(gradient(NAMED[name], windowed), gradient(NAMED[name], whole), rtol=1e-4, atol=1e-6)


def rewarded(reward: float, trajectory: Trajectory) -> Trajectory:
    return replace(trajectory, turns=tuple(replace(x, reward=reward) for x in trajectory.turns))


def odd_batches() -> dict[str, list[Group]]:
    sampler = Sampler.of(BigramPolicy(), np.random.default_rng(0))
    some = [episode(sampler, sample=s, num_turns=1 + s) for s in range(4)]
    silent = tuple(episode(sampler, sample=s, num_actions=0) for s in range(3))
    extreme = [
        replace(t, turns=tuple(replace(x, logprobs=x.logprobs + np.float32(shift)) for x in t.turns))
        for t, shift in zip(some, (30.0, -30.0, 6.0, -6.0), strict=True)
    ]
    return {
        "nothing": [],
        "silent": [Group(task(), silent)],
        "lone": [Group(task(), (some[2],))],
        "lone-token": [Group(task(), (episode(sampler, num_turns=1, num_actions=1),))],
        "equal": [Group(task(), tuple(rewarded(0.1, t) for t in some[:1] * 3))],
        "without-turns": [Group(task(), tuple(replace(t, turns=()) for t in some))],
        "part-silent": [Group(task(), (*some, *silent))],
        "all-won": [Group(task(), tuple(rewarded(1.0, t) for t in some))],
        "all-lost": [Group(task(), tuple(rewarded(-1.0, t) for t in some))],
        "ratios": [Group(task(), tuple(extreme))],
        "errors": [Group(task(), tuple(replace(t, end="error") for t in some))],
    }


@pytest.mark.parametrize("kind", odd_batches())
@pytest.mark.parametrize("config", VARIANTS)
def test_odd_batches_stay_finite(config: Settings, kind: str) -> None:
    policy = BigramPolicy()
    made = learner(build(config, RUN), policy)
    metrics = made.update(buffer_of(odd_batches()[kind]), 0)
    assert all(math.isfinite(value) for value in metrics.as_dict().values())
    assert metrics.skipped_steps == 0
    assert all(torch.isfinite(p).all() for group in made.optimizer.param_groups for p in group["params"])


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("config", [v for v in VARIANTS if build(v.values[0], RUN)["fresh"].clip is not None])
def test_advantages_of_one_sign_push_one_way(config: Settings, sign: float) -> None:
    """On policy, raising log-probs lowers the surrogate of positive advantages, and only of those."""
    policy, recipe = BigramPolicy(), build(config, RUN)["fresh"]
    recipe = replace(recipe, regularizers=(), objectives=())
    batch = layout(groups(policy))
    batch = batch.with_columns(
        advantages=sign * torch.rand(batch.tokens.shape).clamp(min=0.1) * batch.action_mask,
        proximal_logprobs=batch.behaviour_logprobs,
        opening=dict.fromkeys(recipe.opening, batch.behaviour_logprobs),
    )
    logprobs = batch.behaviour_logprobs.clone().requires_grad_()
    counts = Counts.of(batch.action_mask, batch.turn_index)
    view = MinibatchView(
        0,
        batch,
        counts,
        lambda: batch.behaviour_logprobs,
        (0,),
        read=lambda each: (logprobs.detach().abs(),) * len(each),
    )
    for part in recipe.parts():
        part.prepare(view)
    ctx = UpdateContext(0, batch, logprobs, None, counts, recipe.aggregation)
    (found,) = torch.autograd.grad(stream_loss(recipe, ctx, Tally()), logprobs)
    assert (found[~batch.action_mask] == 0).all()
    assert (found * sign <= 0).all()
    assert (found * sign < 0).any()


def terms() -> list[object]:
    """Each regularizer and objective of each variant, by the variant's name and its place."""
    return [
        pytest.param(name, place, id=f"{name}-{place}")
        for name, config in NAMED.items()
        for recipe in build(config, RUN).streams
        for place in range(len(recipe.regularizers) + len(recipe.objectives))
    ]


@pytest.mark.parametrize(("name", "place"), terms())
def test_every_added_term_has_gradient_when_active(name: str, place: int) -> None:
    """Alone and off policy, in the second update (the first one has no history): it moves some parameter."""
    policy = BigramPolicy()
    made = learner(build(NAMED[name], RUN), policy)
    made.update(buffer_of(groups(policy)), 0)
    drifted(policy)
    recipe = made.recipe["fresh"]
    samples = buffer_of(groups(policy, seed=3, version=1), 1)
    drifted(policy)
    seen: list[list[Tensor]] = []
    part = [*(p for p, _ in recipe.regularizers), *(p for p, _ in recipe.objectives)][place]
    method = "loss" if hasattr(part, "loss") else "term"
    original = getattr(part, method)

    def spy(ctx: UpdateContext) -> Tensor:
        term: Tensor = original(ctx)
        every = [p for group in made.optimizer.param_groups for p in group["params"]]
        found = torch.autograd.grad(term, every, retain_graph=True, allow_unused=True)
        seen.append([g for g in found if g is not None])
        return term

    setattr(part, method, spy)
    made.update(samples, 1)
    assert any(float(g.abs().max()) > 1e-7 for gradients in seen for g in gradients)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_is_described(name: str) -> None:
    found = describe(name)
    assert found.about is not None
    assert found.about.arxiv in found.text
    assert len(found.about.title) > 10
    assert found.about.differences
    assert "=" in found.equations
    assert found.summary.endswith((".", ":"))
    assert found.is_modifier == any(setting.name == "base" for setting in found.settings)
    assert all(setting.meaning for setting in found.settings)
    page = (Path(__file__).parents[2] / "docs" / "algorithms" / f"{name}.md").read_text()
    assert found.about.arxiv in page
    for setting in found.settings:
        if setting.name in resolve(name).config.__annotations__:
            assert f"`{setting.name}" in page, setting.name


def test_an_algorithm_from_outside_is_described_too() -> None:
    found = describe("tests.outside:recipe")
    assert (found.about, found.is_modifier) == (None, False)
    assert [(s.name, s.default, s.meaning) for s in found.settings] == [("cost", 0.01, "Taken for every turn.")]
    assert found.summary.startswith("An algorithm from outside")
    with pytest.raises(ValueError, match="Did you mean 'gigpo'"):
        describe("gigopo")


def test_the_aggregation_is_the_settings() -> None:
    assert build(DrGRPOConfig(), RUN)["fresh"].aggregation == Aggregation("seq-mean-token-sum", 3000.0)
