"""A run is found by its folder, and a misspelt one is not taken for a model of a hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from turnwise.evaluation.evaluate import evaluate
from turnwise.runs.directory import RunDirectory


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("lift", "ranked", "oreo"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.yaml").touch()
    (tmp_path / "runs" / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    return Path("runs")


def test_a_misspelt_run_is_told_with_the_nearest_name(runs: Path) -> None:
    with pytest.raises(ValueError, match=r"no run at runs/lfit: .*Did you mean runs/lift\?"):
        RunDirectory.open(runs / "lfit")
    with pytest.raises(ValueError, match=r"no run and no model at runs/lfit\. Did you mean runs/lift\?"):
        evaluate("runs/lfit")
    with pytest.raises(ValueError, match=r"makes it$"):
        RunDirectory.open(runs / "nope")


def test_what_may_be_something_else_is_no_run(runs: Path) -> None:
    found = RunDirectory.find(runs / "lift")
    assert found is not None
    assert found.path == runs / "lift"
    assert RunDirectory.find(runs / "model") is None, "a folder that is there"
    assert RunDirectory.find("Qwen/Qwen3-0.6B") is None, "a name of a hub"
    assert RunDirectory.find("lfit") is None
