"""References of credit: from rewards to advantages, in float64 with numpy alone, row by row in plain loops."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from losses import Array, whiten


def members_of(labels: Sequence[Any]) -> dict[Any, list[int]]:
    """Rows by label, in order of first appearance."""
    found: dict[Any, list[int]] = {}
    for row, label in enumerate(labels):
        found.setdefault(label, []).append(row)
    return found


def standard_scores(totals: Array, groups: Sequence[Any], std: bool, counted: Sequence[bool] | None = None) -> Array:
    """(R - mean) / (unbiased std + 1e-6) over the counted rows of a group; one alone: mean 0, std 1."""
    found = np.zeros(len(totals))
    for rows in members_of(groups).values():
        own = np.array([totals[r] for r in rows if counted is None or counted[r]])
        mean, scale = (own.mean(), own.std(ddof=1)) if len(own) > 1 else (0.0, 1.0)
        if len(own) > 1 and np.ptp(own) == 0:
            scale = 0.0
        for row in rows:
            found[row] = (totals[row] - mean) / (scale + 1e-6) if std else totals[row] - mean
    return found


def leave_one_out(totals: Array, groups: Sequence[Any], counted: Sequence[bool] | None = None) -> Array:
    """n / (n - 1) (R - mean); one alone keeps its R."""
    found = np.zeros(len(totals))
    for rows in members_of(groups).values():
        own = [totals[r] for r in rows if counted is None or counted[r]]
        for row in rows:
            alone = len(own) < 2
            found[row] = totals[row] if alone else len(own) / (len(own) - 1) * (totals[row] - np.mean(own))
    return found


def by_length(totals: Array, lengths: Array, groups: Sequence[Any]) -> Array:
    """R - Σ l R / Σ l; one alone keeps its R."""
    found = np.array(totals, float)
    for rows in members_of(groups).values():
        if len(rows) > 1 and lengths[rows].sum() > 0:
            found[rows] = totals[rows] - (lengths[rows] * totals[rows]).sum() / lengths[rows].sum()
    return found


def best_and_second(totals: Array, groups: Sequence[Any]) -> Array | str:
    """(best - second) / (std + 1e-6) to the best of each group (pass@k); an error for a group of one."""
    found = np.zeros(len(totals))
    for rows in members_of(groups).values():
        if len(rows) < 2:
            return "ERR ValueError"
        order = sorted(rows, key=lambda row: -totals[row])
        scale = np.std(totals[rows], ddof=1) if np.ptp(totals[rows]) else 0.0
        found[order[0]] = (totals[order[0]] - totals[order[1]]) / (scale + 1e-6)
    return found


def to_go(rewards: Array, mask: Array, gamma: float) -> Array:
    """G_t = r_t + γ G_{t+1}; what runs on is dropped before each position off the mask."""
    found = np.zeros_like(rewards)
    for b in range(len(rewards)):
        running = 0.0
        for t in reversed(range(rewards.shape[1])):
            running = rewards[b, t] + gamma * running
            found[b, t] = running
            running *= mask[b, t]
    return found


def group_advantages_verl(case: dict[str, Any]) -> dict[str, Any]:
    rewards, mask, groups = case["token_level_rewards"], case["response_mask"], case["group"]
    totals = rewards.sum(1)
    spread = standard_scores(totals, groups, std=False)[:, None] * mask
    best = best_and_second(totals, groups)
    returns = to_go(rewards, mask, 0.9)
    return {
        "grpo": standard_scores(totals, groups, std=True)[:, None] * mask,
        "drgrpo_nostd": spread,
        "rloo": leave_one_out(totals, groups)[:, None] * mask,
        "reinforce_pp_baseline": whiten(spread, mask) * mask,
        "reinforce_pp_gamma0.9": whiten(returns, mask) * mask,
        "reinforce_pp_gamma0.9_returns": returns,
        "remax": to_go(rewards, np.ones_like(mask), 1.0) * mask - case["remax_baseline"][:, None] * mask,
        "opo": by_length(totals, mask.sum(1), groups)[:, None] * mask,
        "grpo_passk": best if isinstance(best, str) else best[:, None] * mask,
    }


def group_advantages_verlagent(case: dict[str, Any]) -> dict[str, Any]:
    """Over rows (cross1), or over the first row of each trajectory (cross0)."""
    mask, groups = case["response_mask"], case["group"]
    totals, made = case["token_level_rewards"].sum(1), {}
    first = [case["traj"].index(name) == row for row, name in enumerate(case["traj"])]
    for cross, counted in ((1, None), (0, first)):
        centred = standard_scores(totals, groups, std=False, counted=counted)
        made[f"grpo_cross{cross}_std1"] = standard_scores(totals, groups, std=True, counted=counted)[:, None] * mask
        made[f"grpo_cross{cross}_std0"] = centred[:, None] * mask
        made[f"rloo_cross{cross}"] = leave_one_out(totals, groups, counted)[:, None] * mask
        made[f"reinforce_pp_baseline_cross{cross}"] = whiten(centred[:, None] * mask, mask) * mask
    return made


def gae(case: dict[str, Any]) -> dict[str, Any]:
    """δ = r + γ V' - V, A = δ + γ λ A'; verl jumps over positions off the mask, verl-agent does not."""
    rewards, values, mask = case["token_level_rewards"], case["values"], case["response_mask"]
    made: dict[str, Any] = {}
    for family in ("verl", "verlagent"):
        found = np.zeros_like(values)
        for b in range(len(values)):
            next_value = following = 0.0
            for t in reversed(range(values.shape[1])):
                error = rewards[b, t] + case["gamma"] * next_value - values[b, t]
                advantage = error + case["gamma"] * case["lam"] * following
                if family == "verlagent" or mask[b, t]:
                    next_value, following = values[b, t], advantage
                found[b, t] = following
        made[f"{family}_returns"] = found + values
        made[f"{family}_advantages"] = whiten(found, mask)
    return made


def gigpo(case: dict[str, Any]) -> dict[str, Any]:
    """Episode level over rows, step level over rows with the same observation of the same task."""
    mask, totals, rows = case["response_mask"], case["token_level_rewards"].sum(1), range(len(case["group"]))
    returns = np.zeros(len(rows))
    for own in members_of(case["traj"]).values():
        running = 0.0
        for row in reversed(own):
            running = case["step_env_reward"][row] + case["gamma"] * running
            returns[row] = running
    after = returns - case["invalid_penalty"] * np.array(case["invalid_action"], float)
    clusters = members_of([(case["group"][r], case["anchor_obs"][r]) for r in rows])
    number = {r: n for n, own in enumerate(clusters.values()) for r in own}
    first = [case["traj"].index(name) == row for row, name in enumerate(case["traj"])]
    made: dict[str, Any] = {
        "discounted_returns": returns, "step_rewards_after_penalty": after, "step_group": [number[r] for r in rows],
    }  # fmt: skip
    for mode, std in (("mean_norm", False), ("mean_std_norm", True)):
        episode = standard_scores(totals, case["group"], std)
        step = np.zeros(len(rows))
        for own in clusters.values():
            if len(own) > 1:
                scale = (np.std(after[own], ddof=1) if np.ptp(after[own]) else 0.0) + 1e-6 if std else 1.0
                step[own] = (after[own] - after[own].mean()) / scale
        made[f"episode_adv_{mode}"] = episode[:, None] * mask
        made[f"episode_adv_pertraj_{mode}"] = standard_scores(totals, case["group"], std, first)[:, None] * mask
        made[f"step_adv_{mode}"] = step[:, None] * mask
        for weight in (1, 0.5):
            made[f"gigpo_{mode}_w{weight}"] = (episode + weight * step)[:, None] * mask
    return made


def similar(case: dict[str, Any]) -> dict[str, Any]:
    """Greedy: a text joins the first cluster of its task whose first member it resembles enough."""
    firsts: dict[Any, list[tuple[str, int]]] = {}
    found, size = [], 0
    for text, task in zip(case["obs"], case["group"], strict=True):
        known = firsts.setdefault(task, [])
        for representative, number in known:
            if difflib.SequenceMatcher(None, text, representative).ratio() >= case["threshold"]:
                found.append(number)
                break
        else:
            known.append((text, size))
            found.append(size)
            size += 1
    return {"step_group": found}


def empg(case: dict[str, Any]) -> dict[str, Any]:
    """A g + ζ f of the next step, and centred over steps; a row is a step."""
    mask, advantage = case["response_mask"], np.array(case["traj_advantage"], float)
    level = (case["token_entropy"] * mask).sum(1) / mask.sum(1)
    scaled = (level - level.min()) / (level.max() - level.min() + 1e-8)
    scale, clear = np.exp(-case["k"] * scaled), np.exp(-case["k_prime"] * scaled)
    scale = scale / scale.mean()
    place = {key: row for row, key in enumerate(zip(case["traj"], case["step"], strict=True))}
    bonus = np.array([
        clear[place[t, n + 1]] if (t, n + 1) in place else 0.0 for t, n in zip(case["traj"], case["step"], strict=True)
    ])  # fmt: skip
    changed = advantage * scale + case["zeta"] * bonus
    centred = changed - changed.mean()
    return {
        "step_entropy": level, "H_norm": scaled, "g": scale, "f": clear, "A_mod": changed, "A_final_paper": centred,
        "arlarena_advantages": centred[:, None] * mask,
    }  # fmt: skip


def overlong(case: dict[str, Any]) -> float:
    """min(0, -f (len - (L - b)) / b)."""
    excess = case["valid_len"] - (case["max_len"] - case["buffer"])
    return min(0.0, -case["penalty_factor"] * excess / case["buffer"])


def replay_weight(case: dict[str, Any]) -> float:
    """coef (1 - cos(π s / S)) / 2, and coef beyond S."""
    span, step = case["max_replay_loss_steps"], case["global_step"]
    return case["replay_loss_coef"] * (0.5 * (1 - math.cos(math.pi * step / span)) if step <= span else 1.0)


def tool_bonus(case: dict[str, Any]) -> float:
    """min(1, 0.1 turns) (1 + cos(π s / S)) / 2, and 0 beyond S."""
    span, step = case["max_toolcall_steps"], case["global_step"]
    course = 0.5 * (1 + math.cos(math.pi * step / span)) if step <= span else 0.0
    return min(1.0, 0.1 * case["episode_length"]) * course


def recalibration(case: dict[str, Any]) -> dict[str, Any]:
    """R - P50 (over P50 of the stds + 1e-6), kept where its mean over the row is at least 0."""
    mask, totals = case["response_mask"], case["token_level_rewards"].sum(1)
    level = float(np.percentile(case["group_mean_history"], 50))
    made: dict[str, Any] = {"p50": level}
    for std in (1, 0):
        advantage = (totals - level) / (case["p50_std"] + 1e-6 if std else 1.0)
        made[f"adv_std{std}"] = advantage[:, None] * mask
        made[f"keep_ge0_std{std}"] = [int(value >= 0) for value in (advantage[:, None] * mask).mean(1)]
    return made


def group_filter(case: dict[str, Any]) -> dict[str, Any]:
    """The widest groups by the population std of their trajectories' mean row rewards; then a power of two of rows."""
    rows: dict[str, dict[str, list[float]]] = {}
    for group, trajectory, reward in case["rows"]:
        rows.setdefault(group, {}).setdefault(trajectory, []).append(reward)
    spread = {g: float(np.std([np.mean(own) for own in members.values()])) for g, members in rows.items()}
    kept = sorted(spread, key=lambda group: -spread[group])[: int(case["filter_ratio"] * len(spread))]
    left = sum(group in kept for group, _, _ in case["rows"])
    return {
        "group_std": spread, "num_groups_kept": len(kept), "groups_kept": kept, "rows_in_kept_groups": left,
        "rows_kept_after_power_of_2": 2 ** int(math.log2(left)) if left else 0,
    }  # fmt: skip


def repeats(tokens: Sequence[int], length: int = 20, times: int = 10) -> bool:
    """Whether some run of 20 tokens occurs 10 times."""
    runs = [tuple(tokens[i : i + length]) for i in range(len(tokens) - length + 1)]
    return any(runs.count(run) >= times for run in set(runs))


def complete(text: str) -> bool:
    """Whether <action>...</action> comes after the last </think>."""
    rest = text.split("</think>")[-1]
    opened = rest.find("<action>")
    return opened >= 0 and rest.find("</action>", opened) >= 0
