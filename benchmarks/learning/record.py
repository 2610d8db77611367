"""The finished cells of a setting as one JSON file: what benchmarks/results keeps, and scripts/method_table.py reads.

    python benchmarks/learning/record.py --setting sweep --to benchmarks/results/learning_sweep.json

A file that is there already keeps its rows, so that cells may be run on several machines; a cell that is finished here
replaces its old row. Differences to the baseline are counted again from the outcomes of the rows, paired by seed and
task. Rows are put together only where they were trained with the same settings, whatever the commits (resolved.py).
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arms import BASELINE
from claims import Measured, Measurement
from design import Cell, command, finished_cells
from effects import EFFECTS
from resolved import Resolved
from settings import SETTINGS, Setting

from turnwise.evaluation.contenders import Run, read_run
from turnwise.statistics import Estimate, crossed_bootstrap, detectable, paired_difference

_MECHANISM = "mechanisms/"


def main(words: Sequence[str] | None = None) -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--setting", choices=list(SETTINGS), required=True)
    asked.add_argument("--out", type=Path, default=Path("runs/learning"), help="what run.py was told")
    asked.add_argument("--to", type=Path, required=True, help="JSON file to write")
    given = asked.parse_args(words)
    try:
        rows = {(row["algorithm"], row["seed"]): row for row in known(given.to, given.setting)}
        resolved = Resolved.read(given.to)
        for cell in finished_cells(given.setting, given.out):
            row = row_of(cell, given.out)
            row["config"] = resolved.add(cell.method, read_run(given.out / cell.folder).settings, row["command"])
            rows[cell.method, cell.seed] = row
        names = SETTINGS[given.setting].names()
        order = sorted(rows, key=lambda key: (names.index(key[0]) if key[0] in names else len(names), key))
        ordered = [rows[key] for key in order]
        found = {"setting": given.setting, **recorded(ordered, SETTINGS[given.setting]), **resolved.plain()}
    except ValueError as error:
        asked.error(str(error))
    given.to.write_text(json.dumps(found, indent=1) + "\n")
    if unsaid := [f"{row['algorithm']} {row['seed']}" for row in ordered if "config" not in row]:
        print(f"{len(unsaid)} older rows do not say their settings, so that they were not compared: {unsaid}")
    if later := resolved.later:
        print(f"Settings that came later than some of the runs, so that they were not compared: {later}")


def known(path: Path, setting: str) -> list[dict[str, Any]]:
    """The rows that a file has; [] where there is none. Raises ValueError for a file of another setting."""
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    if found.get("setting") != setting:
        raise ValueError(f"{path} records the setting {found.get('setting')}, not {setting}: name another file")
    return list(found["runs"])


def recorded(rows: Sequence[dict[str, Any]], setting: Setting) -> dict[str, Any]:
    """The whole file: rows, and each method or arm pooled over its seeds and held against its base."""
    names = dict.fromkeys(row["algorithm"] for row in rows)
    of = {name: {row["seed"]: row for row in rows if row["algorithm"] == name} for name in names}
    bases = {name: base_of(setting, name) for name in names}
    return {
        "commits": sorted({row["commit"] for row in rows}),
        "to_base" if setting.arms else f"to_{BASELINE}": {
            name: pooled(own, bases[name], of.get(bases[name] or "", {})) for name, own in of.items()
        },
        "runs": list(rows),
    }


def base_of(setting: Setting, name: str) -> str | None:
    """What a name is held against. Raises ValueError for one that is no arm, where there are arms."""
    if setting.arms and name not in setting.arms:
        raise ValueError(f"{name} is no arm of this setting: {', '.join(setting.arms)}")
    return setting.arm(name).base


def pooled(
    rows: Mapping[int, dict[str, Any]], base: str | None, base_rows: Mapping[int, dict[str, Any]]
) -> dict[str, Any]:
    """Success over the seeds, and its difference to the base on the seeds that both have; rows by seed.

    Raises ValueError where a seed was measured on another panel than the base's.
    """
    pairs = [(row, base_rows[seed]) for seed, row in rows.items() if seed in base_rows]
    for row, other in pairs:
        if row["panel_hash"] != other["panel_hash"]:
            raise ValueError(f"{row['algorithm']}, seed {row['seed']}, was measured on another panel than {base}")
    after = crossed_bootstrap([tasks(row) for row in rows.values()])
    found: dict[str, Any] = {"after": plain(after), "difference": None}
    if pairs:
        gaps = [[x - y for x, y in zip(tasks(row), tasks(other), strict=True)] for row, other in pairs]
        gap = crossed_bootstrap(gaps)
        found["difference"] = {
            "to": base,
            "estimate": plain(gap),
            "seeds": [row["seed"] for row, _ in pairs],
            "detectable": detectable(gap),
        }
    return found


def row_of(cell: Cell, out: Path) -> dict[str, Any]:
    """A finished cell: its command, what it measured before and after, and how often its mechanisms acted.

    Raises ValueError for a world without success, or tasks that were played more than once.
    """
    run = read_run(out / cell.folder)
    about = json.loads((out / cell.folder / "run.json").read_text())
    before, after = run.before["sampled"], run.after["sampled"]
    if before.success is None or after.success is None or after.samples != 1:
        raise ValueError(f"{out / cell.folder}: only tasks that are won or lost, and were played once, can be recorded")
    lines = run.metrics
    counted = dict.fromkeys(name for line in lines for name in line if name.startswith(_MECHANISM))
    return {
        "algorithm": cell.method,
        "seed": cell.seed,
        "command": f"turnwise train {shlex.join(command(cell, out))}",
        "commit": about["commit"],
        "panel_hash": after.panel_hash,
        "before": plain(before.success),
        "after": plain(after.success),
        "gain": plain(paired_difference(before.outcomes, after.outcomes)),
        "updates": len(lines),
        "sampled_tokens": sum(line["sampled_tokens"] for line in lines),
        "entropy": [round(line["entropy"], 4) for line in lines],
        "training_success": [line["success"] for line in lines],
        "mechanisms": {
            name.removeprefix(_MECHANISM): sum(line.get(name) or 0.0 for line in lines) / len(lines) for name in counted
        },
        **({"measures": measures} if (measures := measured(cell, run)) else {}),
        "outcomes": "".join(str(int(won)) for (won,) in after.outcomes),  # played once each
    }


def measured(cell: Cell, run: Run) -> dict[str, Any]:
    """The measures of a setting that has its own, by title; None where one does not exist in this run."""
    of = Measured(run, run, sum(line["sampled_tokens"] for line in run.metrics))
    return {claim.title: jsonable(claim.measure(of)) for claim in EFFECTS.get(cell.setting, ())}


def jsonable(value: Measurement) -> Any:
    if isinstance(value, tuple):
        return [jsonable(part) for part in value]
    return round(value, 6) if math.isfinite(value) else None


def tasks(row: dict[str, Any]) -> list[float]:
    """Whether each task was won, [tasks]: 1 or 0."""
    return [float(each) for each in row["outcomes"]]


def plain(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high, "num": estimate.num}


if __name__ == "__main__":
    main()
