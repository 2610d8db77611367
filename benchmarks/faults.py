"""Kill training at random instants, resume it, and hold what comes out against the run that was not killed.

    python benchmarks/faults.py kill --points 25 --out runs/kills

Real ``turnwise train`` processes of a tiny configuration, several algorithms in turn. A *time* is a SIGKILL at a random
moment of the run. A *write* is a SIGKILL at a random one of the system calls that change the disk, in half of the cases
after cutting what is just being written in half. *cloning* is one during a warm start that nothing is cached of.
What is compared: every line of the metrics, every episode, the checkpoint's state, and the hash of its tensors.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from turnwise.replay.codec import to_record
from turnwise.replay.store import TrajectoryReader
from turnwise.runs.directory import RunDirectory

ALGORITHMS = {
    "epo": "{type: epo, base: {type: grpo, drop_uniform_groups: false}}",
    "spear": "{type: spear}",
    "aepo + spear + epo": "{type: aepo, base: {type: spear, base: {type: epo}}}",
    "ppo": "{type: ppo}",
}
SETTINGS = [
    "model.hidden_size=32",
    "model.head_dim=16",
    "model.ffn_size=48",
    "warmstart.max_tokens=20000",
    "warmstart.tokenizer_episodes=40",
    "agent.max_reply_tokens=8",
    "rollout.num_tasks=2",
    "rollout.group_size=4",
    "eval.every=2",
    "eval.tasks=4",
    "eval.test_tasks=4",
    "num_updates=5",
    "checkpoint_every=1",
]
CALLS = ("fsync", "rename", "replace", "mkdir", "rmdir", "unlink", "truncate")


@dataclass(frozen=True, slots=True)
class Point:
    """One kill: what was on the disk after it, and whether the resumed run is the unbroken one."""

    algorithm: str
    kind: str
    instant: str
    logged: int  # lines in metrics.jsonl
    checkpoint: int | None  # newest sound one
    same: bool
    difference: str  # what is not the same, "" if nothing


class Bench:
    """Runs in ``out``; ``seed`` decides the instants."""

    def __init__(self, out: Path, seed: int) -> None:
        self.out, self.random = out, random.Random(seed)
        self.environment = {**os.environ, "TURNWISE_CACHE": str(out / "cache"), "OMP_WAIT_POLICY": "PASSIVE"}
        out.mkdir(parents=True, exist_ok=True)
        self._whole: dict[str, tuple[Path, float, int]] = {}

    def points(self, number: int) -> Iterator[Point]:
        kinds = ["time", "write", "write", "time", "write"]
        for n in range(number):
            name = list(ALGORITHMS)[n % len(ALGORITHMS)]
            yield self.point(name, "cloning" if n % 12 == 11 else kinds[n % len(kinds)], n)

    def whole(self, name: str) -> tuple[Path, float, int]:
        """The unbroken run, the seconds that it took from its first file on, and its calls that change the disk."""
        if name not in self._whole:
            path = self.out / f"whole-{len(self._whole)}"
            shutil.rmtree(path, ignore_errors=True)
            process = self._start(path, name, 0)
            self._wait_for(path / "config.yaml", process)
            began = time.monotonic()
            said, _ = process.communicate()
            assert process.returncode == 0, said
            self._whole[name] = path, time.monotonic() - began, int(said.splitlines()[-1])
        return self._whole[name]

    def point(self, name: str, kind: str, number: int) -> Point:
        """Kill a run once and resume it."""
        whole, seconds, calls = self.whole(name)
        path = self.out / f"broken-{number}"
        cache = {"TURNWISE_CACHE": str(self.out / f"cache-{number}")} if kind == "cloning" else {}
        while True:
            shutil.rmtree(path, ignore_errors=True)
            instant, killed = self._killed(path, name, kind, seconds, calls, cache)
            if killed:
                break
        run = RunDirectory.open(path)
        logged = len(run.metrics())
        checkpoint = run.load("last").update if run.has_checkpoint else None
        resumed = self._turnwise(["train", "--resume", str(path)], cache)
        said, _ = resumed.communicate()
        different = difference(run, RunDirectory.open(whole)) if resumed.returncode == 0 else said[-400:]
        return Point(name, kind, instant, logged, checkpoint, not different, different)

    def _killed(
        self, path: Path, name: str, kind: str, seconds: float, calls: int, cache: dict[str, str]
    ) -> tuple[str, bool]:
        """(the instant, whether the run was still going on then)"""
        if kind == "write":
            while True:
                at = self.random.randrange(1, calls + 1) * self.random.choice((1, -1))
                process = self._start(path, name, at)
                said, _ = process.communicate()
                if (path / "config.yaml").exists():
                    return said.splitlines()[-1] if said else "", process.returncode == -signal.SIGKILL
                shutil.rmtree(path, ignore_errors=True)  # not begun: there is nothing to resume
        process = self._start(path, name, 0, cache)
        self._wait_for(path / "config.yaml", process)
        after = self.random.uniform(0, 2 if kind == "cloning" else seconds)
        time.sleep(after)
        process.kill()
        process.communicate()
        return f"{after:.2f} s", process.returncode == -signal.SIGKILL

    def _start(self, path: Path, name: str, at: int, cache: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """A run that kills itself at the ``at``-th call (0: never; negative: with the file cut in half)."""
        arguments = ["train", "smoke", "--out", str(path), *SETTINGS, f"algorithm={ALGORITHMS[name]}"]
        return self._python([__file__, "child", str(at), *arguments], cache)

    def _turnwise(self, arguments: list[str], cache: dict[str, str] | None = None) -> subprocess.Popen[str]:
        return self._python(["-m", "turnwise.cli", *arguments], cache)

    def _python(self, arguments: list[str], cache: dict[str, str] | None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *arguments],
            env=self.environment | (cache or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    @staticmethod
    def _wait_for(path: Path, process: subprocess.Popen[str]) -> None:
        while not path.exists() and process.poll() is None:
            time.sleep(0.01)


def difference(ours: RunDirectory, theirs: RunDirectory) -> str:
    """What is not the same in two runs, "" if nothing is."""
    found = []
    if _timeless(ours.metrics()) != _timeless(theirs.metrics()):
        found.append("metrics")
    a, b = ours.load("last"), theirs.load("last")
    if _timeless([a.update, a.best, a.state]) != _timeless([b.update, b.best, b.state]):
        found.append("state")
    if _tensor_hash(a.tensors) != _tensor_hash(b.tensors):
        found.append("tensors")
    played = [[_timeless(to_record(t)) for t in TrajectoryReader(run.trajectories_path)] for run in (ours, theirs)]
    if played[0] != played[1]:
        found.append("episodes")
    measured = [json.loads(run.evaluation_path.read_text()) for run in (ours, theirs)]
    if any(measured[0][name] != measured[1][name] for name in ("before", "after", "gain")):
        found.append("evaluation")
    return ", ".join(found)


def _timeless(found: Any) -> Any:
    if isinstance(found, dict):
        return {k: _timeless(v) for k, v in found.items() if k != "seconds" and not k.endswith("_s")}
    return list(map(_timeless, found)) if isinstance(found, list) else found


def _tensor_hash(tensors: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def child(at: int, arguments: list[str]) -> None:
    """``turnwise`` in this process, with every call that changes the disk counted; the last line says how many."""
    count, safe = 0, dict[str, int]()  # calls; bytes of a file that are on the disk

    def around(name: str, call: Any) -> Any:
        def counted(*given: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            what = os.readlink(f"/proc/self/fd/{given[0]}") if name == "fsync" else str(given[0])
            if count == abs(at):
                torn = name == "fsync" and at < 0 and os.path.isfile(what)
                if torn:
                    truncate(what, (safe.get(what, 0) + os.path.getsize(what)) // 2)
                print(f"\n{'half of ' if torn else ''}{name} {'/'.join(Path(what).parts[-2:])}", flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            if name == "fsync":
                safe[what] = os.path.getsize(what)
            return call(*given, **named)

        return counted

    truncate = os.truncate
    for name in CALLS:
        setattr(os, name, around(name, getattr(os, name)))
    sys.argv = ["turnwise", *arguments]
    from turnwise.cli import main

    try:
        main()
    finally:
        print(f"\n{count}", flush=True)


def row(number: int, point: Point) -> str:
    newest = "none" if point.checkpoint is None else point.checkpoint
    verdict = "yes" if point.same else f"NO: {point.difference}"
    cells = (number, point.algorithm, point.kind, point.instant, point.logged, newest, verdict)
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    kill = commands.add_parser("kill")
    kill.add_argument("--points", type=int, default=25)
    kill.add_argument("--out", type=Path, required=True)
    kill.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print("| # | algorithm | killed | at | updates logged | newest checkpoint | the same |")
    print("| ---: | --- | --- | --- | ---: | ---: | --- |")
    points = []
    for number, point in enumerate(Bench(given.out, given.seed).points(given.points), start=1):
        points.append(point)
        print(row(number, point), flush=True)
    (given.out / "kills.json").write_text(json.dumps([asdict(point) for point in points], indent=1))
    print(f"\n{sum(point.same for point in points)} of {len(points)} resumed runs are the unbroken one.")
    sys.exit(not all(point.same for point in points))


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(int(sys.argv[2]), sys.argv[3:])
    else:
        main()
