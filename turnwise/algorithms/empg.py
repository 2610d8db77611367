"""EMPG: entropy-modulated policy gradients (Wang et al. 2025, arXiv 2509.09265).

A modifier of a base's advantages, turn by turn. A sure turn's credit is magnified and an unsure one's damped,
and a turn that leads to a sure one gains a bonus:

    H_n   = mean entropy of turn n's action tokens, while sampling;   h_n = (H_n - min H) / (max H - min H + 1e-8)
    g_n   = exp(-k h_n) / mean exp(-k h)                              self-calibrating: its mean is 1
    f_n   = exp(-k' h_n)
    A_n'  = A g_n + zeta f_{n+1};   no bonus for an episode's last turn
    A_n'' = A_n' - mean A'

min, max and means run over all turns of the update, each weighing the same; nothing here has a gradient.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from turnwise.algorithms.composition import AnyAlgorithm, base_recipe
from turnwise.algorithms.grpo import GRPOConfig
from turnwise.errors import UnusedSettingError
from turnwise.learning.parts import AdvantageModifier, Stream, required
from turnwise.learning.recipe import About, Recipe
from turnwise.learning.settings import RunInfo, Settings

ABOUT = About(
    title="Harnessing Uncertainty: Entropy-Modulated Policy Gradients for Long-Horizon LLM Agents",
    arxiv="2509.09265",
    kind="credit",
    differences=(
        "There is no official code; the equations are held against a float64 reference and ARLArena's version.",
        "zeta is 0.05 or 0.1 depending on the copy of the paper's listing; here 0.05.",
        "Normalised over all turns of the update; the paper says over the (mini-)batch.",
        "Centring gives groups with equal returns a signal of the size of zeta; so the default base keeps them.",
    ),
    sources={
        "base": "GRPO, uniform groups kept: the paper's bases are GRPO and DAPO",
        "scaling, clarity": "paper",
        "bonus_coef": "ARLArena; 0.1 in another copy of the paper's listing",
        "centre": "paper",
    },
)


class EMPGConfig(Settings):
    """EMPG's settings."""

    type: Literal["empg"] = "empg"
    base: AnyAlgorithm = Field(
        default=GRPOConfig(drop_uniform_groups=False), description="The algorithm whose advantages are modulated."
    )
    scaling: float = Field(default=1.0, ge=0, description="How much sureness scales the credit (k); 0: not at all.")
    clarity: float = Field(default=1.0, ge=0, description="How fast the bonus falls with the next turn's entropy (k').")
    bonus_coef: float = Field(
        default=0.05,
        ge=0,
        description="The bonus of a sure next turn (zeta): in standard deviations where the base divides by them, else "
        "as a share of a success.",
    )
    centre: bool = Field(default=True, description="Take the mean over the update's turns off in the end.")

    @model_validator(mode="after")
    def _bonus_is_consistent(self) -> EMPGConfig:
        if not self.bonus_coef and self.changed("clarity"):
            raise UnusedSettingError("clarity", "clarity shapes the bonus, and bonus_coef=0 pays none")
        return self


class Turns(NamedTuple):
    """The N turns of a batch that have action tokens, in order of trajectory and turn."""

    number: Tensor  # [B, T] each action token's turn, 0 elsewhere
    size: Tensor  # [N] action tokens
    followed: Tensor  # [N] bool, True where the next entry is the same episode's next turn

    def mean(self, values: Tensor, mask: Tensor) -> Tensor:
        """Token mean of each turn, [B, T] -> [N] float64."""
        sums = torch.zeros(len(self.size), dtype=torch.float64)
        return sums.index_add(0, self.number[mask], values[mask].double()) / self.size


def turns_of(trajectory: Tensor, turn_index: Tensor, mask: Tensor) -> Turns:
    """Number the turns of a batch: [B], [B, T], [B, T]."""
    span = int(turn_index.max()) + 2 if turn_index.numel() else 1  # so that no last turn is next to a first one
    keys = (trajectory.unsqueeze(1) * span + turn_index)[mask]
    found, number, size = torch.unique(keys, return_inverse=True, return_counts=True)
    followed = torch.zeros(len(found), dtype=torch.bool)
    followed[:-1] = found[1:] == found[:-1] + 1
    return Turns(torch.zeros_like(turn_index).masked_scatter(mask, number), size, followed)


def modulation(entropy: Tensor, followed: Tensor, scaling: float, clarity: float) -> tuple[Tensor, Tensor]:
    """(g_n, f_{n+1}, 0 where nothing follows) of turns in order, all [N]; entropies in nats."""
    if not len(entropy):
        return entropy, entropy
    level = (entropy - entropy.min()) / (entropy.max() - entropy.min() + 1e-8)
    scale = torch.exp(-scaling * level)
    return scale / scale.mean(), torch.exp(-clarity * level).roll(-1) * followed


class EntropyModulation(AdvantageModifier):
    """A g_n + zeta f_{n+1} on each turn's tokens, centred over the stream's turns."""

    def __init__(self, scaling: float, clarity: float, bonus: float, centre: bool) -> None:
        self.scaling, self.clarity, self.bonus, self.centre = scaling, clarity, bonus, centre

    def modify(self, stream: Stream) -> Tensor:
        batch, mask = stream.batch, stream.batch.action_mask
        advantages = required(batch.advantages, "advantages")
        turns = turns_of(batch.trajectory, batch.turn_index, mask)
        if not len(turns.size):
            return advantages
        entropy = turns.mean(batch.behaviour_entropies, mask)
        scale, clear = modulation(entropy, turns.followed, self.scaling, self.clarity)
        self.occurred.count("scaling_std", scale.std(correction=0))
        self.occurred.count("bonus_share", turns.followed, len(turns.followed))
        changed = advantages.double() * scale[turns.number] + self.bonus * clear[turns.number]
        if self.centre:
            changed = changed - turns.mean(changed, mask).mean()
        return (changed * mask).to(advantages.dtype)


def recipe(config: EMPGConfig, run: RunInfo) -> Recipe:
    """Compose EMPG on its base."""
    base = base_recipe(config.base, run)
    bonus = config.bonus_coef * base["fresh"].success(run.rewards)
    part = EntropyModulation(config.scaling, config.clarity, bonus, config.centre)
    return base.with_modifier(part).named("empg")
