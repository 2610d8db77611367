"""One thread or two, waiting asleep or spinning: updates of the demo, each way in a process of its own.

    python benchmarks/threads.py                  seconds of one update, on the wall and of the process
    python benchmarks/threads.py --updates 4 --json

Wall time is what one waits for and says little while others use the cores; CPU time is what it takes from them. Compare
the two: a program on two threads that nothing disturbs takes less wall and somewhat more CPU time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

# (torch threads while learning, while sampling, how waiting threads wait)
WAYS = [(1, 1, "PASSIVE"), (2, 1, "PASSIVE"), (2, 1, "ACTIVE"), (2, 2, "PASSIVE")]


def main(words: Sequence[str] | None = None) -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--updates", type=int, default=2, help="measured, after one to warm up")
    asked.add_argument("--config", default="household")
    asked.add_argument("--json", action="store_true")
    asked.add_argument("--one", help=argparse.SUPPRESS)
    given = asked.parse_args(words)
    if given.one:
        learning, sampling = map(int, given.one.split(","))
        print(json.dumps(measure(given.config, learning, sampling, given.updates)))
        return
    rows = []
    print("| learning | sampling | waiting | collect: wall | CPU | learn: wall | CPU |")
    print("| ---: | ---: | --- | ---: | ---: | ---: | ---: |")
    for learning, sampling, policy in WAYS:
        command = [sys.executable, __file__, "--one", f"{learning},{sampling}", "--updates", str(given.updates)]
        done = subprocess.run(
            [*command, "--config", given.config],
            env={**os.environ, "OMP_WAIT_POLICY": policy},
            capture_output=True,
            text=True,
            check=True,
        )
        row = {
            "learning": learning,
            "sampling": sampling,
            "waiting": policy,
            **json.loads(done.stdout.splitlines()[-1]),
        }
        rows.append(row)
        times = " | ".join(
            f"{row[f'{part}_{kind}_s']:.2f}" for part in ("collect", "learn") for kind in ("wall", "cpu")
        )
        print(f"| {learning} | {sampling} | {policy.lower()} | {times} |", flush=True)
    if given.json:
        print(json.dumps(rows))


def measure(config_name: str, learning: int, sampling: int, updates: int) -> dict[str, float]:
    """Mean seconds of collecting and of learning."""
    import torch

    from turnwise.assembly.run import Assembly
    from turnwise.config.files import load_config
    from turnwise.jobs import warmstart
    from turnwise.runs.directory import RunDirectory

    settings = ["eval={every: 0, test_split: null}", f"threads={learning}", f"rollout.threads={sampling}"]
    config = load_config(config_name, settings)
    torch.set_num_threads(learning)
    spent = dict.fromkeys(("collect_wall_s", "collect_cpu_s", "learn_wall_s", "learn_cpu_s"), 0.0)
    with tempfile.TemporaryDirectory() as folder:
        assembly = Assembly(config)
        run = RunDirectory.create(Path(folder) / "run", config, assembly.panels.hashes())
        run.model_path.symlink_to(warmstart(config).resolve(), target_is_directory=True)
        trainer = assembly.trainer(run)
        trainer.step()
        for update in range(1, updates + 1):
            marks = [_now()]
            groups = trainer.collect(update)
            marks.append(_now())
            trainer.store(groups, update)
            trainer.learn(update)
            marks.append(_now())
            trainer.sides[0].sync(update + 1)
            for part, before, after in zip(("collect", "learn"), marks, marks[1:], strict=False):
                spent[f"{part}_wall_s"] += (after[0] - before[0]) / updates
                spent[f"{part}_cpu_s"] += (after[1] - before[1]) / updates
        trainer.close()
    return spent


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


if __name__ == "__main__":
    main()
