"""How much CPU time collecting takes in one process, and in shards: here, and in each shard.

    python benchmarks/shard_costs.py household --shards 1 2 4 --updates 4 --out benchmarks/results/shard_costs.json

With as many free cores as processes, collecting takes about as long as the busiest of them. CPU seconds tell that on a
machine whose cores others use as well; wall seconds would not. The first update is left out. ``hold`` is the wall time
of sending the adapters. Linux only: the CPU time of a shard is read from /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from turnwise.assembly.run import Assembly
from turnwise.config.files import load_config
from turnwise.jobs import warmstart
from turnwise.runs.directory import RunDirectory
from turnwise.shards.rollouts import ShardedCollector

SETTINGS = ["threads=1", "eval.every=0", "eval.tasks=128", "eval.test_split=null"]


def cpu_seconds(process: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measured(name: str, shards: int, updates: int) -> dict[str, Any]:
    """Seconds of collecting by update, after the first."""
    config = load_config(name, [*SETTINGS, f"rollout.shards={shards}", f"num_updates={updates}"], algorithm="grpo")
    torch.set_num_threads(config.threads)
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory.create(Path(folder) / "run", config, {})
        shutil.copytree(warmstart(config), run.model_path)
        with closing(Assembly(config).trainer(run)) as trainer:
            collector, processes = trainer.collector, list[int]()
            if isinstance(collector, ShardedCollector):
                places: list[Any] = [connection._place for connection in collector.shards.connections]
                processes = [place.child._process.pid for place in places]
            rows = []
            for update in range(updates):
                trainer.clock.take()
                here, there = time.process_time(), [cpu_seconds(process) for process in processes]
                groups = trainer.collect(update)
                rows.append(
                    {
                        "here": time.process_time() - here,
                        "shards": [cpu_seconds(p) - began for p, began in zip(processes, there, strict=True)],
                        "hold": trainer.clock.take().seconds.get("hold", 0.0),
                        "episodes": sum(len(group.trajectories) for group in groups),
                        "turns": sum(len(t.turns) for group in groups for t in group.trajectories),
                    }
                )
                trainer.store(groups, update)
                trainer.learn(update)
                trainer.finished = update + 1
                trainer._sync()
    kept = rows[1:]
    found = {
        "shards": shards,
        "episodes": kept[0]["episodes"],
        "turns": sum(row["turns"] for row in kept) / len(kept),
        "cpu_here_s": sum(row["here"] for row in kept) / len(kept),
        "cpu_of_each_shard_s": [sum(each) / len(kept) for each in zip(*(row["shards"] for row in kept), strict=True)],
        "hold_s": sum(row["hold"] for row in kept) / len(kept),
    }
    return {key: [round(v, 3) for v in value] if isinstance(value, list) else value for key, value in found.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--updates", type=int, default=4)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows = []
    for shards in given.shards:
        rows.append(measured(given.config, shards, given.updates))
        print(json.dumps(rows[-1]), flush=True)
    if given.out is not None:
        given.out.write_text(json.dumps({"config": given.config, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
