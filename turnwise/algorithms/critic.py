"""PPO's critic: a small network on the states from which the policy predicts a token, and the two losses of its values.

    mse        mean max( (V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2 )
    hl_gauss   mean KL( h(R) || softmax z ),   V = sum_k softmax(z)_k m_k
               h_k(R) ~ Phi((e_k+1 - R) / sigma) - Phi((e_k - R) / sigma)

HL-Gauss (Farebrother et al. 2024, arXiv 2403.03950) predicts a histogram in the place of a number: K bins of equal
width with edges e and centres m. The target is a Gaussian around the return, so that neighbouring bins share it.
Values, returns, edges and sigma are counted in successes, and V starts at 0 either way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from turnwise.learning.parts import Critic, Need, UpdateContext, required
from turnwise.learning.planning import Scorer
from turnwise.learning.primitives import clipped_value_loss, turn_starts

if TYPE_CHECKING:
    from turnwise.algorithms.ppo import PPOConfig


def value_head(scorer: Scorer, width: int, outputs: int, seed: int) -> nn.Module:
    """A network of one hidden layer on the policy's states, [M, h] -> [M, outputs]; its outputs start at 0."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        first, last = nn.Linear(scorer.hidden_size, width), nn.Linear(width, outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(first, nn.GELU(), last).to(next(iter(scorer.parameters())).device)


@dataclass(frozen=True, slots=True)
class Histogram:
    """``bins`` bins of equal width over [-reach, reach]; the target's standard deviation is ``sigma`` bin widths."""

    reach: float
    bins: int
    sigma: float

    def target(self, values: Tensor) -> Tensor:
        """[M] -> [M, K] probabilities, with values held to the range."""
        edges = torch.linspace(-self.reach, self.reach, self.bins + 1, dtype=torch.float64, device=values.device)
        spread = self.sigma * 2 * self.reach / self.bins
        below: Tensor = torch.special.ndtr(
            (edges - values.double().clamp(-self.reach, self.reach).unsqueeze(-1)) / spread
        )
        mass = below.diff(dim=-1)
        return (mass / mass.sum(-1, keepdim=True)).to(values.dtype)

    def mean(self, logits: Tensor) -> Tensor:
        """[M, K] -> [M]: what the histogram expects."""
        width = 2 * self.reach / self.bins
        centres = width * (torch.arange(self.bins, device=logits.device, dtype=logits.dtype) - (self.bins - 1) / 2)
        return (logits.softmax(-1) * centres).sum(-1)

    def divergence(self, logits: Tensor, values: Tensor) -> Tensor:
        """KL(target || softmax) in nats, [M, K] and [M] -> [M]."""
        found: Tensor = nn.functional.kl_div(logits.log_softmax(-1), self.target(values), reduction="none").sum(-1)
        return found


class ValueLoss(Critic):
    """The loss of the values and the head that it trains; a mean over action tokens, or over turns.

    Values are in reward units; the head predicts and the loss compares them in units of ``success``, so that neither
    depends on the run's scale.
    """

    needs: frozenset[Need] = frozenset({"hidden", "values"})

    def __init__(self, config: PPOConfig, seed: int, success: float = 1.0) -> None:
        self.success = success
        self.clip, self.level, self.shared = config.value_clip, config.level, config.share_trunk
        self.width, self.seed, self.module_lr = config.value_width, seed, config.value_lr
        by_bins = config.critic == "hl_gauss"
        self.histogram = Histogram(config.value_range, config.value_bins, config.value_sigma) if by_bins else None

    def attach(self, scorer: Scorer) -> None:
        self.module = value_head(scorer, self.width, 1 if self.histogram is None else self.histogram.bins, self.seed)

    def values(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return self._placed(self.success * self._expected(self._outputs(hidden)), mask)

    def loss(self, ctx: UpdateContext) -> Tensor:
        returns, outputs = required(ctx.batch.returns, "returns"), self._outputs(required(ctx.hidden, "hidden"))
        if self.histogram is None:
            found, old = self._placed(self._expected(outputs), ctx.mask), required(ctx.batch.values, "values")
            clip = float("inf") if self.clip is None else self.clip
            errors = clipped_value_loss(found, old / self.success, returns / self.success, clip)
        else:
            targets = returns[ctx.mask] / self.success
            self.occurred.count("outside_share", (targets.abs() > self.histogram.reach), len(targets))
            errors = self._placed(self.histogram.divergence(outputs, targets), ctx.mask)
        if self.level == "token":
            return ctx.token_mean(errors)
        return (errors * turn_starts(ctx.mask, ctx.batch.turn_index)).sum() / max(ctx.counts.turns, 1)

    def _outputs(self, hidden: Tensor) -> Tensor:
        """[M, h] -> [M, 1], or logits [M, K]."""
        assert self.module is not None
        found: Tensor = self.module(hidden if self.shared else hidden.detach())
        return found

    def _expected(self, outputs: Tensor) -> Tensor:
        """Values in successes, [M]."""
        return outputs.squeeze(-1) if self.histogram is None else self.histogram.mean(outputs)

    @staticmethod
    def _placed(found: Tensor, mask: Tensor) -> Tensor:
        """[M] -> [b, T], 0 off the mask."""
        return torch.zeros(mask.shape, dtype=found.dtype, device=mask.device).masked_scatter(mask, found)
