"""What of metrics.jsonl is read, and what is said of the rest: at a resume, by ``compare`` and by ``view``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.evaluation.test_compare import make_run
from tests.view.runs import attempt, task
from tests.view.runs import make_run as make_shown_run
from turnwise.evaluation.compare import compare
from turnwise.runs.directory import RunDirectory
from turnwise.runs.records import read_records
from turnwise.view.page import _run

UPDATES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)


def without(path: Path, *updates: int, torn: int = 0) -> RunDirectory:
    """The run after some lines of its metrics, and the last bytes, are lost."""
    run = RunDirectory.open(path)
    kept = [
        line for line in run.metrics_path.read_bytes().splitlines(True) if json.loads(line)["update"] not in updates
    ]
    run.metrics_path.write_bytes(b"".join(kept)[: -torn or None])
    return run


def test_holes_and_a_torn_end_are_named(tmp_path: Path) -> None:
    whole = read_records(without(make_run(tmp_path / "a", "low", success=UPDATES)).metrics_path)
    assert (len(whole.lines), whole.torn_bytes, whole.lacks(6), whole.lacks(0)) == (6, 0, "", "")
    assert whole.lacks(8).endswith("metrics.jsonl holds 6 of 8 updates, and not 6 to 7")
    assert whole.end_of(2) == whole.ends[1]
    hole = read_records(without(make_run(tmp_path / "b", "low", success=UPDATES), 0, 2, 3).metrics_path)
    assert hole.lacks(0).endswith("holds 3 of 6 updates, and not 0, 2 to 3")
    torn = read_records(without(make_run(tmp_path / "c", "low", success=UPDATES), torn=9).metrics_path)
    assert len(torn.lines) == 5
    assert (
        torn.lacks(5)
        == f"{torn.path} ends in {torn.torn_bytes} bytes of no whole line (cut short, or still being written)"
    )
    assert "holds 5 of 6 updates, and not 5; it ends in" in torn.lacks(6)
    assert read_records(tmp_path / "none").lacks(2).endswith("none holds 0 of 2 updates, and not 0 to 1")


@pytest.mark.parametrize("line", ["[1]", '{"updates": 1}', "{"])
def test_a_line_that_is_no_record_is_named(line: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(f'{{"update": 0}}\n{line}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl is damaged: line 2 is "):
        read_records(tmp_path / "metrics.jsonl")


def test_what_lacks_updates_is_not_compared(tmp_path: Path) -> None:
    """Areas and what was spent would be wrong without a word."""
    whole = make_run(tmp_path / "whole", "low", success=UPDATES)
    hole, torn, short = (
        make_run(tmp_path / name, "low", "algorithm=rloo", success=UPDATES) for name in ("hole", "torn", "short")
    )
    assert len(compare([whole, hole]).methods) == 2
    without(hole, 3)
    without(torn, torn=5)
    without(short, 5).checkpoints.folder(6).mkdir()
    for run, why in ((hole, "not 3"), (torn, "no whole line"), (short, "holds 5 of 6 updates, and not 5")):
        with pytest.raises(ValueError, match=rf"{why}.*: what training spent.*turnwise evaluate {run} --out FILE"):
            compare([whole, run])


def test_a_view_says_what_it_lacks(tmp_path: Path) -> None:
    updates = [[attempt(update, task(1), 0, True)] for update in range(4)]
    path = make_shown_run(tmp_path / "run", updates)
    before = _run(RunDirectory.open(path), "run", 100)[0]["notes"]
    assert not any("curves" in note for note in before)
    (note,) = [note for note in _run(without(path, 1, torn=4), "run", 100)[0]["notes"] if note not in before]
    assert "holds 2 of 3 updates, and not 1; it ends in" in note
    assert note.endswith("no whole line (cut short, or still being written): curves and sums are of the rest.")


def test_a_resumed_run_says_what_it_lacks(tmp_path: Path) -> None:
    run = without(make_run(tmp_path / "run", "low", success=UPDATES), 1)
    with pytest.warns(UserWarning, match=r"holds 3 of 4 updates, and not 1: the run goes on without them"):
        run.cut(4)
    assert [line["update"] for line in run.metrics()] == [0, 2, 3]
