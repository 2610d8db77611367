"""The watchdog looks at the record of every update for signs that a run is going wrong.

``signs`` measures on the episodes what the metrics do not say; its numbers are part of the record. The checks
(``checks.py``) are functions of the records so far and of nothing else, so a resumed run, which reads them from
metrics.jsonl, raises the same events as an unbroken one. A check that has fired stays silent until its value has gone
well back below the threshold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from turnwise.errors import StoppedRunError
from turnwise.monitoring.checks import CHECKS, History, Record
from turnwise.monitoring.record import mean_of
from turnwise.monitoring.settings import Action, WatchdogConfig
from turnwise.trajectory import Group, Trajectory, counted

_REARM = 0.8  # a check fires again once its value has been below this share of the threshold


class UnhealthyRunError(StoppedRunError):
    """The watchdog ended the run; its last checkpoint and its record are complete."""

    exit_code = 3


@dataclass(frozen=True, slots=True)
class Event:
    """A check that has just fired. ``level`` says what follows; ``value`` and ``threshold`` are in the check's unit."""

    name: str
    level: Action
    diagnosis: str
    advice: str
    value: float
    threshold: float


def signs(groups: Sequence[Group], max_reply_tokens: int) -> dict[str, float | None]:
    """Numbers of an update's episodes that the checks need and the metrics do not have; shares are in [0, 1].

    They are of the episodes that the other means are of; None where there is nothing to count. ``uniform_share`` counts
    groups whose episodes were all rewarded alike, among the groups with two sound episodes or more. Two states are the
    same where their anchors are, or without anchors the texts of their observations.
    """
    every = [t for group in groups for t in group.trajectories]
    played = [every[n] for n in counted(every)]
    turns = [turn for t in played for turn in t.turns]
    lengths = [len(turn.action_ids) for turn in turns]
    alike = [
        len({t.total_reward for t in sound}) == 1
        for group in groups
        if len(sound := [t for t in group.trajectories if t.end != "error" and t.sample >= 0]) > 1
    ]
    return {
        "reply_tokens": mean_of(lengths),
        "cut_share": mean_of([length >= max_reply_tokens for length in lengths]),
        "repeated_share": sum(map(_repeats, played)) / len(turns) if turns else None,
        "context_share": mean_of([t.end_reason == "context" for t in played]),
        "uniform_share": mean_of(alike),
    }


def _repeats(trajectory: Trajectory) -> int:
    """How many turns have the state and the action of the turn before."""
    seen = [(turn.anchor or turn.observation, turn.action) for turn in trajectory.turns]
    return sum(a == b for a, b in pairwise(seen))


class Watchdog:
    """Checks the record of every update. ``records`` are those of the updates that a resumed run has done already."""

    def __init__(self, config: WatchdogConfig, records: Iterable[Record] = ()) -> None:
        self.config = config
        self.firing: set[str] = set()
        self._histories: dict[str, list[Record]] = {}
        for record in records:
            self.watch(record)

    def watch(self, record: Record) -> list[dict[str, Any]]:
        """The events of an update as JSON values. With several sides an event's name begins with its side's name."""
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
    """Raise UnhealthyRunError for the first event whose level is ``stop``, if there is one."""
    for event in events:
        if event["level"] == "stop":
            raise UnhealthyRunError(
                f"the watchdog stopped the run after update {update + 1}, with a checkpoint: {event['name']}, "
                f"{event['diagnosis']} (threshold {event['threshold']:g}). {event['advice']}. "
                "`turnwise train --resume` goes on all the same"
            )


def _views(record: Record) -> dict[str, Record]:
    """A record for each policy, by its prefix. A run with one policy has one, under ``""``."""
    sides = [name.removesuffix("grad_norm") for name in record if name.endswith("/grad_norm")]
    if not sides:
        return {"": record}
    return {
        side: {**record, **{k.removeprefix(side): v for k, v in record.items() if k.startswith(side)}} for side in sides
    }
