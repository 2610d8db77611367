"""The trajectory file: lossless, append-only, and readable after a crash at any byte."""

from __future__ import annotations

import gzip
import resource
import warnings
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from tests.algorithms.fakes import BigramPolicy, groups
from turnwise.replay.buffer import TrajectoryBuffer
from turnwise.replay.codec import from_record, to_record
from turnwise.replay.store import TrajectoryReader, TrajectoryWriter, truncate_after
from turnwise.trajectory import Fork, Group, Trajectory


def made(version: int = 0) -> list[Trajectory]:
    found = [t for g in groups(BigramPolicy(), num_groups=1, size=2, version=version) for t in g.trajectories]
    odd = np.array([np.nan, -np.inf, np.nextafter(np.float32(0), np.float32(1)), -0.0], np.float32)
    first = replace(found[0].turns[0], logprobs=odd, reply="ünï \u2028 \n}", reward=0.1 + 0.2, env_s=1e-9)
    return [
        replace(found[0], turns=(first, *found[0].turns[1:]), fork=Fork("parent", 2), success=None),
        replace(found[1], turns=(), end="truncated", end_reason="context", score=None, role="buyer"),
    ]


def same(a: Trajectory, b: Trajectory) -> bool:
    """Equal field by field, arrays to the bit (nan included) and of the same type."""
    if [f.name for f in fields(a) if f.name != "turns" and getattr(a, f.name) != getattr(b, f.name)]:
        return False
    for left, right in zip(a.turns, b.turns, strict=True):
        for field in fields(left):
            x, y = getattr(left, field.name), getattr(right, field.name)
            if isinstance(x, np.ndarray):
                if x.dtype != y.dtype or x.tobytes() != y.tobytes():
                    return False
            elif x != y:
                return False
    return True


def write(path: Path, updates: int) -> list[list[Trajectory]]:
    writer, written = TrajectoryWriter(path), []
    for update in range(updates):
        written.append(made(update))
        writer.append(update, written[-1])
    return written


def test_round_trip_to_the_bit(tmp_path: Path) -> None:
    path = tmp_path / "trajectories.jsonl.gz"
    written = write(path, 3)
    reader = TrajectoryReader(path)
    flushes = list(reader.flushes())
    assert [f.update for f in flushes] == [0, 1, 2]
    for flush, expected in zip(flushes, written, strict=True):
        assert all(same(a, b) for a, b in zip(flush.trajectories, expected, strict=True))
    assert len(list(TrajectoryReader(path))) == 6
    assert reader.torn_bytes == 0
    assert flushes[-1].end == path.stat().st_size
    assert gzip.decompress(path.read_bytes()).count(b"\n") == 9  # any gzip tool reads it


def test_numpy_scalars_become_plain_numbers() -> None:
    odd = replace(made()[1], seed=np.int64(7), score=np.float32(0.5), success=np.bool_(True))  # type: ignore[arg-type]
    record = to_record(odd)
    assert (record["seed"], record["score"], record["success"]) == (7, 0.5, True)
    assert type(record["seed"]) is int
    assert same(from_record(record), odd)


def updates_of(path: Path) -> list[int]:
    return [flush.update for flush in TrajectoryReader(path).flushes()]


def test_a_crash_at_any_byte_leaves_the_complete_flushes(tmp_path: Path) -> None:
    path, torn = tmp_path / "whole", tmp_path / "torn"
    written, writer = [], TrajectoryWriter(path)
    for update in range(3):
        short = made(update)[0]
        written.append(replace(short, turns=short.turns[:1]))
        writer.append(update, written[-1:])
    content = path.read_bytes()
    ends = [0, *(flush.end for flush in TrajectoryReader(path).flushes())]
    for size in [0, 1, 20, *range(ends[1] - 1, len(content))]:
        torn.write_bytes(content[:size])
        reader = TrajectoryReader(torn)
        whole = sum(end <= size for end in ends[1:])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = [t for flush in reader.flushes() for t in flush.trajectories]
        told = [f"the last {size - ends[whole]:,} bytes of {torn} are no whole update"] if size > ends[whole] else []
        assert [str(warning.message).partition(" (")[0] for warning in caught] == told
        assert len(found) == whole
        assert all(map(same, found, written))
        assert reader.torn_bytes == size - ends[whole]
        if size >= ends[2]:  # every byte of the last member: the torn end is cut off, not buried, and writing goes on
            writer = TrajectoryWriter(torn)
            assert writer.last_update == whole - 1
            writer.append(5, [])
            assert updates_of(torn) == [*range(whole), 5]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write(path, 2)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = TrajectoryWriter(path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            writer.append(2, made(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    writer.append(2, made(2))
    assert updates_of(path) == [0, 1, 2]


def test_an_update_is_read_without_the_others(tmp_path: Path) -> None:
    path = tmp_path / "file"
    written = write(path, 3)
    content = bytearray(path.read_bytes())
    first, second, _ = [flush.end for flush in TrajectoryReader(path).flushes()]
    for byte in (first + 60, second - 2):  # in the data, and in the checksum
        damaged = bytearray(content)
        damaged[byte] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"at byte {first}: .*other updates than 1 can still be read"):
            list(TrajectoryReader(path))
        for update in (0, 2):
            (flush,) = TrajectoryReader(path).flushes(range(update, update + 1))
            assert all(map(same, flush.trajectories, written[update]))


def test_one_episode_is_found_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "file"
    odd = replace(made()[1], episode='a "name" \\ ü')
    TrajectoryWriter(path).append(0, [*made(), odd])
    (flush,) = TrajectoryReader(path).flushes(containing=odd.episode)
    assert [t.episode for t in flush.trajectories] == [odd.episode]


def test_members_that_do_not_say_their_size_are_read(tmp_path: Path) -> None:
    ours, path = tmp_path / "ours", tmp_path / "plain"
    written = write(ours, 3)
    start = 0
    for flush in TrajectoryReader(ours).flushes():
        text = gzip.decompress(ours.read_bytes()[start : flush.end])
        with path.open("ab") as file:
            file.write(gzip.compress(text))
        start = flush.end
    assert updates_of(path) == [0, 1, 2]
    writer = TrajectoryWriter(path)
    writer.append(3, written[0])
    assert [f.update for f in TrajectoryReader(path).flushes(range(2, 9))] == [2, 3]
    path.write_bytes(path.read_bytes()[:-3])
    assert TrajectoryWriter(path).last_update == 2


def test_truncate_after(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write(path, 4)
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    truncate_after(path, 1)
    assert [f.update for f in TrajectoryReader(path).flushes()] == [0, 1]
    assert whole.startswith(path.read_bytes())
    writer = TrajectoryWriter(path)
    assert writer.last_update == 1
    writer.append(2, made(2))
    writer.append(3, made(3))
    assert path.read_bytes() == whole  # a resumed run writes the same file
    with pytest.raises(ValueError, match="cannot follow"):
        writer.append(1, [])
    damaged = whole[:-9] + b"\0" * 9
    path.write_bytes(damaged + b"\0" * 50)
    truncate_after(path, 2)  # what is damaged is repeated anyway
    assert updates_of(path) == [0, 1, 2]
    path.write_bytes(damaged + b"\0" * 50)
    with pytest.raises(ValueError, match="damaged"):
        truncate_after(path, 4)
    truncate_after(path, -1)
    assert path.stat().st_size == 0


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content, message in [
        (b"no gzip at all", "byte 0"),
        (gzip.compress(b"hello\n"), "no trajectory flush"),
        (gzip.compress(b"[1]\n"), "no trajectory flush"),
        (
            gzip.compress(b'{"format": "turnwise-trajectories", "version": 10, "update": 0, "num": 0}\n'),
            "version 1 to 9",
        ),
        (
            gzip.compress(b'{"format": "turnwise-trajectories", "version": 1, "update": 0, "num": 4}\n'),
            "names 4",
        ),
    ]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            list(TrajectoryReader(path))
    write(tmp_path / "good", 2)
    damaged = bytearray((tmp_path / "good").read_bytes())
    damaged[40] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="damaged"):
        list(TrajectoryReader(path))
    good = to_record(made()[0])
    for wrong in (
        {"episode": "x"},
        {**good, "seed": "7"},
        {**good, "end": "over"},
        {**good, "fork": {"parent": "x"}},
        {**good, "turns": [3]},
        {**good, "turns": [{**good["turns"][0], "reward": "1"}]},
        {**good, "turns": [{**good["turns"][0], "prompt_ids": "AAA="}]},
    ):
        with pytest.raises(ValueError, match="Not a trajectory record"):
            from_record(wrong)


def test_buffer_keeps_ages_and_survives_a_restart() -> None:
    buffer = TrajectoryBuffer(max_age=1)
    by_update = {u: Group(made(u)[0].task, tuple(made(u))) for u in range(3)}
    for update, group in by_update.items():
        buffer.add([group], update)
        buffer.prune(update)
    assert [e.update for e in buffer.entries()] == [1, 2]
    assert buffer.fresh(2) == (by_update[2],)
    assert buffer.entries()[0].policy_version == 1
    buffer.add([by_update[0]], 2, stream="replay")
    again = TrajectoryBuffer(max_age=1)
    again.load_state_dict(buffer.state_dict())
    assert [(e.update, e.stream) for e in again.entries()] == [(1, "fresh"), (2, "fresh"), (2, "replay")]
    for a, b in zip(again.entries(), buffer.entries(), strict=True):
        assert all(map(same, a.group.trajectories, b.group.trajectories))
    assert len(again.fresh(2)) == 1
