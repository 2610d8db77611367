"""The record of a run's trajectories: append-only, compressed, and readable after a crash at any byte.

The format is described, with how to read it elsewhere, in docs/trajectories.md: a file of gzip members, one per flush,
whose first line is a JSON header and whose other lines are records (codec.py). Updates never decrease along the file.
A member says in its own gzip header how long it is and of which update, so a reader goes to an update without
decompressing what lies before; members without that field are decompressed to find their end.

A crash leaves at most one incomplete member, at the end: the reader stops there and says so, the writer cuts it off.
"""

from __future__ import annotations

import json
import os
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from turnwise.replay.codec import from_record, to_record
from turnwise.trajectory import Trajectory

FORMAT, VERSION = "turnwise-trajectories", 1
PROCESSED = 2
"""The version of a member in which some turn has ``processing``."""
ENDED = 3
"""The version of a member in which some trajectory has a ``last_anchor``, or some turn ``thought_tokens``."""
ASKED = 4
"""The version of a member in which some turn has a ``request``."""
GRADED = 5
"""The version of a member in which some trajectory has ``given`` or ``grading``."""
STORED = 6
"""The version of a member in which some trajectory starts in a stored state or had a request refused, or some turn
keeps equal sets of tokens once (``Processing.like``)."""
WITHIN = 7
"""The version of a member in which some trajectory left its parent within a reply (``Fork.tokens``), or has an
``answer``."""
KEYED = 8
"""The version of a member in which some turn, or some trajectory at its end, has the key of a state."""
TURNLESS = 9
"""The version of a member in which some trajectory was paid without a turn."""
_CHUNK = 1 << 16

# RFC 1952: magic, deflate, flags (extra field, header checksum), no time, level unknown, system unknown; then the extra
# field's length and its one subfield: "TW", 16 bytes, the member's size and its update.
_HEAD = struct.Struct("<2sBBIBBH2sHQq")
_FIXED = (b"\x1f\x8b", 8, 0x02 | 0x04, 0, 0, 255, 20, b"TW", 16)
_CRC16 = struct.Struct("<H")


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
        """Write one member, down to the disk; ValueError if updates would go backwards.

        Where the disk does not take all of it (OSError), none of it stays.
        """
        if update < self.last_update:
            raise ValueError(f"{self.path}: update {update} cannot follow update {self.last_update}")
        version = max(map(_version, trajectories), default=VERSION)
        header = {"format": FORMAT, "version": version, "update": update, "num": len(trajectories)}
        lines = [json.dumps(line) for line in (header, *map(to_record, trajectories))]
        rest = memoryview(_compressed("".join(line + "\n" for line in lines).encode(), update))
        with self.path.open("ab", buffering=0) as file:
            start = file.seek(0, os.SEEK_END)
            try:
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            except BaseException:
                os.truncate(self.path, start)
                raise
        self.last_update = update


class TrajectoryReader:
    """Reads a file flush by flush, or trajectory by trajectory.

    ``torn_bytes``, known once iteration has ended, is the size of an incomplete member at the end of the file
    (0: the file is whole).
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.torn_bytes = 0

    def flushes(self, updates: range | None = None, containing: str = "") -> Iterator[Flush]:
        """Of some ``updates`` (None: all) the trajectories whose record has the string ``containing``.

        Other members are not decompressed, other records not decoded. Raises ValueError that names the byte where the
        file is not what it should be. Warns of an incomplete member at the end.
        """
        end, sought = 0, json.dumps(containing)[1:-1].encode()
        for member in _members(self.path):
            end = member.end
            if updates is None or member.update in updates:
                yield Flush(member.update, tuple(_trajectories(self.path, member, sought)), end)
        self.torn_bytes = self.path.stat().st_size - end
        if self.torn_bytes:
            warnings.warn(
                f"the last {self.torn_bytes:,} bytes of {self.path} are no whole update (cut short, or still being "
                "written) and are left out",
                stacklevel=2,
            )

    def updates(self) -> list[int]:
        """The updates of which the file holds episodes, in its order. Nothing is decompressed."""
        return list(dict.fromkeys(member.update for member in _members(self.path)))

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
    try:
        for member in _members(path):
            if update is not None and member.update > update:
                break
            keep, last = member.end, member.update
    except ValueError:
        if update is None or last is None or last < update:
            raise  # otherwise what is damaged is later than ``update`` and goes anyway
    if keep < path.stat().st_size:
        os.truncate(path, keep)
    return last


@dataclass(frozen=True, slots=True)
class _Member:
    """A complete gzip member: first byte, byte after the last; its content where finding it took decompressing."""

    start: int
    end: int
    update: int
    text: bytes | None = None


def _members(path: Path) -> Iterator[_Member]:
    size, start = path.stat().st_size, 0
    with path.open("rb") as file:
        while start < size:
            member = _labelled(file, start) or _searched(path, file, start)
            if member is None or member.end > size:
                return  # torn
            yield member
            start = member.end


def _labelled(file: BinaryIO, start: int) -> _Member | None:
    """What the gzip header at ``start`` says; None where it says nothing, or is damaged."""
    file.seek(start)
    head = file.read(_HEAD.size + _CRC16.size)
    if len(head) < _HEAD.size + _CRC16.size:
        return None
    *fixed, size, update = _HEAD.unpack_from(head)
    sound = _CRC16.unpack_from(head, _HEAD.size) == (zlib.crc32(head[: _HEAD.size]) & 0xFFFF,)
    return _Member(start, start + size, update) if sound and tuple(fixed) == _FIXED and size > len(head) else None


def _searched(path: Path, file: BinaryIO, start: int) -> _Member | None:
    """The member at ``start``, decompressed to find its end; None where it is incomplete."""
    file.seek(start)
    inflate, parts, end = zlib.decompressobj(wbits=31), [], start
    try:
        while not inflate.eof:
            if not (data := file.read(_CHUNK)):
                return None
            parts.append(inflate.decompress(data))
            end += len(data)
    except zlib.error as error:
        raise _damaged(path, start, str(error)) from error
    text = b"".join(parts)
    return _Member(start, end - len(inflate.unused_data), int(_header(path, start, text)["update"]), text)


def _compressed(text: bytes, update: int) -> bytes:
    """A gzip member that names its size and update."""
    deflate = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = deflate.compress(text) + deflate.flush()
    tail = struct.pack("<II", zlib.crc32(text), len(text) & 0xFFFFFFFF)
    size = _HEAD.size + _CRC16.size + len(body) + len(tail)
    head = _HEAD.pack(*_FIXED, size, update)
    return head + _CRC16.pack(zlib.crc32(head) & 0xFFFF) + body + tail


def _content(path: Path, member: _Member) -> bytes:
    if member.text is not None:
        return member.text
    with path.open("rb") as file:
        file.seek(member.start)
        data = file.read(member.end - member.start)
    inflate = zlib.decompressobj(wbits=31)
    try:
        text = inflate.decompress(data)
    except zlib.error as error:
        raise _damaged(path, member.start, str(error), member) from error
    if not inflate.eof or inflate.unused_data:
        raise _damaged(path, member.start, "it is not as long as its header says", member)
    return text


def _trajectories(path: Path, member: _Member, sought: bytes) -> Iterator[Trajectory]:
    """Those of a member whose record has ``sought`` in its text."""
    text = _content(path, member)
    header, lines = _header(path, member.start, text), text.splitlines()[1:]
    if (header["update"], header.get("num")) != (member.update, len(lines)):
        raise _damaged(
            path,
            member.start,
            f"it names {header.get('num')} trajectories of update {header['update']} and has {len(lines)} of "
            f"update {member.update}",
            member,
        )
    for number, line in enumerate(lines, start=1):
        if sought in line:
            try:
                trajectory = from_record(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise _damaged(path, member.start, f"line {number}: {error}", member) from error
            yield trajectory


def _header(path: Path, start: int, text: bytes) -> dict[str, Any]:
    try:
        header: dict[str, Any] = json.loads(text.partition(b"\n")[0])
        kind = (header["format"], header["version"], type(header["update"]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: the gzip member at byte {start} is no trajectory flush: {error!r}") from error
    if kind not in [(FORMAT, version, int) for version in range(VERSION, TURNLESS + 1)]:
        raise ValueError(f"{path}, byte {start}: expected {FORMAT} version {VERSION} to {TURNLESS}; got {header}"[:500])
    return header


def _version(trajectory: Trajectory) -> int:
    """The oldest version that holds all of a trajectory."""
    if trajectory.turnless_reward or (trajectory.grading is not None and trajectory.grading.turnless):
        return TURNLESS
    if trajectory.last_state_key or any(turn.state_key for turn in trajectory.turns):
        return KEYED
    if trajectory.answer or (trajectory.fork is not None and trajectory.fork.tokens):
        return WITHIN
    if trajectory.stored_start is not None or trajectory.num_refused:
        return STORED
    if any(turn.processing is not None and len(turn.processing.like) for turn in trajectory.turns):
        return STORED
    if trajectory.given or trajectory.grading is not None:
        return GRADED
    if any(turn.request for turn in trajectory.turns):
        return ASKED
    if trajectory.last_anchor or any(turn.thought_tokens for turn in trajectory.turns):
        return ENDED
    return PROCESSED if any(turn.processing is not None for turn in trajectory.turns) else VERSION


def _damaged(path: Path, start: int, reason: str, member: _Member | None = None) -> ValueError:
    """Where its end is known, the reader can be told to go past it."""
    past = f"; other updates than {member.update} can still be read (`--updates`)" if member else ""
    return ValueError(f"{path}: no trajectory file, or damaged, in the gzip member at byte {start}: {reason}{past}")
