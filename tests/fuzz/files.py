"""Trajectory files after accidents, and files that are something else."""

from __future__ import annotations

import gzip
import json
import random
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from rich.console import Console

from tests.fuzz.harness import clear
from tests.fuzz.texts import damaged, text, value
from tests.stored import HOUSE, collector_of, run_config
from turnwise.agents.jobs import jobs_for
from turnwise.envs.tasks import panel
from turnwise.models.engine import Sampling
from turnwise.replay.codec import to_record
from turnwise.replay.store import FORMAT, TrajectoryReader, TrajectoryWriter, truncate_after
from turnwise.runs.exporting import trajectory_row
from turnwise.runs.trajectories import Stored
from turnwise.runs.trajectory_tables import Listing, episode_page
from turnwise.trajectory import Trajectory


def trajectory_file(rng: random.Random, folder: Path) -> str:
    """Damaged at random, or a sound gzip file with a changed record or header: read, shown, then written to."""
    path = folder / "trajectories.jsonl.gz"
    content, sound = _file()
    honest = rng.random() < 0.6
    path.write_bytes(damaged(rng, content) if honest else gzip.compress(_rewritten(rng)))
    ending = _read(path, sound if honest else None)
    return ending if rng.random() < 0.5 else f"{ending}; {_written(rng, path)}"


def _read(path: Path, sound: list[str] | None) -> str:
    """Whatever is read of a damaged file is what was written; of a forged one it can at least be shown."""
    found: list[Trajectory] = []
    try:
        for flush in TrajectoryReader(path).flushes():
            found += flush.trajectories
            for trajectory in flush.trajectories:
                stored = Stored(flush.update, trajectory)
                json.dumps(trajectory_row(stored), allow_nan=False)
                console = Console(width=100, file=(path.parent / "shown").open("w", encoding="utf-8"))
                console.print(Listing.of([stored], 0).table(), episode_page([stored]))
    except ValueError as error:
        ending = "read: " + clear(str(error))
    else:
        ending = "read" if found else "read: nothing in it"
    if sound is not None:
        assert all(json.dumps(to_record(t)) in sound for t in found), "something else than was written was read"
    return ending


def _written(rng: random.Random, path: Path) -> str:
    try:
        truncate_after(path, rng.randrange(4))
        TrajectoryWriter(path).append(9, [])
    except ValueError as error:
        return "written: " + clear(str(error))
    assert [flush.update for flush in TrajectoryReader(path).flushes(range(9, 10))] == [9]
    return "written"


def _rewritten(rng: random.Random) -> bytes:
    if rng.random() < 0.1:
        return text(rng).encode(errors="surrogatepass")
    header: Any = {"format": FORMAT, "version": 1, "update": 0, "num": 1}
    record: Any = json.loads(rng.choice(_file()[1]))
    changed = rng.choice([header, record, record["task"], *record["turns"][:2]])
    key = rng.choice(list(changed))
    if rng.random() < 0.15:
        del changed[key]
    else:
        changed[rng.choice([key, key, "more"])] = rng.choice([value(rng), text(rng)])
    lines = [json.dumps(line) for line in rng.choice([[header, record], [record], [header, record, record], [header]])]
    return "".join(line + "\n" for line in lines).encode()


@cache
def _file() -> tuple[bytes, list[str]]:
    """A small file of two updates, and its records as JSON."""
    config = run_config(HOUSE, {"kwargs": {"step_limit": 2}})
    collector, tasks = collector_of(config), panel(config.env.make(), "train")
    path = Path(tempfile.mkdtemp(prefix="fuzz")) / "trajectories.jsonl.gz"
    writer = TrajectoryWriter(path)
    for update in range(2):
        writer.append(update, collector.collect(jobs_for([tasks[update]], 2, update), Sampling(max_tokens=4)))
    return path.read_bytes(), [json.dumps(to_record(t)) for t in TrajectoryReader(path)]
