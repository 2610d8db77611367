"""The stored episodes of a run, and how to select some of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from turnwise.errors import unknown
from turnwise.replay.store import TrajectoryReader
from turnwise.runs.directory import RunDirectory
from turnwise.trajectory import End, Trajectory

_NO_END = 1 << 62  # more updates than any run has

SUCCESSES: dict[str, bool | None] = {"yes": True, "no": False, "unknown": None}


@dataclass(frozen=True, slots=True)
class Stored:
    """A stored trajectory and the update that it was collected in."""

    update: int
    trajectory: Trajectory


@dataclass(frozen=True, slots=True)
class Selection:
    """Which trajectories to take; a field that is None or ``""`` leaves nothing out.

    ``task`` is an index in its split or a content key, ``success`` one of ``SUCCESSES``, ``returns`` the lowest and the
    highest total reward, ``text`` a string in an observation, a reply or an action, in any case of letters.
    """

    updates: range | None = None
    episode: str = ""
    task: str = ""
    type: str = ""
    split: str = ""
    success: str = ""
    returns: tuple[float | None, float | None] = (None, None)
    end: str = ""
    player: str = ""
    text: str = ""

    def __post_init__(self) -> None:
        if self.success and self.success not in SUCCESSES:
            raise unknown("success", self.success, SUCCESSES)
        if self.end and self.end not in get_args(End):
            raise unknown("end", self.end, get_args(End))
        low, high = self.returns
        if low is not None and high is not None and low > high:
            raise ValueError(f"no return is at least {low:g} and at most {high:g}: --min-return is above --max-return")

    def keeps(self, trajectory: Trajectory) -> bool:
        """Whether a trajectory of one of ``updates`` is selected."""
        low, high = self.returns
        return (
            all(not wanted or wanted in had for wanted, had in self._words(trajectory))
            and (not self.success or trajectory.success is SUCCESSES[self.success])
            and (low is None or trajectory.total_reward >= low)
            and (high is None or trajectory.total_reward <= high)
            and (not self.text or _mentions(trajectory, self.text.lower()))
        )

    def _words(self, trajectory: Trajectory) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Pairs of a word of the selection and the words of the trajectory that match it."""
        task = trajectory.task
        return (
            (self.episode, (trajectory.episode, episode_of(trajectory))),
            (self.task, (str(task.index), task.key)),
            (self.type, (task.type,)),
            (self.split, (task.split,)),
            (self.end, (trajectory.end,)),
            (self.player, (trajectory.player,)),
        )


def episode_of(trajectory: Trajectory) -> str:
    """Name of the episode: the trajectory's name without the player, which the seats of a game share."""
    return trajectory.episode.removesuffix(f"-{trajectory.player}") if trajectory.player else trajectory.episode


def _mentions(trajectory: Trajectory, text: str) -> bool:
    return any(
        text in part.lower() for turn in trajectory.turns for part in (turn.observation, turn.reply, turn.action)
    )


def parse_updates(given: str) -> range | None:
    """``"7"``, ``"10:20"`` (20 is left out), ``"10:"``, ``":20"``, or ``""`` for None. Raises ValueError otherwise."""
    if not given:
        return None
    first, colon, end = given.partition(":")
    try:
        start = int(first) if first else 0
        stop = (int(end) if end else _NO_END) if colon else start + 1
    except ValueError:
        start = stop = -1
    if not 0 <= start < stop:
        raise ValueError(f"--updates {given!r}: expected one number, or first:end as in 10:20, 10: or :20")
    return range(start, stop)


def trajectory_file(target: str | Path) -> Path:
    """The trajectory file of a run; ``target`` may be that file itself. Raises ValueError where there is none."""
    path = Path(target)
    found = path if path.is_file() else RunDirectory.open(path).trajectories_path
    if not found.is_file():
        raise ValueError(f"{target} has no trajectories yet: {found.name} is written with the first update")
    return found


def updates_of(target: str | Path) -> list[int]:
    """The updates of which a run has stored episodes. Raises ValueError where there is no trajectory file."""
    return TrajectoryReader(trajectory_file(target)).updates()


def run_of(target: str | Path) -> RunDirectory:
    """The run at ``target``, or the run of a trajectory file. Raises ValueError where there is none."""
    path = Path(target)
    return RunDirectory.open(path.parent if path.is_file() else path)


def select(target: str | Path, selection: Selection) -> Iterator[Stored]:
    """The stored trajectories that are selected, in the order of the file.

    Raises ValueError where ``target`` is no run or its file is damaged. Also raises it where nothing is found because
    no trajectory has the selected update, task, type, split or player; the message names the nearest one, the updates
    that there are, or some tasks.
    """
    seen: dict[str, set[str]] = {name: set() for name in ("type", "split", "player")}
    tasks: dict[str, str] = {}
    """Index -> key, of those met."""
    found = 0
    if selection.updates is not None:
        _check_updates(target, updates_of(target), selection.updates)
    for flush in TrajectoryReader(trajectory_file(target)).flushes(selection.updates, selection.episode):
        for trajectory in flush.trajectories:
            tasks[str(trajectory.task.index)] = trajectory.task.key
            for name, names in seen.items():
                names.add(trajectory.player if name == "player" else getattr(trajectory.task, name))
            if selection.keeps(trajectory):
                found += 1
                yield Stored(flush.update, trajectory)
    for name, names in seen.items():
        if not found and names and (wanted := getattr(selection, name)) and wanted not in names:
            raise unknown(name, wanted, sorted(names - {""}), str(target))
    if not found and tasks and selection.task and selection.task not in {*tasks, *tasks.values()}:
        some = ", ".join(sorted(tasks, key=int)[:8])
        more = f" and {len(tasks) - 8:,} others" if len(tasks) > 8 else ""
        raise ValueError(f"{target} has no episode of task {selection.task!r}. It has episodes of: {some}{more}.")


def _check_updates(target: str | Path, there: Sequence[int], wanted: range) -> None:
    """Raise ValueError where none of the wanted updates is there."""
    if not there or any(update in wanted for update in there):
        return
    last = wanted.stop if wanted.stop < _NO_END else ""
    told = f"{wanted.start}" if wanted.stop == wanted.start + 1 else f"{wanted.start}:{last}"
    raise ValueError(f"{target} has no episodes of updates {told}: it has those of {min(there)} to {max(there)}")


def find(target: str | Path, episode: str) -> list[Stored]:
    """The trajectories of one episode, one for each stored seat. Raises ValueError where there is none."""
    found = list(select(target, Selection(episode=episode)))
    if not found:
        first = next(select(target, Selection()), None)
        example = f", such as {first.trajectory.episode}" if first else ""
        raise ValueError(f"no episode {episode!r} in {target}: `turnwise trajectories {target}` lists them{example}")
    return found
