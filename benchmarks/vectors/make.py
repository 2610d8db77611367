"""Fresh vectors: other seeds, shapes, settings and degenerate masks, with numbers from independent references.

    python benchmarks/vectors/make.py --seed 1 --out DIR
    TURNWISE_GOLDEN=DIR python -m pytest tests/golden

One JSON file for each of tests/golden, in its format: ``source`` and ``cases``. The references (losses.py, credit.py,
controllers.py) are float64 numpy, written from the equations; ``check.py`` holds them against the official numbers.
"""

from __future__ import annotations

import argparse
import json
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import controllers
import numpy as np
from losses import MODES, Array
from references import REFERENCES, from_json, to_json

Case = dict[str, Any]
Rng = np.random.Generator

SHAPES = ((1, 1), (2, 3), (5, 9), (7, 4), (3, 17), (12, 2))
WORDS = ("lamp", "desk", "drawer", "fridge", "apple", "mug", "shelf", "table", "bed", "sofa", "key", "door")


def normal(rng: Rng, shape: Sequence[int], scale: float = 1.0) -> Array:
    return np.round(rng.normal(scale=scale, size=shape), 5)


def prefix(rng: Rng, rows: int, width: int, least: int = 1) -> Array:
    """1 up to each row's own length."""
    lengths = rng.integers(least, width + 1, size=rows)
    return (np.arange(width) < lengths[:, None]).astype(float)


def holes(rng: Rng, rows: int, width: int) -> Array:
    """Replies with observations between them."""
    return (rng.random((rows, width)) < 0.6).astype(float)


def masks(rng: Rng, rows: int, width: int, *, nothing: bool = False) -> Iterator[tuple[str, Array]]:
    """Ordinary and degenerate masks; all but ``nothing`` have a token."""
    yield "prefix", prefix(rng, rows, width)
    yield "full", np.ones((rows, width))
    hollow = holes(rng, rows, width)
    hollow[0, -1] = 1.0
    yield "holes", hollow
    if rows > 1:
        empty = prefix(rng, rows, width)
        empty[rng.integers(rows)] = 0.0
        yield "empty row", empty
    single = np.zeros((rows, width))
    single[rng.integers(rows), rng.integers(width)] = 1.0
    yield "one token", single
    if nothing:
        yield "nothing", np.zeros((rows, width))


def rewards_on(rng: Rng, mask: Array, *, anywhere: bool = False, values: Sequence[float] = (0.0, 1.0, 10.0)) -> Array:
    """A reward on each row's last token, or on any of its tokens."""
    found = np.zeros(mask.shape)
    for row in range(len(mask)):
        places = np.flatnonzero(mask[row])
        if len(places):
            for place in places if anywhere else places[-1:]:
                found[row, place] = rng.choice(values)
    return found


def policies(rng: Rng, shape: tuple[int, int], scale: float) -> Case:
    """Log-probs before and after, and advantages."""
    old = -np.abs(normal(rng, shape)) - 0.05
    return {
        "old_log_prob": old,
        "log_prob": np.round(old + normal(rng, shape, scale), 5),
        "advantages": normal(rng, shape),
    }


def agg_loss(rng: Rng) -> Iterator[Case]:
    for shape in SHAPES:
        for _, mask in masks(rng, *shape, nothing=True):
            yield {"loss_mat": normal(rng, shape), "loss_mask": mask}


def ppo_policy_loss(rng: Rng) -> Iterator[Case]:
    for number, shape in enumerate(SHAPES):
        for kind, mask in masks(rng, *shape, nothing=True):
            made = policies(rng, shape, 0.4)
            if kind == "full":
                made["log_prob"] = made["old_log_prob"] + rng.choice([-30.0, -6.0, 0.0, 6.0, 30.0], size=shape)
            if kind == "holes":
                made["advantages"] = np.zeros(shape)
            low, high, dual = ((0.2, 0.2, 3.0), (0.2, 0.28, 10.0), (0.1, 0.4, 1.5))[number % 3]
            for mode in MODES:
                yield {
                    "shape_id": number, "agg": mode, "clip_low": low, "clip_high": high, "clip_c": dual,
                    **made, "response_mask": mask,
                }  # fmt: skip


def gspo_policy_loss(rng: Rng) -> Iterator[Case]:
    for shape in SHAPES:
        for _, mask in masks(rng, *shape):
            for low, high in ((3e-4, 4e-4), (0.2, 0.3)):
                yield {"clip_low": low, "clip_high": high, **policies(rng, shape, 0.5), "response_mask": mask}
    made = policies(rng, (2, 4), 0.0)
    made["log_prob"] = made["old_log_prob"] + np.array([[12.0], [-12.0]])  # beyond the clamp of 10, and far below
    for sign in (1.0, -1.0):
        yield {
            "clip_low": 0.2, "clip_high": 0.2, **made, "advantages": np.full((2, 4), sign),
            "response_mask": np.ones((2, 4)),
        }  # fmt: skip


def kl_and_value_loss(rng: Rng) -> Iterator[Case]:
    for number, shape in enumerate(SHAPES):
        for kind, mask in masks(rng, *shape):
            new = -np.abs(normal(rng, shape, 2.0))
            reference = new + normal(rng, shape, 12.0 if kind == "full" else 0.7)
            yield {
                "log_prob": new, "ref_log_prob": reference, "vpreds": normal(rng, shape, 2.0),
                "values": normal(rng, shape, 2.0), "returns": normal(rng, shape, 3.0), "response_mask": mask,
                "cliprange_value": (0.5, 0.1, 2.0)[number % 3],
            }  # fmt: skip


def clip_cov_kl_cov(rng: Rng) -> Iterator[Case]:
    settings = (("all", 1.0, 0.05, 40.0, 0.4), ("few", 0.1, 0.2, 5.0, 0.15), ("none", 0.02, 30.0, 60.0, 0.02))
    for shape in SHAPES:
        for _, mask in masks(rng, *shape):
            for tag, ratio, low, high, held in settings:
                yield {
                    "tag": tag, "is_replay": False, "clip_cov_ratio": ratio, "lb": low, "ub": high, "clip_low": 0.2,
                    "clip_high": 0.28, **policies(rng, shape, 0.3), "response_mask": mask, "kl_cov_ratio": held,
                    "kl_coef": 0.3,
                }  # fmt: skip


def aepo_policy_loss(rng: Rng) -> Iterator[Case]:
    for number, shape in enumerate(SHAPES):
        for kind, mask in masks(rng, *shape):
            made = policies(rng, shape, 0.5)
            if kind == "full":
                made["log_prob"] = made["old_log_prob"] + rng.choice([-6.0, 0.0, 6.0], size=shape)
            levels = np.full(shape, 1.25) if kind == "holes" else np.abs(normal(rng, shape))
            for balanced in (False, True):
                for follows in (False, True):
                    yield {
                        "balanced_clip": balanced, "entropy_advantage": follows, "clip_low": 0.2,
                        "clip_high": (0.2, 0.28)[number % 2], "clip_c": (3.0, 1.8)[number % 2],
                        "alpha": (0.2, 0.5)[number % 2], **made, "entropy": levels, "response_mask": mask,
                    }  # fmt: skip


def epo_epoch_weight(rng: Rng) -> Iterator[Case]:
    for span in (0, 1, 2, 3, 7, 99, 150, 300):
        for epoch in sorted({0, 1, span // 2, span // 2 + 1, span, span + 5, int(rng.integers(0, span + 2))}):
            yield {"max_epochs": span, "epoch": epoch}


def epo_official_loss(rng: Rng) -> Iterator[Case]:
    """``seq`` means over whole rows: only without padding are they the turn's tokens."""
    for number, (rows, width, vocabulary) in enumerate(((1, 1, 3), (3, 4, 11), (6, 7, 5), (2, 12, 30))):
        for mode in ("token", "seq"):
            for late in (True, False):
                steps = rng.integers(0, 24, size=rows)
                steps[0] = 25 + rng.integers(0, 5) if late else 24
                mask = np.ones((rows, width)) if mode == "seq" else prefix(rng, rows, width)
                if mode == "token" and rows > 2:
                    mask[1] = 0.0
                length = (50, 30)[number % 2]
                history = np.abs(normal(rng, (length,), 0.4)) + 0.6 * math.log(vocabulary)
                for epoch, smooth in ((0, False), (40, True), (120, True)):
                    yield {
                        "mask_mode": mode, "min_ratio": (0.0, 0.9)[number % 2], "max_ratio": (2.0, 1.1)[number % 2],
                        "out_range_penalty": (0.05, 0.3)[number % 2], "smooth_weights": smooth, "epoch": epoch,
                        "entropy_coeff": (0.001, 0.05)[number % 2], "smooth_coeff": (1.0, 0.5)[number % 2],
                        "logits": normal(rng, (rows, width, vocabulary), 1.5),
                        "tokens": rng.integers(0, vocabulary, size=(rows, width)),
                        "old_log_prob": -np.abs(normal(rng, (rows, width))) - 0.5,
                        "advantages": normal(rng, (rows, width)), "response_mask": mask, "rollout_step": steps,
                        "entropy_history": np.zeros(length) if number == 2 else history,
                    }  # fmt: skip


def epo_paper_form_reference(rng: Rng) -> Iterator[Case]:
    """Turns of unequal length, and episodes of unequally many turns: a turn that is not there has no token."""
    for number, (rows, turns, width, vocabulary) in enumerate(((1, 1, 1, 4), (3, 2, 5, 6), (4, 5, 3, 9), (2, 4, 8, 3))):
        for uneven in (False, True):
            mask = np.stack([prefix(rng, turns, width) for _ in range(rows)])
            for row in range(rows if uneven else 0):
                mask[row, int(rng.integers(1, turns + 1)) :] = 0.0
            total = (10, 125, 3, 2)[number]
            yield {
                "logits": normal(rng, (rows, turns, width, vocabulary), 1.5), "mask": mask,
                "H_ref": 0.7 * math.log(vocabulary), "kappa_l": (0.0, 0.8)[number % 2],
                "kappa_r": (2.0, 1.1)[number % 2], "alpha": (0.1, 0.6)[uneven], "lam": (0.001, 0.2)[number % 2],
                "gamma": (3.0, 0.5)[uneven], "step": int(rng.integers(0, total)), "total_steps": total,
            }  # fmt: skip


def gae(rng: Rng) -> Iterator[Case]:
    for rows, width in SHAPES[1:]:
        for gamma, lam in ((1.0, 1.0), (0.99, 0.95), (0.5, 0.0), (0.0, 0.7), (0.9, 1.0)):
            for kind in ("prefix", "prefix_values_masked", "interior_obs"):
                mask = holes(rng, rows, width) if kind == "interior_obs" else prefix(rng, rows, width, least=0)
                mask[0, :2] = 1.0
                values = normal(rng, (rows, width), 2.0) * (mask if kind == "prefix_values_masked" else 1.0)
                rewards = rewards_on(rng, mask, anywhere=kind == "interior_obs")
                yield {
                    "mask_kind": kind, "gamma": gamma, "lam": lam, "token_level_rewards": rewards, "values": values,
                    "response_mask": mask,
                }  # fmt: skip


def group_advantages_verl(rng: Rng) -> Iterator[Case]:
    groupings = {
        "one_group": [4], "one_sample_group": [1, 3, 2], "all_alone": [1, 1, 1], "pairs": [2, 2, 2], "large": [9, 3],
    }  # fmt: skip
    for name, sizes in groupings.items():
        labels = [f"g{number}" for number, size in enumerate(sizes) for _ in range(size)]
        rng.shuffle(labels)
        for kind in ("random", "binary", "equal", "anywhere"):
            mask = prefix(rng, len(labels), 5)
            mask[0, :2] = 1.0
            values = {"random": (-1.5, 0.25, 3.0, 7.0), "binary": (0.0, 1.0), "equal": (0.25,)}.get(kind, (0.0, 2.0))
            rewards = rewards_on(rng, mask, anywhere=kind == "anywhere", values=values)
            if kind == "random" and len(labels) > 3:
                rewards[-1] = mask[-1] = 0.0
            yield {
                "name": f"{name} {kind}", "group": labels, "token_level_rewards": rewards, "response_mask": mask,
                "remax_baseline": normal(rng, (len(labels),)),
            }  # fmt: skip


def episodes(rng: Rng, sizes: Sequence[int], lengths: tuple[int, int]) -> list[tuple[str, str, int]]:
    """(group, trajectory, step) of the rows, all trajectories side by side as a batch of worlds plays them."""
    made = []
    for group, size in enumerate(sizes):
        for member in range(size):
            made += [(f"g{group}", f"g{group}t{member}", step) for step in range(int(rng.integers(*lengths)))]
    return sorted(made, key=lambda row: row[2])


def step_rows(rng: Rng, rows: Sequence[tuple[str, str, int]], penalty: float, share: float, dense: bool) -> Case:
    """What a batch of step rows carries: the episode's return, less its own penalty, on every row's last token."""
    number = len(rows)
    last = {name: row for row, (_, name, _) in enumerate(rows)}
    earned = np.array([
        rng.choice((0.0, 10.0)) if last[name] == row else (rng.choice((0.0, 0.5)) if dense else 0.0)
        for row, (_, name, _) in enumerate(rows)
    ])  # fmt: skip
    totals = {name: sum(earned[i] for i, other in enumerate(rows) if other[1] == name) for name in last}
    invalid = (rng.random(number) < share).astype(float)
    mask = prefix(rng, number, 4)
    mask[0, :2] = 1.0
    rewards = np.zeros(mask.shape)
    for row, (_, name, _) in enumerate(rows):
        rewards[row, int(mask[row].sum()) - 1] = totals[name] - penalty * invalid[row]
    return {
        "group": [group for group, _, _ in rows], "traj": [name for _, name, _ in rows], "step_env_reward": earned,
        "invalid_action": invalid, "invalid_penalty": penalty, "token_level_rewards": rewards, "response_mask": mask,
    }  # fmt: skip


def group_advantages_verlagent(rng: Rng) -> Iterator[Case]:
    for sizes in ([3, 2], [1, 4], [1], [5]):
        for share in (0.0, 0.4):
            made = step_rows(rng, episodes(rng, sizes, (1, 6)), 0.1, share, dense=False)
            del made["step_env_reward"], made["invalid_penalty"]
            yield made


def gigpo(rng: Rng) -> Iterator[Case]:
    for sizes in ([3, 3], [1, 4], [6], [1, 1]):
        for gamma, penalty, dense in ((0.95, 0.1, False), (1.0, 0.5, True), (0.5, 0.1, True)):
            rows = episodes(rng, sizes, (1, 7))
            made = {"gamma": gamma, **step_rows(rng, rows, penalty, 0.25, dense)}
            yield made | {"anchor_obs": [f"room {rng.integers(1 + step)}" for _, _, step in rows]}


def gigpo_similarity_groups(rng: Rng) -> Iterator[Case]:
    for threshold in (0.4, 0.6, 0.75, 0.9):
        for length in (3, 8, 14, 25):
            start, texts = list(rng.choice(WORDS, size=length)), []
            for _ in range(20):
                changed = list(start)
                for place in rng.integers(0, length, size=int(rng.integers(0, 4))):
                    changed[place] = rng.choice(WORDS)
                changed = changed[: int(rng.integers(1, length + 1))] if rng.random() < 0.3 else changed
                texts.append(" ".join(changed))
            yield {"obs": texts, "group": sorted(rng.choice(["a", "b"], size=20).tolist()), "threshold": threshold}


def empg_advantage(rng: Rng) -> Iterator[Case]:
    for lengths in ([1], [4], [1, 1, 1], [3, 1, 5], [2, 2, 2, 2]):
        for k, clarity, zeta in ((1.0, 1.0, 0.05), (2.0, 0.5, 0.3), (0.0, 3.0, 0.0)):
            pairs = [(f"t{i}", step) for i, length in enumerate(lengths) for step in range(length)]
            mask = prefix(rng, len(pairs), 6)
            levels = np.full(mask.shape, 0.75) if k == 2.0 and len(lengths) == 4 else np.abs(normal(rng, mask.shape))
            own = dict(zip(dict.fromkeys(name for name, _ in pairs), normal(rng, (len(lengths),)), strict=True))
            yield {
                "traj": [name for name, _ in pairs], "step": [step for _, step in pairs],
                "traj_advantage": [own[name] for name, _ in pairs], "token_entropy": levels * mask,
                "response_mask": mask, "k": k, "k_prime": clarity, "zeta": zeta,
            }  # fmt: skip


def dapo_overlong(rng: Rng) -> Iterator[Case]:
    for longest, buffer, factor in ((2048, 512, 1.0), (100, 100, 0.5), (20480, 4096, 2.0)):
        border = longest - buffer
        lengths = {
            0,
            max(border - 1, 0),
            border,
            border + 1,
            longest - 1,
            longest,
            longest + 7,
            int(rng.integers(longest)),
        }
        for length in sorted(lengths):
            yield {"valid_len": length, "max_len": longest, "buffer": buffer, "penalty_factor": factor}


def spear_schedules(rng: Rng) -> Iterator[Case]:
    for span in (1, 50, 200, 333):
        for step in sorted({0, 1, span // 2, span, span + 1, 3 * span, int(rng.integers(span + 1))}):
            yield {
                "kind": "replay_weight", "max_replay_loss_steps": span, "replay_loss_coef": 0.7, "global_step": step,
            }  # fmt: skip
            for length in (0, 1, 9, 10, 11, 50):
                yield {
                    "kind": "toolcall_bonus_cosine", "max_toolcall_steps": span, "episode_length": length,
                    "global_step": step,
                }  # fmt: skip


def spear_advantage_recalibration(rng: Rng) -> Iterator[Case]:
    """Numbers that binary fractions hold exactly: some returns are exactly P50."""
    for length in (1, 2, 7, 12):
        history = rng.integers(0, 41, size=length) / 4.0
        level = float(np.percentile(history, 50))
        mask = prefix(rng, 6, 4)
        rewards = np.zeros(mask.shape)
        for row, value in enumerate([level, level + 0.5, level - 0.5, 10.0, 0.0, 2.5]):
            rewards[row, int(mask[row].sum()) - 1] = value
        yield {
            "group_mean_history": history, "p50_std": float(rng.integers(1, 8)) / 4.0, "token_level_rewards": rewards,
            "response_mask": mask,
        }  # fmt: skip


def spear_group_filter(rng: Rng) -> Iterator[Case]:
    for number, ratio in ((2, 0.75), (3, 0.5), (5, 0.9), (9, 0.75), (4, 1.0)):
        rows = []
        for group in range(number):
            equal = group == number - 1
            for member in range(int(rng.integers(1, 5))):
                reward = 10.0 if equal else float(rng.choice((0.0, 3.0, 10.0)))
                rows += [[f"g{group}", f"g{group}t{member}", reward] for _ in range(int(rng.integers(1, 4)))]
        yield {"rows": rows, "filter_ratio": ratio}


def spear_response_filters(rng: Rng) -> Iterator[Case]:
    for times in (0, 9, 10, 11):
        for gap in (0, 3):
            run, made = rng.integers(0, 50, size=20).tolist(), list[int]()
            for _ in range(times):
                made += run + rng.integers(100, 10_000, size=gap).tolist()
            yield {"tokens": made + rng.integers(100, 10_000, size=15).tolist()}
    for length in (19, 20, 28, 29, 30):
        yield {"tokens": [7] * length}
    for text in (
        "<think>a</think>\n<action>open door</action>", "<action>early</action></think>", "</think><action>",
        "<action></action>",
        "<think>x<action>in thought</action></think>", "<think>1</think><think>2</think><action>go</action>",
        "</action><action>", "<ACTION>go</ACTION>", "plain words",
    ):  # fmt: skip
        yield {"text": text}


def spear_replay_buffer(rng: Rng) -> Iterator[Case]:
    for size, tolerance, baseline in ((3, 1, 1000), (10, 4, 6), (5, 20, 9)):
        events = []
        for step in range(1, 11):
            rows = []
            for group in range(int(rng.integers(1, 5))):
                for member in range(int(rng.integers(1, 4))):
                    reward = float(rng.choice((0.0, 1.0, 2.5, 10.0)))
                    name = f"s{step}g{group}"
                    rows += [
                        {"group": name, "traj": f"{name}t{member}", "reward": reward}
                        for _ in range(int(rng.integers(1, 4)))
                    ]
            events.append({"step": step, "rows": rows})
        yield {
            "buffer_size": size, "tolerate_steps": tolerance, "baseline_buffer_size": baseline, "weight_decay": -1,
            "events": events,
        }  # fmt: skip


def listed(rng: Rng, tokens: int, most: int) -> list[list[float]]:
    """The log-probs of the most probable words at each of some tokens."""
    found = rng.normal(scale=2.0, size=(tokens, most + 3))
    logs = found - np.log(np.exp(found).sum(1, keepdims=True))
    best: list[list[float]] = np.sort(logs, axis=1)[:, ::-1][:, :most].tolist()
    return best


def aepo_budget_allocation(rng: Rng) -> Iterator[Case]:
    for budget in (1, 2, 5, 16, 33):
        for vocabulary, beta in ((50, 0.5), (151_936, 0.5), (1000, 4.0)):
            most = int(rng.integers(1, 11))
            yield {
                "total_budget_n": budget, "vocab_size": vocabulary, "beta": beta,
                "root_topk_logprobs": listed(rng, int(rng.integers(1, 51)), most),
                "step_topk_logprobs": [
                    listed(rng, int(rng.integers(1, 40)), most) for _ in range(int(rng.integers(1, 7)))
                ],
            }  # fmt: skip
        for difference in (-50.0, -3.0, -1e-4, 1e-4, 3.0, 50.0):
            yield {"formula_only": True, "total_budget_n": budget, "H_root_minus_H_tool": difference}


def aepo_branch_rollout_trace(rng: Rng) -> Iterator[Case]:
    """(n, initial, beam, batch, threshold, weight, calls, share of segments that call a tool)"""
    settings = (
        (1, 1, 2, 2, 0.5, 0.2, 2, 0.7), (5, 2, 3, 3, 0.5, 0.2, 3, 0.8), (12, 3, 4, 1, 0.4, 1.0, 6, 0.85),
        (6, 6, 2, 2, 0.5, 0.2, 1, 0.9), (4, 1, 2, 3, 0.9, 0.5, 4, 0.0), (9, 1, 2, 2, 0.1, 0.2, 5, 0.9),
    )  # fmt: skip
    for n, initial, beam, batch, threshold, weight, calls, share in settings:
        config = {
            "initial_rollouts": initial, "beam_size": beam, "branch_probability": threshold, "entropy_weight": weight,
            "call_limit": calls,
        }  # fmt: skip
        case: Case = {
            "config": config, "n": n, "batch": batch, "prompt_len": int(rng.integers(1, 9)),
            "tool_result_len": int(rng.integers(1, 6)),
        }  # fmt: skip
        draws: list[float] = []

        def draw(kept: list[float] = draws) -> float:
            kept.append(float(rng.random()))
            return kept[-1]

        def segments(going: list[int], share: float = share) -> list[Case]:
            return [
                {
                    "entropy": float(rng.random() * 4), "tool_call": bool(rng.random() < share),
                    "n_tokens": int(rng.integers(1, 30)),
                }
                for _ in going
            ]  # fmt: skip

        case["iterations"] = list(controllers.Rollouts(case).run(segments, draw))
        yield case | {"uniform_draws": draws}


MAKERS: dict[str, Callable[[Rng], Iterator[Case]]] = {
    maker.__name__: maker
    for maker in (
        agg_loss, ppo_policy_loss, gspo_policy_loss, kl_and_value_loss, clip_cov_kl_cov, aepo_policy_loss,
        epo_epoch_weight, epo_official_loss, epo_paper_form_reference, gae, group_advantages_verl,
        group_advantages_verlagent, gigpo, gigpo_similarity_groups, empg_advantage, dapo_overlong, spear_schedules,
        spear_advantage_recalibration, spear_group_filter, spear_response_filters, spear_replay_buffer,
        aepo_budget_allocation, aepo_branch_rollout_trace,
    )
}  # fmt: skip
assert MAKERS.keys() == REFERENCES.keys()


def write(folder: Path, seed: int) -> dict[str, int]:
    """Write every file; the number of cases of each."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, maker in MAKERS.items():
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        inputs = [to_json(case) for case in maker(rng)]
        cases = [case | to_json(REFERENCES[name](from_json(case))) for case in inputs]
        source = f"float64 references written from the equations, seed {seed}"
        (folder / f"{name}.json").write_text(json.dumps({"source": source, "cases": cases}))
        found[name] = len(cases)
    return found


def main(words: Sequence[str] | None = None) -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--seed", type=int, default=1)
    asked.add_argument("--out", type=Path, required=True)
    given = asked.parse_args(words)
    found = write(given.out, given.seed)
    for name, number in found.items():
        print(f"{name}: {number} cases")
    print(f"{sum(found.values())} cases in {given.out}")


if __name__ == "__main__":
    main()
