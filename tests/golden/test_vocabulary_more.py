"""Methods that look at whole distributions over the vocabulary, against numbers of official implementations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.golden.builders import batch_of, context_of, loss_of, recipe_of
from tests.golden.test_tokens_more import base, context, gradient
from tests.golden.vectors import cases, close, tensor
from turnwise.algorithms.capo import step_sizes
from turnwise.algorithms.distill import DistillConfig
from turnwise.algorithms.lp_reg import FreedClip, LpRegConfig
from turnwise.algorithms.siren import AnchoredNucleus, SIRENConfig
from turnwise.algorithms.vocabulary import ProxyLogprob, StepCurvature, StepNorm, above_quantile
from turnwise.learning.parts import Samples, Stream, Streams
from turnwise.learning.planning import Reading
from turnwise.learning.rewards import RewardTable


def read(reading: Reading, logits: Tensor, tokens: Tensor, states: Tensor | None = None) -> Tensor:
    """A reading of every position, [B, T, V] and [B, T] -> [B, T]."""
    flat = torch.zeros(tokens.numel(), 1) if states is None else states.flatten(0, 1)
    return reading(logits.flatten(0, 1), tokens.flatten(), flat).reshape(tokens.shape)


@pytest.mark.parametrize("case", cases("lp_reg_proxy"))
def test_lp_reg_proxy(case: dict[str, Any]) -> None:
    given, outputs = case["inputs"], case["outputs"]
    logits, tokens = tensor(given["logits"]), torch.tensor(given["labels"])
    close(read(ProxyLogprob(given["min_p"]), logits, tokens), outputs["proxy_log_prob"])
    every = torch.arange(logits.shape[-1])
    kept = torch.stack([read(ProxyLogprob(given["min_p"]), logits, torch.full_like(tokens, v)) for v in every.tolist()])
    close((kept > -100).float().mean(), outputs["kept_fraction"])


@pytest.mark.parametrize("case", cases("lp_reg_loss"))
def test_lp_reg(case: dict[str, Any]) -> None:
    hp, outputs = case["hp"], case["outputs"]
    assert hp["logp_pos_k"] == 0
    estimator = {"low_var_kl": "k3", "kl": "k1"}[hp["kl_type"]]
    recipe = recipe_of(LpRegConfig(base=base(case), share=hp["logp_neg_k"], coef=hp["coef"], estimator=estimator))
    ctx, view = context(case, recipe)
    assert isinstance(recipe.clip, FreedClip)
    opening = {recipe.clip.proxy: tensor(case["inputs"]["proxy_log_prob"])}
    batch = ctx.batch.with_columns(opening=opening)
    ctx, view = replace(ctx, batch=batch), replace(view, batch=batch)
    loss, _ = loss_of(recipe, ctx, view)
    close(loss, outputs["loss"])
    close(gradient(loss, ctx), outputs["grad_log_prob"], gradient=True)


@pytest.mark.parametrize("case", cases("capo_curvature"))
def test_capo(case: dict[str, Any]) -> None:
    """The two quadratic forms; the released functions leave step sizes, halves and the first order out."""
    given, outputs = case["inputs"], case["outputs"]
    logits, tokens, states = tensor(given["probs"]).log(), torch.tensor(given["action"]), tensor(given["hidden"])
    advantages, norm = tensor(given["advantage"]), read(StepNorm(), logits, tokens, states)
    curvature = read(StepCurvature(), logits, tokens, states)
    fisher, hessian = step_sizes(advantages, norm, curvature, lr=1.0)
    close(2 * fisher, outputs["fisher"])
    close(2 * (hessian - advantages.square() * norm), outputs["hessian"])


@pytest.mark.parametrize("case", cases("siren", lambda case: "trap" not in case["note"]))
def test_siren(case: dict[str, Any]) -> None:
    """Entropies, peaks, and the loss with its gradient by the logits, through both the ratio and the term."""
    given, hp, outputs = case["inputs"], case["hp"], case["outputs"]
    logits, tokens = tensor(given["logits"]).requires_grad_(), torch.tensor(given["tokens"])
    mask = tensor(given["response_mask"]).bool()
    average = {"seq-mean-token-mean": "rows", "token-mean": "tokens"}[hp["entropy_agg"]]
    settings = {"top_p": hp["top_p"], "top_k": hp["top_k"], "quantile": hp["tau"], "average": average}
    rows = len(mask) if hp["agg"].endswith("norm") else 1  # SIREN's verl divides that sum by the rows too
    config = SIRENConfig(base=base(case), coef=1.0, anchor=given["anchor"], **settings)
    recipe = recipe_of(config)
    ((part, _),) = recipe.regularizers
    assert isinstance(part, AnchoredNucleus)
    entropy = read(part.reading, logits, tokens)
    close(entropy, outputs["nucleus_entropy"])
    behaviour, advantages = tensor(given["old_log_prob"]), tensor(given["advantages"]) * mask
    batch = batch_of(mask, behaviour_logprobs=behaviour, advantages=advantages)
    logprobs = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    ctx, view = context_of(batch, logprobs, recipe.aggregation)
    view = replace(view, read=lambda readings: tuple(read(each, logits.detach(), tokens) for each in readings))
    ctx = replace(ctx, readings={part.reading: entropy.masked_fill(~mask, 0.0)})
    part.prepare(view)
    close(part.peaks.float(), (tensor(outputs["peak_mask"]) * mask).tolist())
    counted = int(mask.any(1).sum()) / len(mask) if average == "rows" else 1.0  # a row without tokens counts there
    close(part.mean * counted, outputs["aggregate"])
    if counted == 1.0:
        term = part.term(ctx)
        close(term, outputs["squared_distance"])
        close(
            torch.autograd.grad(term, logits, retain_graph=True)[0],
            outputs["grad_logits_squared_distance"],
            gradient=True,
        )
        policy, _ = loss_of(replace(recipe, regularizers=()), ctx, view)
        loss = policy / rows + hp["beta"] * part.term(ctx)
        close(loss, outputs["loss"])
        close(torch.autograd.grad(loss, logits)[0], outputs["grad_logits_loss"], gradient=True)
    first = AnchoredNucleus(config.model_copy(update={"anchor": None}))
    opened = batch.with_columns(opening={first.reading: entropy.detach()})
    first.before_update(0, Streams((Stream(Samples((), RewardTable((), ())), opened),)))
    assert first.anchor is not None
    close(first.anchor * counted, outputs["anchor_if_first_batch"])


@pytest.mark.parametrize("case", cases("siren", lambda case: "trap" in case["note"]))
def test_siren_tokens_off_the_mask_are_no_peaks(case: dict[str, Any]) -> None:
    """Where the released code would take some."""
    given, outputs = case["inputs"], case["outputs"]
    mask, entropy = tensor(given["response_mask"]).bool(), tensor(outputs["nucleus_entropy"])
    released = tensor(outputs["peak_mask"]).bool()
    assert (released & ~mask).any()
    found = above_quantile(entropy, torch.where(mask, 0, -1), case["hp"]["tau"])
    assert torch.equal(found, released & mask)


@pytest.mark.parametrize("case", cases("on_policy_distillation"))
def test_distill(case: dict[str, Any]) -> None:
    given, hp, outputs = case["inputs"], case["hp"], case["outputs"]
    mask = tensor(given["response_mask"]).bool()
    recipe = recipe_of(DistillConfig(drop_below=hp["drop_below"], square_coef=hp["kl_tau"]))
    columns = {
        "behaviour_logprobs": tensor(given["old_log_prob"]),
        "teacher_logprobs": tensor(given["ref_log_prob"]),
    }
    ctx, view = context_of(batch_of(mask, **columns), tensor(given["log_prob"]).requires_grad_(), recipe.aggregation)
    loss, _ = loss_of(recipe, ctx, view)
    close(loss, outputs["loss"])
    close(gradient(loss, ctx), outputs["grad_log_prob"], gradient=True)
    sizes, ((part, _),) = mask.sum(1), recipe.objectives
    dropped = (tensor(outputs["dropped_per_row"]) * sizes).sum() / sizes.sum()
    close(part.acted()["dropped_share"], float(dropped))
