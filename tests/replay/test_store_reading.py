"""Reading a part of a trajectory file: by a string that records contain, by update, and up to a torn end."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.replay.test_store import made, write
from turnwise.replay.store import FORMAT, VERSION, TrajectoryReader, TrajectoryWriter, truncate_after


@pytest.mark.parametrize(
    ("sought", "expected"),
    [
        ("train-1-0-1", ["train-1-0-1", "train-1-0-12"]),
        ("train-1-0-12", ["train-1-0-12"]),
        ("train-1-0-13", []),
        ("1-0-2", ["train-1-0-2"]),
        ("", ["train-1-0-1", "train-1-0-12", "train-1-0-2", "train-9-0-2"]),
    ],
)
def test_the_whole_string_is_sought(tmp_path: Path, sought: str, expected: list[str]) -> None:
    path = tmp_path / "file"
    names = ("train-1-0-1", "train-1-0-12", "train-1-0-2", "train-9-0-2")
    named = [replace(made()[1], episode=name) for name in names]
    TrajectoryWriter(path).append(0, named)
    (flush,) = TrajectoryReader(path).flushes(containing=sought)
    assert [t.episode for t in flush.trajectories] == expected


def test_what_is_torn_is_counted_to_the_byte(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write(path, 3)
    whole = path.read_bytes()
    ends = [flush.end for flush in TrajectoryReader(path).flushes()]
    assert ends[-1] == len(whole)
    for kept in (ends[1], ends[1] + 1, ends[1] + 20, len(whole) - 1, len(whole)):
        path.write_bytes(whole[:kept])
        reader = TrajectoryReader(path)
        assert [f.update for f in reader.flushes()] == [0, 1] + [2] * (kept == len(whole))
        assert reader.torn_bytes == (kept - ends[1] if kept < len(whole) else 0)


def test_cutting_keeps_the_named_update_and_reports_nothing_of_the_later_ones(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write(path, 4)
    whole = path.read_bytes()
    ends = [flush.end for flush in TrajectoryReader(path).flushes()]
    for update in (3, 2, 1, 0):
        truncate_after(path, update)
        assert path.read_bytes() == whole[: ends[update]]
        assert TrajectoryWriter(path).last_update == update
    path.write_bytes(whole)
    truncate_after(path, 9)
    assert path.read_bytes() == whole


def test_the_same_update_may_follow_itself_and_an_earlier_one_may_not(tmp_path: Path) -> None:
    writer = TrajectoryWriter(tmp_path / "file")
    assert writer.last_update == -1
    for update in (0, 0, 2):
        writer.append(update, made(update))
    with pytest.raises(ValueError, match="update 1 cannot follow update 2"):
        writer.append(1, [])
    assert [f.update for f in TrajectoryReader(tmp_path / "file").flushes()] == [0, 0, 2]


def test_a_header_whose_checksum_is_wrong_is_not_believed(tmp_path: Path) -> None:
    """Nothing is cut off by the number of a damaged label."""
    path = tmp_path / "file"
    write(path, 2)
    whole = bytearray(path.read_bytes())
    label = bytes(whole).index(b"TW") + 4
    whole[label + 8] ^= 1  # the update's number
    path.write_bytes(bytes(whole))
    with pytest.raises(ValueError, match="damaged"):
        truncate_after(path, 0)
    assert path.read_bytes() == bytes(whole)


def test_an_empty_file_has_no_update_and_a_bad_record_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert TrajectoryWriter(path).last_update == -1
    path.touch()
    assert TrajectoryWriter(path).last_update == -1
    header = {"format": FORMAT, "version": VERSION, "update": 0, "num": 2}
    path.write_bytes(gzip.compress(b"\n".join([json.dumps(header).encode(), b"{}", b"{}"]) + b"\n"))
    with pytest.raises(ValueError, match="line 1: "):
        list(TrajectoryReader(path).flushes())


def test_the_file_is_smaller_than_its_text(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write(path, 1)
    assert path.stat().st_size < 0.8 * len(gzip.decompress(path.read_bytes()))
