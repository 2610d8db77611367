"""An evaluation on disk: what was asked, every episode as it ends, and the reports.

FILE.json holds ``asked``; ``provenance`` (versions, commit, command, date); ``targets`` (who, where, on which panel,
with which seed, and the reports by decoding); and ``pooled``. Where endpoints played it also holds the ``usage`` of
each episode and what was ``spent`` in total.

FILE.trajectories.jsonl.gz holds the episodes, in the format of a run. A part is one target with one decoding; its
number stands where a run has the update.

An interrupted evaluation continues from its episodes. A call that asks something else is refused, with what differs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from turnwise.agents.chat_client import Usage
from turnwise.agents.textplay import Played
from turnwise.evaluation.pooling import Pooled
from turnwise.evaluation.report import Report
from turnwise.jsonfile import without_nan, write_json
from turnwise.models.drawing import other_draw
from turnwise.replay.store import TrajectoryReader, TrajectoryWriter
from turnwise.runs.directory import provenance
from turnwise.runs.lock import locked
from turnwise.trajectory import Task, Trajectory

FORMAT, VERSION = "turnwise-evaluation", 1


@dataclass(frozen=True)
class Measured:
    """One target. ``described`` says who played where, on which panel; ``reports`` are by decoding."""

    described: dict[str, Any]
    reports: dict[str, Report]

    @property
    def target(self) -> str:
        return str(self.described["target"])


@dataclass(frozen=True)
class Evaluation:
    """All targets of one evaluation, and their pool where they are several seeds of one method.

    ``spent`` is what endpoints used in total, unfinished episodes included. ``cost`` is in the currency of the given
    prices, and None without prices. ``refused`` has a message for each report with too many failed episodes.
    ``judged`` is what a judge was asked in total (``Grader.take_spent``).
    """

    asked: dict[str, Any]
    provenance: dict[str, Any]
    targets: tuple[Measured, ...]
    pooled: dict[str, Pooled]
    spent: Usage | None = None
    cost: float | None = None
    refused: tuple[str, ...] = ()
    judged: dict[str, float] | None = None

    def plain(self) -> dict[str, Any]:
        """As JSON values, as the file holds it."""
        content = {
            "format": FORMAT,
            "version": VERSION,
            **{name: value for name, value in asdict(self).items() if name != "targets"},
            "targets": [
                {**measured.described, "reports": {name: asdict(report) for name, report in measured.reports.items()}}
                for measured in self.targets
            ],
        }
        return dict(without_nan(content))


def read_evaluation(path: str | Path) -> Evaluation:
    """Read a finished evaluation. Raises ValueError for a file of another kind, and for an interrupted evaluation."""
    raw = _raw(Path(path))
    if not raw.get("complete"):
        raise ValueError(f"{path} is not finished: the command that made it continues it ({_command(raw)})")
    return _from_plain(Path(path), raw)


class EvaluationFile:
    """The file of an evaluation in progress. It is made new, or continued where it was left.

    It is locked until ``pause``. Raises ValueError where ``path`` is no evaluation, where it was asked something else,
    or where another process has the lock.
    """

    def __init__(self, path: str | Path, asked: Mapping[str, Any]) -> None:
        self.path = Path(path)
        stem = self.path.name.removesuffix(".json")
        self.episodes_path = self.path.with_name(f"{stem}.trajectories.jsonl.gz")
        if not self.path.exists() and self.episodes_path.exists():
            raise ValueError(f"{self.episodes_path} is there without {self.path}: choose another --out, or remove it")
        if not self.path.exists():
            made = {"format": FORMAT, "version": VERSION, "complete": False, "asked": dict(asked)}
            made |= {"provenance": about(), "targets": [], "pooled": {}, "usage": {}, "spent": None, "cost": None}
            try:
                write_json(self.path, made)
            except OSError as error:
                told = f"no file can be made at {self.path} ({error.strerror}): choose another --out"
                raise ValueError(told) from error
        raw = _raw(self.path)
        _same(self.path, raw["asked"], json.loads(json.dumps(asked)))
        self.episodes_path.touch()
        self.verdicts_path = self.path.with_name(f"{stem}.verdicts.jsonl")
        self._lock = ExitStack()
        self._lock.enter_context(
            locked(
                self.episodes_path, f"another process evaluates into {self.path}: wait for it, or choose another --out"
            )
        )
        self._raw = _raw(self.path)
        self._writer = TrajectoryWriter(self.episodes_path)
        self._before = Usage(**(self._raw["spent"] or {}))
        self._spent: Callable[[], Usage] = Usage
        self._judged = Counter[str](self._raw.get("judged") or {})

    @property
    def provenance(self) -> dict[str, Any]:
        return dict(self._raw["provenance"])

    def describe(self, number: int, described: Mapping[str, Any]) -> None:
        """Begin or continue target ``number``. Raises ValueError where the file describes it differently."""
        known, plain = self._raw["targets"], json.loads(json.dumps(described))
        if number < len(known):
            if "draw" in plain and (told := other_draw(known[number].get("draw", 1))):
                raise ValueError(
                    f"{self.path} cannot go on: {told}, and an evaluation keeps to one way (a finished one can still "
                    "be compared): choose another --out"
                )
            _same(self.path, known[number], plain)
        else:
            known.append(plain)
            self._write()

    def meter(self, spent: Callable[[], Usage]) -> None:
        """Take what endpoints have used in this call from ``spent`` from now on."""
        self._spent = spent

    def part(self, number: int, num_seats: int) -> Part:
        """Part ``number`` with the episodes that are stored already. An episode has ``num_seats`` trajectories."""
        episodes: dict[tuple[Task, int], tuple[Trajectory, ...]] = {}
        if self.episodes_path.exists():
            for flush in TrajectoryReader(self.episodes_path).flushes(range(number, number + 1)):
                first = flush.trajectories[0]
                episodes.setdefault((first.task, first.sample), flush.trajectories)
        usage = {name: Usage(**used) for name, used in self._raw["usage"].get(str(number), {}).items()}
        return Part(self, number, num_seats, [t for found in episodes.values() for t in found], usage)

    def append(self, number: int, trajectories: Sequence[Trajectory], usage: Mapping[str, Usage]) -> None:
        """Store one episode. Its usage is written first, so that every stored episode has one."""
        if usage:
            self._raw["usage"][str(number)] = {name: asdict(used) for name, used in usage.items()}
            self._write()
        self._writer.append(number, trajectories)

    def pause(self, judged: Mapping[str, float]) -> None:
        """Write what was spent, and what a judge was asked in this call; give up the lock.

        Call it however the evaluation ends. One that was refused before its first target leaves no file.
        """
        with self._lock:
            self._judged.update(judged)
            if self._spent() != Usage() or judged:
                self._write()
            if not self._raw["targets"]:
                self.path.unlink(missing_ok=True)
                self.episodes_path.unlink(missing_ok=True)

    def spent(self) -> Usage:
        """What endpoints have used in total, earlier calls included."""
        return self._before + self._spent()

    def judged(self) -> dict[str, float]:
        """What a judge was asked in total, earlier calls included; {} without one."""
        return dict(self._judged)

    def finish(self, evaluation: Evaluation) -> None:
        """Write the finished evaluation in place of the one in progress."""
        self._raw = {**evaluation.plain(), "complete": True, "usage": self._raw["usage"]}
        write_json(self.path, self._raw)

    def _write(self) -> None:
        spent = self.spent()
        self._raw["spent"] = None if spent == Usage() else asdict(spent)
        self._raw["judged"] = self.judged() or None
        write_json(self.path, self._raw)


@dataclass
class Part:
    """The episodes of one target with one decoding. ``played`` were stored before; new ones are added as they end."""

    file: EvaluationFile
    number: int
    num_seats: int
    played: list[Trajectory]
    usage: dict[str, Usage]
    _open: dict[tuple[Task, int], list[Trajectory]] = field(default_factory=dict)

    def add_seat(self, trajectory: Trajectory) -> None:
        """Add one seat's trajectory; the episode is stored once all of its seats are there."""
        own = self._open.setdefault((trajectory.task, trajectory.sample), [])
        own.append(trajectory)
        never_began = trajectory.end == "error" and self.num_seats > 1 and not trajectory.player
        if len(own) == self.num_seats or never_began:
            self.file.append(self.number, self._open.pop((trajectory.task, trajectory.sample)), {})

    def add_episode(self, played: Played) -> None:
        """Add a whole episode and store it."""
        if played.usage != Usage():
            self.usage[played.job.episode] = played.usage
        self.file.append(self.number, played.trajectories, self.usage)


def about() -> dict[str, Any]:
    """Where numbers come from: versions, platform, commit, command, date."""
    return {**provenance(), "date": datetime.now(UTC).isoformat(timespec="seconds")}


def _raw(path: Path) -> dict[str, Any]:
    try:
        raw: dict[str, Any] = json.loads(path.read_text())
        kind = (raw["format"], raw["version"])
        _ = raw["asked"], raw["targets"], raw["provenance"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f"{path} is no evaluation ({type(error).__name__}: {error}): expected a file of `turnwise evaluate --out`"
        ) from None
    if kind != (FORMAT, VERSION):
        raise ValueError(f"{path}: expected {FORMAT} version {VERSION}; got {kind[0]} version {kind[1]}")
    return raw


def _from_plain(path: Path, raw: Mapping[str, Any]) -> Evaluation:
    try:
        targets = [
            Measured(
                {name: value for name, value in target.items() if name != "reports"},
                {name: Report.from_plain(report) for name, report in target["reports"].items()},
            )
            for target in raw["targets"]
        ]
        pooled = {name: Pooled.from_plain(found) for name, found in raw["pooled"].items()}
        spent, refused = Usage(**raw["spent"]) if raw["spent"] else None, tuple(raw.get("refused", ()))
        return Evaluation(
            raw["asked"], raw["provenance"], tuple(targets), pooled, spent, raw["cost"], refused, raw.get("judged")
        )
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not of this version of turnwise ({error!r}): measure again") from None


def _same(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise ValueError, with what differs, unless both are the same."""
    a, b = ({name: v for name, v in flat(given).items() if not name.startswith("reports.")} for given in (before, now))
    differing = [name for name in dict.fromkeys([*a, *b]) if a.get(name) != b.get(name)]
    if differing:
        told = "; ".join(f"{name}: {a.get(name)} there, {b.get(name)} now" for name in differing[:4])
        raise ValueError(f"{path} holds another evaluation ({told}): choose another --out")


def flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as a single one with dotted names."""
    found: dict[str, Any] = {}
    for key, value in section.items():
        found.update(flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return found


def _command(raw: Mapping[str, Any]) -> str:
    return str(raw["provenance"].get("command", "unknown command"))
