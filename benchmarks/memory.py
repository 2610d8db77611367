"""Peak memory of short real pieces of a run, beside what ``turnwise plan`` says: a process for each row of the table.

    python benchmarks/memory.py --work FOLDER --out benchmarks/results/memory.json
    python benchmarks/memory.py --work FOLDER --only lora-bfloat16 --out FILE      the file keeps its other rows

FOLDER holds SmolLM2-135M-Instruct in float32 and in bfloat16, as ``benchmarks/real_model.py`` makes it. A row's run
loads the model, samples an update's episodes and learns from them, twice; or it evaluates a few episodes with 64 slots
allowed. Its world talks until a context is full, so that the settings alone decide how much there is to hold.
The peak is that of the process's resident memory, beyond what it had after such a run of a tiny model: Python and the
libraries are in neither figure.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import gymnasium

from turnwise.envs.interface import AnyText

ALLOWED = 0.15
"""The largest error of the plan, as a share of what was measured."""


@dataclass(frozen=True)
class Cell:
    """One row: the model's number format, what is trained, and whether activations are computed again."""

    dtype: str
    trained: str  # "lora", "all", or "none": an evaluation
    checkpointing: bool = False

    @property
    def name(self) -> str:
        return f"{self.trained}-{self.dtype}{'-checkpointing' if self.checkpointing else ''}"


CELLS = (
    *(Cell(dtype, "lora", again) for dtype in ("float32", "bfloat16") for again in (False, True)),
    *(Cell(dtype, "all") for dtype in ("float32", "bfloat16")),
    *(Cell(dtype, "none") for dtype in ("float32", "bfloat16")),
)


class Talking(gymnasium.Env[str, str]):
    """It answers everything with a few words, other ones in each task, and never ends."""

    observation_space = action_space = AnyText()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        return self._words(), {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return self._words(), len(set(action)) / 100, False, False, {}

    def _words(self) -> str:
        return " ".join(f"{word} {word % 7}" for word in self.np_random.integers(10, 99, 3))


gymnasium.register("benchmark/Talking-v0", Talking, disable_env_checker=True)

EPISODES, CONTEXT = 8, 256


def settings_of(cell: Cell, folder: Path) -> dict[str, Any]:
    return {
        "env": {"id": "benchmark/Talking-v0"},
        "model": {"path": str(folder), "gradient_checkpointing": cell.checkpointing},
        "lora": {"rank": 16} if cell.trained == "lora" else None,
        "agent": {"max_reply_tokens": 8, "max_context_tokens": CONTEXT},
        "algorithm": {"type": "grpo", "kl_coef": 0, "drop_uniform_groups": False},
        "optimizer": {"lr": 1e-6, "microbatch_tokens": EPISODES * CONTEXT},
        "rollout": {"num_tasks": EPISODES // 2, "group_size": 2},
        "eval": {"every": 0, "test_split": None},
        "num_updates": 2,
    }


def peak() -> int:
    """Bytes: the most resident memory since ``forget_peak``."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def train(settings: dict[str, Any], place: Path) -> dict[str, int]:
    """Peaks of a run's stages: two updates, so that the second finds what the first left behind."""
    from turnwise.assembly.run import Assembly
    from turnwise.config.files import parse_config
    from turnwise.runs.directory import RunDirectory

    peaks, config = {}, parse_config(settings)
    forget_peak()
    trainer = Assembly(config).trainer(RunDirectory.create(place, config, {}))
    peaks["start"] = peak()
    for update in range(config.num_updates):
        forget_peak()
        groups = trainer.collect(update)
        trainer.store(groups, update)
        peaks["sampling"] = max(peak(), peaks.get("sampling", 0))
        forget_peak()
        trainer.learn(update)
        trainer.finished = update + 1
        trainer._sync()
        peaks["update"] = max(peak(), peaks.get("update", 0))
    trainer.close()
    return peaks


def evaluate(settings: dict[str, Any]) -> dict[str, int]:
    from turnwise.evaluation.evaluate import evaluate as measured

    forget_peak()
    path, agent = settings["model"]["path"], settings["agent"]
    measured(path, env=settings["env"]["id"], tasks=EPISODES, agent={**agent, "action_format": "plain"})
    return {"sampling": peak()}


def measure(cell: Cell, folder: Path) -> dict[str, int]:
    """Bytes of each stage beyond those of a process that has done the same with a tiny model."""
    from turnwise.models.loading import load_model, save_model

    with tempfile.TemporaryDirectory() as made:
        place = Path(made)
        tokenizer = load_model(folder)[1]
        save_model(tiny(folder), tokenizer, place / "model")
        train(settings_of(cell, place / "model"), place / "warm")
        before = peak_now()
        settings = settings_of(cell, folder)
        peaks = evaluate(settings) if cell.trained == "none" else train(settings, place / "run")
    return {stage: bytes_ - before for stage, bytes_ in peaks.items()}


def peak_now() -> int:
    import gc

    gc.collect()
    forget_peak()
    return peak()


def tiny(folder: Path) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    small = {"hidden_size": 36, "intermediate_size": 32, "num_hidden_layers": 2}
    config = AutoConfig.from_pretrained(folder, **small, head_dim=4)
    return AutoModelForCausalLM.from_config(config).to(config.dtype)


def planned(cell: Cell, folder: Path) -> dict[str, int]:
    """The plan's parts in bytes, and their ``total`` at the peak."""
    from turnwise.assembly.settling import demand_of
    from turnwise.config.files import parse_config
    from turnwise.training.plan import plan

    shape, demand = demand_of(parse_config(settings_of(cell, folder)))
    found = plan(shape, demand if cell.trained != "none" else replace(demand, num_rows=0))
    return {**{part.name: part.bytes for part in found.parts}, "total": found.total}


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| trained | precision | checkpointing | start | sampling | update | peak MiB | plan MiB | plan / peak |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        stages = [f"{row['measured'].get(stage, 0) / 2**20:,.0f}" for stage in ("start", "sampling", "update")]
        again = "yes" if row["checkpointing"] else "no"
        total, seen = row["planned"]["total"], max(row["measured"].values())
        lines.append(
            f"| {row['trained']} | {row['dtype']} | {again} | {' | '.join(stages)} | {seen / 2**20:,.0f} "
            f"| {total / 2**20:,.0f} | {total / seen:.2f} |"
        )
    return "\n".join(lines)


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--work", type=Path, required=True, help="folder with smollm2-135m-float32 and -bfloat16")
    asked.add_argument("--only", nargs="*", help="names of rows, such as lora-bfloat16-checkpointing")
    asked.add_argument("--out", type=Path)
    asked.add_argument("--cell", help=argparse.SUPPRESS)  # a child measures this one and prints JSON
    given = asked.parse_args()
    cells = {cell.name: cell for cell in CELLS}
    if given.cell:
        cell = cells[given.cell]
        found = measure(cell, given.work / f"smollm2-135m-{cell.dtype}")
        print(json.dumps([found, time.process_time()]))
        return 0
    for name in given.only or cells:
        row = measured_row(cells[name], given.work)
        print(f"{name}: {row['cpu_s']:.0f} CPU s\n{table([row])}", flush=True)
        kept = json.loads(given.out.read_text())["rows"] if given.out and given.out.exists() else []
        found = {each["name"]: each for each in (*kept, row)}
        rows = [found[each] for each in cells if each in found]
        if given.out:
            from turnwise.runs.directory import provenance

            made = provenance()
            about = {name: made[name] for name in ("versions", "python", "commit")}
            given.out.write_text(json.dumps({**about, "allowed": ALLOWED, "rows": rows}, indent=1) + "\n")
    print(table(rows))
    return int(max(abs(row["planned"]["total"] / max(row["measured"].values()) - 1) for row in rows) > ALLOWED)


def measured_row(cell: Cell, work: Path) -> dict[str, Any]:
    """A row of the table, measured in a process of its own."""
    command = [sys.executable, __file__, "--work", str(work), "--cell", cell.name]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found, spent = json.loads(done.stdout.splitlines()[-1])
    folder = work / f"smollm2-135m-{cell.dtype}"
    return {
        "name": cell.name,
        **asdict(cell),
        "measured": found,
        "planned": planned(cell, folder),
        "cpu_s": round(spent),
    }


if __name__ == "__main__":
    sys.exit(main())
