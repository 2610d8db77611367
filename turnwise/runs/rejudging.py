"""The rewards of stored episodes, computed again: with other functions, another rubric, another judge.

The run stays as it is. A new file of trajectories can be written, in the same format. Verdicts that the run's folder
holds are not asked for again; new ones are added there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from turnwise.config.files import changed_grading
from turnwise.grading.agreement import Graded, graded
from turnwise.grading.grader import Grader
from turnwise.grading.verdicts import FILE
from turnwise.jsonfile import without_nan
from turnwise.replay.store import TrajectoryWriter
from turnwise.runs.trajectories import Selection, Stored, run_of, select
from turnwise.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class Rejudged:
    """Stored episodes before and after: how many there are, how many are paid otherwise, and mean returns.

    ``failed`` of them could not be graded now, and ``left`` had failed before and were left as they are; neither is in
    the other numbers. ``before`` and ``after`` are None where the world alone pays. ``took`` is what a judge was asked.
    """

    num: int
    changed: int
    failed: int
    left: int
    returns: tuple[float, float]
    before: Graded | None
    after: Graded | None
    first_failure: str = ""
    took: Mapping[str, float] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return dict(without_nan(asdict(self)))


def rejudge(
    target: str | Path,
    changes: Mapping[str, Any],
    *,
    updates: range | None = None,
    out: str | Path | None = None,
    on_episode: Callable[[Trajectory], object] = lambda episode: None,
) -> Rejudged:
    """Grade the stored episodes of a run anew, by its own rewards with ``changes``, and write them to ``out``.

    Raises ValueError where nothing grades, where ``out`` exists, and where no episode is stored.
    """
    run = run_of(target)
    config = changed_grading(run.config().rewards, changes)
    if not config.grades:
        raise ValueError(
            f"{run.path} has no rewards.functions and no rewards.judge: say who grades, with --functions MODULE:NAME, "
            "or with --model openai:MODEL and --rubric FILE"
        )
    if config.ranking is not None:
        raise ValueError(
            "rewards.ranking scores whole groups, which is not computed again: grade without it, with ranking=null"
        )
    if out is not None and Path(out).exists():
        raise ValueError(f"{out} is already there: choose another --out")
    stored = select(target, Selection(updates))
    with closing(Grader(config, run.path / FILE)) as grader, _whole(out) as file:
        pairs = list(_graded(stored, grader, file, on_episode))
        took = grader.take_spent()
    if not pairs:
        raise ValueError(f"{target} has no episodes to grade")
    sound = [pair for pair in pairs if pair.new.end != "error"]
    failed = [pair.new for pair in pairs if pair.new.end == "error" != pair.old.end]
    return Rejudged(
        num=len(sound),
        changed=sum(pair.changed for pair in sound),
        failed=len(failed),
        left=len(pairs) - len(sound) - len(failed),
        returns=(_mean([pair.returns[0] for pair in sound]), _mean([pair.returns[1] for pair in sound])),
        before=graded(pair.old for pair in sound),
        after=graded(pair.new for pair in sound),
        first_failure=failed[0].end_reason if failed else "",
        took=took,
    )


@contextmanager
def _whole(out: str | Path | None) -> Iterator[Path | None]:
    """Where to write: beside ``out``, which takes its name once all of it is there.

    A file that holds some of the episodes would look like one that holds all.
    """
    if out is None:
        yield None
        return
    unfinished = Path(out).with_name(f"{Path(out).name}.tmp")
    try:
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(f"no file can be made at {out} ({error.strerror}): choose another --out") from error
    try:
        yield unfinished
        if unfinished.exists():
            unfinished.replace(out)
    finally:
        unfinished.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class _Pair:
    """An episode as it was graded and as it is now, without its turns; whether a reward changed, and both returns."""

    old: Trajectory
    new: Trajectory
    changed: bool
    returns: tuple[float, float]


def _graded(
    stored: Iterable[Stored], grader: Grader, out: Path | None, on_episode: Callable[[Trajectory], object]
) -> Iterator[_Pair]:
    """Grade the episodes of one update after the other, and write them to ``out``."""
    writer, checked = None, False
    with ThreadPoolExecutor(max(grader.config.threads, 1)) as pool:
        for update, found in groupby(stored, lambda each: each.update):
            olds = [each.trajectory for each in found]
            if not checked:
                grader.check(olds[0].told)
                checked = True
            news = []
            for new in pool.map(grader.grade, [old.ungraded() for old in olds]):
                news.append(new)
                on_episode(new)
            if out is not None:
                writer = writer or TrajectoryWriter(out)
                writer.append(update, news)
            for old, new in zip(olds, news, strict=True):
                returns = (old.total_reward, new.total_reward)
                yield _Pair(replace(old, turns=()), replace(new, turns=()), old.rewards != new.rewards, returns)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan
