"""Every algorithm on the same tasks, from the same start, with the same budget of sampled tokens; resumable by cell.

    python benchmarks/learning/run.py --plan                       what there is to do, and what it will cost
    python benchmarks/learning/run.py                              do it (many hours); again after an interruption
    python benchmarks/learning/run.py --only grpo,epo --seeds 0,1  a part of it
    python benchmarks/learning/run.py --setting smoke              every part on a tiny model, nothing learned
    python benchmarks/learning/run.py --setting sweep --by-seed --recorded benchmarks/results/learning_sweep.json
                                                                   the cells that this file lacks, seed by seed
    python benchmarks/learning/run.py --setting epo --only grpo,grpo_epo
                                                                   some arms of EPO, where its claims can show

A cell (setting, algorithm or arm, seed) is a run folder below --out, which every command on runs can open. Finished
cells are skipped, interrupted ones resumed. Cells use one thread: on two cores start two of these, with different
--only.
The design is in design.py; ``report.py`` makes the tables.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

# Waiting threads should sleep, not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import transformers
from design import TUNING_SEED, Cell, cells, command, configured, is_finished
from driver import run_cell
from record import known
from rich.console import Console
from settings import SETTINGS

from turnwise.commands.display import LiveDisplay
from turnwise.errors import unknown


def main(words: Sequence[str] | None = None) -> int:
    """The exit code: 1 where a cell could not be finished."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--setting", choices=list(SETTINGS), default="household")
    asked.add_argument("--only", help="some of the algorithms or arms, by name, with commas (module:recipe too)")
    asked.add_argument("--seeds", help="some of the seeds, such as 0,1")
    asked.add_argument("--out", type=Path, default=Path("runs/learning"))
    asked.add_argument("--by-seed", action="store_true", help="the first seed of all algorithms first")
    asked.add_argument("--recorded", type=Path, help="skip the seeds that this file of record.py has")
    asked.add_argument("--plan", action="store_true", help="only show cells, budgets and expected CPU time")
    given = asked.parse_args(words)
    try:
        chosen = list(selected(given.setting, given.only, given.seeds))
    except ValueError as error:
        asked.error(str(error))
    if given.recorded:
        try:
            have = {(row["algorithm"], row["seed"]) for row in known(given.recorded, given.setting)}
        except ValueError as error:
            asked.error(str(error))
        chosen = [cell for cell in chosen if cell.choice is not None or (cell.method, cell.seed) not in have]
    if given.by_seed:
        chosen.sort(key=lambda cell: (cell.choice is None, cell.seed))
    if given.plan:
        print(plan(given.setting, chosen, given.out))
        return 0
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    failed = [cell for cell in chosen if not done(cell, given.out)]
    for cell in failed:
        print(f"not finished: {given.out / cell.folder}")
    return min(len(failed), 1)


def selected(setting: str, only: str | None, seeds: str | None) -> list[Cell]:
    """The cells asked for, in the order in which they are run. Raises ValueError for an unknown algorithm or arm."""
    known, has_arms = SETTINGS[setting].names(), bool(SETTINGS[setting].arms)
    methods = only.split(",") if only else known
    for name in methods:
        if name not in known and (has_arms or ":" not in name):
            raise unknown("arm" if has_arms else "algorithm", name, known, f"setting {setting}")
    numbers = [int(seed) for seed in seeds.split(",")] if seeds else list(range(SETTINGS[setting].num_seeds))
    return list(cells(setting, methods, numbers))


def done(cell: Cell, out: Path) -> bool:
    """Bring a cell to its end, and say so; False where it could not be: the others go on."""
    path = out / cell.folder
    if is_finished(path):
        return True
    print(f"{time.strftime('%H:%M:%S')}  {cell.folder}  {cell.budget:,} tokens", flush=True)
    try:
        config = configured(cell, out)
        print(f"  turnwise train {shlex.join(command(cell, out))}", flush=True)
        with LiveDisplay(Console(), config.num_updates, str(cell.folder)) as display:
            run_cell(config, path, display)
    except (ValueError, RuntimeError) as error:
        print(f"  failed: {error}", flush=True)
        return False
    return True


def plan(setting: str, chosen: Sequence[Cell], out: Path) -> str:
    """A Markdown table of what is done and what is left, with the cost of the rest."""
    found = SETTINGS[setting]
    lines = [
        f"| {'arm' if found.arms else 'algorithm'} | tuning trials | seeds | tokens | CPU hours left |",
        "| --- | --- | --- | --- | --- |",
    ]
    hours = 0.0
    for method in dict.fromkeys(cell.method for cell in chosen):
        own = [cell for cell in chosen if cell.method == method]
        left = [cell for cell in own if not is_finished(out / cell.folder)]
        cost = sum(cell.expected_cpu_s for cell in left) / 3600
        hours += cost
        kinds = [[cell for cell in own if (cell.choice is None) == final] for final in (False, True)]
        shown = [f"{sum(cell not in left for cell in kind)} of {len(kind)}" for kind in kinds]
        lines.append(f"| {method} | {' | '.join(shown)} | {sum(cell.budget for cell in own):,} | {cost:.1f} |")
    seeds = {cell.seed for cell in chosen if not is_finished(out / cell.folder)}
    starts = len(seeds) * found.warmstart_cpu_s / 3600
    spent = f"{found.num_updates} updates, some {found.budget:,}" if found.arms else f"{found.budget:,}"
    trials = f"; seed {TUNING_SEED} is the trials'" if TUNING_SEED in seeds else ""
    return "\n".join(
        [
            *lines,
            "",
            f"{spent} sampled tokens {'a seed' if found.arms else 'a trial and a seed'}",
            f"{hours:.1f} CPU hours to go, and up to {starts:.1f} for {len(seeds)} warm starts (cached{trials}). "
            "Two at once on two cores: half of that in wall hours.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
