"""turnwise against TRL's GRPOTrainer: the same model, world, tasks, limits and update, back to back in one process.

    pip install trl==1.16.0                          in the environment of turnwise
    python benchmarks/peer_trl.py                    CPU time and learning: the household model, 20 x 64 episodes
    python benchmarks/peer_trl.py --updates 3 --minibatches 1    costs alone, one optimizer step an update
    python benchmarks/peer_trl.py --json             ends with one JSON line
    python benchmarks/peer_trl.py --config files --modes environment_factory,gateway    a world of tools, in TRL and
                                                     through our endpoint for agent programs

``ratio`` is TRL's CPU seconds per 1000 sampled tokens over ours, with ``rollout_func``: process time, one thread.

Equal on both sides: the starting weights (the warm start of `turnwise demo`), LoRA on the same layers and of the same
rank, float32, the tasks of each update in the same order, 8 episodes of each, all played at once; the tokens of
prompts, the limits of a reply and of the context, T = 1; the advantage (reward's distance from its group's mean over
the unbiased deviation, no group left out), PPO's clip and its bound for negative advantages, the mean over the
minibatch's tokens, no reference; AdamW with equal settings, a constant rate, clipped gradients, epochs and
minibatches; no gradient checkpointing on either side. After training both policies are measured with the same
evaluator, tasks and draws.

Not equal, because the programs differ: ours deals whole groups out to the optimizer's steps, TRL single rows. Ours
does not compute rows whose advantages are all zero (of groups with equal rewards): their gradient is zero. TRL
recomputes the log-probs of the samples where an update has several minibatches (ours come with sampling; with
``--minibatches 1`` it needs none), adds 1e-4 instead of 1e-6 to the deviation, samples with the adapters beside the
weights, pads the minibatch it trains on, and draws other random numbers, so the episodes differ. The resets of its
``environment_factory`` count as update. Ours writes every trajectory and a log to disk, which is counted; TRL's
logging is off.

Not compared: TRL with vLLM on a GPU, which replaces exactly the part that is slow here; several GPUs; large models.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from rich.console import Console
from transformers.utils import logging

from turnwise.assembly.run import Assembly
from turnwise.config.files import load_config
from turnwise.config.schema import RunConfig
from turnwise.envs.settings import EnvConfig
from turnwise.envs.tasks import panel
from turnwise.evaluation.evaluate import evaluate
from turnwise.evaluation.report import Report
from turnwise.jobs import warmstart
from turnwise.runs.directory import RunDirectory
from turnwise.training.trainer import Trainer
from turnwise.trajectory import Group, Task

MODES = ("rollout_func", "environment_factory")
GATEWAY = "gateway"
"""Our trainer again, with the world of tools inside an agent program."""

LAST = 5
"""Updates at the end whose episodes give the success in training."""


def main(words: Sequence[str] | None = None) -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--updates", type=int, default=20)
    asked.add_argument("--tasks", type=int, default=8, help="per update, 8 episodes each")
    asked.add_argument("--minibatches", type=int, default=4, help="optimizer steps per update")
    asked.add_argument("--seed", type=int, default=0)
    asked.add_argument("--modes", default=",".join(MODES), help=f"of TRL, with commas; {GATEWAY}: our endpoint")
    asked.add_argument("--test-tasks", type=int, default=256, help="0: costs alone")
    asked.add_argument("--config", default="cloned", help="world, agent, model and warm start")
    asked.add_argument("--json", action="store_true")
    given = asked.parse_args(words)
    modes = [mode for mode in given.modes.split(",") if mode]
    if unknown := set(modes) - {*MODES, GATEWAY}:
        asked.error(f"unknown mode {unknown.pop()!r}: expected {', '.join((*MODES, GATEWAY))}")
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    found = compare(configured(given), modes, given.test_tasks)
    show(Console(), found)
    if given.json:
        print(json.dumps(found))


def configured(given: argparse.Namespace) -> RunConfig:
    """GRPO without what TRL has not; no measurements along the way."""
    return load_config(
        given.config,
        [
            f"num_updates={given.updates}",
            f"rollout.num_tasks={given.tasks}",
            "rollout.group_size=8",
            f"rollout.num_slots={8 * given.tasks}",
            f"optimizer.num_minibatches={given.minibatches}",
            "optimizer.minibatch_unit=group",
            f"seed={given.seed}",
            "algorithm={type: grpo, kl_coef: 0, drop_uniform_groups: false}",
            "rewards.invalid_action_penalty=0",
            "eval={every: 0, test_split: null}",
            "checkpoint_every=1000000",
            "threads=1",
        ],
    )


def compare(config: RunConfig, modes: Sequence[str], test_tasks: int) -> dict[str, Any]:
    """Train on every side, measure all of them; JSON-able."""
    start = warmstart(config)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        ours, tasks = train_ours(start, config, out / "run", out / "turnwise")
        sides = {"turnwise": ours}
        for mode in modes:
            if mode == GATEWAY:
                sides[mode], _ = train_ours(start, through_gateway(config, out), out / "asked", out / mode)
                continue
            from trl_side import train as train_with_trl

            sides[mode] = train_with_trl(start, tasks, config, mode, out / mode)
        rows = {name: summary(**spent) for name, spent in sides.items()}
        if test_tasks:
            before = measured(start, config, test_tasks)
            for name, row in rows.items():
                row["after"] = measured(out / name, config, test_tasks)
    own = rows["turnwise"]
    for row in rows.values():
        for part in ("total", "rollout", "update"):
            row[f"{part}_ratio"] = row[f"{part}_s_per_1000"] / own[f"{part}_s_per_1000"]
    return {
        "ratio": rows[modes[0]]["total_ratio"] if modes else None,
        "updates": config.num_updates,
        "episodes": config.rollout.num_tasks * config.rollout.group_size,
        "minibatches": config.optimizer.num_minibatches,
        "seed": config.seed,
        "torch": torch.__version__,
        "before": before if test_tasks else None,
        "sides": rows,
    }


def through_gateway(config: RunConfig, folder: Path) -> RunConfig:
    """The same training with a program that plays the world of files (``gateway_tools.plain``): other tasks of it."""
    env: Any = config.env.make()
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"index": task.index}) + "\n" for task in panel(env, "train")))
    told = {"run": "gateway_tools:plain", "tasks": {"train": str(rows)}}
    world = EnvConfig(id="turnwise/Program-v0", kwargs=told, success_threshold=1.0)
    rollout = config.rollout.model_copy(update={"env_threads": 16})
    return config.model_copy(update={"env": world, "rollout": rollout})


class _TimedTrainer(Trainer):
    """Counts what playing costs; the rest of a step is the update (and storing, and logging)."""

    rollout_s = 0.0

    def collect(self, update: int) -> list[Group]:
        began = time.process_time()
        groups = super().collect(update)
        self.rollout_s += time.process_time() - began
        self.played = [*getattr(self, "played", []), [group.task for group in groups]]
        return groups


def train_ours(start: Path, config: RunConfig, folder: Path, out: Path) -> tuple[dict[str, Any], list[list[Task]]]:
    """What it cost, and the tasks of every update; the merged policy goes to ``out``."""
    assembly = Assembly(config)
    run = RunDirectory.create(folder, config, assembly.panels.hashes())
    run.model_path.symlink_to(start.resolve(), target_is_directory=True)
    trainer = assembly.trainer_of(_TimedTrainer, run)
    began, records = time.process_time(), []
    while not trainer.is_over:
        records.append(trainer.step())
    total = time.process_time() - began
    trainer.sides[0].policy.save_merged(out)
    trainer.close()
    spent = {
        "rollout_s": trainer.rollout_s,
        "update_s": total - trainer.rollout_s,
        "sampled_tokens": trainer.sampled_tokens,
        "success": [record["success"] for record in records],
    }
    return spent, trainer.played


def summary(rollout_s: float, update_s: float, sampled_tokens: int, success: list[float]) -> dict[str, Any]:
    thousands = sampled_tokens / 1000
    return {
        "rollout_s": rollout_s,
        "update_s": update_s,
        "sampled_tokens": sampled_tokens,
        "success": success,
        "rollout_s_per_1000": rollout_s / thousands,
        "update_s_per_1000": update_s / thousands,
        "total_s_per_1000": (rollout_s + update_s) / thousands,
        "training_success": float(np.mean(success[-LAST:])),
    }


def measured(model: Path, config: RunConfig, tasks: int) -> dict[str, Any]:
    """Sampled success on the test panel, the same draws for every policy."""
    report: Report = evaluate(
        model,
        env=config.env.id,
        env_kwargs=config.env.kwargs,
        split="test",
        tasks=tasks,
        agent={**config.agent.model_dump(), "examples": 0},
        seed=config.seed,
    )
    assert report.success is not None
    return asdict(report.success)


def show(console: Console, found: dict[str, Any]) -> None:
    """Rows of a Markdown table: CPU seconds per 1000 sampled tokens with the ratio to ours; success with intervals."""
    lines = ["| | tokens | rollout | update | total | success, last updates | success, test panel |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: | --- |")
    if found["before"]:
        lines.append(f"| start | | | | | | {rate(found['before'])} |")
    for name, row in found["sides"].items():
        parts = [f"{row[f'{p}_s_per_1000']:.3f} s ({row[f'{p}_ratio']:.2f}x)" for p in ("rollout", "update", "total")]
        after = rate(row["after"]) if "after" in row else ""
        lines.append(
            f"| {name} | {row['sampled_tokens']:,} | {' | '.join(parts)} | {row['training_success']:.3f} | {after} |"
        )
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def rate(success: dict[str, float]) -> str:
    return f"{100 * success['value']:.1f} % [{100 * success['low']:.1f}, {100 * success['high']:.1f}]"


if __name__ == "__main__":
    sys.exit(main())
