"""The credit of RiskPO: a risk measure of the scores of bundles of tasks, and what of it each attempt gets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from turnwise.errors import UnusedSettingError
from turnwise.learning.credit import group_statistics
from turnwise.learning.parts import AdvantageEstimator, Stream
from turnwise.learning.settings import Settings


class BundleSettings(Settings):
    """How tasks are bundled, and how a bundle's scores become credit. Scores are in units of a success."""

    bundle: int = Field(default=5, ge=1, description="Tasks in a bundle (B); the last one may have fewer.")
    by_type: bool = Field(default=True, description="Whether tasks are put in the order of their types beforehand.")
    levels: tuple[float, float] = Field(default=(0.2, 0.8), description="Levels of the two quantiles (a, b).")
    quantiles: Literal["own", "tracked", "mixed"] = Field(
        default="tracked", description="Of the bundle's own scores, tracked over updates, or the mean of both."
    )
    rate: float = Field(default=0.1, gt=0, le=1, description="How far a tracked quantile moves (eta), in successes.")
    cvar_weight: float = Field(
        default=1.5, ge=0, description="Weight of the worst scores (w_mix) beside 1 of the range between; 0: none."
    )
    baseline: bool = Field(default=False, description="Whether the range's advantage is 0 at its upper end.")
    normalize_std: bool = Field(default=True, description="Divide by the unbiased std of the bundle's scores.")
    credit: Literal["uniform", "score", "std", "sum_mean"] = Field(
        default="sum_mean", description="How a paper's advantage is divided among its attempts."
    )
    limit: float | None = Field(default=5.0, gt=0, description="Largest magnitude of an advantage; null: none.")
    sum_floor: float = Field(default=0.25, ge=0, description="Least magnitude of the divisor in sum_mean; 0: none.")
    flat_std: float = Field(default=1e-3, ge=0, description="Std of scores below which a bundle is left out; 0: never.")

    @model_validator(mode="after")
    def _bundles_are_consistent(self) -> BundleSettings:
        if not 0 <= self.levels[0] < self.levels[1] <= 1:
            raise ValueError(f"levels: 0 <= a < b <= 1 are the levels of quantiles; got {list(self.levels)}")
        if self.quantiles == "own" and self.changed("rate"):
            raise UnusedSettingError("rate", "rate moves tracked quantiles; quantiles=own has none")
        if self.credit != "sum_mean" and self.changed("sum_floor"):
            raise UnusedSettingError("sum_floor", f"sum_floor is a divisor of sum_mean; credit={self.credit} has none")
        return self


class BundleCredit(AdvantageEstimator):
    """The risk measure of a paper's score on the tokens of its attempts. Tracked quantiles are kept in checkpoints."""

    unit = "deviation"

    def __init__(self, settings: BundleSettings, success: float) -> None:
        self.settings, self.success = settings, success
        self.tracked: tuple[float, float] | None = None

    def estimate(self, stream: Stream) -> Tensor:
        rewards, groups = stream.samples.rewards, stream.samples.groups
        totals = [rewards.total(n) / self.success for n in range(len(stream.samples.trajectories))]
        returns = torch.tensor(totals, dtype=torch.float64)
        sizes = [len(group.trajectories) for group in groups]
        members = list(torch.split(torch.arange(len(totals)), sizes)) if sizes else []
        order = sorted(range(len(groups)), key=lambda place: groups[place].task.type if self.settings.by_type else "")
        bundles = [order[at : at + self.settings.bundle] for at in range(0, len(order), self.settings.bundle)]
        papers = [paired([members[place] for place in bundle]) for bundle in bundles]
        found = torch.zeros_like(returns)
        self._begin([returns[paper].sum(0) for paper in papers])
        numbers = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes, dtype=torch.int64))
        means, spread, _ = group_statistics(returns, numbers)
        for paper in papers:
            found[paper] = self._credit(returns[paper], means[paper], spread[paper])
        self._follow([returns[paper].sum(0) for paper in papers])
        paid = torch.tensor([rewards.paid(n) for n in range(len(totals))], dtype=torch.float64)
        uniform = group_statistics(paid, numbers).std == 0
        self.occurred.count("credited_share", found != 0, len(found))
        self.occurred.count("uniform_credited_share", (found != 0) & uniform, uniform)
        return found[stream.batch.trajectory].float().unsqueeze(1) * stream.batch.action_mask

    def _credit(self, returns: Tensor, means: Tensor, spread: Tensor) -> Tensor:
        """Advantages [tasks, papers] from the returns, their groups' means and deviations, of the same shape."""
        settings, scores = self.settings, returns.sum(0)
        std = scores.std() if len(scores) > 1 else torch.ones(())
        flat = bool(len(scores) > 1 and std < settings.flat_std)
        self.occurred.count("flat_share", flat)
        if flat or not len(scores):
            return torch.zeros_like(returns)
        risk = self._risk(scores) / (std + 1e-6 if settings.normalize_std else 1.0)
        found = risk * self._factors(returns, means, spread)
        return found if settings.limit is None else found.clamp(-settings.limit, settings.limit)

    def _risk(self, scores: Tensor) -> Tensor:
        (a, b), weight = self.settings.levels, self.settings.cvar_weight
        low, high = self._quantiles(scores)
        between = (scores - low).clamp(min=0) - (scores - high).clamp(min=0)
        between = (between + (low - high if self.settings.baseline else 0.0)) / (b - a + 1e-6)
        worst = -(low - scores).clamp(min=0) / (a + 1e-6)
        return (weight * worst + between) / (weight + 1)

    def _quantiles(self, scores: Tensor) -> tuple[float, float]:
        own, tracked = quantiles(scores, self.settings.levels), self.tracked
        if self.settings.quantiles == "own" or tracked is None:
            return own
        if self.settings.quantiles == "tracked":
            return tracked
        return (own[0] + tracked[0]) / 2, (own[1] + tracked[1]) / 2

    def _factors(self, returns: Tensor, means: Tensor, spread: Tensor) -> Tensor:
        """What each attempt gets of its paper's advantage, [tasks, papers]."""
        if self.settings.credit == "uniform":
            return torch.ones_like(returns)
        if self.settings.credit == "score":
            return torch.where(returns >= 1 - 1e-9, 0.5, 1.5)
        if self.settings.credit == "std":
            return 1 / torch.where(spread > 1e-3, spread, 1.0) if len(spread) else spread
        apart, total = returns - means, (returns - means).sum(0)
        equal = total.abs() <= 1e-6
        floored = total.sign() * total.abs().clamp(min=self.settings.sum_floor)
        return torch.where(equal, 1 / len(returns), apart / torch.where(equal, 1.0, floored))

    def _begin(self, scores: list[Tensor]) -> None:
        if self.tracked is None and scores:
            self.tracked = quantiles(torch.cat(scores), self.settings.levels)

    def _follow(self, scores: list[Tensor]) -> None:
        """Move the tracked quantiles towards those of an update's scores."""
        if self.tracked is not None and scores:
            every = torch.cat(scores)
            low, high = (
                q + self.settings.rate * (level - float((every < q).double().mean()))
                for q, level in zip(self.tracked, self.settings.levels, strict=True)
            )
            self.tracked = low, high

    def state_dict(self) -> dict[str, Any]:
        return {"tracked": None if self.tracked is None else list(self.tracked)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.tracked = None if state["tracked"] is None else (float(state["tracked"][0]), float(state["tracked"][1]))


def paired(members: list[Tensor]) -> Tensor:
    """The papers of a bundle: numbers of attempts, [tasks, papers]; no more than the smallest group has attempts."""
    return torch.stack([own[: min(map(len, members))] for own in members])


def quantiles(scores: Tensor, levels: tuple[float, float]) -> tuple[float, float]:
    """The quantiles of two levels, by linear interpolation; scores [n], n > 0."""
    found = torch.quantile(scores, torch.tensor(levels, dtype=scores.dtype))
    return float(found[0]), float(found[1])
