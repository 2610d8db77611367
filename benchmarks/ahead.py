"""What playing ahead costs and gains: success after training at equal updates, CPU seconds, and the overlap in time.

    python benchmarks/ahead.py learning --seeds 0 1 2 --runs RUNS --out benchmarks/results/ahead.json
    python benchmarks/ahead.py overlap --runs RUNS --out benchmarks/results/ahead.json
    python benchmarks/ahead.py learning --world alfworld --seeds 0 --updates 10 --runs RUNS --out ALFWORLD.json

``learning`` trains in the setting of the learning benchmark (configs/learning) from one clone for each seed: by turns,
1 and 4 updates ahead, each with and without a correction. All have the same updates, tasks and number of episodes.
Success is sampled on the test panel (the household's has 256 tasks), before training (once for a seed) and after it.
Differences to ``ahead=0`` are paired by task, with a bootstrap over seeds and tasks. CPU seconds are of the training
alone, of the main process and of its shards (Linux: from /proc). Each world has a file of its own.

``overlap`` trains in two shards whose household sleeps in every step, by turns and one update ahead, and compares the
wall time of an update. The first two updates of each are left out, and the last one, beside which nothing is played.

A row that is in the file is not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch

from turnwise.assembly.run import Assembly
from turnwise.config.files import load_config
from turnwise.config.schema import RunConfig
from turnwise.evaluation.pooling import cells
from turnwise.jobs import warmstart
from turnwise.runs.directory import RunDirectory
from turnwise.shards.rollouts import ShardedCollector
from turnwise.statistics import crossed_bootstrap
from turnwise.training.trainer import Trainer

ROOT = Path(__file__).resolve().parent.parent
ARMS: dict[str, list[str]] = {
    "ahead 0": [],
    "ahead 1": ["rollout.ahead=1", "stale.correction=decoupled"],
    "ahead 4": ["rollout.ahead=4", "stale.correction=decoupled"],
    "ahead 1, no correction": ["rollout.ahead=1"],
    "ahead 4, no correction": ["rollout.ahead=4"],
}
UPDATES = {"learning": 15, "overlap": 8}
WORLDS = ("household", "alfworld")
SLOW = "benchmarks.slow_world:benchmarks/SlowHousehold-v0"


def cpu_seconds(process: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def spent(trainer: Trainer) -> dict[str, float]:
    """CPU seconds so far, of this process and of its shards."""
    found = {"main": time.process_time(), "shards": 0.0}
    if isinstance(trainer.collector, ShardedCollector):
        places: list[Any] = [connection._place for connection in trainer.collector.shards.connections]
        found["shards"] = sum(cpu_seconds(place.child._process.pid) for place in places)
    return found


def trained(config: RunConfig, path: Path, *, before: bool = False, after: bool = False) -> dict[str, Any]:
    """A run from its start to its end, in this process, measured where it is asked. Its folder is removed first."""
    shutil.rmtree(path, ignore_errors=True)
    torch.set_num_threads(config.threads)
    with closing(Assembly(config)) as assembly:
        run = RunDirectory.create(path, assembly.settled(), assembly.panels.hashes())
        if config.warmstart is not None:
            shutil.copytree(warmstart(config), run.model_path)
        with closing(assembly.trainer(run)) as trainer:
            measured = {"before": trainer.final() if before else {}}
            began, cpu, walls = time.perf_counter(), spent(trainer), list[float]()
            while not trainer.is_over:
                update = time.perf_counter()
                trainer.step()
                walls.append(round(time.perf_counter() - update, 3))
            found: dict[str, Any] = {
                "updates": trainer.finished,
                "sampled_tokens": trainer.sampled_tokens,
                "wall_s": round(time.perf_counter() - began, 2),
                "cpu_s": {name: round(now - cpu[name], 2) for name, now in spent(trainer).items()},
                "walls_s": walls,
            }
            measured["after"] = trainer.final() if after else {}
            trainer.save()
    lines = run.metrics()
    names = ("collect", "update", "play", "shards_idle")
    found["seconds"] = {
        name: round(float(np.mean([line["seconds"][name] for line in lines[2:]])), 3)
        for name in names
        if name in lines[-1]["seconds"]
    }
    capped = [line[name] for line in lines if (name := "mechanisms/TruncatedImportance/capped_share") in line]
    found |= {"capped_share": round(float(np.mean(capped)), 5)} if capped else {}
    found["kl_behaviour"] = round(float(np.mean([line["kl_behaviour"] for line in lines])), 6)
    return found | {name: cells(reports["sampled"]) for name, reports in measured.items() if reports}


def learning_config(world: str, seed: int, arm: str, updates: int) -> RunConfig:
    """One arm in a world of the learning benchmark."""
    settings = [f"seed={seed}", "max_sampled_tokens=null", f"num_updates={updates}", "checkpoint_every=100", *ARMS[arm]]
    return load_config(f"learning/{world}", settings, algorithm="grpo")


def learning(world: str, seed: int, arm: str, updates: int, runs: Path) -> dict[str, Any]:
    """One arm, trained and measured."""
    path = runs / f"{world}-{seed}-{arm.replace(' ', '-').replace(',', '')}"
    return trained(learning_config(world, seed, arm, updates), path, before=arm == "ahead 0", after=True)


def overlap(ahead: int, runs: Path, pause_s: float, updates: int) -> dict[str, Any]:
    """So many updates in two shards of a world that sleeps; the model is the clone of the household."""
    clone = warmstart(load_config("learning/household", ["seed=0"], algorithm="grpo"))
    settings = [
        *(f"env.id={SLOW}", f"env.kwargs={{pause_s: {pause_s}}}", f"model.path={clone}", "warmstart=null"),
        *("rollout.shards=2", f"rollout.ahead={ahead}", f"num_updates={updates}", "max_sampled_tokens=null"),
        *("eval.test_split=null", "checkpoint_every=100"),
    ]
    return trained(load_config("learning/household", settings, algorithm="grpo"), runs / f"slow-{ahead}")


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Success of each arm before and after, and its difference to ``ahead 0``: [low, high] over seeds and tasks."""
    after = {(row["arm"], row["seed"]): row["after"] for row in rows}
    seeds = sorted({seed for _, seed in after})
    found: dict[str, Any] = {}
    for arm in ARMS:
        own = [row for row in rows if row["arm"] == arm]
        if sorted(row["seed"] for row in own) != seeds:
            continue
        rate = crossed_bootstrap([row["after"] for row in own])
        found[arm] = {
            "after": [round(value, 4) for value in (rate.value, rate.low, rate.high)],
            "cpu_s": round(float(np.mean([sum(row["cpu_s"].values()) for row in own])), 1),
            "sampled_tokens": round(float(np.mean([row["sampled_tokens"] for row in own]))),
        }
        if arm == "ahead 0":
            found["before training"] = round(float(np.mean([row["before"] for row in own])), 4)
        if arm != "ahead 0" and all(("ahead 0", seed) in after for seed in seeds):
            pairs = [np.subtract(after[arm, seed], after["ahead 0", seed]).tolist() for seed in seeds]
            gap = crossed_bootstrap(pairs)
            found[arm]["minus ahead 0"] = [round(value, 4) for value in (gap.value, gap.low, gap.high)]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("learning", "overlap"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--pause", type=float, default=0.004, help="seconds that the slow world sleeps in every step")
    parser.add_argument("--updates", type=int, help="updates of a run: 15, or 8 of the slow world")
    parser.add_argument("--world", choices=WORLDS, default=WORLDS[0], help="of learning")
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    updates = given.updates or UPDATES[given.what]
    found: dict[str, Any] = {"world": given.world, "learning": [], "overlap": []}
    if given.out.exists():
        found = json.loads(given.out.read_text())
        if found["world"] != given.world:
            parser.error(f"{given.out} is of {found['world']}: give {given.world} a file of its own")
    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    if given.what == "learning":
        cells_: list[dict[str, Any]] = [
            {"seed": seed, "arm": arm, "updates": updates} for seed in given.seeds for arm in given.arms
        ]
    else:
        cells_ = [{"ahead": ahead, "pause_s": given.pause, "updates": updates} for ahead in (0, 1)]
    for cell in cells_:
        if any(cell.items() <= row.items() for row in found[given.what]):
            continue
        if given.what == "learning":
            row = learning(given.world, **cell, runs=given.runs)
        else:
            row = overlap(cell["ahead"], given.runs, given.pause, updates)
        found[given.what].append({**cell, **row, "commit": commit.stdout.strip()})
        if found["learning"]:
            found["summary"] = summary(found["learning"])
        given.out.write_text(json.dumps(found, indent=1) + "\n")
        told = {name: value for name, value in row.items() if name not in ("before", "after")}
        print(json.dumps({**cell, **told}), flush=True)
    walls = {(row["pause_s"], row["ahead"]): np.mean(row["walls_s"][2:-1]) for row in found["overlap"]}
    pauses = [pause for pause, ahead in walls if ahead == 0 and (pause, 1) in walls]
    found["wall_ratio"] = {str(pause): round(float(walls[pause, 0] / walls[pause, 1]), 3) for pause in pauses}
    given.out.write_text(json.dumps(found, indent=1) + "\n")
    print("wall time of an update, by turns / one update ahead, by pause:", found["wall_ratio"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
