"""A real chat model world by world: untrained, with examples, cloned, and after RL.

    python3 scripts/start.py smollm2
    python benchmarks/pretrained.py --work FOLDER --world search --world webshop --seed 0 --seed 1

Each cell is one command of turnwise, which is printed. A cell that is finished is not run again, and one that was
interrupted goes on where it stopped, so the driver can be ended and started at any time. `--out` collects what there is
so far. Success is sampled at the temperature that is trained (1), on tasks unseen in cloning and RL; the gain of RL is
over its own start, paired by task. Seconds are of the CPU, of all starts of a cell together.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from turnwise.config.files import read_config, shipped_configs
from turnwise.runs.directory import provenance
from turnwise.statistics import paired_difference, wilson

MODEL = "smollm2"
EXAMPLES = (0, 2)
"""Demonstrations that the untrained model is shown."""

OWN = (
    "context",
    "action_format",
    "tools_in",
    "instructions",
    "show_admissible",
    "constrained",
    "max_reply_tokens",
    "max_turns",
)
"""Settings of the agent that an untrained model is measured with: those of the world's recipe, where it has them."""
CONTEXT = 2048  # tokens, which hold the examples as well

MORE_PANELS = {"alfworld": ("valid_seen",)}
"""Panels that are measured beside the run's own, which alone has fewer than 256 tasks."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One command and the file that it leaves when it is finished."""

    name: str
    words: tuple[str, ...]
    result: Path


def cells(world: str, seeds: list[int], tasks: int, work: Path) -> list[Cell]:
    recipe = read_config(f"{world}-{MODEL}", scratch=False)
    env = recipe["env"]["id"]
    kwargs = [f"env.kwargs.{key}={value}" for key, value in recipe["env"].get("kwargs", {}).items()]
    panel = recipe.get("eval", {}).get("test_split")
    split = ("--split", panel) if panel else ()
    own = {key: recipe["agent"][key] for key in OWN if key in recipe["agent"]}
    agent = [f"agent.{key}={json.dumps(value)}" for key, value in own.items()]
    found = []
    for number in EXAMPLES if own.get("context") != "roles" else (0,):  # a chat with roles is shown no examples
        out = work / f"{world}-untrained-{number}.json"
        words = ("evaluate", MODEL, "--env", env, *split, "--tasks", str(tasks), "--greedy", "--out", str(out))
        settings = (f"agent.examples={number}", f"agent.max_context_tokens={CONTEXT}", *agent, *kwargs)
        found.append(Cell(out.stem, (*words, *settings), out))
    for seed in seeds:
        run = work / f"{world}-{seed}"
        begun = (run / "checkpoints").is_dir() and any((run / "checkpoints").iterdir())
        fresh = ("train", f"{world}-{MODEL}", f"seed={seed}", "--out", str(run))
        found.append(Cell(run.name, ("train", "--resume", str(run)) if begun else fresh, run / "evaluation.json"))
        for split in MORE_PANELS.get(world, ()):
            for stage, which in (("before", ("--checkpoint", "0")), ("after", ())):
                out = work / f"{world}-{seed}-{split}-{stage}.json"
                words = ("evaluate", str(run), "--split", split, *which, "--out", str(out))
                found.append(Cell(out.stem, words, out))
    return found


def is_finished(cell: Cell) -> bool:
    """Whether the command ended: a run has a measurement after training, an evaluation its reports."""
    if not cell.result.exists():
        return False
    return cell.words[0] == "evaluate" or "after" in json.loads(cell.result.read_text())


def play(cell: Cell, spent: Path) -> None:
    """Run a cell's command; what it cost is added to the file ``spent``, also where it is interrupted."""
    print("turnwise", *cell.words, flush=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        subprocess.run([sys.executable, "-m", "turnwise.cli", *cell.words], check=True)
    finally:
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cost = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        known = json.loads(spent.read_text()) if spent.exists() else {}
        spent.write_text(json.dumps({**known, cell.name: known.get(cell.name, 0.0) + cost}, indent=1) + "\n")


def collected(work: Path, names: list[str]) -> dict[str, Any]:
    """What the finished cells of ``work`` found."""
    spent = json.loads((work / "cpu_seconds.json").read_text()) if (work / "cpu_seconds.json").exists() else {}
    found: dict[str, Any] = {}
    for name in names:
        run, file = work / name / "evaluation.json", work / f"{name}.json"
        if run.exists():
            read = json.loads(run.read_text())
            if "after" not in read:
                continue
            pair = [read[stage]["sampled"] for stage in ("before", "after")]
            cell: dict[str, Any] = {"before": told(pair[0]), "after": told(pair[1])}
            difference = paired_difference(*(report["outcomes"] for report in pair))
            cell["gain"] = [difference.value, difference.low, difference.high]
            cell["updates"] = sum(1 for _ in (work / name / "metrics.jsonl").open())
            cell |= pooled(work, name, pair)
        elif file.exists():
            found_there = reports(json.loads(file.read_text()))
            cell = {"sampled" if report["temperature"] else "greedy": told(report) for report in found_there}
        else:
            continue
        found[name] = {**cell, "cpu_seconds": round(spent.get(name, 0.0))}
    return found


def pooled(work: Path, name: str, pair: list[dict[str, Any]]) -> dict[str, Any]:
    """A run's own panel and the further ones of its world together, where all of them were measured twice."""
    world, _, _ = name.rpartition("-")
    outcomes = [list(report["outcomes"]) for report in pair]
    splits = MORE_PANELS.get(world, ())
    for split in splits:
        for stage, found in zip(("before", "after"), outcomes, strict=True):
            file = work / f"{name}-{split}-{stage}.json"
            if not file.exists():
                return {}
            (report,) = reports(json.loads(file.read_text()))
            found += report["outcomes"]
    if not splits:
        return {}
    rates = [wilson(int(sum(map(sum, found))), sum(map(len, found))) for found in outcomes]
    difference = paired_difference(*outcomes)
    shown = {stage: asdict(rate) for stage, rate in zip(("before", "after"), rates, strict=True)}
    return {"pooled": {**shown, "gain": [difference.value, difference.low, difference.high], "num": difference.num}}


def reports(read: Any) -> list[dict[str, Any]]:
    """The reports anywhere in an evaluation's file."""
    if isinstance(read, dict):
        return [read] if "outcomes" in read else [each for value in read.values() for each in reports(value)]
    return [each for value in read for each in reports(value)] if isinstance(read, list) else []


def told(report: dict[str, Any]) -> dict[str, Any]:
    kept = ("success", "invalid_share", "mean_turns", "temperature", "panel_hash", "per_type")
    return {name: report[name] for name in kept}


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--work", type=Path, required=True, help="folder for runs and evaluations")
    worlds = [name.removesuffix(f"-{MODEL}") for name in shipped_configs() if name.endswith(f"-{MODEL}")]
    asked.add_argument("--world", action="append", required=True, choices=worlds)
    asked.add_argument("--seed", action="append", type=int, help="default: 0 and 1")
    asked.add_argument("--tasks", type=int, default=256, help="tasks for the untrained model")
    asked.add_argument("--only", default="", help="cells whose names contain this")
    asked.add_argument("--out", type=Path, help="JSON file for what there is so far; nothing is run")
    given = asked.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    given.work.mkdir(parents=True, exist_ok=True)
    chosen = [c for world in given.world for c in cells(world, given.seed or [0, 1], given.tasks, given.work)]
    if given.out is None:
        for cell in chosen:
            if given.only in cell.name and not is_finished(cell):
                play(cell, given.work / "cpu_seconds.json")
        return
    made = provenance()
    about = {name: made[name] for name in ("versions", "python", "commit")}
    found = {**about, "results": collected(given.work, [cell.name for cell in chosen])}
    given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
