"""Short runs of every algorithm and of the other ways to train, as fingerprints: does a change move any number?

    python benchmarks/same_numbers.py --write before.json        (in a checkout without the change)
    python benchmarks/same_numbers.py --against before.json      (in one with it)

Each run makes two updates of at most 32 episodes of a small model, and measures it before and after. Its fingerprint
is the hash of every line of ``metrics.jsonl`` without its seconds, and of ``evaluation.json`` without its times. The
second command exits with 1 and names the runs that differ.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

ALGORITHMS = [
    *("aepo", "arpo", "clip_cov", "dapo", "drbot", "drgrpo", "empg", "epo", "gigpo", "grpo", "gspo", "kl_cov", "opo"),
    *("ppo", "reinforce_pp", "rloo", "spear"),
]
SHORT = ["num_updates=2", "eval.every=2", "eval.tasks=4", "eval.test_tasks=8", "threads=1"]
WINNING = ["cloned", "rollout.num_tasks=4", "rollout.group_size=8", *SHORT]  # a clone that wins a third of them
SMALL = ["smoke", "rollout.group_size=8", *SHORT]
GAME = ["num_updates=2", "eval.every=0", "eval.test_tasks=8", "warmstart.max_tokens=60000", "rollout.num_tasks=4"]
OTHERS: dict[str, list[str]] = {
    "full weights": [*SMALL, "--algorithm", "grpo", "lora=null", "optimizer.lr=1e-4", "algorithm.kl_coef=0"],
    "window": [*SMALL, "--algorithm", "grpo", "agent.context=window"],
    "admissible": [*SMALL, "--algorithm", "gigpo", "agent.show_admissible=true", "agent.max_context_tokens=2048"],
    "constrained": [*SMALL, "--algorithm", "epo", "agent.constrained=true"],
    "processes": [*SMALL, "--algorithm", "epo", "env.process=true", "rollout.env_threads=2"],
    "shards": [*SMALL, "--algorithm", "epo", "rollout.shards=2"],
    "best": [*SMALL, "--algorithm", "spear", "keep_checkpoint=best"],
    "self-play": ["tictactoe", *GAME],
    "two policies": ["tictactoe", "game.policies=per_player", "--algorithm", "grpo", *GAME],
    "opponent": ["tictactoe", "game.opponent=random", "--algorithm", "gigpo", *GAME],
}


def jobs() -> dict[str, list[str]]:
    """Name -> arguments of ``turnwise train``."""
    return {**{name: [*WINNING, "--algorithm", name] for name in ALGORITHMS}, **OTHERS}


def fingerprint(arguments: list[str]) -> dict[str, Any]:
    """One run in a folder of its own; hashes of what it measured. Raises RuntimeError where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "turnwise.cli", "train", *arguments, "--out", str(run)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        measured = _without_times(json.loads((run / "evaluation.json").read_text()))
        return {
            "metrics": [_hash({k: v for k, v in line.items() if k != "seconds"}) for line in lines],
            "evaluation": _hash(measured),
            "success": [line["success"] for line in lines],
            "adapters": [line["adapter_hash"] for line in lines],
        }


def _without_times(found: Any) -> Any:
    if isinstance(found, dict):
        return {k: _without_times(v) for k, v in found.items() if "seconds" not in k}
    return [_without_times(v) for v in found] if isinstance(found, list) else found


def _hash(found: Any) -> str:
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="write the fingerprints here")
    parser.add_argument("--against", type=Path, help="compare with the fingerprints in this file")
    parser.add_argument("--only", nargs="*", help="names of runs; all without")
    given = parser.parse_args()
    before = json.loads(given.against.read_text()) if given.against else {}
    found, different = {}, []
    for name, arguments in jobs().items():
        if given.only and name not in given.only:
            continue
        found[name] = fingerprint(arguments)
        same = found[name] == before.get(name)
        different += [] if same or not given.against else [name]
        if given.write:  # after each, so that a run of this that is broken off has something to show
            given.write.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{name:<16}{'' if not given.against else 'equal' if same else 'DIFFERS'} {found[name]}", flush=True)
    if different:
        print(f"{len(different)} of {len(found)} runs differ: {', '.join(different)}")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
