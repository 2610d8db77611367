"""Faults that stop a run and are no mistake of its user. Each message says what is safe and how to continue."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from turnwise.errors import StoppedRunError

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)


class DivergedError(StoppedRunError):
    """The gradient was not finite in several updates in a row, or the weights are not finite."""


class UpdateMemoryError(StoppedRunError):
    """An update does not fit into memory."""


class StorageError(StoppedRunError):
    """The run's folder cannot be written any more."""


class InterruptedRunError(StoppedRunError):
    """A signal ended the run after an update. ``exit_code`` is 128 + its number: 130 for Ctrl-C, 143 for SIGTERM."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out. torch has a class for that on an accelerator, and a message on the CPU."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


@contextmanager
def storage(path: Path) -> Iterator[None]:
    """Turn errors of a full, failing, read-only or missing disk under ``path`` into StorageError; others pass."""
    try:
        yield
    except OSError as error:
        inside = error.filename is not None and Path(os.fsdecode(error.filename)).is_relative_to(path)
        if error.errno not in _DISK and not inside:
            raise
        reason = error.strerror or str(error)
        raise StorageError(
            f"{path} cannot be written any more ({reason}). Everything up to its newest checkpoint is safe: "
            f"with that mended, `turnwise train --resume {path}` goes on, to the same numbers"
        ) from error
