"""What takeovers teach, beside as many tokens of plain demonstrations: the control that DAgger needs.

    python benchmarks/takeovers.py household --out FOLDER --tokens 400000 --tasks 256 \
        warmstart.takeovers.tokens=100000

A model is cloned with ``--tokens`` tokens of demonstrations. From it two go on, for the same rounds, tokens and
falling rates: one on takeovers mixed with demonstrations, one on demonstrations alone. All three are measured on the
same tasks, sampled at T = 1. ``key=value`` settings are for all three; those of ``warmstart.takeovers`` for the latter
two.

The result is ``result.json`` in ``--out``. What is finished there, and in the cache of warm starts, is not done again.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from turnwise.config.files import load_config
from turnwise.evaluation.evaluate import evaluate
from turnwise.evaluation.report import Report
from turnwise.jobs import warmstart
from turnwise.models.settings import ORIGIN_FILE
from turnwise.statistics import Estimate, estimate_text, paired_difference

CLONE, TAKEOVERS, CONTROL = "clone", "takeovers", "demonstrations"


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("config")
    asked.add_argument("settings", nargs="*", help="key.path=value")
    asked.add_argument("--out", type=Path, required=True)
    asked.add_argument("--tokens", type=int, default=400_000)
    asked.add_argument("--split", help="the configuration's eval.split without it")
    asked.add_argument("--tasks", type=int, default=256)
    words = asked.parse_intermixed_args()
    torch.set_num_threads(1)
    rounds = [each for each in words.settings if each.startswith("warmstart.takeovers")]
    shared = [each for each in words.settings if each not in rounds]
    unmeasured = ["warmstart.stop_success=null", "warmstart.check_every=150000"]
    started = [*shared, *unmeasured, f"warmstart.max_tokens={words.tokens}", "warmstart.takeovers=null"]
    made = {CLONE: _made(words.out, CLONE, words.config, started)}
    going_on = [
        *("model={}", f"model.path={words.out / CLONE}", *shared, *unmeasured),
        *("warmstart.max_tokens=0", "warmstart.takeovers={}", *rounds),
    ]
    made[TAKEOVERS] = _made(words.out, TAKEOVERS, words.config, going_on)
    control = [*going_on, "warmstart.takeovers.demonstration_share=1"]
    made[CONTROL] = _made(words.out, CONTROL, words.config, control)
    config = load_config(words.config, shared)
    reports = {
        name: _report(
            words.out / f"{name}.json",
            words.out / name,
            config.env.id,
            config.env.kwargs,
            words.split or config.eval.split,
            words.tasks,
        )
        for name in made
    }
    gain = paired_difference(reports[CONTROL].outcomes, reports[TAKEOVERS].outcomes)
    result = {
        "command": {"config": words.config, "settings": words.settings, "tokens": words.tokens, "tasks": words.tasks},
        "models": {name: {**made[name], "success": _plain(report.success)} for name, report in reports.items()},
        "takeovers_minus_demonstrations": _plain(gain),
    }
    (words.out / "result.json").write_text(json.dumps(result, indent=1))
    for name, report in reports.items():
        told = "" if report.success is None else estimate_text(report.success)
        print(f"{name:<16} {told}   {made[name]['tokens']:,} tokens, {made[name]['cpu_seconds']:.0f} CPU s")
    print(f"takeovers minus demonstrations, paired by task: {gain}")


def _made(out: Path, name: str, config: str, settings: list[str]) -> dict[str, Any]:
    """A clone in the folder ``name``: what it took, and the scores of its rounds."""
    if not (out / name).exists():
        warmstart(load_config(config, settings), to=out / name)
    took = json.loads((out / name / ORIGIN_FILE).read_text())["progress"]
    lines = [json.loads(line) for line in (out / name / "cloning.jsonl").read_text().splitlines()]
    scores = {line["round"]["number"]: line["round"] for line in lines if "round" in line}
    return {"tokens": took["tokens"], "cpu_seconds": took["cpu_s"], "rounds": list(scores.values())}


def _report(file: Path, model: Path, env: str, kwargs: dict[str, Any], split: str, tasks: int) -> Report:
    if not file.exists():
        report = evaluate(model, env=env, env_kwargs=kwargs, split=split, tasks=tasks)
        file.write_text(report.as_json())
    return Report.from_plain(json.loads(file.read_text()))


def _plain(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else asdict(estimate)


if __name__ == "__main__":
    main()
