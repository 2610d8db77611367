"""The extension points of an update: what an algorithm may add, and what each addition gets to see.

The loss of a stream is  -Σ mask · weight · surrogate / Z + Σ coef · regularizer.  Parts are small objects;
the learner calls them at the points named here, and saves their state with the run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

from torch import Tensor, nn

from turnwise.learning.metrics import Metrics, Occurrences
from turnwise.learning.planning import Scorer
from turnwise.learning.primitives import (
    AggregationMode,
    Counts,
    aggregate,
    denominator,
    surrogate_weight,
    turn_mean,
)
from turnwise.learning.rewards import RewardTable
from turnwise.replay.batch import TokenBatch
from turnwise.replay.buffer import TrajectoryBuffer
from turnwise.trajectory import Group, Trajectory

Need = Literal["entropy", "hidden", "reference", "proximal", "values"]
Unit = Literal["reward", "deviation"]
"""What advantages are counted in: shaped rewards, or standard deviations of them."""


@dataclass(frozen=True, slots=True)
class Aggregation:
    """How [B, T] becomes a scalar; ``constant`` (tokens) divides a row's sum in the ``token-sum`` modes."""

    mode: AggregationMode = "token-mean"
    constant: float | None = None


@dataclass(frozen=True, slots=True)
class UpdateContext:
    """A microbatch as weighters, clip policies, regularizers and objectives see it.

    ``counts`` are those of the whole minibatch, so that every mean here is this microbatch's share of the
    minibatch's mean. Gradient flows through ``logprobs``, ``entropy`` and ``hidden`` only. ``rows`` are the
    microbatch's places in the minibatch that ``prepare`` saw; None stands for all of it.
    """

    update: int
    batch: TokenBatch
    logprobs: Tensor  # [b, T] nats
    entropy: Tensor | None  # [b, T] nats; None unless a part of the stream needs it
    counts: Counts
    aggregation: Aggregation
    hidden: Tensor | None = None  # [M, h], states that predict the M action tokens; None unless needed
    rows: Tensor | None = None  # [b] int64
    unit: float = 1.0  # what a success is worth in the advantages' units; 1 where those are deviations

    @property
    def mask(self) -> Tensor:
        return self.batch.action_mask

    @property
    def advantages(self) -> Tensor:
        """[b, T]; streams without an estimator have none."""
        return required(self.batch.advantages, "advantages")

    @property
    def old_logprobs(self) -> Tensor:
        """The ratio's denominator, [b, T]: proximal where it was asked for, else behaviour."""
        proximal = self.batch.proximal_logprobs
        return self.batch.behaviour_logprobs if proximal is None else proximal

    def own(self, selection: Tensor) -> Tensor:
        """This microbatch's part, [b, T], of what ``prepare`` chose over the minibatch."""
        rows = slice(None) if self.rows is None else self.rows.to(selection.device)
        return selection[rows, : self.mask.shape[1]].to(self.mask.device)

    def aggregate(self, values: Tensor) -> Tensor:
        """Scalar share of the minibatch under the stream's own aggregation."""
        mode, constant = self.aggregation.mode, self.aggregation.constant
        return aggregate(values, self.mask, mode, denominator(self.counts, mode, constant))

    @property
    def surrogate_weight(self) -> float:
        """What the stream's aggregation makes of 1 on every action token: 1 for means, less for sums over constants."""
        return surrogate_weight(self.counts, self.aggregation.mode, self.aggregation.constant)

    def mean(self, values: Tensor) -> Tensor:
        """Scalar share of the minibatch's mean in which every token weighs as it does in the surrogate."""
        weight = self.surrogate_weight
        return self.aggregate(values) / weight if weight else self.aggregate(values)

    def token_mean(self, values: Tensor) -> Tensor:
        """Scalar share of the mean over the minibatch's action tokens."""
        return aggregate(values, self.mask, "token-mean", denominator(self.counts, "token-mean"))

    def turn_mean(self, values: Tensor) -> Tensor:
        """Scalar share of the mean over the minibatch's turns of their token means."""
        return turn_mean(values, self.mask, self.batch.turn_index, self.counts.turns)


def required(column: Tensor | None, name: str) -> Tensor:
    """A column that a part relies on; missing is our own mistake (the part does not name it in ``needs``)."""
    assert column is not None, f"the batch has no {name}: a part uses what its `needs` does not name"
    return column


@dataclass(frozen=True, slots=True)
class MinibatchView:
    """A minibatch before its optimizer step.

    ``logprobs()`` are those of the present policy and cost one forward without gradient; ``seed`` is for what a
    part draws at random in this step, and differs from step to step.
    """

    update: int
    batch: TokenBatch
    counts: Counts
    logprobs: Callable[[], Tensor]
    seed: tuple[int, ...] = ()
    unit: float = 1.0  # as of ``UpdateContext``


@dataclass(frozen=True, slots=True)
class Samples:
    """This update's fresh groups and the shaped rewards of their trajectories, flattened in order."""

    groups: tuple[Group, ...]
    rewards: RewardTable

    @property
    def trajectories(self) -> tuple[Trajectory, ...]:
        return tuple(t for group in self.groups for t in group.trajectories)


@dataclass(frozen=True, slots=True)
class Stream:
    """Rows that are trained the same way. ``batch.trajectory`` and ``batch.group`` point into ``samples``."""

    samples: Samples
    batch: TokenBatch
    coef: float = 1.0

    @property
    def name(self) -> str:
        return self.batch.stream

    def with_columns(self, **columns: Tensor) -> Stream:
        return replace(self, batch=self.batch.with_columns(**columns))


@dataclass(frozen=True, slots=True)
class Streams:
    """What one update trains on, and how many fresh groups were left out."""

    streams: tuple[Stream, ...]
    dropped_groups: int = 0

    def __iter__(self) -> Iterator[Stream]:
        return iter(self.streams)

    def __getitem__(self, name: str) -> Stream:
        return next(stream for stream in self.streams if stream.name == name)


class Part:
    """What every part may declare and keep (point K).

    ``needs``: columns and scores that must be filled in for it. ``claims``: what no second part of its stream
    may steer as well. ``module``: parameters of its own, made in ``attach``, optimized and saved with the
    policy's; their gradient is clipped apart from the policy's, and ``module_lr`` is their peak learning rate
    (None: the policy's).
    """

    needs: frozenset[Need] = frozenset()
    claims: frozenset[str] = frozenset()
    module: nn.Module | None = None
    module_lr: float | None = None

    @cached_property
    def occurred(self) -> Occurrences:
        """What a mechanism counts into, so that an update can say how often it acted."""
        return Occurrences()

    def attach(self, scorer: Scorer) -> None:
        """Once, before anything else: the place to make a ``module`` that fits the policy."""

    def before_update(self, update: int, streams: Streams) -> None:
        """Once an update, when advantages are known and nothing has been optimized."""

    def prepare(self, view: MinibatchView) -> None:
        """Once an optimizer step and stream, before its first microbatch: selections over the minibatch."""

    def after_update(self, update: int, streams: Streams, metrics: Metrics) -> None:
        """Once an update, after its last optimizer step."""

    def acted(self) -> Mapping[str, float]:
        """How often the mechanism acted since last asked, by name: asked once an update, after ``after_update``."""
        return self.occurred.take()

    def state_dict(self) -> dict[str, Any]:
        """What must survive a restart, JSON-able."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state_dict`` gave."""


class Composer(Part, ABC):
    """Point D: filter, down-sample, replay; decides which streams exist."""

    streams: tuple[str, ...] = ("fresh",)

    @abstractmethod
    def compose(self, update: int, samples: Samples, buffer: TrajectoryBuffer) -> Streams: ...


class AdvantageEstimator(Part, ABC):
    """Point A: credit per token, [B, T], 0 outside the action mask, counted in ``unit``."""

    unit: Unit = "reward"

    @abstractmethod
    def estimate(self, stream: Stream) -> Tensor: ...


class AdvantageModifier(Part, ABC):
    """Point A, after the estimator: new advantages from ``stream.batch.advantages``, [B, T], 0 outside the mask.

    For what a weight cannot say: what is added, may change a sign, or is normalised over the stream. ``unit`` is what
    they are counted in afterwards (None: as before).
    """

    unit: Unit | None = None

    @abstractmethod
    def modify(self, stream: Stream) -> Tensor: ...


class TokenWeighter(Part, ABC):
    """Point T: non-negative weights [b, T] on the surrogate, without gradient unless it is meant."""

    @abstractmethod
    def weight(self, ctx: UpdateContext) -> Tensor: ...


class Surrogate(NamedTuple):
    """Ratio [b, T], its absolute bounds, and the dual-clip constant (None: no dual clip)."""

    ratio: Tensor
    low: float | Tensor
    high: float | Tensor
    dual: float | None


class ClipPolicy(Part, ABC):
    """Point C. ``aggregations``: the modes that it is defined for (None: all)."""

    aggregations: ClassVar[frozenset[AggregationMode] | None] = None

    @abstractmethod
    def surrogate(self, ctx: UpdateContext) -> Surrogate: ...


class Regularizer(Part, ABC):
    """Point G: an added, differentiable term; a scalar, this microbatch's share of a mean over the minibatch.

    One rule relates it to the surrogate, whatever the base: the loss gets  coef * u * w * term,  u what a success is
    worth in the advantages' units and w the weight that the base's aggregation gives to all action tokens together
    (1 for means). A coefficient thus says how much a nat of the mean counts beside an advantage of one success (of one
    deviation) on every token.
    """

    @abstractmethod
    def term(self, ctx: UpdateContext) -> Tensor: ...


class Objective(Part, ABC):
    """Point O: a whole loss bound to a stream; a scalar, this microbatch's share of the minibatch's.

    Beside a surrogate it counts by the rule of ``Regularizer``, alone by its coefficient.
    """

    @abstractmethod
    def loss(self, ctx: UpdateContext) -> Tensor: ...


class Critic(Objective, ABC):
    """An objective that predicts returns: it fills the ``values`` column for the parts that need it.

    Before the update the learner asks it for values; ``ctx.batch.returns`` (advantage as estimated + value) is
    then what its loss holds them against.
    """

    @abstractmethod
    def values(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """States [M, h] that predict the M True positions of mask [b, T] -> values [b, T], 0 off the mask."""


class Schedule(Protocol):
    """A factor that depends on the update's number."""

    def __call__(self, update: int) -> float: ...
