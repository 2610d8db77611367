"""The watchdog: signs that a run is going wrong, read off its own record after every update.

``signs`` measures on the episodes what the metrics do not say, and its numbers go into the record. The checks are pure
functions of the records so far, so that a resumed run, which has them from metrics.jsonl, sees what an unbroken one
does. A check that has fired stays silent until its value has gone well back below the threshold.

Levels are means over the last ``window`` updates; changes are against the mean of the run's first ``window`` updates,
in which nothing fires that is a change. docs/watchdog.md lists the checks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from turnwise.errors import StoppedRunError, unknown
from turnwise.trajectory import Group, Trajectory

Action = Literal["warn", "stop"]
Record = Mapping[str, Any]
History = Sequence[Record]

_REARM = 0.8  # a check fires again once its value has been below this share of the threshold
_FAINT_ENTROPY = 0.1  # nats: a start below it counts as this much, so that growth from nothing is no explosion
_FAINT_DRIFT = 1e-6  # nats: rounding in float32
_PLACES = 10  # updates that a trend (reward hacking) or a usual size (gradient norms) is taken over


class UnhealthyRunError(StoppedRunError):
    """The watchdog ended the run; its last checkpoint and its record are complete."""

    exit_code = 3


class WatchdogConfig(BaseModel):
    """Signs that training goes wrong. Each check has a threshold (null: off); what they mean: docs/watchdog.md."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    action: Action = Field("warn", description="what a check that fires does: warn, or stop the run with a checkpoint")
    actions: dict[str, Action] = Field(
        default_factory=dict, description="for single checks, such as {kl_behaviour: stop}"
    )
    window: int = Field(5, ge=1, description="updates that levels are averaged over, and that make the run's start")
    entropy_collapse: float | None = Field(0.1, gt=0, lt=1, description="entropy below this share of the start's")
    entropy_explosion: float | None = Field(3.0, gt=1, description="entropy above this multiple of the start's")
    entropy_noise: float | None = Field(4.0, gt=0, description="entropy in nats per token; uniform over 55 tokens: 4")
    uniform_groups: float | None = Field(0.9, gt=0, lt=1, description="share of groups that were rewarded alike")
    repeated_actions: float | None = Field(
        0.35, gt=0, lt=1, description="share of turns that repeat the last action in the same state"
    )
    invalid_actions: float | None = Field(0.9, gt=0, lt=1, description="share of turns with an invalid action")
    invalid_rise: float | None = Field(0.2, gt=0, lt=1, description="rise of that share since the start")
    kl_behaviour: float | None = Field(
        0.1, gt=0, description="nats per token between the learner in its update and the sampler"
    )
    kl_reference: float | None = Field(1.0, gt=0, description="nats per token from the frozen reference")
    clip_share: float | None = Field(0.5, gt=0, lt=1, description="share of action tokens that the clip decides")
    reply_drift: float | None = Field(2.0, gt=1, description="factor by which replies grow or shrink, without success")
    turns_drift: float | None = Field(2.0, gt=1, description="factor by which episodes grow or shrink, without success")
    reward_hacking: float | None = Field(
        4.0, gt=0, description="rise of the shaped return in standard errors, while success does not rise"
    )
    grad_spike: float | None = Field(20.0, gt=1, description="gradient norm as a multiple of the recent median")
    skipped_steps: float | None = Field(0.0, ge=0, lt=1, description="share of optimizer steps that were skipped")
    sampler_drift: float | None = Field(
        10.0, gt=1, description="growth of the distance between sampler and learner on the same tokens"
    )
    cut_replies: float | None = Field(0.2, gt=0, lt=1, description="share of replies that reach agent.max_reply_tokens")
    full_contexts: float | None = Field(0.2, gt=0, lt=1, description="share of episodes ended by a full context")

    @field_validator("actions")
    @classmethod
    def _known(cls, actions: dict[str, Action]) -> dict[str, Action]:
        for name in actions:
            if name not in CHECKS:
                raise unknown("check", name, CHECKS, "watchdog.actions")
        return actions


@dataclass(frozen=True, slots=True)
class Event:
    """A check that has just fired. ``level`` is what follows from it; value and threshold are in the check's unit."""

    name: str
    level: Action
    diagnosis: str
    advice: str
    value: float
    threshold: float


@dataclass(frozen=True, slots=True)
class Check:
    """``measure`` gives the value from the records so far and the window, or None where there is nothing to say.

    ``diagnosis`` is formatted with ``value``. ``below`` fires under the threshold instead of over it.
    """

    measure: Callable[[History, int], float | None]
    diagnosis: str
    advice: str
    below: bool = False

    def severity(self, value: float, threshold: float) -> float:
        """1 at the threshold, more beyond it."""
        above, limit = (threshold, value) if self.below else (value, threshold)
        if above <= 0:
            return 0.0
        return above / limit if limit > 0 else math.inf


def signs(groups: Sequence[Group], max_reply_tokens: int) -> dict[str, float]:
    """What the checks need to know of an update's episodes beside its metrics; shares in [0, 1].

    ``uniform_share`` is of the groups with two sound episodes or more; a state is known by its anchor, else by the
    observation's text.
    """
    played = [t for group in groups for t in group.trajectories if t.end != "error" and t.sample >= 0]
    turns = [turn for t in played for turn in t.turns]
    lengths = [len(turn.action_ids) for turn in turns]
    alike = [
        len({t.total_reward for t in sound}) == 1
        for group in groups
        if len(sound := [t for t in group.trajectories if t.end != "error" and t.sample >= 0]) > 1
    ]
    return {
        "reply_tokens": _mean(lengths),
        "cut_share": _mean([length >= max_reply_tokens for length in lengths]),
        "repeated_share": sum(map(_repeats, played)) / max(len(turns), 1),
        "context_share": _mean([t.end_reason == "context" for t in played]),
        "uniform_share": _mean(alike),
    }


def _repeats(trajectory: Trajectory) -> int:
    """Turns whose state and action are those of the turn before."""
    seen = [(turn.anchor or turn.observation, turn.action) for turn in trajectory.turns]
    return sum(a == b for a, b in pairwise(seen))


class Watchdog:
    """Hears the record of every update; ``records`` are those of the updates before."""

    def __init__(self, config: WatchdogConfig, records: Iterable[Record] = ()) -> None:
        self.config = config
        self.firing: set[str] = set()
        self._histories: dict[str, list[Record]] = {}
        for record in records:
            self.watch(record)

    def watch(self, record: Record) -> list[dict[str, Any]]:
        """The events of an update, JSON-able; those of one policy among several have its name in front."""
        events = []
        for side, view in _views(record).items():
            history = self._histories.setdefault(side, [])
            history.append(view)
            events += [asdict(event) for name in CHECKS if (event := self._event(name, side, history)) is not None]
        return events

    def _event(self, name: str, side: str, history: History) -> Event | None:
        check, threshold = CHECKS[name], getattr(self.config, name)
        value = None if threshold is None else check.measure(history, self.config.window)
        if value is None:
            return None
        full, severity = side + name, check.severity(value, threshold)
        if severity <= _REARM:
            self.firing.discard(full)
        if severity <= 1.0 or full in self.firing:
            return None
        self.firing.add(full)
        level = self.config.actions.get(name, self.config.action)
        return Event(full, level, check.diagnosis.format(value=value), check.advice, value, threshold)


def stop_where_asked(events: Iterable[Mapping[str, Any]], update: int) -> None:
    """Raises UnhealthyRunError that names the first event whose level is ``stop``."""
    for event in events:
        if event["level"] == "stop":
            raise UnhealthyRunError(
                f"the watchdog stopped the run after update {update + 1}, with a checkpoint: {event['name']}, "
                f"{event['diagnosis']} (threshold {event['threshold']:g}). {event['advice']}. "
                "`turnwise train --resume` goes on all the same"
            )


def _views(record: Record) -> dict[str, Record]:
    """The record of each policy by its prefix: one, or those of a game's sides."""
    sides = [name.removesuffix("grad_norm") for name in record if name.endswith("/grad_norm")]
    if not sides:
        return {"": record}
    return {
        side: {**record, **{k.removeprefix(side): v for k, v in record.items() if k.startswith(side)}} for side in sides
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else 0.0


def _known(history: History, name: str) -> list[float]:
    return [float(line[name]) for line in history if line.get(name) is not None]


def _late(history: History, name: str, window: int) -> float | None:
    """Mean over the last updates; None before there are enough of them."""
    values = _known(history[-window:], name)
    return _mean(values) if len(values) == window else None


def _start(history: History, name: str, window: int) -> float | None:
    """Mean over the run's first updates; None while these are not over."""
    values = _known(history[:window], name)
    return _mean(values) if len(values) == window < len(history) else None


def _level(name: str) -> Callable[[History, int], float | None]:
    return lambda history, window: _late(history, name, window)


def _rise(name: str) -> Callable[[History, int], float | None]:
    def measure(history: History, window: int) -> float | None:
        late, start = _late(history, name, window), _start(history, name, window)
        return None if late is None or start is None else late - start

    return measure


def _growth(name: str, floor: float = 1e-12) -> Callable[[History, int], float | None]:
    """Last over first; a start below ``floor`` counts as ``floor``."""

    def measure(history: History, window: int) -> float | None:
        late, start = _late(history, name, window), _start(history, name, window)
        return None if late is None or start is None else late / max(start, floor)

    return measure


def _drift(name: str) -> Callable[[History, int], float | None]:
    """How many times longer or shorter, 1 where success has risen: then it is what the agent has learned."""

    def measure(history: History, window: int) -> float | None:
        factor, gain = _growth(name)(history, window), _rise(_goal(history))(history, window)
        if factor is None or gain is None:
            return None
        return 1.0 if gain > 0 else max(factor, 1.0 / max(factor, 1e-12))

    return measure


def _goal(history: History) -> str:
    """What the run is for: success, or the raw reward where a world does not say what that is."""
    return "reward" if history[-1].get("success") is None else "success"


def _hacking(history: History, window: int) -> float | None:
    """Rise of the shaped return in standard errors; 0 where success (or the raw reward) rises as well."""
    if len(history) < 2 * _PLACES:
        return None
    first, last = (_known(part, "return_mean") for part in (history[:_PLACES], history[-_PLACES:]))
    gain = _rise(_goal(history))(history, _PLACES)
    if gain is None or len(first) < _PLACES or len(last) < _PLACES:
        return None
    error = math.sqrt((np.var(first, ddof=1) + np.var(last, ddof=1)) / _PLACES)
    rise = _mean(last) - _mean(first)
    return 0.0 if gain > 0 else rise / max(error, 1e-3 * abs(_mean(first)), 1e-9)


def _spike(history: History, window: int) -> float | None:
    """This update's gradient norm over the median of those before."""
    before = _known(history[-_PLACES - 1 : -1], "grad_norm")
    now = history[-1].get("grad_norm")
    median = float(np.median(before)) if len(before) == _PLACES else 0.0
    return None if now is None or median <= 0 else float(now) / median


def _skipped(history: History, window: int) -> float | None:
    skipped, done = (sum(_known(history[-window:], name)) for name in ("skipped_steps", "optimizer_steps"))
    return skipped / (skipped + done) if skipped + done else None


CHECKS: dict[str, Check] = {
    "entropy_collapse": Check(
        _growth("entropy"),
        "entropy has fallen to {value:.0%} of what it was at the start: the replies hardly vary",
        "Raise the entropy (algorithm epo, a higher entropy_coef or clip_high), or lower optimizer.lr; ignore it where "
        "the tasks are solved",
        below=True,
    ),
    "entropy_explosion": Check(
        _growth("entropy", _FAINT_ENTROPY),
        "entropy is {value:.1f} times what it was at the start: the policy is losing its language",
        "Lower entropy_coef or optimizer.lr, or hold the policy with kl_coef",
    ),
    "entropy_noise": Check(
        _level("entropy"),
        "entropy is {value:.1f} nats a token: the replies are close to random tokens",
        "Start from a better model or a longer warm start, and lower entropy_coef, optimizer.lr or rollout.temperature",
    ),
    "uniform_groups": Check(
        _level("uniform_share"),
        "{value:.0%} of the groups were rewarded alike: there is little left to compare",
        "Take harder tasks where they are all won and easier ones (or a longer warm start) where they are all lost, "
        "raise rollout.group_size, or use algorithm dapo, which replaces such groups",
    ),
    "repeated_actions": Check(
        _level("repeated_share"),
        "{value:.0%} of the turns repeat the last action in the same state: the agent is stuck",
        "Raise rollout.temperature or entropy_coef, and look whether the observation tells that an action failed",
    ),
    "invalid_actions": Check(
        _level("invalid_share"),
        "{value:.0%} of the actions are invalid: the agent does not speak the world's language",
        "Set agent.show_admissible or agent.instructions, look at agent.action_format, or warm-start for longer",
    ),
    "invalid_rise": Check(
        _rise("invalid_share"),
        "invalid actions have become more frequent by {value:.0%} of the turns since the start",
        "Raise rewards.invalid_action_penalty, or lower optimizer.lr or entropy_coef",
    ),
    "kl_behaviour": Check(
        _level("kl_behaviour"),
        "the policy moves {value:.3f} nats a token within an update: the samples soon describe another policy",
        "Lower optimizer.lr, optimizer.epochs or optimizer.num_minibatches",
    ),
    "kl_reference": Check(
        _level("kl_reference"),
        "the policy is {value:.2f} nats a token away from the reference",
        "Raise kl_coef or lower optimizer.lr, if staying near the first model matters",
    ),
    "clip_share": Check(
        _level("clip_share"),
        "the clip decides on {value:.0%} of the tokens: most of the gradient is thrown away",
        "Lower optimizer.lr, optimizer.epochs or optimizer.num_minibatches, or widen the clip (algorithm gspo clips "
        "much by design)",
    ),
    "reply_drift": Check(
        _drift("reply_tokens"),
        "replies are {value:.1f} times longer or shorter than at the start, and success has not risen",
        "Read some replies; use an aggregation without length bias (algorithm drgrpo) or dapo's overlong penalty",
    ),
    "turns_drift": Check(
        _drift("turns"),
        "episodes are {value:.1f} times longer or shorter than at the start, and success has not risen",
        "Read some episodes: longer ones may be waiting for the step limit, shorter ones giving up",
    ),
    "reward_hacking": Check(
        _hacking,
        "the shaped return has risen by {value:.1f} standard errors while success has not: the agent may be earning "
        "what it is not paid for",
        "Read the best-paid episodes that failed, and lower the shaping terms (penalties and bonuses)",
    ),
    "grad_spike": Check(
        _spike,
        "the gradient norm is {value:.0f} times its recent median",
        "Once is harmless under optimizer.grad_clip; if it goes on, lower optimizer.lr",
    ),
    "skipped_steps": Check(
        _skipped,
        "{value:.0%} of the last optimizer steps had a gradient that was not finite and were skipped",
        "Lower optimizer.lr; look for extreme rewards, and for overflow in half precision",
    ),
    "sampler_drift": Check(
        _growth("agreement/mean_abs", _FAINT_DRIFT),
        "sampler and learner differ {value:.0f} times as much on the same tokens as at the start",
        "Growing weights amplify rounding: lower optimizer.lr, or use model.dtype=float32",
    ),
    "cut_replies": Check(
        _level("cut_share"),
        "{value:.0%} of the replies were cut at agent.max_reply_tokens",
        "Raise agent.max_reply_tokens, or punish length (dapo's overlong penalty)",
    ),
    "full_contexts": Check(
        _level("context_share"),
        "{value:.0%} of the episodes ended because the context was full",
        "Raise agent.max_context_tokens, or use agent.context=window or agent.on_overflow=restart",
    ),
}
