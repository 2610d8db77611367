"""The rows of runs in the worlds of tools: which are kept, and which are replaced."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def tool_worlds() -> dict[str, Any]:
    return runpy.run_path(str(BENCHMARKS / "tool_worlds.py"))


def row(world: str, seed: int, after: float) -> dict[str, Any]:
    rate = {"value": after, "low": after - 0.05, "high": after + 0.05, "num": 256}
    return {
        "world": f"turnwise/{world}-v0",
        "seed": seed,
        "before": {**rate, "value": 0.5},
        "after": rate,
        "gain": {"value": after - 0.5, "low": -0.01, "high": 0.2},
        "cpu_seconds": 97,
    }


def test_a_run_replaces_the_row_of_its_world_and_seed(tool_worlds: dict[str, Any]) -> None:
    known = [row("SQL", 1, 0.6), row("Files", 0, 0.8)]
    rows = tool_worlds["joined"](known, [row("SQL", 1, 0.75), row("Office", 2, 0.7)])
    told = [(each["world"][9:-3], each["seed"], each["after"]["value"]) for each in rows]
    assert told == [("Files", 0, 0.8), ("Office", 2, 0.7), ("SQL", 1, 0.75)]
    brought = {**row("Files", 0, 0.9), "model": "smollm2"}
    both = tool_worlds["joined"](rows, [brought])
    assert both[:2] == [known[1], brought], "the row of another model stays"
    assert tool_worlds["line"](brought).startswith("| files, smollm2 | 0 |")
    assert tool_worlds["line"](rows[2]) == (
        "| sql | 1 | 50.0 % [70.0, 80.0] | 75.0 % [70.0, 80.0] | +25.0 [-1.0, +20.0] | 97 |"
    )


@pytest.mark.parametrize("measured", [None, {"before": {"sampled": {}}}])
def test_a_run_that_has_not_ended_is_named(tool_worlds: dict[str, Any], tmp_path: Path, measured: Any) -> None:
    if measured is not None:
        (tmp_path / "evaluation.json").write_text(json.dumps(measured))
    with pytest.raises(ValueError, match=f"{tmp_path} has no measurement before and after"):
        tool_worlds["told"](tmp_path)
