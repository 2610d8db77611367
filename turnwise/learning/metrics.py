"""What an update reports about itself."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from turnwise.learning.ranks import Ranks, summed, together
from turnwise.replay.batch import TokenBatch


@dataclass(frozen=True, slots=True)
class Agreement:
    """|log-prob of the learner - behaviour log-prob| over action tokens, with the weights that sampled them.

    In nats. ``num_tokens`` 0 leaves nothing to compare (no row had a gradient); the other fields are 0 then, and not
    logged.
    """

    max_abs: float
    mean_abs: float
    p99: float
    num_tokens: int

    @classmethod
    def of(cls, deviations: Tensor) -> Agreement:
        """From the absolute differences, [n] nats."""
        if deviations.numel() == 0:
            return cls(0.0, 0.0, 0.0, 0)
        ordered = deviations.double().sort().values
        # Nearest rank: the smallest value that 99 % of the tokens do not exceed.
        p99 = ordered[max(-(-99 * len(ordered) // 100) - 1, 0)]
        return cls(float(ordered[-1]), float(ordered.mean()), float(p99), len(ordered))


def deviations(logprobs: Tensor, batch: TokenBatch) -> Tensor:
    """Absolute log-prob differences on the action tokens of rows of staleness 0, [n] nats."""
    own = batch.action_mask & (batch.staleness == 0).unsqueeze(1)
    return (logprobs.detach() - batch.behaviour_logprobs)[own].abs()


@dataclass(frozen=True, slots=True)
class Metrics:
    """One update in numbers. Means run over action tokens and optimizer steps; None: not computed.

    Those of the trained policy (ratio, clipping, ``policy_entropy``, KL) and the agreement are of the rows that have a
    gradient: where the surrogate alone trains, a row without any advantage is not computed (``StreamRecipe.learning``).

    ``return_mean`` is over the episodes that ``turnwise.trajectory.counted`` names: one that failed is in no mean.

    ``regularizers`` are the terms beside the surrogate, before their coefficients, by the part's class (with its stream
    in front, unless that is ``fresh``): means over the optimizer steps on that stream. ``mechanisms`` say how often
    each mechanism acted, under such names: ``EntropyCorridor/outside_share``.

    ``entropy`` is that of the sampling policy on all fresh trajectories, before any filter;
    ``policy_entropy`` that of the trained policy during the update. KL values are k3 estimates. All entropies
    and KL in nats. ``stream_rows`` are the rows of each stream where there are several. ``staleness`` counts rows by
    how many updates the weights that played them are behind, where episodes are played ahead.
    """

    loss: float
    policy_loss: float
    entropy: float | None
    policy_entropy: float | None
    clip_share: float
    dual_clip_share: float
    ratio_mean: float
    ratio_max: float
    kl_behaviour: float
    kl_reference: float | None
    grad_norm: float
    learning_rate: float
    return_mean: float | None
    advantage_mean: float
    advantage_std: float
    num_trajectories: int
    num_rows: int
    num_action_tokens: int
    dropped_groups: int
    optimizer_steps: int
    skipped_steps: int
    agreement: Agreement
    regularizers: Mapping[str, float] = field(default_factory=dict)
    stream_rows: Mapping[str, int] = field(default_factory=dict)
    mechanisms: Mapping[str, float] = field(default_factory=dict)
    staleness: Mapping[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, float]:
        """Flat, for a log: ``agreement/max_abs``, ``regularizers/ReferenceKL``; what is None is left out."""
        flat: dict[str, float] = {}
        measured = asdict(self)
        if not self.agreement.num_tokens:
            measured["agreement"] = {"num_tokens": 0}
        for name, value in measured.items():
            if isinstance(value, dict):
                flat.update({f"{name}/{inner}": v for inner, v in value.items()})
            elif value is not None:
                flat[name] = value
        return flat


class Occurrences:
    """How often something happened, out of how often it might have, since last asked."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float]] = {}

    def count(self, name: str, hits: Tensor | float, of: Tensor | float = 1.0) -> None:
        """Add ``hits`` out of ``of``; of tensors (masks, for instance) the sum."""
        before = self._sums.get(name, (0.0, 0.0))
        found = (float(x.sum()) if isinstance(x, Tensor) else float(x) for x in (hits, of))
        self._sums[name] = tuple(a + b for a, b in zip(before, found, strict=True))  # type: ignore[assignment]

    def join(self, ranks: Ranks) -> None:
        """Add the counts of all ranks. Of what every rank counted, hits and opportunities grow alike."""
        shares = ranks.gather(self._sums)
        hits, of = (summed([{name: pair[place] for name, pair in s.items()} for s in shares]) for place in (0, 1))
        self._sums = {name: (hits[name], of[name]) for name in hits}

    def take(self) -> dict[str, float]:
        """Hits by opportunities, 0 where there were none; the count begins anew."""
        found, self._sums = self._sums, {}
        return {name: hits / of if of else 0.0 for name, (hits, of) in found.items()}


class Tally:
    """Sums over the microbatches of an update, for ``Metrics``: over this rank's, until ``join``."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.ratio_max = 0.0
        self.grad_norms: list[float] = []
        self.steps = self.skipped = 0
        self.term_sums: dict[str, float] = {}
        self.term_steps: Counter[str] = Counter()
        self.deviations: list[Tensor] = []
        self.is_proved = False  # whether sampler and learner were compared: before the first step with a gradient

    def add(self, **values: Tensor | float) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)

    def begin_terms(self, names: Iterable[str]) -> None:
        """Count an optimizer step for each of these terms; every rank must, whether it computes any of its rows."""
        self.term_steps.update(set(names))

    def add_term(self, name: str, value: Tensor | float) -> None:
        """Add a microbatch's share of a term."""
        self.term_sums[name] = self.term_sums.get(name, 0.0) + float(value)

    def terms(self) -> dict[str, float]:
        """The mean of each term over the steps that it was part of."""
        return {name: total / self.term_steps[name] for name, total in self.term_sums.items()}

    def join_deviations(self, ranks: Ranks) -> None:
        """Put the deviations of all ranks in the place of this one's."""
        self.deviations = [together(ranks, self.deviations)]

    def join(self, ranks: Ranks) -> None:
        """Add the sums of all ranks, in their order. Steps are counted by every rank alike."""
        self.sums, self.term_sums = (summed(ranks.gather(own)) for own in (self.sums, self.term_sums))
        self.ratio_max = max(ranks.gather(self.ratio_max))

    def per_token(self, name: str, among: str = "tokens") -> float | None:
        """Mean over the action tokens seen, None if the sum was never taken.

        ``among`` counts those tokens that the sum was taken of: not every stream has a reference, or its entropy.
        """
        return None if name not in self.sums else self.sums[name] / max(self.sums[among], 1.0)

    def per_step(self, name: str) -> float:
        """Mean over optimizer steps, skipped ones included."""
        return self.sums.get(name, 0.0) / max(self.steps + self.skipped, 1)

    def agreement(self) -> Agreement:
        return Agreement.of(torch.cat([d.cpu() for d in self.deviations]) if self.deviations else torch.empty(0))

    def count_step(self, norm: float) -> None:
        """Record an optimizer step by its gradient norm; one that is not finite was skipped."""
        self.grad_norms.append(norm)
        if math.isfinite(norm):
            self.steps += 1
        else:
            self.skipped += 1
