"""Checkpoints: whole or not there, verified, pruned by the stated rule, at whatever instant a save is broken off."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from turnwise.runs.checkpoints import Checkpoint, CheckpointFolder, write_text


@pytest.fixture
def folder(tmp_path: Path) -> CheckpointFolder:
    (tmp_path / "checkpoints").mkdir()
    return CheckpointFolder(tmp_path / "checkpoints")


def checkpoint(update: int, best: int | None = None) -> Checkpoint:
    return Checkpoint(update, {"number": update}, {"policy.weight": torch.full((3,), float(update))}, best)


class Instants:
    """Every system call of a save that changes the disk; from number ``stop`` on each ends in ``fault`` instead."""

    NAMES = ("fsync", "rename", "replace", "mkdir", "rmdir", "unlink", "truncate")

    def __init__(self, patch: pytest.MonkeyPatch, stop: int, fault: BaseException) -> None:
        self.count, self.stop, self.fault = 0, stop, fault
        for name in self.NAMES:
            patch.setattr(os, name, self._around(getattr(os, name)))

    def _around(self, call: Any) -> Any:
        def counted(*arguments: Any, **named: Any) -> Any:
            self.count += 1
            if self.count >= self.stop:
                raise self.fault
            return call(*arguments, **named)

        return counted


class Killed(BaseException):
    """An end of the process."""


def test_a_save_broken_off_at_any_instant_leaves_a_whole_one(tmp_path: Path) -> None:
    for stop in range(1, 60):
        path = tmp_path / str(stop)
        path.mkdir()
        store = CheckpointFolder(path)
        for update in range(3):
            store.save(checkpoint(update, best=0))
        with pytest.MonkeyPatch.context() as patch:
            counted = Instants(patch, stop, Killed())
            with suppress(Killed):
                store.save(checkpoint(3, best=3))
        found = store.newest()
        assert found.update in (2, 3), stop
        assert float(found.tensors["policy.weight"][0]) == found.update == found.state["number"]
        if found.update == 2:
            assert store.best().update == 0, "the best goes only when its successor is whole"
        store.save(checkpoint(3, best=3))
        store.save(checkpoint(4, best=3))
        assert sorted(entry.name for entry in path.iterdir()) == ["update-00003", "update-00004"]
        if counted.count < stop:
            break
    assert 10 < stop < 59, "a save has other instants than were tried"


def test_the_newest_two_and_the_best_are_kept(folder: CheckpointFolder) -> None:
    for update, best in [(0, None), (1, 1), (2, 1), (3, 1), (4, 1)]:
        folder.save(checkpoint(update, best))
    assert folder.updates() == [4, 3, 1]
    assert folder.best().update == 1
    folder.save(checkpoint(5, best=5))
    assert folder.updates() == [5, 4]
    assert folder.best().update == 5
    folder.drop_after(4)
    assert folder.updates() == [4]


def test_no_damage_goes_unnoticed(folder: CheckpointFolder) -> None:
    folder.save(checkpoint(1))
    folder.save(checkpoint(2))
    rng = np.random.default_rng(0)
    tried = 0
    for file in sorted(folder.folder(2).iterdir()):
        sound = file.read_bytes()
        places = range(len(sound)) if len(sound) < 400 else rng.integers(len(sound), size=200)
        flipped = [sound[:n] + bytes([sound[n] ^ 1 << rng.integers(8)]) + sound[n + 1 :] for n in places]
        for content in (*flipped, b"", sound[: len(sound) // 2], sound + b" x"):
            file.write_bytes(content)
            tried += 1
            with suppress(ValueError):  # not raised for a bit in the manifest's white space
                found = folder.load(2)
                assert torch.equal(found.tensors["policy.weight"], torch.full((3,), 2.0))
                assert (found.update, found.state, found.best) == (2, {"number": 2}, None)
                assert file.name == "manifest.json"
        file.unlink()
        with pytest.warns(UserWarning, match=rf"update-00002 .*{file.name}.*The one of update 1 is used"):
            assert folder.newest().update == 1
        file.write_bytes(sound)
    assert tried > 300


def test_without_a_sound_one_there_is_one_error(folder: CheckpointFolder) -> None:
    with pytest.raises(ValueError, match="holds no checkpoint"):
        folder.newest()
    folder.save(checkpoint(1))
    folder.save(checkpoint(2))
    with pytest.raises(ValueError, match="no best checkpoint: nothing was measured"):
        folder.best()
    for update in (1, 2):
        (folder.folder(update) / "state.json").write_text("{}")
    with pytest.raises(ValueError, match=r"update-00002 is damaged: state\.json.*; .*update-00001 is damaged"):
        folder.newest()


def test_a_checkpoint_of_another_format_is_told(folder: CheckpointFolder) -> None:
    folder.save(checkpoint(1))
    manifest = folder.folder(1) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(ValueError, match="its format is 2, this version of turnwise reads 1"):
        folder.newest()


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "file", "old")
    for stop in (1, 2):
        with monkeypatch.context() as patch:
            Instants(patch, stop, Killed())
            with pytest.raises(Killed):
                write_text(tmp_path / "file", "new")
        assert (tmp_path / "file").read_text() == "old"
    write_text(tmp_path / "file", "new")
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("file", "new")]
