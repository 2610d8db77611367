"""The parts that an algorithm is made of: a class for each kind, and the data that it receives.

GRPO has a ``Composer`` (which episodes are trained on), an ``AdvantageEstimator`` (the return's distance from its
group's mean), a ``ClipPolicy`` (PPO's clip) and a ``Regularizer`` (KL to the reference). The learner calls each part at
a fixed point of an update and saves its state with the run. The points have letters, which the docstrings name:

    W  shape rewards     D  compose streams    A  estimate, then modify advantages    T  weigh tokens
    C  clip the ratio    G  regularize         O  add a whole objective               K  keep state
    S  heat the sampler

The loss of a stream is  -Σ mask · weight · surrogate / Z + Σ coef · regularizer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

from torch import Tensor, nn

from turnwise.heat import Heat
from turnwise.learning.metrics import Metrics, Occurrences
from turnwise.learning.planning import Reading, Scorer
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

Need = Literal["entropy", "hidden", "reference", "proximal", "values", "observed", "vocabulary", "teacher", "answers"]
Unit = Literal["reward", "deviation"]
"""The unit of advantages: that of the shaped rewards, or standard deviations of these."""


@dataclass(frozen=True, slots=True)
class Aggregation:
    """How values of tokens [B, T] become a scalar. ``constant`` (tokens) divides a row's sum in ``token-sum`` modes."""

    mode: AggregationMode = "token-mean"
    constant: float | None = None


@dataclass(frozen=True, slots=True)
class UpdateContext:
    """A microbatch, with what weighters, clip policies, regularizers and objectives may use.

    ``counts`` are those of the whole minibatch. So each mean that a method here computes is this microbatch's share of
    the minibatch's mean, and the shares add up to it. Gradients flow through ``logprobs``, ``entropy``, ``hidden`` and
    ``observed_logprobs`` only. ``rows`` are the microbatch's row numbers in the minibatch that ``prepare`` was given;
    None means all rows.
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
    observed_logprobs: Tensor | None = None  # [b, T] nats, of observed tokens, 0 elsewhere; None unless needed
    readings: Mapping[Reading, Tensor] = field(default_factory=dict)  # [b, T] each, of those that parts read

    @property
    def mask(self) -> Tensor:
        return self.batch.action_mask

    @property
    def advantages(self) -> Tensor:
        """[b, T]. Must not be asked for in a stream without an estimator."""
        return required(self.batch.advantages, "advantages")

    @property
    def old_logprobs(self) -> Tensor:
        """The ratio's denominator, [b, T] nats: proximal log-probs if a part needs them, else behaviour log-probs."""
        proximal = self.batch.proximal_logprobs
        return self.batch.behaviour_logprobs if proximal is None else proximal

    def own(self, selection: Tensor) -> Tensor:
        """The rows of this microbatch, [b, T], out of a selection over the minibatch that ``prepare`` made."""
        rows = slice(None) if self.rows is None else self.rows.to(selection.device)
        return selection[rows, : self.mask.shape[1]].to(self.mask.device)

    def aggregate(self, values: Tensor) -> Tensor:
        """Scalar: this microbatch's share of the minibatch's value under the stream's own aggregation."""
        mode, constant = self.aggregation.mode, self.aggregation.constant
        return aggregate(values, self.mask, mode, denominator(self.counts, mode, constant))

    @property
    def surrogate_weight(self) -> float:
        """The aggregate of the value 1 on every action token: 1 for means, less for sums divided by a constant."""
        return surrogate_weight(self.counts, self.aggregation.mode, self.aggregation.constant)

    def mean(self, values: Tensor) -> Tensor:
        """Scalar: the share of the minibatch's mean in which each token has the weight that it has in the surrogate."""
        weight = self.surrogate_weight
        return self.aggregate(values) / weight if weight else self.aggregate(values)

    def token_mean(self, values: Tensor) -> Tensor:
        """Scalar: the share of the mean over the minibatch's action tokens."""
        return aggregate(values, self.mask, "token-mean", denominator(self.counts, "token-mean"))

    def turn_mean(self, values: Tensor) -> Tensor:
        """Scalar: the share of the mean over the minibatch's turns of each turn's mean over its tokens."""
        return turn_mean(values, self.mask, self.batch.turn_index, self.counts.turns)


def required(column: Tensor | None, name: str) -> Tensor:
    """The column, which must not be None. If it is, a part uses a column that its ``needs`` does not name."""
    assert column is not None, f"the batch has no {name}: a part uses what its `needs` does not name"
    return column


@dataclass(frozen=True, slots=True)
class MinibatchView:
    """A minibatch before its optimizer step.

    ``logprobs()`` returns the present policy's, [B, T] nats, at the cost of one forward without gradient, and
    ``read(readings)`` what is read of its distributions, [B, T] each, at the same cost. A part that draws at random in
    this step seeds its generator with ``seed``, which differs from step to step.
    """

    update: int
    batch: TokenBatch
    counts: Counts
    logprobs: Callable[[], Tensor]
    seed: tuple[int, ...] = ()
    unit: float = 1.0  # as of ``UpdateContext``
    read: Callable[[Sequence[Reading]], tuple[Tensor, ...]] = lambda readings: ()


@dataclass(frozen=True, slots=True)
class Samples:
    """Groups of trajectories, and the shaped rewards of these trajectories in the order of the groups."""

    groups: tuple[Group, ...]
    rewards: RewardTable

    @property
    def trajectories(self) -> tuple[Trajectory, ...]:
        return tuple(t for group in self.groups for t in group.trajectories)


@dataclass(frozen=True, slots=True)
class Stream:
    """Rows that are trained in the same way.

    ``batch.trajectory`` and ``batch.group`` are numbers of trajectories and groups of ``samples``. ``coef`` is the
    factor on the stream's loss. ``beliefs`` are of the turns of ``samples``, in their order (``learning/answers.py``).
    """

    samples: Samples
    batch: TokenBatch
    coef: float = 1.0
    beliefs: Tensor | None = None  # [N] nats, mean log-prob of the answer's tokens; None unless a part needs answers

    @property
    def name(self) -> str:
        return self.batch.stream

    def with_columns(self, **columns: Any) -> Stream:
        return replace(self, batch=self.batch.with_columns(**columns))


@dataclass(frozen=True, slots=True)
class Streams:
    """The streams that one update trains on, and the number of fresh groups that were left out."""

    streams: tuple[Stream, ...]
    dropped_groups: int = 0

    def __iter__(self) -> Iterator[Stream]:
        return iter(self.streams)

    def __getitem__(self, name: str) -> Stream:
        return next(stream for stream in self.streams if stream.name == name)


class Part:
    """What every part may declare, and the state that it may keep (point K).

    ``needs`` names columns and scores that the learner must fill in for it, such as ``reference``. ``claims`` names
    what no second part of its stream may control as well, such as the entropy. ``reads`` are readings of the present
    policy that each step's ``UpdateContext`` gives it, with gradient; ``opening`` are readings of the policy before the
    first step, which ``batch.opening`` holds. One that reads in ``prepare`` alone needs ``vocabulary``.
    ``from_sampler``: it compares the policy with the one that sampled, whatever the ratio starts from.
    ``reads_success``: it asks whether episodes succeeded, whatever they were paid. Shapers and planners say so too.
    ``reads_entropies``: it looks at those of whole replies in its episodes, as shapers and composers may.

    ``module`` holds trainable parameters of its own. It is made in ``attach``, and optimized and saved with the
    policy's parameters. Its gradient is clipped apart from the policy's; ``module_lr`` is its peak learning rate (None:
    the policy's).
    """

    needs: frozenset[Need] = frozenset()
    claims: frozenset[str] = frozenset()
    reads: tuple[Reading, ...] = ()
    module: nn.Module | None = None
    module_lr: float | None = None
    from_sampler: bool = False
    reads_success: bool = False
    reads_entropies: bool = False

    @cached_property
    def occurred(self) -> Occurrences:
        """Counts of how often the part's mechanism acted; each update reports them."""
        return Occurrences()

    @property
    def opening(self) -> tuple[Reading, ...]:
        """What is to be read before the update that comes."""
        return ()

    def attach(self, scorer: Scorer) -> None:
        """Called once, before anything else. A ``module`` that must fit the policy is made here."""

    def before_update(self, update: int, streams: Streams) -> None:
        """Called once an update, after the advantages are computed and before the first optimizer step."""

    def prepare(self, view: MinibatchView) -> None:
        """Called for each stream before each optimizer step. Selections over the whole minibatch are made here."""

    def after_update(self, update: int, streams: Streams, metrics: Metrics) -> None:
        """Called once an update, after its last optimizer step."""

    def acted(self) -> Mapping[str, float]:
        """How often the mechanism acted since the last call, by name. Called once an update, after ``after_update``."""
        return self.occurred.take()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold of the part, JSON-able."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""


class Heating(Part, ABC):
    """Point S: the temperatures that an update's tokens are sampled with, by what it saw of the updates before.

    ``setting`` is the one of its algorithm that is 0 where there is no such part: errors name it.
    """

    setting: ClassVar[str] = "heat"

    @abstractmethod
    def heat(self) -> Heat | None:
        """How they follow each token's entropy, asked before the episodes are played; None: all are the run's."""


class Composer(Part, ABC):
    """Point D: decides which streams an update has and what is in them. It may filter, down-sample or replay."""

    streams: tuple[str, ...] = ("fresh",)

    def check_sources(self) -> None:
        """Called before a run begins. Raises ValueError where a file that it learns from is not there."""

    @abstractmethod
    def compose(self, update: int, samples: Samples, buffer: TrajectoryBuffer) -> Streams: ...


class AdvantageEstimator(Part, ABC):
    """Point A: the advantage of each token, [B, T], in ``unit``, 0 outside the action mask."""

    unit: Unit = "reward"

    @abstractmethod
    def estimate(self, stream: Stream) -> Tensor: ...


class AdvantageModifier(Part, ABC):
    """Point A, after the estimator: new advantages from ``stream.batch.advantages``, [B, T], 0 outside the mask.

    Unlike a ``TokenWeighter`` it may add to advantages, change their signs, or normalise them over the stream. ``unit``
    is their unit afterwards (None: as before).
    """

    unit: Unit | None = None

    @abstractmethod
    def modify(self, stream: Stream) -> Tensor: ...


class TokenWeighter(Part, ABC):
    """Point T: non-negative weights [b, T] on the surrogate. Detach them, unless a gradient through them is meant."""

    @abstractmethod
    def weight(self, ctx: UpdateContext) -> Tensor: ...


class Surrogate(NamedTuple):
    """The ratio [b, T], the bounds that it is clipped to, and the dual-clip constant (None: no dual clip)."""

    ratio: Tensor
    low: float | Tensor
    high: float | Tensor
    dual: float | None


class ClipPolicy(Part, ABC):
    """Point C: the ratio and how it is clipped. ``aggregations`` are the modes that it is defined for (None: all)."""

    aggregations: ClassVar[frozenset[AggregationMode] | None] = None

    @abstractmethod
    def surrogate(self, ctx: UpdateContext) -> Surrogate: ...


class Regularizer(Part, ABC):
    """Point G: a differentiable term of the loss; a scalar, this microbatch's share of a mean over the minibatch.

    The loss gets  coef * u * w * term,  whatever the base algorithm. u is what a success is worth in the advantages'
    unit. w is the weight that the base's aggregation gives to all action tokens together (1 for means). So a
    coefficient says how much one nat of the mean counts, compared with an advantage of one success (or of one standard
    deviation) on every token.
    """

    @abstractmethod
    def term(self, ctx: UpdateContext) -> Tensor: ...


class Objective(Part, ABC):
    """Point O: a loss of its own for a stream; a scalar, this microbatch's share of the minibatch's.

    In a stream with a surrogate its factor is coef * u * w as for a ``Regularizer``, else coef.

    ``outermost`` names the algorithm of an objective that is made from the surrogate's own advantages, clip and
    weights. What changed these afterwards would change the surrogate alone, so a recipe refuses it.
    """

    outermost: str = ""

    @abstractmethod
    def loss(self, ctx: UpdateContext) -> Tensor: ...


class Critic(Objective, ABC):
    """An objective that predicts returns, and fills the ``values`` column for the parts that need it.

    The learner asks it for values before the update. The target of its loss is ``ctx.batch.returns``: the estimated
    advantage plus that value.
    """

    @abstractmethod
    def values(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """States [M, h] that predict the M True positions of mask [b, T] -> values [b, T], 0 off the mask."""


class Schedule(Protocol):
    """A factor that depends on the update's number (0-based)."""

    def __call__(self, update: int) -> float: ...
