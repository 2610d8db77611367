"""Clips, token weights and regularisers against numbers of official implementations: values and gradients."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.golden.builders import batch_of, context_of, loss_of, recipe_of
from tests.golden.vectors import cases, close, tensor
from turnwise.algorithms.bapo import BalancedBounds, BAPOConfig
from turnwise.algorithms.by_entropy import EntropyBounds
from turnwise.algorithms.cispo import CISPOConfig
from turnwise.algorithms.clip_cov import ClipCovConfig
from turnwise.algorithms.dppo import DPPOConfig
from turnwise.algorithms.ear import EARConfig, entropy_scale
from turnwise.algorithms.echo import ECHOConfig, ObservationLoss
from turnwise.algorithms.entropy_advantage import EntropyAdvantageConfig
from turnwise.algorithms.forking import ForkingConfig
from turnwise.algorithms.grpo import GRPOConfig
from turnwise.algorithms.hapo import HAPOConfig
from turnwise.algorithms.kl_cov import KLCovConfig
from turnwise.algorithms.steer import STEERConfig
from turnwise.algorithms.tea import TEAConfig
from turnwise.cloning import losses
from turnwise.cloning.losses import CloningRow
from turnwise.cloning.selection import TokenSelection
from turnwise.learning.parts import MinibatchView, Samples, Stream, UpdateContext
from turnwise.learning.recipe import StreamRecipe
from turnwise.learning.rewards import RewardTable
from turnwise.learning.settings import Settings


def context(
    case: dict[str, Any], recipe: StreamRecipe, behaviour: str = "old_log_prob", scale: float = 1.0
) -> tuple[UpdateContext, MinibatchView]:
    """A vector's tensors as one minibatch; ``logprobs`` and ``entropy`` of the context are leaves.

    The sampler's entropies are the vector's too: a vector has those of one policy only.
    """
    inputs = case["inputs"]
    mask = tensor(inputs["response_mask"]).bool()
    columns = {
        "behaviour_logprobs": tensor(inputs.get(behaviour, inputs["old_log_prob"])),
        "advantages": scale * tensor(inputs["advantages"]) * mask,
    }
    entropy = None
    if "entropy" in inputs:
        entropy = tensor(inputs["entropy"]).requires_grad_()
        columns["behaviour_entropies"] = entropy.detach()
    logprobs = tensor(inputs["log_prob"]).requires_grad_()
    return context_of(batch_of(mask, **columns), logprobs, recipe.aggregation, entropy=entropy)


def base(case: dict[str, Any], **settings: Any) -> GRPOConfig:
    """GRPO without KL, that averages as the vector does."""
    mode = case["hp"].get("agg", "token-mean")
    width = len(case["inputs"]["response_mask"][0])
    constant = {"aggregation_constant": float(width)} if mode.endswith("norm") else {}
    clip = {name: case["hp"][name] for name in ("clip_low", "clip_high") if name in case["hp"]}
    return GRPOConfig(
        kl_coef=0.0, dual_clip=case["hp"].get("dual_clip"), aggregation=mode, **constant, **clip, **settings
    )


def gradient(loss: Tensor, ctx: UpdateContext) -> Tensor:
    return torch.autograd.grad(loss, ctx.logprobs, retain_graph=True)[0]


def held(config: Settings, case: dict[str, Any]) -> None:
    """Loss and gradient of a configuration's own recipe."""
    recipe = recipe_of(config)
    ctx, view = context(case, recipe)
    loss, _ = loss_of(recipe, ctx, view)
    close(loss, case["outputs"]["loss"])
    close(gradient(loss, ctx), case["outputs"]["grad_log_prob"], gradient=True)


@pytest.mark.parametrize("case", cases("ppo_clip_baseline"))
def test_ppo_clip(case: dict[str, Any]) -> None:
    held(base(case), case)


@pytest.mark.parametrize("case", cases("clip_cov", lambda case: "torch_manual_seed" not in case["hp"]))
def test_clip_cov(case: dict[str, Any]) -> None:
    hp = case["hp"]
    held(ClipCovConfig(base=base(case), share=hp["clip_ratio"], low=hp["clip_cov_lb"], high=hp["clip_cov_ub"]), case)


@pytest.mark.parametrize("case", cases("clip_cov", lambda case: "torch_manual_seed" in case["hp"]))
def test_clip_cov_draws_as_many(case: dict[str, Any]) -> None:
    """Which of the eligible tokens are drawn follows from a seed of ours: only their number can be held."""
    hp = case["hp"]
    recipe = recipe_of(
        ClipCovConfig(base=base(case), share=hp["clip_ratio"], low=hp["clip_cov_lb"], high=hp["clip_cov_ub"])
    )
    loss_of(recipe, *context(case, recipe))
    (part,) = recipe.weighters
    close(part.acted()["left_out_share"], case["outputs"]["clipfrac_masked_tokens"])


@pytest.mark.parametrize("case", cases("kl_cov"))
def test_kl_cov(case: dict[str, Any]) -> None:
    hp = case["hp"]
    held(KLCovConfig(base=base(case), share=hp["k_percent"] / 100, penalty_coef=hp["ppo_kl_coef"]), case)


@pytest.mark.parametrize("case", cases("cispo"))
def test_cispo(case: dict[str, Any]) -> None:
    """The released loss is the mean of -w A log π; ours has its gradient, and -w A in value."""
    hp, outputs = case["hp"], case["outputs"]
    recipe = recipe_of(CISPOConfig(base=base(case), clip_low=hp["eps_low"], clip_high=hp["eps_high"]))
    ctx, view = context(case, recipe, "rollout_log_prob" if hp.get("anchor") == "rollout" else "old_log_prob")
    loss, _ = loss_of(recipe, ctx, view)
    close(gradient(loss, ctx), outputs["grad_log_prob"], gradient=True)
    assert recipe.clip is not None
    per_token = -recipe.clip.surrogate(ctx).ratio.detach() * ctx.advantages * ctx.logprobs
    close(ctx.aggregate(per_token), outputs["loss"])
    if "per_token" in outputs:
        close(per_token.masked_fill(~ctx.mask, 0.0), (tensor(outputs["per_token"]) * ctx.mask).tolist())


def over_all_rows(case: dict[str, Any], ctx: UpdateContext) -> float:
    """What turns our mean over the rows that have tokens into SkyRL's over all."""
    rows = len(case["inputs"]["response_mask"])
    return ctx.counts.rows / rows if "rows" in case["hp"]["agg"] else 1.0


@pytest.mark.parametrize("case", cases("dppo"))
def test_dppo(case: dict[str, Any]) -> None:
    hp, outputs = case["hp"], case["outputs"]
    width = float(len(case["inputs"]["response_mask"][0]))
    aggregation: dict[str, Any] = {
        "token-mean": {},
        "seq-mean-token-mean over all rows": {"aggregation": "seq-mean-token-mean"},
        "sum over rows times width": {"aggregation": "seq-mean-token-sum", "aggregation_constant": width},
    }[hp["agg"]]
    config = DPPOConfig(
        base=GRPOConfig(kl_coef=0.0, dual_clip=None, **aggregation),
        divergence=hp["divergence"].removeprefix("binary_"),
        delta_low=hp["delta_low"],
        delta_high=hp["delta_high"],
        square_coef=hp.get("kl_tau", 0.0),
    )
    recipe = recipe_of(config)
    behaviour = "rollout_log_prob" if hp["behaviour"].startswith("rollout") else "old_log_prob"
    ctx, view = context(case, recipe, behaviour, hp.get("adv_tau", 1.0))
    loss, _ = loss_of(recipe, ctx, view)
    share = over_all_rows(case, ctx)
    close(share * loss, outputs["loss"])
    close(share * gradient(loss, ctx), outputs["grad_log_prob"], gradient=True)
    (part,) = recipe.weighters
    if "dropped_fraction" in outputs:
        close(part.acted()["dropped_share"], outputs["dropped_fraction"])
    elif bool((ctx.advantages[ctx.mask] != 0).all()):  # prime-rl counts tokens without an advantage too
        sizes = ctx.mask.sum(1)
        per_row = (part.weight(ctx) == 0).sum(1) / sizes.clamp(min=1)
        close(per_row[sizes > 0], tensor(outputs["dropped_per_row"])[sizes > 0].tolist())


def released_bapo(case: dict[str, Any], **settings: Any) -> BAPOConfig:
    hp = case["hp"]
    return BAPOConfig(
        base=base(case),
        target=hp["adv_ratio_target"],
        low=(hp["ratio_lower_start"], hp["ratio_lower_max"]),
        high=(hp["ratio_upper_start"], hp["ratio_upper_max"]),
        low_step=hp["ratio_lower_step"],
        high_step=hp["ratio_upper_step"],
        **{"criterion": "odds", "order": "low_first", "count": "released", "weighting": "none", **settings},
    )


@pytest.mark.parametrize("case", cases("bapo"))
def test_bapo(case: dict[str, Any]) -> None:
    config, outputs = released_bapo(case), case["outputs"]
    held(config, case)
    recipe = recipe_of(config)
    ctx, view = context(case, recipe)
    _, tally = loss_of(recipe, ctx, view)
    assert isinstance(recipe.clip, BalancedBounds)
    close(torch.tensor([recipe.clip.low, recipe.clip.high]), [outputs["final_low"], outputs["final_high"]])
    close(recipe.clip.balance(ctx, recipe.clip.surrogate(ctx).ratio.detach()), outputs["pos_neg_ratio"])
    close(tally.per_token("clipped") or 0.0, outputs["clipfrac"])


@pytest.mark.parametrize("case", cases("bapo", lambda case: 0 < case["outputs"]["pos_neg_ratio"] < 1))
def test_bapo_raising_the_lower_bound_lowers_the_released_odds_and_raises_ours(case: dict[str, Any]) -> None:
    found = {}
    for count in ("released", "gradient"):
        recipe = recipe_of(released_bapo(case, count=count))
        ctx, _ = context(case, recipe)
        part = recipe.clip
        assert isinstance(part, BalancedBounds)
        ratio = part.surrogate(ctx).ratio.detach()
        odds = []
        for low in (case["hp"]["ratio_lower_start"], case["hp"]["ratio_lower_max"]):
            part.low = low
            odds.append(part.balance(ctx, ratio))
        found[count] = odds
    assert found["released"][0] > found["released"][1]
    assert found["gradient"][0] < found["gradient"][1]


@pytest.mark.parametrize("case", cases("forking_8020"))
def test_forking(case: dict[str, Any]) -> None:
    config = ForkingConfig(base=base(case), share=case["hp"]["top_fraction"])
    held(config, case)
    recipe = recipe_of(config)
    ctx, view = context(case, recipe)
    loss_of(recipe, ctx, view)
    (part,) = recipe.weighters
    assert torch.equal(part.weight(ctx) > 0, tensor(case["outputs"]["mask_after"]).bool())


@pytest.mark.parametrize("case", cases("steer"))
def test_steer(case: dict[str, Any]) -> None:
    hp = case["hp"]
    form: dict[str, Any] = {"form": "linear", "weight_max": hp["w_max"]} if hp["linear"] else {}
    config = STEERConfig(base=base(case), weight_min=hp["w_min"], **form)
    held(config, case)
    recipe = recipe_of(config)
    ctx, view = context(case, recipe)
    loss_of(recipe, ctx, view)
    (part,) = recipe.weighters
    close(part.weight(ctx)[ctx.mask], tensor(case["outputs"]["token_weights"])[ctx.mask].tolist())


@pytest.mark.parametrize("case", cases("hapo_loss"))
def test_hapo(case: dict[str, Any]) -> None:
    """h and the bounds of every token, then the loss and its gradient."""
    hp, expected, mask = case["hp"], case["outputs"], tensor(case["inputs"]["response_mask"]).bool()
    config = HAPOConfig(
        pivot=hp["pivot"], alpha=hp["clip_alpha"], beta=hp["adv_beta"], clip_low=hp["clip"], clip_high=hp["clip"],
        dual_clip=hp["dual_clip"], aggregation=hp["agg"], sign="released",
    )  # fmt: skip
    recipe = recipe_of(config)
    ctx, view = context(case, recipe)
    loss, _ = loss_of(recipe, ctx, view)
    assert isinstance(recipe.clip, EntropyBounds)
    close(recipe.clip.h * mask, expected["h_hat"])
    bounds = recipe.clip.surrogate(ctx)
    close((1 - bounds.low) * mask, expected["eps_low"])
    close((bounds.high - 1) * mask, expected["eps_high"])
    close(recipe.weighters[0].weight(ctx) * ctx.advantages, expected["adv_redistributed"])
    close(loss, expected["loss"])
    close(gradient(loss, ctx), expected["grad_log_prob"], gradient=True)


@pytest.mark.parametrize("case", cases("entropy_advantage"))
def test_entropy_advantage(case: dict[str, Any]) -> None:
    hp, outputs = case["hp"], case["outputs"]
    recipe = recipe_of(EntropyAdvantageConfig(base=base(case), alpha=hp["alpha"], kappa=hp["kappa"]))
    ctx, view = context(case, recipe)
    rows = len(ctx.mask) if hp["agg"].endswith("norm") else 1  # SIREN's verl divides that sum by the rows too
    (part,) = recipe.modifiers
    raised = part.modify(Stream(Samples((), RewardTable((), ())), ctx.batch))
    close(raised, (tensor(outputs["advantages"]) * ctx.mask).tolist())
    changed = replace(ctx, batch=ctx.batch.with_columns(advantages=raised))
    loss, _ = loss_of(recipe, changed, view)
    close(loss / rows, outputs["loss"])
    close(gradient(loss / rows, changed), outputs["grad_log_prob"], gradient=True)


@pytest.mark.parametrize("case", cases("derived_ettrl_ear"))
def test_ear(case: dict[str, Any]) -> None:
    """From the equations: there is no official code."""
    inputs, outputs = case["inputs"], case["outputs"]
    entropy, lengths = tensor(inputs["entropy"]), torch.tensor(inputs["length"])
    mask = torch.arange(entropy.shape[1]) < lengths.unsqueeze(1)
    for config, name in ((EARConfig(), "adv_res"), (EARConfig(form="clip", bound=case["hp"]["beta_clip"]), "adv_clip")):
        batch = batch_of(
            mask,
            behaviour_entropies=entropy,
            advantages=tensor(inputs["advantage"]).unsqueeze(1) * mask,
            group=torch.zeros(len(mask), dtype=torch.long),
        )
        (part,) = recipe_of(config).modifiers
        found = part.modify(Stream(Samples((), RewardTable((), ())), batch))
        close(found, (tensor(outputs[name]).unsqueeze(1) * mask).tolist())
    close(entropy_scale(batch), outputs["Y"])


@pytest.mark.parametrize("case", cases("lightif_tea_entropy"))
def test_tea(case: dict[str, Any]) -> None:
    """The function's own numbers, with gradients through the coefficients; without them that of the entropies stays."""
    hp, outputs = case["hp"], case["outputs"]
    for kept in ("kept", "detached"):
        config = TEAConfig(
            base=base(case), entropy_coef=1.0, budget=hp["cov_alpha"], bound=hp["clip_cov_ub"], gradient=kept
        )
        recipe = recipe_of(config)
        ctx, view = context(case, recipe)
        ((part, coef),) = recipe.regularizers
        assert coef == 1.0
        part.prepare(view)
        term = part.term(ctx)
        close(-term, outputs["entropy_term"])
        assert ctx.entropy is not None
        of_entropy, of_logprobs = torch.autograd.grad(term, [ctx.entropy, ctx.logprobs], allow_unused=True)
        close(-of_entropy, outputs["grad_entropy"], gradient=True)
        if kept == "kept":
            close(-of_logprobs, outputs["grad_log_prob"], gradient=True)
        else:
            assert of_logprobs is None
        close(part.acted()["mean_coef"], outputs["mean_coeff"])


@pytest.mark.parametrize("case", cases("lightif_entropy_sft"))
def test_entropy_sft(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The cloning loss of a model that gives the vector's logits."""
    logits, labels = tensor(case["inputs"]["logits"]), np.array(case["inputs"]["labels"])
    rows = [
        CloningRow(np.maximum(row, 0), (row >= 0).astype(np.float64), np.full(len(row), losses.REST)) for row in labels
    ]
    wanted = torch.tensor(labels[:, 1:] >= 0)
    forward = SimpleNamespace(states=lambda ids, plan: None, logits=lambda states: logits[:, :-1][wanted])
    monkeypatch.setattr(losses, "forward_of", lambda model: forward)
    selection = TokenSelection(case["hp"]["token_ratio"], case["hp"]["entropy_coef"])
    loss, scored = losses.cloning_loss(SimpleNamespace(device=torch.device("cpu")), rows, selection)
    close(loss, case["outputs"]["loss"])
    assert scored.num.sum() == int(case["hp"]["token_ratio"] * int(wanted.sum()))


@pytest.mark.parametrize("case", cases("echo_observation_ce"))
def test_echo(case: dict[str, Any]) -> None:
    """The loss and its gradient. A vector's roles have weights of their own: here a part for each stands for that."""
    hp, given, expected = case["hp"], case["inputs"], case["outputs"]
    weights, mask = tensor([expected["ce_weights"]]), torch.tensor([expected["action_mask"]]).bool()
    bounds = {"delta_low": hp["delta_low"], "delta_high": hp["delta_high"]}
    base = DPPOConfig(base=GRPOConfig(kl_coef=0.0), square_coef=hp["kl_tau"], **bounds)
    columns = {
        "behaviour_logprobs": tensor([given["old_log_prob"]]) * mask,
        "advantages": tensor([given["advantages"]]) * mask,
    }
    logprobs = tensor([given["log_prob"]]).requires_grad_()
    loss = torch.zeros(())
    for number, weight in enumerate(sorted(set(hp["alpha"].values()))):
        observed = weights == tensor(weight)
        share = float(observed.sum()) / expected["ce_tokens"]
        recipe = recipe_of(ECHOConfig(base=base, coef=weight * share) if share else base)
        batch = batch_of(mask, **columns, observed=observed)
        ctx, view = context_of(batch, logprobs.masked_fill(~mask, 0.0), recipe.aggregation)
        ctx = replace(ctx, observed_logprobs=logprobs.masked_fill(~observed, 0.0))
        if number:  # the base counts once
            (part,) = [part for part, _ in recipe.regularizers if isinstance(part, ObservationLoss)]
            part.prepare(view)
            loss = loss + weight * share * part.term(ctx)
        else:
            loss, _ = loss_of(recipe, ctx, view)
    close(loss, expected["loss"])
    close(torch.autograd.grad(loss, logprobs)[0], [expected["grad_log_prob"]], gradient=True)
