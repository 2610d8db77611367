"""Checkpoints of a run, in safetensors and JSON: loading one executes nothing, and verifies its checksums.

    update-00012/          everything of a run after 12 updates
      state.json           counters, state of the algorithm, buffers; update of the best one so far
      tensors.safetensors  weights, optimizer moments, modules of the algorithm
      manifest.json        format, update, SHA-256 of the other two

A checkpoint is written to a folder ``.tmp``, synchronised to the disk, and then renamed, so a crash at any moment
leaves the earlier ones whole. The newest two are kept, and the best on the validation panel.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

CheckpointName = Literal["last", "best"]

POLICY = "policy."
"""Prefix of the policy's own tensors in a checkpoint."""

PAST = "past."
"""Prefix of the policy's tensors of earlier versions, which play what is in flight (``rollout.ahead``)."""

FORMAT = 1
"""Increase it whenever the version before could not read the checkpoints of this one."""

_NUM_NEWEST = 2
_STATE, _TENSORS, _MANIFEST = "state.json", "tensors.safetensors", "manifest.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """``update`` counts the finished updates; ``state`` is JSON-able, ``tensors`` flat.

    ``best`` is the update of the checkpoint that was best on the validation panel so far, perhaps this one.
    """

    update: int
    state: dict[str, Any]
    tensors: dict[str, Tensor]
    best: int | None = None

    def side(self, name: str) -> dict[str, Tensor]:
        """The tensors of one side. A run with one policy has the side ``""``, with all of them."""
        prefix = side_prefix(name)
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}

    def policy_tensors(self, side: str = "") -> dict[str, Tensor]:
        """The policy's trainable tensors (the others are the learner's)."""
        return {k.removeprefix(POLICY): v for k, v in self.side(side).items() if k.startswith(POLICY)}


def past_prefix(version: int) -> str:
    """What the names of a policy's tensors after ``version`` updates begin with in a later checkpoint."""
    return f"{PAST}{version}."


def side_prefix(name: str) -> str:
    """What the names of a side's tensors begin with in a checkpoint."""
    return f"{name}/" if name else ""


class CheckpointFolder:
    """The checkpoints of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def updates(self) -> list[int]:
        """The updates of all checkpoints in the folder, sound or not; newest first."""
        names = (re.fullmatch(r"update-(\d+)", entry.name) for entry in self.path.glob("update-*"))
        return sorted((int(name[1]) for name in names if name), reverse=True)

    def folder(self, update: int) -> Path:
        return self.path / f"update-{update:05d}"

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, then remove those that are no longer needed.

        Raises OSError where it cannot be written; no incomplete folder stays behind.
        """
        target = self.folder(checkpoint.update)
        partial = target.with_name(f"{target.name}.tmp")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir()
            _write(partial, checkpoint)
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        sync(self.path)
        kept = {*self.updates()[:_NUM_NEWEST], checkpoint.best}
        for update in self.updates():
            if update not in kept:
                shutil.rmtree(self.folder(update), ignore_errors=True)
        for leftover in self.path.glob("*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)

    def newest(self) -> Checkpoint:
        """The newest sound checkpoint, with a warning about newer ones that are damaged.

        Raises ValueError where none is sound.
        """
        damaged = []
        for update in self.updates():
            try:
                found = self.load(update)
            except ValueError as error:
                if not self.folder(update).exists():
                    return self.newest()  # a run in progress has replaced it meanwhile
                damaged.append(str(error))
                continue
            if damaged:
                warnings.warn(f"{'; '.join(damaged)}. The one of update {update} is used", stacklevel=2)
            return found
        raise ValueError("; ".join(damaged) or f"{self.path} holds no checkpoint")

    def best(self) -> Checkpoint:
        """The best checkpoint on the validation panel. Raises ValueError where it is damaged or none was measured."""
        newest = self.newest()
        if newest.best is None:
            raise ValueError(f"{self.path} holds no best checkpoint: nothing was measured on eval.split; take the last")
        return newest if newest.best == newest.update else self.load(newest.best)

    def load(self, update: int) -> Checkpoint:
        """Read and verify the checkpoint of an update. Raises ValueError where it is missing or damaged."""
        from safetensors.torch import load_file

        folder = self.folder(update)
        try:
            manifest = json.loads((folder / _MANIFEST).read_text())
            wrong = [name for name in (_STATE, _TENSORS) if _sha256(folder / name) != manifest["sha256"][name]]
            if manifest["format"] != FORMAT:
                raise ValueError(f"its format is {manifest['format']}, this version of turnwise reads {FORMAT}")
            if manifest["update"] != update:
                wrong.append(_MANIFEST)
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise ValueError(f"checkpoint {folder} cannot be read: {type(error).__name__}: {error}") from None
        if wrong:
            raise ValueError(f"checkpoint {folder} is damaged: {', '.join(wrong)} does not match its checksum")
        state = json.loads((folder / _STATE).read_text())
        return Checkpoint(update, state["state"], load_file(folder / _TENSORS), state["best"])

    def drop_after(self, update: int) -> None:
        """Remove the checkpoints of later updates, newest first."""
        for later in self.updates():
            if later > update:
                shutil.rmtree(self.folder(later))
        sync(self.path)


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    (folder / _STATE).write_text(json.dumps({"best": checkpoint.best, "state": checkpoint.state}))
    _write_tensors(folder / _TENSORS, checkpoint.tensors)
    hashes = {name: _sha256(folder / name) for name in (_STATE, _TENSORS)}
    manifest = {"format": FORMAT, "update": checkpoint.update, "sha256": hashes}
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1))
    for path in (*folder.iterdir(), folder):
        sync(path)


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    # Copies: safetensors refuses tensors that share storage.
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        save_file(copies, path)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else 0, str(error), str(path)) from None


def write_text(path: Path, text: str) -> None:
    """As ``write_bytes``, in UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file atomically and synchronise it to the disk: a reader sees the old file or the new one."""
    partial = path.with_name(f"{path.name}.tmp")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Synchronise a file's content, or a folder's entries, to the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
