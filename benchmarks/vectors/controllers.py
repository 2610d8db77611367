"""References of what goes on over time: SPEAR's replay buffer, AEPO's rollout controller and its division."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from credit import members_of, standard_scores


class ReplayBuffer:
    """Released: rows with a positive advantage; replayed and emptied once more than 1.5 sizes lie above P50."""

    def __init__(self, size: int, tolerance: int, baseline: int) -> None:
        self.size, self.tolerance, self.baseline = size, tolerance, baseline
        self.rows: list[tuple[int, int, float]] = []  # (step, row id, reward)
        self.groups: list[list[tuple[float, float]]] = []  # by step: means and population stds over trajectories

    def level(self, which: int) -> float | None:
        held = [group[which] for step in self.groups for group in step]
        return float(np.percentile(held, 50)) if held else None

    def above(self) -> float:
        level = self.level(0)
        return 0.0 if level is None else float(sum(reward > level for _, _, reward in self.rows))

    def step(self, number: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """One training step: replay if full, forget what is old, take in what is good."""
        rewards = np.array([row["reward"] for row in rows])
        advantage = standard_scores(rewards, [row["group"] for row in rows], std=False)
        full = self.above() > 1.5 * self.size
        event: dict[str, Any] = {
            "step": number, "rows": rows, "advantage_row": advantage, "full_before_update": full,
        }  # fmt: skip
        if full:
            event.update(self._replay())
            self.rows = []
        if self.rows:
            newest = max(step for step, _, _ in self.rows)
            self.rows = [row for row in self.rows if abs(newest - row[0]) <= min(self.tolerance, 10)]
        good = [i for i in range(len(rows)) if advantage[i] > 0]
        self.rows += [(number, 1000 * number + i, float(rewards[i])) for i in good]
        while sum(map(len, self.groups)) > self.baseline:
            self.groups.pop(0)
        self.groups.append(_statistics(rows))
        steps = sorted({step for step, _, _ in self.rows})
        event.update(
            buffer_steps_after=steps, buffer_rows_after=[sum(row[0] == step for row in self.rows) for step in steps],
            buffer_size_metric=self.above(), full_threshold=1.5 * self.size, baseline_groups=sum(map(len, self.groups)),
        )  # fmt: skip
        return event

    def _replay(self) -> dict[str, Any]:
        level = self.level(0)
        assert level is not None
        kept = [(row, reward - level) for _, row, reward in self.rows if reward - level >= 0]
        power = 2 ** int(math.log2(len(kept))) if kept else 0
        return {
            "p50_baseline": level, "p50_std": self.level(1), "stored_row_ids": [row for _, row, _ in self.rows],
            "stored_rewards": [reward for _, _, reward in self.rows],
            "recalibrated_kept_row_ids": [row for row, _ in kept], "recalibrated_adv": [value for _, value in kept],
            "replay_sample_size": min(power, self.size),
        }  # fmt: skip


def _statistics(rows: list[dict[str, Any]]) -> list[tuple[float, float]]:
    found = []
    for own in members_of([row["group"] for row in rows]).values():
        trajectories = members_of([rows[i]["traj"] for i in own])
        means = [float(np.mean([rows[own[i]]["reward"] for i in places])) for places in trajectories.values()]
        found.append((float(np.mean(means)), float(np.std(means))))
    return found


def segment_entropy(logprobs: list[list[float]], vocabulary: int) -> float:
    """-Σ over the first 20 tokens and their listed log-probs of p ln p, over ln V."""
    return -sum(math.exp(x) * x for token in logprobs[:20] for x in token) / math.log(vocabulary)


def initial_rollouts(budget: int, difference: float, beta: float) -> int:
    """clip(floor(n σ(β (H_root - H_tool))) + 1, 1, n)."""
    share = 1.0 / (1.0 + math.exp(-beta * difference)) if difference > -1000 else 0.0
    return max(1, min(budget, math.floor(budget * share) + 1))


Segment = dict[str, Any]


class Rollouts:
    """AEPO's released controller: all active sequences of all prompts take a segment, then branchings are decided."""

    def __init__(self, case: dict[str, Any]) -> None:
        self.case, self.config = case, case["config"]
        self.prompt: list[int] = []
        self.length: list[int] = []
        self.calls: list[int] = []
        self.tokens: list[int] = []
        self.active: list[bool] = []
        self.first: dict[int, float] = {}
        self.streak = dict.fromkeys(range(case["batch"]), 0)
        for prompt in range(case["batch"]):
            for _ in range(self.config["initial_rollouts"]):
                self._start(prompt, None)

    def _start(self, prompt: int, parent: int | None) -> None:
        self.prompt.append(prompt)
        self.active.append(True)
        self.length.append(self.case["prompt_len"] if parent is None else self.length[parent])
        self.calls.append(0 if parent is None else self.calls[parent])
        self.tokens.append(0 if parent is None else self.tokens[parent])

    def run(self, segments: Callable[[list[int]], list[Segment]], draw: Callable[[], float]) -> Iterator[list[Segment]]:
        """The segments of each round; ``segments`` gives those of the active sequences, ``draw`` uniform numbers."""
        while any(self.active):
            going = [i for i, active in enumerate(self.active) if active]
            made = [{**s, "prompt_len": self.length[i]} for i, s in zip(going, segments(going), strict=True)]
            yield made
            for i, segment in zip(going, made, strict=True):
                self._append(i, segment)
            self._branch({i: s["entropy"] for i, s in zip(going, made, strict=True)}, draw)

    def _append(self, i: int, segment: Segment) -> None:
        self.first.setdefault(i, segment["entropy"])
        self.length[i] += segment["n_tokens"]
        self.tokens[i] += segment["n_tokens"]
        self.active[i] = segment["tool_call"] and self.calls[i] < self.config["call_limit"]
        if self.active[i]:
            self.calls[i] += 1
            self.length[i] += self.case["tool_result_len"]
        elif segment["tool_call"]:
            self.tokens[i] += 1  # the end token at the limit

    def _branch(self, now: dict[int, float], draw: Callable[[], float]) -> None:
        active = [i for i in now if self.active[i]]
        grown = set()
        for prompt in dict.fromkeys(self.prompt[i] for i in active):
            for i in (i for i in active if self.prompt[i] == prompt):
                room = self.case["n"] - self.prompt.count(prompt)
                for _ in range(min(self.config["beam_size"] - 1, room)):
                    readiness = draw() + self.config["entropy_weight"] * (now[i] - self.first[i])
                    readiness *= max(0.0, 1.0 - 0.05 * self.streak[prompt])
                    if min(max(readiness, 0.0), 1.0) >= self.config["branch_probability"]:
                        self._start(prompt, i)
                        grown.add(prompt)
        for prompt in range(self.case["batch"]):
            alive = any(a and p == prompt for a, p in zip(self.active, self.prompt, strict=True))
            if not alive and self.prompt.count(prompt) < self.case["n"]:
                self._start(prompt, None)
                grown.add(prompt)
        if grown:
            self.streak = {p: self.streak[p] + 1 if p in grown else 0 for p in self.streak}

    def ending(self) -> dict[str, Any]:
        order = [i for p in range(self.case["batch"]) for i, prompt in enumerate(self.prompt) if prompt == p]
        return {
            "final_consecutive_branches": {str(p): n for p, n in self.streak.items()},
            "H_init_by_rollout_index": {str(i): value for i, value in self.first.items()},
            "out_loss_mask_sum": [self.tokens[i] for i in order], "n_outputs": len(order),
        }  # fmt: skip
