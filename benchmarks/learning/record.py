"""The finished cells of a setting as one JSON file: what benchmarks/results keeps, and scripts/method_table.py reads.

    python benchmarks/learning/record.py --setting sweep --to benchmarks/results/learning_sweep.json

A file that is there already keeps its rows, so that cells may be run on several machines; a cell that is finished here
replaces its old row. Differences to the baseline are counted again from the outcomes of the rows, paired by seed and
task.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from design import BASELINE, SETTINGS, Cell, command
from report import finished_cells

from turnwise.evaluation.contenders import read_run
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
        cells = finished_cells(given.setting, given.out)
        rows |= {(cell.method, cell.seed): row_of(cell, given.out) for cell in cells}
    except ValueError as error:
        asked.error(str(error))
    names = SETTINGS[given.setting].names()
    order = sorted(rows, key=lambda key: (names.index(key[0]) if key[0] in names else len(names), key))
    found = {"setting": given.setting, **recorded([rows[key] for key in order])}
    given.to.write_text(json.dumps(found, indent=1) + "\n")


def known(path: Path, setting: str) -> list[dict[str, Any]]:
    """The rows that a file has; [] where there is none. Raises ValueError for a file of another setting."""
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    if found.get("setting") != setting:
        raise ValueError(f"{path} records the setting {found.get('setting')}, not {setting}: name another file")
    return list(found["runs"])


def recorded(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The whole file: rows, and each method pooled over its seeds and held against the baseline."""
    names = dict.fromkeys(row["algorithm"] for row in rows)
    of = {name: [row for row in rows if row["algorithm"] == name] for name in names}
    base = {row["seed"]: row for row in of.get(BASELINE, [])}
    commits = sorted({row["commit"] for row in rows})
    return {
        "commits": commits,
        f"to_{BASELINE}": {name: pooled(own, base) for name, own in of.items()},
        "runs": list(rows),
    }


def pooled(rows: Sequence[dict[str, Any]], base: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """A method's success over its seeds, and its difference to the baseline on the seeds that both have.

    Raises ValueError where a seed was measured on another panel than the baseline's.
    """
    after = crossed_bootstrap([tasks(row) for row in rows])
    pairs = [(row, base[row["seed"]]) for row in rows if row["seed"] in base and row["algorithm"] != BASELINE]
    for row, other in pairs:
        if row["panel_hash"] != other["panel_hash"]:
            raise ValueError(f"{row['algorithm']}, seed {row['seed']}, was measured on another panel than {BASELINE}")
    found: dict[str, Any] = {"after": plain(after), "difference": None}
    if pairs:
        gaps = [[x - y for x, y in zip(tasks(row), tasks(other), strict=True)] for row, other in pairs]
        gap = crossed_bootstrap(gaps)
        found["difference"] = {
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
        "command": f"turnwise train {shlex.join(short(cell, out))}",
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
        "outcomes": "".join(str(int(won)) for (won,) in after.outcomes),  # played once each
    }


def short(cell: Cell, out: Path) -> list[str]:
    """The cell's command without what its configuration says anyway."""
    found = SETTINGS[cell.setting]
    if found.untuned is None:
        return command(cell, out)
    return [found.config, "--algorithm", cell.method, f"seed={cell.seed}", *found.untuned]


def tasks(row: dict[str, Any]) -> list[float]:
    """Whether each task was won, [tasks]: 1 or 0."""
    return [float(each) for each in row["outcomes"]]


def plain(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high, "num": estimate.num}


if __name__ == "__main__":
    main()
