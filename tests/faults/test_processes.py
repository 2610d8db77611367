"""Real ``turnwise train`` processes: killed and resumed (``benchmarks/faults.py`` does many), and told to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.faults import Bench
from tests.faults.runs import SETTINGS
from tests.models import scratch_folder
from turnwise.runs.directory import RunDirectory

pytestmark = pytest.mark.slow


def test_killed_runs_are_resumed_to_the_bit(tmp_path: Path) -> None:
    points = list(Bench(tmp_path, seed=1).points(3))
    assert [point.kind for point in points] == ["time", "write", "write"]
    assert [point.difference for point in points] == ["", "", ""]


@pytest.mark.parametrize(
    ("signals", "code", "expected"),
    [
        ([signal.SIGTERM], 143, "which is saved"),
        ([signal.SIGINT], 130, "which is saved"),
        ([signal.SIGINT, signal.SIGINT], 130, "stopped at once"),
    ],
)
def test_exit_codes(tmp_path: Path, signals: list[signal.Signals], code: int, expected: str) -> None:
    model, path = scratch_folder(tmp_path / "model"), tmp_path / "run"
    long = ["num_updates=100000", "rollout.num_tasks=64"]  # an update takes longer than the signals are apart
    settings = [*SETTINGS, f"model.path={model}", *long]
    process = subprocess.Popen(
        [sys.executable, "-m", "turnwise.cli", "train", "smoke", "--out", path, *settings],
        env={**os.environ, "COLUMNS": "1000"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    run = RunDirectory(path)
    while process.poll() is None and not run.metrics():
        time.sleep(0.1)
    for number in signals:
        process.send_signal(number)
        time.sleep(0.01)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == code, said
    assert expected in said
    assert f"turnwise train --resume {path}" in said
    assert run.load("last").update >= len(run.metrics()) - 1
