"""The record of a run's trajectories: append-only, compressed, and readable after a crash at any byte.

Format (version 1): a file of gzip members, one per flush, which any gzip tool can read in one go. A member's
first line is a JSON header ``{"format": "turnwise-trajectories", "version": 1, "update": U, "num": N}``; N
lines follow, each the JSON record of one trajectory (codec.py). Updates never decrease along the file.

A crash leaves at most one incomplete member, at the end: the reader stops there and says so, the writer cuts
it off.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turnwise.replay.codec import from_record, to_record
from turnwise.trajectory import Trajectory

FORMAT, VERSION = "turnwise-trajectories", 1
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Flush:
    """The trajectories of one flush, and the byte at which its member ends."""

    update: int
    trajectories: tuple[Trajectory, ...]
    end: int


class TrajectoryWriter:
    """Appends to a file (made if missing); an incomplete member at its end is cut off first.

    Raises ValueError for a file of another kind.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.last_update = -1
        if self.path.exists():
            last = _truncate(self.path, None)
            self.last_update = -1 if last is None else last

    def append(self, update: int, trajectories: Sequence[Trajectory]) -> None:
        """Write one member, down to the disk; ValueError if updates would go backwards."""
        if update < self.last_update:
            raise ValueError(f"{self.path}: update {update} cannot follow update {self.last_update}")
        header = {"format": FORMAT, "version": VERSION, "update": update, "num": len(trajectories)}
        lines = [json.dumps(line) for line in (header, *map(to_record, trajectories))]
        member = gzip.compress("".join(line + "\n" for line in lines).encode(), compresslevel=6, mtime=0)
        with self.path.open("ab") as file:
            file.write(member)
            file.flush()
            os.fsync(file.fileno())
        self.last_update = update


class TrajectoryReader:
    """Reads a file flush by flush, or trajectory by trajectory.

    ``torn_bytes``, known once iteration has ended, is the size of an incomplete member at the end of the file
    (0: the file is whole).
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.torn_bytes = 0

    def flushes(self) -> Iterator[Flush]:
        """Raises ValueError that names the byte where the file is not what it should be."""
        end = 0
        for start, end, text in _members(self.path):
            header, records = _parse(self.path, start, text)
            yield Flush(int(header["update"]), tuple(from_record(record) for record in records), end)
        self.torn_bytes = self.path.stat().st_size - end

    def __iter__(self) -> Iterator[Trajectory]:
        for flush in self.flushes():
            yield from flush.trajectories


def truncate_after(path: Path | str, update: int) -> None:
    """Cut off everything later than ``update``, and an incomplete end; for resuming from a checkpoint.

    One system call shortens the file, so a crash leaves it either as it was or cut.
    """
    _truncate(Path(path), update)


def _truncate(path: Path, update: int | None) -> int | None:
    """Keep the complete members up to ``update`` (None: all); returns the last update left, or None."""
    keep, last = 0, None
    for start, end, text in _members(path):
        number = int(_header(path, start, text)["update"])
        if update is not None and number > update:
            break
        keep, last = end, number
    if keep < path.stat().st_size:
        os.truncate(path, keep)
    return last


def _members(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """(first byte, byte after the last, content) of each complete gzip member."""
    start = position = 0
    with path.open("rb") as file:
        member, text, pending = zlib.decompressobj(wbits=31), [], b""
        while data := pending or file.read(_CHUNK):
            try:
                text.append(member.decompress(data))
            except zlib.error as error:
                raise ValueError(
                    f"{path}: no trajectory file, or damaged, in the gzip member at byte {start}: {error}"
                ) from error
            pending = member.unused_data
            position += len(data) - len(pending)
            if member.eof:
                yield start, position, b"".join(text)
                start = position
                member, text = zlib.decompressobj(wbits=31), []


def _header(path: Path, start: int, text: bytes) -> dict[str, Any]:
    try:
        header: dict[str, Any] = json.loads(text.partition(b"\n")[0])
        kind = (header["format"], header["version"], isinstance(header["update"], int))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: the gzip member at byte {start} is no trajectory flush: {error!r}") from error
    if kind != (FORMAT, VERSION, True):
        raise ValueError(f"{path}, byte {start}: expected {FORMAT} version {VERSION}; got {header}")
    return header


def _parse(path: Path, start: int, text: bytes) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    header = _header(path, start, text)
    lines = text.splitlines()[1:]
    if len(lines) != header.get("num"):
        raise ValueError(
            f"{path}: the flush at byte {start} names {header.get('num')} trajectories and has {len(lines)}"
        )
    return header, [json.loads(line) for line in lines]
