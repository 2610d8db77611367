"""What a processor did to a reply is stored, laid out and read back without loss."""

from __future__ import annotations

import gzip
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from turnwise.replay.batch import layout
from turnwise.replay.buffer import TrajectoryBuffer
from turnwise.replay.codec import from_record, to_record
from turnwise.replay.store import TrajectoryReader, TrajectoryWriter
from turnwise.trajectory import Group, Processing, Task, Trajectory, Turn

TASK = Task("env", "train", 0, "key")
PROMPT, REPLY = np.array([1, 2], np.int32), np.array([7, 9, 5, 6], np.int32)


def processing(*sets: list[int], forced: int = 1, temperatures: tuple[float, ...] = (2.0, 1.0, 1.0, 0.5)) -> Processing:
    return Processing(
        np.array([len(ids) for ids in sets], np.int32),
        np.array([token for ids in sets for token in ids], np.int32),
        np.array([place == forced for place in range(len(sets))]),
        np.array(temperatures, np.float32),
    )


FOUND = processing([4, 7], [9], [], [6, 8, 11])


def turn(found: Processing | None, continues: bool = False, reward: float = 1.0) -> Turn:
    numbers = np.arange(1, 5, dtype=np.float32)
    return Turn("", PROMPT, continues, REPLY, -numbers, numbers, "", "", True, reward, processing=found)


def trajectory(*turns: Turn) -> Trajectory:
    return Trajectory("e", TASK, 0, 0, turns, "terminated", True, 1.0)


def same(one: Processing | None, other: Processing | None) -> bool:
    assert one is not None
    assert other is not None
    pairs = [(getattr(one, f.name), getattr(other, f.name)) for f in fields(Processing)]
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


def test_records_files_and_buffers_hold_it(tmp_path: Path) -> None:
    made = trajectory(turn(FOUND), turn(None, True))
    again = from_record(json.loads(json.dumps(to_record(made))))
    assert same(again.turns[0].processing, FOUND)
    assert again.turns[1].processing is None
    buffer, other = TrajectoryBuffer(3), TrajectoryBuffer(3)
    buffer.add([Group(TASK, (made,))], 0)
    other.load_state_dict(json.loads(json.dumps(buffer.state_dict())))
    assert same(other.fresh(0)[0].trajectories[0].turns[0].processing, FOUND)
    writer = TrajectoryWriter(tmp_path / "file")
    writer.append(0, [trajectory(turn(None))])
    writer.append(1, [made])
    plain, processed = TrajectoryReader(tmp_path / "file")
    assert plain.turns[0].processing is None
    assert same(processed.turns[0].processing, FOUND)
    lines = map(json.loads, gzip.decompress((tmp_path / "file").read_bytes()).splitlines())
    assert [line["version"] for line in lines if "version" in line] == [1, 2]


def test_the_last_anchor_is_kept_and_an_older_record_has_none(tmp_path: Path) -> None:
    ended, old = replace(trajectory(turn(None)), last_anchor="at the door"), trajectory(turn(None))
    assert from_record(to_record(trajectory(replace(turn(None), thought_tokens=1)))).turns[0].thought_tokens == 1
    assert "thought_tokens" not in to_record(old)["turns"][0]
    writer = TrajectoryWriter(tmp_path / "file")
    for update, made in enumerate((old, ended, trajectory(turn(FOUND)))):
        writer.append(update, [made])
    assert [t.last_anchor for t in TrajectoryReader(tmp_path / "file")] == ["", "at the door", ""]
    lines = list(map(json.loads, gzip.decompress((tmp_path / "file").read_bytes()).splitlines()))
    assert [line["version"] for line in lines if "version" in line] == [1, 3, 2]
    assert ["last_anchor" in line for line in lines if "version" not in line] == [False, True, False]


def test_keys_of_states_are_kept_and_an_older_record_has_none(tmp_path: Path) -> None:
    old, keyed = trajectory(turn(None)), trajectory(replace(turn(None), state_key="4f"))
    ended = replace(old, last_state_key="5a")
    writer = TrajectoryWriter(tmp_path / "file")
    for update, made in enumerate((old, keyed, ended)):
        writer.append(update, [made])
    read = [(t.turns[0].state_key, t.last_state_key) for t in TrajectoryReader(tmp_path / "file")]
    assert read == [("", ""), ("4f", ""), ("", "5a")]
    lines = list(map(json.loads, gzip.decompress((tmp_path / "file").read_bytes()).splitlines()))
    assert [line["version"] for line in lines if "version" in line] == [1, 8, 8]
    assert "state_key" not in to_record(old)["turns"][0]
    assert "last_state_key" not in to_record(old)


def test_an_unprocessed_turn_is_written_as_it_always_was() -> None:
    assert "processing" not in to_record(trajectory(turn(None)))["turns"][0]


@pytest.mark.parametrize("change", [{"counts": 3}, {"ids": 1}, {"forced": 0}])
def test_arrays_that_do_not_fit_are_no_record(change: dict[str, int]) -> None:
    shorter: dict[str, Any] = {name: getattr(FOUND, name)[:length] for name, length in change.items()}
    record = to_record(trajectory(turn(replace(FOUND, **shorter))))
    with pytest.raises(ValueError, match="does not fit a reply of 4 tokens"):
        from_record(record)


def test_rows_have_masks_sets_and_temperatures() -> None:
    """Equal sets are one; a token that was no choice is outside the mask and has no numbers."""
    batch = layout(
        [Group(TASK, (trajectory(turn(FOUND), turn(FOUND, True)), trajectory(turn(None))))], rewards=[[1, 2], [3]]
    )
    reply = [True, False, True, True]
    assert batch.action_mask.tolist() == [
        [False] * 2 + reply + [False] * 2 + reply,
        [False] * 2 + [True] * 4 + [False] * 6,
    ]
    assert batch.turn_index[0].tolist() == [-1, -1, 0, -1, 0, 0, -1, -1, 1, -1, 1, 1]
    assert batch.behaviour_logprobs[0, 2:6].tolist() == [-1, 0, -3, -4]
    assert batch.behaviour_entropies[0, 2:6].tolist() == [1, 0, 3, 4]
    assert batch.rewards is not None
    assert batch.rewards[0].nonzero()[:, 0].tolist() == [5, 11]
    assert batch.sets is not None
    assert batch.sets.offsets.tolist() == [0, 2, 5]
    assert batch.sets.ids.tolist() == [4, 7, 6, 8, 11]
    assert batch.sets.but.tolist() == [False, False]
    assert batch.allowed is not None
    assert batch.allowed[0].tolist() == [-1, -1, 0, -1, -1, 1, -1, -1, 0, -1, -1, 1]
    assert batch.allowed[1].tolist() == [-1] * 12
    assert batch.temperatures is not None
    assert batch.temperatures[0, 2:6].tolist() == [2, 0, 1, 0.5]
    assert not batch.temperatures[1].any()
    picked = batch.select(torch.tensor([1])).to("cpu")
    assert (picked.allowed is not None and picked.allowed.shape) == (1, 6)
    assert picked.sets is not None


def test_a_reply_without_any_choice_keeps_its_last_token() -> None:
    whole = processing([7], [9], [5], [6], temperatures=())
    assert turn(whole).action_mask.tolist() == [False, False, False, True]
    batch = layout([Group(TASK, (trajectory(turn(whole)),))], rewards=[[2.0]])
    assert batch.rewards is not None
    assert batch.rewards[0].tolist() == [0, 0, 0, 0, 0, 2]
    assert batch.temperatures is None


def test_a_token_that_was_not_allowed_is_refused() -> None:
    but = replace(FOUND, counts=FOUND.counts * np.array([1, 1, 1, -1], np.int32))
    with pytest.raises(ValueError, match="action token 6 contradicts the 3 tokens that were excluded"):
        layout([Group(TASK, (trajectory(turn(but)),))])
    with pytest.raises(ValueError, match="action token 6 contradicts the 2 tokens that were allowed"):
        layout([Group(TASK, (trajectory(turn(processing([4, 7], [9], [], [8, 11]))),))])
