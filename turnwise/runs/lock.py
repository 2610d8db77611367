"""One process at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, otherwise: str) -> Iterator[None]:
    """Nobody else holds the file ``path`` meanwhile. Raises ValueError, which says ``otherwise``, where somebody does.

    The system lets go of the lock when the process ends, in whatever way. (Windows: there is no lock.)
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
