"""What a controller and its shards say to each other: plain data, which can be pickled and said again.

A session is the episodes of one update, or of one measurement. Its messages, in this order:

    hold       a side's weights, where they have changed          -> the hash of what the shard now plays with
    begin      a session                                          -> by side, the hash and what is wrong with it
    go         commands, and whether it is the only shard         -> a ``Batch``; again and again

What a shard answers depends on the messages since ``hold`` and on nothing else. So a shard that was lost is made again
by saying them to a new one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from turnwise.agents.jobs import Job
from turnwise.agents.playing import Event
from turnwise.models.drawing import Sampling


@dataclass(frozen=True, slots=True)
class Session:
    """``use`` names the collector that plays: against whom. ``key`` is that of its jobs."""

    use: str
    key: int
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Start:
    """Queue a job as rollout ``number``."""

    number: int
    job: Job


@dataclass(frozen=True, slots=True)
class ForkFrom:
    """Queue a copy of rollout ``parent`` as it was after ``turn`` turns, and ``tokens`` of the next one's reply.

    Where the parent's world has failed meanwhile, ``instead`` is played in the place of a copy that cannot be made.
    """

    number: int
    parent: int
    turn: int
    instead: Job
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Stop:
    """Abandon a rollout."""

    number: int


Command = Start | ForkFrom | Stop


@dataclass(frozen=True, slots=True)
class Batch:
    """What happened in a shard since the last batch.

    ``busy``: there is more to come without new commands. ``failures`` of environments, ``numbers`` to be recorded, and
    seconds and tokens by stage (turnwise.clock) are of this batch too.
    """

    events: tuple[Event, ...]
    busy: bool
    failures: int
    numbers: Mapping[str, float]
    seconds: Mapping[str, float]
    tokens: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Described:
    """What a shard was made of: turnwise's version, and by side the hash of the weights that it loaded by itself.

    ``seconds`` are those of the models that draw tokens beside the policies, where there are any. ``opponents`` are
    those of the models that fill other seats, by use and role; None where they were not loaded.
    """

    turnwise: str
    weights: Mapping[str, str]
    seconds: Mapping[str, str] = field(default_factory=dict)
    opponents: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Link:
    """The hash of the weights that a side of a shard plays with, and what is wrong with them (training/proof.py)."""

    hash: str
    broken: str | None = None
