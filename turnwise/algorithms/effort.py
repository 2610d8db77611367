"""The parts of ARES: what attempts are paid for uncertain windows, and where the KL to the reference is relaxed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from turnwise.algorithms.common import succeeded
from turnwise.algorithms.composing import ComposerAround
from turnwise.algorithms.starts import Place
from turnwise.algorithms.windows import (
    Means,
    beginnings,
    following_means,
    following_threshold,
    mean_threshold,
    window_means,
    within_windows,
)
from turnwise.algorithms.within import chosen, with_beginnings
from turnwise.learning.parts import (
    Composer,
    MinibatchView,
    Need,
    Regularizer,
    Samples,
    Streams,
    UpdateContext,
    required,
)
from turnwise.learning.primitives import kl_estimate
from turnwise.replay.batch import TokenBatch
from turnwise.replay.buffer import TrajectoryBuffer
from turnwise.trajectory import BoolArray, FloatArray, Trajectory, Turn

if TYPE_CHECKING:
    from turnwise.algorithms.ares import ARESConfig

Difficulty = Literal["easy", "medium", "hard"]
DIFFICULTIES: tuple[Difficulty, ...] = ("easy", "medium", "hard")


class Released(NamedTuple):
    """The released code's constants of a difficulty: ``kappa`` and ``softness`` in windows, the others are shares."""

    tolerance: float  # of the target that a count may be off; at least one window
    kappa: float  # where the penalty turns from a square to a line
    softness: float  # of the sigmoid
    lost: float  # of the cap, for a lost attempt
    cap: float  # of alpha


RELEASED: Mapping[Difficulty, Released] = {
    "easy": Released(0.15, 2.0, 2.0, 0.6, 1.0),
    "medium": Released(0.25, 3.0, 2.5, 0.8, 1.0),
    "hard": Released(0.35, 4.0, 3.0, 1.0, 1.2),
}
ALPHA_RATE, ALPHA_MAX, THRESHOLD_DECAY = 0.05, 2.0, 0.99
LEAST = 1e-6
"""Smallest threshold, nats: a reply that is certain throughout has no uncertain window."""


def difficulty(won: float, levels: tuple[float, float]) -> Difficulty:
    """Of a task, by the share of its attempts that succeed."""
    return "easy" if won >= levels[1] else "medium" if won >= levels[0] else "hard"


def wrong_side(kind: Difficulty, excess: float) -> float:
    """g: how far a count is on the wrong side of its target; ``excess`` = count - target."""
    return {"easy": max(0.0, excess), "medium": abs(excess), "hard": max(0.0, -excess)}[kind]


def released_term(kind: Difficulty, won: bool, count: float, target: float, alpha: float) -> float:
    """What the released code adds to a reward of 1 or 0, where ``target`` windows are meant."""
    own, excess = RELEASED[kind], count - target
    margin, cap = max(1.0, own.tolerance * max(target, 1.0)), alpha * own.cap

    def penalty(beyond: float, factor: float = 1.0) -> float:
        x = max(beyond, 0.0)
        huber = x * x / (2 * own.kappa) if x <= own.kappa else x - own.kappa / 2
        return -min(cap, factor * huber / (margin + own.kappa) * cap)

    def bonus(beyond: float) -> float:
        return cap / (1 + math.exp(-beyond / own.softness))

    if not won:
        return own.lost * bonus(max(excess - margin, 0.0))
    if kind == "hard":
        return bonus(excess + margin) if excess >= -margin else penalty(-excess - margin, 0.5)
    return penalty((abs(excess) if kind == "medium" else excess) - margin)


class EffortTargets(ComposerAround):
    """Adds to the returns of attempts by how many windows they have beside their target; then the base composes.

    Keeps the threshold of windows, and the target and (as released) the coefficient of each difficulty.
    """

    reads_success = reads_entropies = completes_beginnings = True

    def __init__(self, inner: Composer, config: ARESConfig, success: float) -> None:
        super().__init__(inner)
        self.config, self.success = config, success
        self.threshold: float | None = None  # nats; None until an attempt has a token
        self.targets: dict[Difficulty, float] = {}
        self.alphas: dict[Difficulty, float] = dict.fromkeys(DIFFICULTIES, config.cap)
        self.by_episode: dict[tuple[str, str], Difficulty] = {}  # of this update's attempts, by episode and player

    def compose(self, update: int, samples: Samples, buffer: TrajectoryBuffer) -> Streams:
        samples = Samples(with_beginnings(samples.groups), samples.rewards)
        played = samples.trajectories
        sound = [n for n, trajectory in enumerate(played) if trajectory.end != "error"]
        # copies begin where an attempt is uncertain: with them the threshold would rise, and the next update have none
        heard = [n for n in sound if not self.config.branches or played[n].fork is None]
        self._set_threshold([[turn.entropies for turn in played[n].turns] for n in heard])
        counts = np.array([sum(map(self.count, trajectory.turns)) for trajectory in played], np.float64)
        won, kinds = self.won(samples), self.kinds(samples)
        self.by_episode = {(t.episode, t.player): kind for t, kind in zip(played, kinds, strict=True)}
        terms = np.zeros(len(played))
        for kind in DIFFICULTIES:
            own = [n for n in sound if kinds[n] == kind]
            self.occurred.count(f"{kind}_share", len(own), len(sound))
            if own:
                terms[own] = self._terms(kind, counts[own], [won[n] for n in own])
        self.occurred.count("windows", float(counts[sound].sum()), len(sound))
        self.occurred.count("changed_share", int(np.count_nonzero(terms)), len(sound))
        self.occurred.count("mean_change", float(np.abs(terms).sum()), len(sound))
        rewards = samples.rewards.with_extra((self.success * terms).tolist())
        return self.inner.compose(update, Samples(samples.groups, rewards), buffer)

    def _set_threshold(self, attempts: Sequence[Sequence[FloatArray]]) -> None:
        spoken = [replies for replies in attempts if any(map(len, replies))]
        if not spoken:
            return
        width, quantile = self.config.window, self.config.quantile
        if self.config.form == "paper":
            found = mean_threshold(spoken, width if self.config.quantile_of == "windows" else 1, quantile)
        else:
            found = following_threshold(spoken, width, quantile)
            before = found if self.threshold is None else self.threshold
            found = THRESHOLD_DECAY * before + (1 - THRESHOLD_DECAY) * found
        self.threshold = max(found, LEAST)

    def count(self, turn: Turn) -> int:
        """The reply's windows at or above the threshold."""
        if self.threshold is None:
            return 0
        if self.config.form == "paper":
            return int((window_means(turn.entropies, self.config.window) >= self.threshold).sum())
        means, whole = following_means(turn.entropies, self.config.window)
        return int((means[:whole] >= self.threshold).sum())

    def places(self, trajectory: Trajectory) -> list[Place]:
        """Where copies of an attempt may begin: where its uncertain stretches do, by the last update's threshold.

        Before there is one there are no places.
        """
        width, threshold = self.config.window, self.threshold
        if threshold is None:
            return []
        return [
            (number, token)
            for number, turn in enumerate(trajectory.turns)
            for token in sorted({*beginnings(turn.entropies, width, threshold)} & {*chosen(number, turn)})
        ]

    def kind(self, trajectory: Trajectory) -> Difficulty:
        """Of an attempt of this update. The base may have cut it, and moved it to another group."""
        return self.by_episode[trajectory.episode, trajectory.player]

    def won(self, samples: Samples) -> list[bool]:
        """Whether each attempt succeeded, [N]."""
        return [succeeded(t, samples.rewards.paid(n), self.success) for n, t in enumerate(samples.trajectories)]

    def kinds(self, samples: Samples) -> list[Difficulty]:
        """The difficulty of each attempt's task, [N]: by the group's attempts that did not fail."""
        won, kinds, place = self.won(samples), list[Difficulty](), 0
        for group in samples.groups:
            size = len(group.trajectories)
            ended = [won[place + n] for n, t in enumerate(group.trajectories) if t.end != "error"]
            kinds += [difficulty(sum(ended) / max(len(ended), 1), self.config.levels)] * size
            place += size
        return kinds

    def _terms(self, kind: Difficulty, counts: Means, won: Sequence[bool]) -> list[float]:
        """What is added to each attempt of a difficulty, in successes; the target or coefficient moves."""
        mean = float(counts.mean())
        if self.config.form == "released":
            target = float(round(mean))
            off = target - mean if kind == "hard" else mean - target
            self.alphas[kind] = min(max(self.alphas[kind] + ALPHA_RATE * off, 0.0), ALPHA_MAX)
            return [released_term(kind, w, n, target, self.alphas[kind]) for n, w in zip(counts, won, strict=True)]
        target = self.targets.get(kind, mean)
        self.targets[kind] = self.config.decay * target + (1 - self.config.decay) * mean
        multiplier = wrong_side(kind, mean - target) / (float(counts.var()) + self.config.eps)
        return [
            0.0 if w else -min(self.config.cap, multiplier * wrong_side(kind, n - target))
            for n, w in zip(counts.tolist(), won, strict=True)
        ]

    def own_state(self) -> dict[str, Any]:
        return {"threshold": self.threshold, "targets": dict(self.targets), "alphas": dict(self.alphas)}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        self.threshold, self.targets, self.alphas = state["threshold"], dict(state["targets"]), dict(state["alphas"])


class EffortKL(Regularizer):
    """KL to the reference (k3, nats) times the factor of the task's difficulty, and times ``kl_relaxed`` in windows."""

    needs: frozenset[Need] = frozenset({"reference"})
    claims: frozenset[str] = frozenset({"distance to the reference"})

    def __init__(self, targets: EffortTargets, config: ARESConfig) -> None:
        self.targets, self.config = targets, config
        self.played: tuple[Trajectory, ...] = ()
        self.by_attempt, self.factors = torch.zeros(0), torch.zeros(0, 0)

    def before_update(self, update: int, streams: Streams) -> None:
        of = dict(zip(DIFFICULTIES, self.config.kl_factors, strict=True))
        self.played = streams["fresh"].samples.trajectories
        self.by_attempt = torch.tensor([of[self.targets.kind(trajectory)] for trajectory in self.played])

    def prepare(self, view: MinibatchView) -> None:
        batch, mask = view.batch, view.batch.action_mask
        inside = self.windows(batch)
        relaxed = torch.where(inside, self.config.kl_relaxed, 1.0)
        self.factors = self.by_attempt.to(mask.device)[batch.trajectory].unsqueeze(1) * relaxed
        self.occurred.count("relaxed_share", inside, mask)

    def windows(self, batch: TokenBatch) -> Tensor:
        """The action tokens that lie in a window at or above the threshold, [B, T] bool."""
        width, threshold, found = self.config.window, self.targets.threshold, list[BoolArray]()
        spans = zip(batch.trajectory.tolist(), batch.first_turn.tolist(), batch.num_turns.tolist(), strict=True)
        for number, start, size in spans:
            for turn in self.played[number].turns[start : start + size]:
                inside = within_windows(turn.entropies, width, math.inf if threshold is None else threshold)
                found.append(inside[turn.action_mask])
        flags = torch.from_numpy(np.concatenate(found or [np.zeros(0, np.bool_)])).to(batch.action_mask.device)
        return torch.zeros_like(batch.action_mask).masked_scatter(batch.action_mask, flags)

    def term(self, ctx: UpdateContext) -> Tensor:
        reference = required(ctx.batch.reference_logprobs, "reference_logprobs")
        return ctx.mean(ctx.own(self.factors) * kl_estimate(ctx.logprobs, reference, "k3"))
