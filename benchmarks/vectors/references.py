"""Every file of the vectors: its inputs, and the reference that makes the outputs from them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import controllers
import credit
import losses
import numpy as np

Case = dict[str, Any]
Reference = Callable[[Case], Case]


def from_json(value: Any) -> Any:
    """Lists of numbers (nan and inf spelt) as arrays, everything else as it is; ragged lists stay lists."""
    if isinstance(value, dict):
        return {name: from_json(item) for name, item in value.items()}
    if isinstance(value, list) and value and _is_numeric(value):
        try:
            return np.array(_numbers(value), float)
        except ValueError:
            return value
    return value


def _is_numeric(value: Any) -> bool:
    while isinstance(value, list):
        if not value:
            return False
        value = value[0]
    return (isinstance(value, (int, float)) and not isinstance(value, bool)) or value in ("nan", "inf", "-inf")


def _numbers(value: Any) -> Any:
    return [_numbers(item) for item in value] if isinstance(value, list) else float(value)


def to_json(value: Any) -> Any:
    """Plain lists and numbers; nan and inf spelt."""
    if isinstance(value, dict):
        return {str(name): to_json(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, np.ndarray):
        return to_json(value.tolist())
    if isinstance(value, np.generic):
        return to_json(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value


def _agg(case: Case) -> Case:
    loss, mask = case["loss_mat"], case["loss_mask"]
    made = {
        f"{family}_{mode}": losses.aggregate(loss, mask, mode, family)
        for mode in losses.MODES
        for family in ("verl", "verlagent")
    }
    return made | {"verl_norm_scale100": losses.aggregate(loss, mask, losses.MODES[3], "verl", 100.0)}


def _ppo(case: Case) -> Case:
    verl, agent = losses.ppo(case, "verl"), losses.ppo(case, "verlagent")
    names = {"actor/pg_clipfrac": "clipfrac", "actor/ppo_kl": "ppo_kl", "actor/pg_clipfrac_lower": "clipfrac_lower"}
    made = {
        "verl_loss": verl["loss"], "verl_metrics": {name: verl[own] for name, own in names.items()},
        "verl_grad_log_prob": verl["grad_log_prob"], **{f"verlagent_{name}": value for name, value in agent.items()},
    }  # fmt: skip
    undefined = [family for family in ("verl", "verlagent") if math.isnan(made[f"{family}_loss"])]
    return {name: value for name, value in made.items() if name not in [f"{f}_grad_log_prob" for f in undefined]}


def _kl_and_value(case: Case) -> Case:
    found: Case = dict(losses.kl(case["log_prob"], case["ref_log_prob"]))
    for family in ("verl", "verlagent"):
        found |= losses.value_loss(case, family)
    return found


def _schedules(case: Case) -> Case:
    if case["kind"] == "replay_weight":
        return {"weight": credit.replay_weight(case)}
    return {"bonus": credit.tool_bonus(case)}


def _filters(case: Case) -> Case:
    if "tokens" in case:
        return {"repetitive": credit.repeats([int(token) for token in case["tokens"]])}
    return {"complete": credit.complete(case["text"])}


def _budget(case: Case) -> Case:
    budget = case["total_budget_n"]
    if case.get("formula_only"):
        difference = case["H_root_minus_H_tool"]
        return {"official_initial_rollouts": controllers.initial_rollouts(budget, difference, 0.5)}
    root, *steps = (
        controllers.segment_entropy([list(token) for token in part], case["vocab_size"])
        for part in (case["root_topk_logprobs"], *case["step_topk_logprobs"])
    )
    mean = float(np.mean(steps))
    number = controllers.initial_rollouts(budget, root - mean, case["beta"])
    return {"H_root": root, "H_steps": steps, "H_tool_avg": mean, "official_initial_rollouts": number}


def _trace(case: Case) -> Case:
    """The controller driven by the recorded segments and draws."""
    rounds, draws = iter(case["iterations"]), iter(case["uniform_draws"])
    made = controllers.Rollouts(case)
    asked = ("entropy", "tool_call", "n_tokens")
    found = list(made.run(lambda going: [{k: s[k] for k in asked} for s in next(rounds)], lambda: float(next(draws))))
    assert [*draws, *rounds] == [], "not everything that was recorded was asked for"
    return {"iterations": found, **made.ending()}


def _buffer(case: Case) -> Case:
    buffer = controllers.ReplayBuffer(case["buffer_size"], case["tolerate_steps"], case["baseline_buffer_size"])
    return {"events": [buffer.step(event["step"], event["rows"]) for event in case["events"]]}


REFERENCES: dict[str, Reference] = {
    "agg_loss": _agg,
    "ppo_policy_loss": _ppo,
    "gspo_policy_loss": losses.gspo,
    "kl_and_value_loss": _kl_and_value,
    "clip_cov_kl_cov": losses.covariances,
    "epo_official_loss": losses.epo_official,
    "epo_paper_form_reference": losses.epo_paper,
    "epo_epoch_weight": lambda case: {"weight": losses.epo_weight(case["epoch"], case["max_epochs"])},
    "aepo_policy_loss": losses.aepo,
    "gae": credit.gae,
    "group_advantages_verl": credit.group_advantages_verl,
    "group_advantages_verlagent": credit.group_advantages_verlagent,
    "gigpo": credit.gigpo,
    "gigpo_similarity_groups": credit.similar,
    "empg_advantage": credit.empg,
    "dapo_overlong": lambda case: {"penalty": credit.overlong(case)},
    "spear_schedules": _schedules,
    "spear_advantage_recalibration": credit.recalibration,
    "spear_group_filter": credit.group_filter,
    "spear_response_filters": _filters,
    "spear_replay_buffer": _buffer,
    "aepo_budget_allocation": _budget,
    "aepo_branch_rollout_trace": _trace,
}
