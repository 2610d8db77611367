"""Behaviour cloning: training a model on demonstrations, so that reinforcement learning starts from a useful policy.

The loss is cross-entropy. The expert's actions weigh 1, actions that noise chose weigh 0, and observations weigh
``observation_weight``, which teaches the model the words of its world. Cloning goes through stages: first the
demonstrations, then rounds of takeovers, where there are any.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

from turnwise.cloning.losses import KINDS, NOTHING, Cloned, CloningRow, Scored
from turnwise.cloning.partial import Partial
from turnwise.cloning.rounds import Round, Rounds, RoundScore
from turnwise.cloning.rows import Rows
from turnwise.cloning.settings import TakeoversConfig, WarmstartConfig
from turnwise.cloning.steps import Cloner, cooled

_SMOOTH = 0.05
"""Share of ``max_tokens`` over which a smoothed number forgets the past (to 1 / e). Without demonstrations: of the
tokens of all rounds."""

MISSES = 64
"""After so many demonstrations in a row that do not fit into the context, none is expected to."""


_FEW = 0.01
"""A share of demonstrations that may be left out without a word."""


@dataclass(frozen=True, slots=True)
class KindScore:
    """How the model does on one kind of token, given the true tokens before it.

    ``probability`` is the mean that it gives to the true token, ``accuracy`` the share of tokens of which it thinks the
    true one likeliest; both are smoothed.
    """

    probability: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Progress:
    """How far cloning has come. ``loss`` is in nats, smoothed; ``success`` is the latest measurement, in [0, 1].

    In a round of takeovers it is None: what was measured was another model, before that.
    ``kinds`` has an entry for each kind of token (``losses.KINDS``) that the loss counts. ``round`` is the round of
    takeovers, after the demonstrations.
    """

    tokens: int
    max_tokens: int
    loss: float
    success: float | None
    cpu_s: float
    kinds: Mapping[str, KindScore] = field(default_factory=dict)
    round: RoundScore | None = None


OnProgress = Callable[[Progress], None]
Measure = Callable[[Any, Any], float]


@dataclass(slots=True)
class _Course:
    """Where cloning is: what is saved of it beside the weights."""

    seen: int = 0  # tokens
    checked: int = 0  # of them at the last measurement
    drawn: int = 0  # items of this stage
    success: float | None = None
    loss: float | None = None  # smoothed
    cpu_s: float = 0.0
    lines: list[dict[str, Any]] = field(default_factory=list)  # one for each step
    round: int = 0  # of takeovers; 0: the demonstrations
    begun: int = 0  # tokens seen before this stage
    demonstrated: int = 0  # demonstrations drawn before it
    missed: int = 0  # of the demonstrations: that did not fit into the context


@dataclass(frozen=True, slots=True)
class _Stage:
    """The demonstrations, or a round of takeovers: what is learned, and for how many tokens.

    ``rate(left)`` is the share of the peak rates where the share ``left`` of these tokens is still to come.
    """

    rows: Rows
    tokens: int
    after: int  # tokens of the stages after it
    rate: Callable[[float], float]
    score: RoundScore | None = None


def _round_stage(found: Round, of: TakeoversConfig) -> _Stage:
    """A round as a stage. Over all rounds the rates fall to 0."""
    later = of.rounds - found.score.number
    return _Stage(
        found.rows,
        of.tokens,
        later * of.tokens,
        lambda left: of.rate_share * (later + left) / of.rounds,
        found.score,
    )


class _Counted:
    """An iterator that counts what was taken from it."""

    def __init__(self, rows: Rows) -> None:
        self._rows, self.num = rows, 0

    def __iter__(self) -> _Counted:
        return self

    def __next__(self) -> list[CloningRow]:
        self.num += 1
        return next(self._rows)


def clone(
    cloned: Cloned,
    tokenizer: Any,
    source: Rows,
    config: WarmstartConfig,
    *,
    measure: Measure | None = None,
    on_progress: OnProgress | None = None,
    partial: Partial | None = None,
    rounds: Rounds | None = None,
) -> tuple[Progress, list[dict[str, Any]]]:
    """Train ``cloned`` in place on the rows of ``source`` until ``stop_success`` or ``max_tokens`` is reached.

    Then the ``rounds`` of takeovers follow, where there are any. Returns the last progress, and a record of each step.
    ``measure(model, tokenizer)`` returns the success, in [0, 1], that is compared with ``stop_success``. With
    ``partial`` it goes on from what that holds, to the same weights, and saves there. Raises ValueError where nothing
    of the source fits into the agent's context, and as ``Rounds`` does.
    """
    _tell_unmeasured(config)
    training = _Training(cloned, tokenizer, config, measure, on_progress, partial)
    training.take_up(rounds)
    course, demonstrations = training.course, _Counted(source)
    next(islice(demonstrations, course.demonstrated, course.demonstrated), None)
    if not course.round:
        after = 0 if rounds is None else rounds.settings.rounds * rounds.settings.tokens
        training.run(_Stage(demonstrations, config.max_tokens, after, lambda left: cooled(left, config.cooldown)))
        _tell_missed(course)
    if rounds is not None:
        of, resumed = rounds.settings, course.round
        for number in range(max(1, resumed), of.rounds + 1):
            if number != resumed:
                training.begin(rounds, number, demonstrations.num)
            training.run(_round_stage(rounds.round(number, demonstrations), of))
    return training.progress, course.lines


def _tell_missed(course: _Course) -> None:
    """Warn where more than a few demonstrations were left out: the clone knows the others alone."""
    if course.missed > _FEW * course.drawn:
        warnings.warn(
            f"{100 * course.missed / course.drawn:.1f} % of the demonstrations did not fit into the context, and were "
            "left out: what is longer than agent.max_context_tokens the clone has not learned",
            stacklevel=3,
        )


def _tell_unmeasured(config: WarmstartConfig) -> None:
    """Warn where ``stop_success`` cannot end the demonstrations."""
    if config.stop_success is not None and config.max_tokens < config.check_every:
        warnings.warn(
            f"warmstart.stop_success={config.stop_success:g} stops nothing: success is measured every "
            f"warmstart.check_every={config.check_every:,} tokens, and the demonstrations end at warmstart.max_tokens="
            f"{config.max_tokens:,}. Lower check_every, or leave stop_success out",
            stacklevel=3,
        )


class _Training:
    """Cloning as it goes, stage after stage."""

    def __init__(
        self,
        cloned: Cloned,
        tokenizer: Any,
        config: WarmstartConfig,
        measure: Measure | None,
        on_progress: OnProgress | None,
        partial: Partial | None,
    ) -> None:
        self.cloned, self.tokenizer, self.config = cloned, tokenizer, config
        self.measure, self.on_progress, self.partial = measure, on_progress, partial
        self.cloner, self.course, self.recent = Cloner(cloned, config), _Course(), NOTHING
        self.progress: Progress
        of = config.takeovers
        self._scale = config.max_tokens or (of.rounds * of.tokens if of else 1)  # tokens

    def take_up(self, rounds: Rounds | None) -> None:
        """Go on from what was saved, if there is anything, and the episodes of the rounds that it knows."""
        found = None if self.partial is None else self.partial.load()
        course = _Course() if found is None else _Course(**found[0]["course"])
        if rounds is not None and not rounds.keep(course.round):
            warnings.warn(f"{rounds.path} is damaged: the warm start begins again", stacklevel=3)
            found, _ = None, rounds.keep(0)
        if found is not None:
            state, tensors = found
            self.course, self.recent = course, Scored.from_lists(state["recent"])
            self.cloner.load(tensors, len(course.lines))

    def begin(self, rounds: Rounds, number: int, demonstrated: int) -> None:
        """Play a round, after so many demonstrations, and save that it has begun."""
        began, course = time.process_time(), self.course
        self.cloned.model.eval()
        rounds.play(number, self.cloned.playing(), self.tokenizer)
        course.cpu_s += time.process_time() - began
        course.round, course.begun, course.drawn, course.demonstrated = number, course.seen, 0, demonstrated
        self.save()

    def save(self) -> None:
        if self.partial is not None:
            self.partial.save({"course": asdict(self.course), "recent": self.recent.as_lists()}, self.cloner.state())

    def run(self, stage: _Stage) -> None:
        """Train until the tokens of a stage are seen; on demonstrations, until ``stop_success`` is reached."""
        course, config, missed = self.course, self.config, 0
        next(islice(stage.rows, course.drawn, course.drawn), None)
        began, before = time.process_time(), course.cpu_s
        self.cloned.model.train()
        while course.seen - course.begun < stage.tokens:
            drawn, rows = course.drawn, self._drawn(stage)
            if not rows:
                if (missed := missed + course.drawn - drawn) >= MISSES:
                    raise ValueError(
                        "nothing that is to be cloned fits into the context: raise agent.max_context_tokens"
                    )
                continue
            missed = 0
            scored = self.cloner.step(rows, stage.rate(1 - (course.seen - course.begun) / stage.tokens))
            smooth = self._count(rows, scored)
            goal = config.stop_success if stage.score is None else None
            if goal is not None:
                self._measure()
            course.cpu_s = before + time.process_time() - began
            self._tell(stage, smooth, scored)
            if goal is not None and course.success is not None and course.success >= goal:
                break
            if self.partial is not None and self.partial.is_due and course.seen - course.begun < stage.tokens:
                self.save()
        self.cloned.model.eval()

    def _drawn(self, stage: _Stage) -> list[CloningRow]:
        """The rows of one step: of so many demonstrations, or of the tokens that are due after it."""
        course, config, source = self.course, self.config, stage.rows
        if config.num_steps is None:
            course.drawn += config.batch_episodes
            found = list(islice(source, config.batch_episodes))
            course.missed += sum(not each for each in found) if stage.score is None else 0
            return [row for each in found for row in each]
        size, done, missed = config.max_tokens / config.num_steps, course.seen - course.begun, 0
        wanted = (done // size + 1) * size - done
        rows: list[CloningRow] = []
        while sum(len(row.ids) for row in rows) < wanted and missed < MISSES:
            made = next(source)
            course.drawn, missed = course.drawn + 1, 0 if made else missed + 1
            course.missed += not made and stage.score is None
            rows += made
        return rows

    def _count(self, rows: Sequence[CloningRow], scored: Scored) -> float:
        """Count the rows of a step that was taken. Returns the smoothed loss."""
        course, num = self.course, sum(len(row.ids) for row in rows)
        kept = math.exp(-num / (_SMOOTH * self._scale))
        self.recent = self.recent.faded(kept) + scored
        course.loss = scored.loss if course.loss is None else kept * course.loss + (1 - kept) * scored.loss
        course.seen += num
        return course.loss

    def _measure(self) -> None:
        """Measure success where it is due."""
        course = self.course
        if self.measure is not None and course.seen - course.checked >= self.config.check_every:
            course.checked = course.seen
            self.cloned.model.eval()
            course.success = self.measure(self.cloned.playing(), self.tokenizer)
            self.cloned.model.train()

    def _tell(self, stage: _Stage, smooth: float, scored: Scored) -> None:
        """Note a step that was taken, and report it."""
        course, kinds = self.course, _by_kind(self.recent)
        total = course.begun + stage.tokens + stage.after
        success = course.success if stage.score is None else None
        self.progress = Progress(course.seen, total, smooth, success, course.cpu_s, kinds, stage.score)
        course.lines.append(_line(self.progress, scored))
        if self.on_progress is not None:
            self.on_progress(self.progress)


def _by_kind(recent: Scored) -> dict[str, KindScore]:
    return {
        kind: KindScore(float(recent.probability[i] / recent.num[i]), float(recent.best[i] / recent.num[i]))
        for i, kind in enumerate(KINDS)
        if recent.num[i]
    }


def _line(progress: Progress, scored: Scored) -> dict[str, Any]:
    """The record of a step: its own loss and scores, not smoothed."""
    kinds = {kind: asdict(score) for kind, score in _by_kind(scored).items()}
    told = {"tokens": progress.tokens, "loss": scored.loss, "kinds": kinds, "cpu_s": round(progress.cpu_s, 2)}
    if progress.success is not None:
        told["success"] = progress.success
    if progress.round is not None:
        told["round"] = asdict(progress.round)
    return told
