"""A recipe: an algorithm as a list of parts, checked for contradictions.

GRPO's recipe has one stream with an estimator, a clip policy and perhaps a KL regularizer. A modifier such as EPO takes
the recipe of its base and adds a part (``with_regularizer``). Algorithms do not inherit from each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from turnwise.learning.parts import (
    AdvantageEstimator,
    AdvantageModifier,
    Aggregation,
    ClipPolicy,
    Composer,
    Critic,
    Heating,
    Need,
    Objective,
    Part,
    Regularizer,
    TokenWeighter,
    Unit,
)
from turnwise.learning.planning import Acting, Planner, PlannerAround, Reading
from turnwise.learning.rewards import ComparesAnswers, RewardShaper
from turnwise.learning.settings import RewardSettings
from turnwise.replay.batch import TokenBatch

Kind = Literal["bases", "credit", "token weights", "clips", "regularisers", "planners", "replay"]
"""What is new in an algorithm. ``bases`` are whole algorithms. Of the others most change a base that they are put on;
some of ``credit`` are whole algorithms whose credit is what is new.
"""

KINDS: tuple[str, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class About:
    """Where an algorithm comes from. Its equations are in its module's docstring. ``arxiv`` may be "": no paper.

    ``code`` is the implementation that our numbers are compared with (repository and commit). ``differences`` are
    sentences on what differs between the paper, the released code and this code, each with its setting. ``kind`` is
    the list that ``turnwise algorithms`` shows it in. ``sources`` say where defaults come from, by the name of one
    setting or of several (``clip_low, clip_high``).
    """

    title: str
    arxiv: str
    kind: Kind
    code: str = ""
    differences: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def cited(self) -> str:
        """The title, and where it is to be found."""
        return f"{self.title}, arXiv:{self.arxiv}" if self.arxiv else f"{self.title}, {self.code}"

    def source(self, setting: str) -> str:
        """Where a setting's default comes from; empty where nothing is said."""
        return next((text for names, text in self.sources.items() if setting in names.split(", ")), "")


@dataclass(frozen=True, slots=True)
class StreamRecipe:
    """How the rows of one stream are trained.

    ``modifiers`` change the estimator's advantages one after another. ``regularizers`` and ``objectives`` are pairs of
    a part and its coefficient. Without ``clip`` there is no policy surrogate, only objectives and regularizers; then
    ``estimator`` may be None too.
    """

    estimator: AdvantageEstimator | None = None
    modifiers: tuple[AdvantageModifier, ...] = ()
    clip: ClipPolicy | None = None
    aggregation: Aggregation = field(default_factory=Aggregation)
    weighters: tuple[TokenWeighter, ...] = ()
    regularizers: tuple[tuple[Regularizer, float], ...] = ()
    objectives: tuple[tuple[Objective, float], ...] = ()
    name: str = "fresh"

    def parts(self) -> Iterator[Part]:
        """Every part of the stream, in an order that never changes."""
        if self.estimator is not None:
            yield self.estimator
        yield from self.modifiers
        if self.clip is not None:
            yield self.clip
        yield from self.weighters
        yield from (part for part, _ in self.regularizers)
        yield from (part for part, _ in self.objectives)

    @property
    def prefix(self) -> str:
        """What the names of the stream's numbers begin with: its own name, but for the fresh one."""
        return "" if self.name == "fresh" else f"{self.name}."

    def terms(self) -> list[str]:
        """The names of the terms beside the surrogate, regularizers first."""
        return [f"{self.prefix}{type(part).__name__}" for part, _ in (*self.regularizers, *self.objectives)]

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset[Need]().union(*(part.needs for part in self.parts()))

    @property
    def reads(self) -> tuple[Reading, ...]:
        """What is read of the vocabulary in each step, each reading once."""
        return tuple(dict.fromkeys(reading for part in self.parts() for reading in part.reads))

    @property
    def opening(self) -> tuple[Reading, ...]:
        """What is read of it before the update that comes, each reading once."""
        return tuple(dict.fromkeys(reading for part in self.parts() for reading in part.opening))

    def learning(self, batch: TokenBatch) -> Tensor:
        """Numbers of the rows that need a forward and backward pass, int64.

        A stream with a surrogate and nothing else needs only rows with a nonzero advantage: the others have no gradient
        (denominators count them all the same). If no row has one, all are computed, for the metrics.
        """
        every = torch.arange(len(batch))
        if self.clip is None or self.regularizers or self.objectives or batch.advantages is None:
            return every
        credited = every[(batch.advantages != 0).any(1).to(every.device)]
        return credited if len(credited) else every

    @property
    def unit(self) -> Unit:
        """The unit of the advantages after the last modifier."""
        changes = [modifier.unit for modifier in self.modifiers if modifier.unit is not None]
        return changes[-1] if changes else self.estimator.unit if self.estimator is not None else "deviation"

    def open_to(self, name: str) -> StreamRecipe:
        """The stream itself. Raises ValueError where an objective is made from what ``name`` would change."""
        for part, _ in self.objectives:
            if outer := part.outermost:
                raise ValueError(
                    f"{name} on top of {outer} would change one of its two losses only; {outer} goes outermost: "
                    f"algorithm={outer} algorithm.base.type=NAME"
                )
        return self

    def success(self, rewards: RewardSettings) -> float:
        """What a success is worth in the stream's advantages; 1 where these are counted in standard deviations."""
        return rewards.success if self.unit == "reward" else 1.0

    @property
    def critic(self) -> Critic | None:
        """The objective that fills the ``values`` column, if there is one."""
        return next((part for part, _ in self.objectives if isinstance(part, Critic)), None)


@dataclass(frozen=True, slots=True)
class Recipe:
    """An algorithm.

    ``phases``: with ``joint`` each optimizer step trains on all streams, with ``sequential`` the streams are trained
    one after another. ``keep_updates`` is the age (in updates) up to which the buffer keeps trajectories. ``planner``
    None stands for groups of independent attempts (``GroupPlanner``). ``teacher`` names a second scorer, for parts that
    need one. ``heating`` decides the temperatures of sampling; None: the run's.
    """

    name: str
    composer: Composer
    streams: tuple[StreamRecipe, ...]
    shapers: tuple[RewardShaper, ...] = ()
    planner: Planner | None = None
    phases: Literal["joint", "sequential"] = "joint"
    keep_updates: int = 0
    teacher: str = ""
    heating: Heating | None = None

    def __getitem__(self, stream: str) -> StreamRecipe:
        return next(found for found in self.streams if found.name == stream)

    def parts(self) -> tuple[Part, ...]:
        """Every part once, composer first. A part's place in this order is in the name of its saved state."""
        found: list[Part] = [self.composer, *(part for stream in self.streams for part in stream.parts())]
        found += [] if self.heating is None else [self.heating]
        return tuple({id(part): part for part in found}.values())

    @property
    def needs_reference(self) -> bool:
        """Whether a part compares with the policy at its start."""
        return any("reference" in stream.needs for stream in self.streams)

    @property
    def needs_teacher(self) -> bool:
        """Whether a part compares with a second scorer."""
        return any("teacher" in stream.needs for stream in self.streams)

    @property
    def needs_answers(self) -> bool:
        """Whether a part asks how probable the tasks' right answers are, which the world must tell then."""
        return any("answers" in stream.needs for stream in self.streams)

    @property
    def compares_answers(self) -> bool:
        """Whether a shaper pays for answers that agree, which the world must give then."""
        return any(isinstance(shaper, ComparesAnswers) for shaper in self.shapers)

    @property
    def reads_vocabulary(self) -> bool:
        """Whether a part looks at whole distributions over the vocabulary."""
        return any(stream.reads or stream.opening or "vocabulary" in stream.needs for stream in self.streams)

    def acted(self) -> dict[str, float]:
        """How often each mechanism acted since the last call, by ``Class/name``. A shared part counts once."""
        streams = [(stream.prefix, part) for stream in self.streams for part in stream.parts()]
        found = {}
        for prefix, part in [
            *(("", part) for part in (*layers(self.planner), *layers(self.composer), *self.shapers, self.heating)),
            *streams,
        ]:
            if isinstance(part, Acting):
                found.update({f"{prefix}{type(part).__name__}/{name}": value for name, value in part.acted().items()})
        return found

    def named(self, name: str) -> Recipe:
        return replace(self, name=name)

    def with_planner(self, planner: Planner) -> Recipe:
        """``planner`` in the place of the innermost one: inside dynamic sampling, if the recipe has that."""
        return replace(self, planner=_innermost(self.planner, planner))

    def with_shaper(self, shaper: RewardShaper) -> Recipe:
        """Shaper appended: it receives the table that the shapers before it made."""
        return replace(self, shapers=(*self.shapers, shaper))

    def with_regularizer(self, part: Regularizer, coef: float, stream: str = "fresh") -> Recipe:
        """Regularizer added to one stream; with a coefficient of 0 the recipe stays as it is, at no cost."""
        if coef == 0.0:
            return self
        old = self[stream]
        return self._with(replace(old, regularizers=(*old.regularizers, (part, coef)))).checked()

    def with_objective(self, part: Objective, coef: float = 1.0, stream: str = "fresh") -> Recipe:
        """Objective added to one stream: its loss counts beside what the stream has."""
        old = self[stream]
        return self._with(replace(old, objectives=(*old.objectives, (part, coef)))).checked()

    def with_weighter(self, part: TokenWeighter, stream: str = "fresh") -> Recipe:
        old = self[stream].open_to(type(part).__name__)
        return self._with(replace(old, weighters=(*old.weighters, part))).checked()

    def with_modifier(self, part: AdvantageModifier, stream: str = "fresh") -> Recipe:
        """Modifier appended: it receives the advantages that the modifiers before it made."""
        old = self[stream].open_to(type(part).__name__)
        return self._with(replace(old, modifiers=(*old.modifiers, part))).checked()

    def with_clip(self, part: ClipPolicy, stream: str = "fresh") -> Recipe:
        """Clip policy in the place of the present one."""
        return self._with(replace(self[stream].open_to(type(part).__name__), clip=part)).checked()

    def _with(self, new: StreamRecipe) -> Recipe:
        return replace(self, streams=tuple(new if s.name == new.name else s for s in self.streams))

    def checked(self) -> Recipe:
        """The recipe itself. Raises ValueError, saying which parts contradict each other and why."""
        names = [stream.name for stream in self.streams]
        if set(names) != set(self.composer.streams) or len(set(names)) < len(names):
            raise ValueError(
                f"Recipe {self.name!r}: the composer makes the streams {sorted(self.composer.streams)}, but "
                f"the recipe says how to train {sorted(names)}; every stream needs exactly one StreamRecipe"
            )
        for stream in self.streams:
            _check_stream(self.name, stream)
        return self


def layers(outer: object) -> Iterator[object]:
    """A planner or composer, its ``inner`` one, that one's inner one, and so on."""
    while outer is not None:
        yield outer
        outer = getattr(outer, "inner", None)


def _innermost(present: Planner | None, planner: Planner) -> Planner:
    if isinstance(present, PlannerAround):
        return present.around(_innermost(present.inner, planner))
    return planner


def _check_stream(recipe: str, stream: StreamRecipe) -> None:
    where = f"Recipe {recipe!r}, stream {stream.name!r}"
    claimed: dict[str, Part] = {}
    for part in stream.parts():
        for claim in part.claims:
            if claim in claimed:
                first, second = type(claimed[claim]).__name__, type(part).__name__
                raise ValueError(f"{where}: {first} and {second} both steer the {claim}; keep one of them")
            claimed[claim] = part
    if stream.modifiers and stream.estimator is None:
        raise ValueError(
            f"{where}: {type(stream.modifiers[0]).__name__} modifies advantages, but no estimator makes any here"
        )
    if stream.weighters and stream.clip is None:
        raise ValueError(
            f"{where}: {type(stream.weighters[0]).__name__} weighs the tokens of a surrogate, but there is none here"
        )
    if sum(isinstance(part, Critic) for part, _ in stream.objectives) > 1:
        raise ValueError(f"{where}: two critics; the values can come from one only")
    if "values" in stream.needs and stream.critic is None:
        wanting = next(type(part).__name__ for part in stream.parts() if "values" in part.needs)
        raise ValueError(f"{where}: {wanting} needs values; add a critic to the objectives, as PPO has")
    if stream.clip is None and not stream.objectives:
        raise ValueError(f"{where}: nothing to optimize; give it a clip policy (a surrogate) or an objective")
    if stream.clip is not None and stream.estimator is None:
        raise ValueError(f"{where}: the surrogate of {type(stream.clip).__name__} needs an advantage estimator")
    allowed = None if stream.clip is None else stream.clip.aggregations
    if allowed is not None and stream.aggregation.mode not in allowed:
        raise ValueError(
            f"{where}: {type(stream.clip).__name__} is defined for the aggregations {sorted(allowed)}; "
            f"got {stream.aggregation.mode!r}"
        )
