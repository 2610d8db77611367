"""What runs in the worlds of tools have learned: from their folders to one JSON file, and to the rows of a table.

    turnwise train files seed=1 --out runs/files-1
    python benchmarks/tool_worlds.py runs/files-1 runs/sql-1 --out benchmarks/results/tool_worlds.json

A row that the file has already is replaced by that of the same world, model and seed; the others stay. Nothing is run.
Success is sampled on the run's test panel; the gain is over its own start, paired by task. Seconds are of the CPU, with
the warm start and the measurements. Of a resumed run only the last process is counted: write null by hand.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from turnwise.runs.directory import RunDirectory
from turnwise.statistics import paired_difference

FROM_NOTHING = "from nothing"


def told(folder: Path) -> dict[str, Any]:
    """A finished run as a row. Raises ValueError for a folder without a measurement after training."""
    try:
        measured = json.loads((folder / "evaluation.json").read_text())
        before, after = (measured[stage]["sampled"] for stage in ("before", "after"))
    except (OSError, KeyError):
        raise ValueError(
            f"{folder} has no measurement before and after training: `turnwise train --resume {folder}` ends the run"
        ) from None
    run = RunDirectory(folder)
    config, gain = run.config(), paired_difference(before["outcomes"], after["outcomes"])
    return {
        "world": config.env.id,
        "model": getattr(config.model, "path", FROM_NOTHING),
        "seed": config.seed,
        "algorithm": config.algorithm.type,
        "updates": sum(1 for _ in run.metrics()),
        "tasks": after["num_tasks"],
        "panel_hash": after["panel_hash"],
        "before": before["success"],
        "after": after["success"],
        "gain": {"value": gain.value, "low": gain.low, "high": gain.high},
        "cpu_seconds": round(measured["cpu_seconds"]),
        "commit": json.loads((folder / "run.json").read_text())["commit"],
    }


def joined(known: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a file with new ones, in the order of worlds, models and seeds."""
    rows = {(row["world"], row.get("model", FROM_NOTHING), row["seed"]): row for row in [*known, *new]}
    return [rows[place] for place in sorted(rows)]


def line(row: dict[str, Any]) -> str:
    """A row of a Markdown table."""
    rates = [f"{_percent(row[stage])} % [{_ends(row[stage])}]" for stage in ("before", "after")]
    gain = f"{100 * row['gain']['value']:+.1f} [{100 * row['gain']['low']:+.1f}, {100 * row['gain']['high']:+.1f}]"
    name = row["world"].removeprefix("turnwise/").removesuffix("-v0").lower()
    model = row.get("model", FROM_NOTHING)
    of = name if model == FROM_NOTHING else f"{name}, {model}"
    seconds = "not counted" if row["cpu_seconds"] is None else row["cpu_seconds"]
    return f"| {of} | {row['seed']} | {' | '.join(rates)} | {gain} | {seconds} |"


def _percent(rate: dict[str, Any]) -> str:
    return f"{100 * rate['value']:.1f}"


def _ends(rate: dict[str, Any]) -> str:
    return f"{100 * rate['low']:.1f}, {100 * rate['high']:.1f}"


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("runs", type=Path, nargs="*", help="folders of runs")
    asked.add_argument("--out", type=Path, required=True, help="JSON file that the rows are added to")
    given = asked.parse_args()
    known = json.loads(given.out.read_text())["runs"] if given.out.exists() else []
    try:
        rows = joined(known, [told(folder) for folder in given.runs])
    except ValueError as error:
        asked.error(str(error))
    given.out.write_text(json.dumps({"runs": rows}, indent=1) + "\n")
    print("\n".join(map(line, rows)))


if __name__ == "__main__":
    main()
