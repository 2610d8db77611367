"""A lock on a file, so that one process at a time works on a run or an evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, otherwise: str) -> Iterator[None]:
    """Hold a lock on the file ``path`` within the context. Raises ValueError with the text ``otherwise`` if it is held.

    The operating system frees the lock when the process ends, also after a crash. On Windows there is no lock.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with path.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(otherwise) from None
        yield
