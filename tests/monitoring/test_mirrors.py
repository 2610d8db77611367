"""TensorBoard and W&B repeat the record, offline; each is skipped where it is not installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.monitoring.test_watchdog import levers
from turnwise.jobs import train
from turnwise.monitoring import mirrors
from turnwise.monitoring.mirrors import Mirrors, WandB, scalars
from turnwise.runs.directory import RunDirectory

RECORD = {
    "update": 3,
    "success": 0.5,
    "entropy": None,
    "adapter_hash": "abc",
    "regularizers/EntropyCorridor": 0.25,
    "seconds": {"collect": 1.5},
    "events": [{"name": "clip_share", "value": 0.6}],
}


def test_the_numbers_of_a_record() -> None:
    expected = {
        "success": 0.5,
        "regularizers/EntropyCorridor": 0.25,
        "seconds/collect": 1.5,
        "watchdog/clip_share": 0.6,
    }
    assert dict(scalars(RECORD)) == expected


def test_a_missing_package_is_one_sentence_before_anything_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirrors, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"mirrors names wandb, which is not installed: pip install -e '\.\[wandb\]'"):
        train(levers("red", "mirrors=[wandb]"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="Input should be 'tensorboard' or 'wandb'; got 'wandv'"):
        levers("red", "mirrors=[wandv]")


def read_tensorboard(folder: Path) -> dict[str, dict[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder))
    read.Reload()
    return {tag: {e.step: e.value for e in read.Scalars(tag)} for tag in read.Tags()["scalars"]}


def test_tensorboard_holds_what_the_record_says_and_forgets_what_is_repeated(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    first = Mirrors(["tensorboard"], tmp_path, {})
    for update in range(4):
        first.log({**RECORD, "update": update, "success": 0.1})
    first.close()
    resumed = Mirrors(["tensorboard"], tmp_path, {})
    resumed.log({**RECORD, "update": 2, "success": 0.2})
    resumed.close()
    found = read_tensorboard(tmp_path / "tensorboard")
    assert set(found) == dict(scalars(RECORD)).keys()
    assert found["success"] == pytest.approx({0: 0.1, 1: 0.1, 2: 0.2})


def test_wandb_stays_on_this_machine_unless_it_is_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    mirror = WandB(tmp_path, {"seed": 1})
    assert mirror._run.settings.mode == "offline"
    mirror.log(RECORD)
    mirror.close()
    wandb.teardown()  # its own process writes; this waits for it, as the end of the program does
    stored = list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(stored) == 1
    content = stored[0].read_bytes()
    assert b"watchdog/clip_share" in content
    assert b"seed" in content


@pytest.mark.slow
def test_a_run_mirrors_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [name for name in ("tensorboard", "wandb") if importlib.util.find_spec(name)]
    if not names:
        pytest.skip("neither tensorboard nor wandb is installed")
    monkeypatch.setenv("TURNWISE_CACHE", str(tmp_path / "cache"))
    train(levers("red", "warmstart.max_tokens=8000", "num_updates=2", f"mirrors=[{','.join(names)}]"), tmp_path / "run")
    lines = RunDirectory.open(tmp_path / "run").metrics()
    if "tensorboard" in names:
        found = read_tensorboard(tmp_path / "run" / "tensorboard")
        assert found["reward"] == pytest.approx({line["update"]: line["reward"] for line in lines})
    if "wandb" in names:
        assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))
