"""How long a run takes to its first update, and how much memory its processes take, by the way that it is divided.

    python3 scripts/ray_env.py benchmarks.startup --modes one shards2 ray2 --out benchmarks/results/startup.json
    python3 scripts/vllm_env.py benchmarks.startup --modes vllm vllm-server --out benchmarks/results/startup.json

Each mode is one run of one update on the household: 16 episodes, and a model of some 0.1 M random weights, so that
nearly all of it is the start. A mode's row in the file is replaced. All processes that the run starts are counted, and
those that these start, as /proc tells every tenth of a second (Linux only):

    first_update_s        wall seconds from the command to the first line of metrics.jsonl
    first_update_cpu_s    CPU seconds of all processes until then
    peak_rss_mib          the most that each process has held, with the libraries that it shares with others
    sum_rss_mib           the sum of these
    most_at_once_mib      the most that all held at one moment, where what k of them share counts 1 / k for each (PSS)
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import torch

from turnwise.bench.random_model import write_random_model
from turnwise.envs.tasks import make_env

WORLD = "turnwise/Household-v0"
SIZE = {"hidden": 64, "layers": 2, "heads": 2, "kv_heads": 1, "ffn": 128, "head_dim": 32}
RUN = [
    *("smoke", "warmstart=null", "num_updates=1", "eval.every=0", "eval.tasks=128", "eval.test_split=null"),
    *("agent.examples=0", "env.kwargs.step_limit=8", "agent.max_context_tokens=1024"),
    "optimizer.microbatch_tokens=1024",
]
PORT = 8437
HELPER, IDLE = "helper", "Ray, idle worker"

MODES: dict[str, list[str]] = {
    "one": [],
    "shards2": ["rollout.shards=2"],
    "shards4": ["rollout.shards=4"],
    "ray2": ["rollout.shards=2", "ray.address=local"],
    "ddp2": ["learner.ranks=2"],
    "fsdp2": ["learner.ranks=2", "learner.parallel=fsdp2"],
    "ray-ddp2": ["learner.ranks=2", "ray.address=local", "ray.cpus_per_rank=0.5", "ray.cpus_per_shard=0.5"],
    "vllm": ["rollout.backend=vllm", "rollout.vllm.cache_gib=0.25"],
    "vllm-server": ["rollout.backend=vllm", f"rollout.vllm.url=http://127.0.0.1:{PORT}"],
}


@dataclass
class Seen:
    """What was seen last of a process."""

    what: str
    rss_mib: float = 0.0
    cpu_s: float = 0.0


@dataclass
class Family:
    """All processes below this one, by number and time of their start."""

    seen: dict[tuple[int, int], Seen] = field(default_factory=dict)
    most_at_once_mib: float = 0.0

    def look(self, *, shared: bool = False) -> None:
        """Note what the processes hold and have used; ``shared``: also what they hold together."""
        total = 0.0
        for pid, parents in sorted(below(os.getpid()).items()):
            with suppress(OSError, IndexError, ValueError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                found = self.seen.setdefault((pid, int(fields[19])), Seen(HELPER))
                if found.what in (HELPER, IDLE):  # an actor's name comes late, and a process that ends has none
                    found.what = named(pid, parents)
                found.cpu_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
                found.rss_mib = max(found.rss_mib, kib(f"/proc/{pid}/status", "VmHWM") / 1024)
                if shared:
                    total += kib(f"/proc/{pid}/smaps_rollup", "Pss") / 1024
        self.most_at_once_mib = max(self.most_at_once_mib, total)

    @property
    def cpu_s(self) -> float:
        return sum(each.cpu_s for each in self.seen.values())

    def rows(self) -> Iterator[dict[str, Any]]:
        """By kind of process, the largest kind first: how many there were, the largest one, and their CPU seconds."""
        kinds: dict[str, list[Seen]] = {}
        for each in self.seen.values():
            if each.rss_mib > 20:  # shells and helpers aside
                kinds.setdefault(each.what, []).append(each)
        for what, found in sorted(kinds.items(), key=lambda item: -sum(each.rss_mib for each in item[1])):
            peaks = sorted((round(each.rss_mib) for each in found), reverse=True)
            yield {"what": what, "peak_rss_mib": peaks, "cpu_s": round(sum(each.cpu_s for each in found), 1)}


def below(root: int) -> dict[int, list[int]]:
    """Processes that ``root`` has started, and those below them: number -> its parents up to the root."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError, IndexError, ValueError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found: dict[int, list[int]] = {}
    for pid in parents:
        line, place = list[int](), parents[pid]
        while place > 1 and place != root:
            line.append(place)
            place = parents.get(place, 0)
        if place == root:
            found[pid] = line
    return found


def kib(path: str, name: str) -> float:
    """A line of /proc in KiB; 0 where it is not there."""
    for line in Path(path).read_text().splitlines():
        if line.startswith(f"{name}:"):
            return float(line.split()[1])
    return 0.0


def words_of(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def named(pid: int, parents: list[int]) -> str:
    """What a process is, by its command and by whoever started it."""
    words = words_of(pid)
    known = {
        "ray::_Actor": "shard",
        "ray::_Rank": "rank",
        "ray::": IDLE,
        "/raylet/raylet": "Ray",  # whose command holds that of workers
        "default_worker.py": IDLE,
        "gcs_server": "Ray",
        "ray/": "Ray",
        "turnwise.assembly.learners": "rank",
        "vllm.entrypoints": "vLLM server",
        "VLLM::": "vLLM engine",
        "resource_tracker": HELPER,
    }
    for word, what in known.items():
        if word in words:
            return what
    if "forkserver" in words:
        return "shard" if parents and "forkserver" in words_of(parents[0]) else "forkserver"
    if parents and "vllm" in words_of(parents[-1]):
        return "vLLM engine"
    return "main" if "turnwise.cli train" in words else HELPER


def measured(mode: str, model: Path, folder: Path) -> dict[str, Any]:
    """One run of a mode."""
    family, began, run = Family(), time.monotonic(), folder / mode
    metrics, first = run / "metrics.jsonl", {}
    with served(model, folder) if mode == "vllm-server" else nullcontext():
        if mode == "vllm-server":
            wait_for_server(family)
        command = [sys.executable, "-m", "turnwise.cli", "train", *RUN, "model={}", f"model.path={model}", *MODES[mode]]
        with (folder / f"{mode}.log").open("w") as log:
            process = subprocess.Popen([*command, "--out", str(run)], stdout=log, stderr=log)
            looks = 0
            while process.poll() is None:
                family.look(shared=looks % 5 == 0)
                looks += 1
                if not first and metrics.exists() and metrics.stat().st_size:
                    first = {"first_update_s": time.monotonic() - began, "first_update_cpu_s": family.cpu_s}
                time.sleep(0.1)
        ended = time.monotonic() - began
    if process.returncode:
        raise RuntimeError(f"{mode} failed:\n{(folder / f'{mode}.log').read_text()[-3000:]}")
    rows = list(family.rows())
    return {
        "mode": mode,
        "settings": MODES[mode],
        **{name: round(value, 1) for name, value in first.items()},
        "whole_s": round(ended, 1),
        "whole_cpu_s": round(family.cpu_s, 1),
        "sum_rss_mib": sum(sum(row["peak_rss_mib"]) for row in rows),
        "most_at_once_mib": round(family.most_at_once_mib),
        "processes": rows,
        "load": round(os.getloadavg()[0], 1),
    }


@contextmanager
def served(model: Path, folder: Path) -> Iterator[None]:
    """A context with a vLLM server of the model."""
    asked = ["--port", str(PORT), "--max-length", "1024", "--num-slots", "16", "--dtype", "float32"]
    command = [sys.executable, "-m", "turnwise.cli", "serve-vllm", str(model), *asked, "--cache-gib", "0.25"]
    with (folder / "server.log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            yield
        finally:
            server.terminate()
            server.wait(60)


def wait_for_server(family: Family) -> None:
    for _ in range(6000):
        family.look()
        with suppress(OSError), urlopen(f"http://127.0.0.1:{PORT}/v1/models", timeout=5):
            return
        time.sleep(0.1)
    raise RuntimeError("the server did not start in ten minutes")


def wait_for_the_last() -> None:
    """Wait until what the mode before has started is gone: some of it ends a little later than its run."""
    for _ in range(300):
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not below(os.getpid()):
            return
        time.sleep(0.1)
    raise RuntimeError(f"processes of the mode before go on: {[words_of(pid) for pid in below(os.getpid())]}")


def texts() -> Iterator[str]:
    world = make_env(WORLD)
    for seed in range(40):
        yield world.reset(seed=seed)[0]


def commit() -> str:
    words, root = ["git", "describe", "--always", "--dirty"], Path(__file__).resolve().parent
    return subprocess.run(words, cwd=root, capture_output=True, text=True, check=False).stdout.strip()


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    asked.add_argument("--out", type=Path)
    given = asked.parse_args()
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: whose parents end first are counted as well
    known = json.loads(given.out.read_text()) if given.out is not None and given.out.exists() else {"rows": []}
    with tempfile.TemporaryDirectory() as made:
        model = write_random_model("Qwen3-0.6B", Path(made) / "model", texts(), size=SIZE)
        for mode in given.modes:
            wait_for_the_last()
            row = {**measured(mode, model, Path(made)), "torch": torch.__version__, "commit": commit()}
            print(json.dumps(row), flush=True)
            kept = {each["mode"]: each for each in [*known["rows"], row]}
            machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
            known = {"machine": machine, "rows": [kept[name] for name in MODES if name in kept]}
            if given.out is not None:
                given.out.write_text(json.dumps(known, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
