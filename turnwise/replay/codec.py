"""A trajectory as a JSON-able record and back, without loss.

Arrays are base64 of their little-endian bytes (int32 ids, float32 nats), so float32 values return to the bit;
Python floats are written with the shortest digits that read back as the same number.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar, get_args, get_type_hints

import numpy as np

from turnwise.trajectory import End, Fork, Grade, Grading, Processing, Task, Trajectory, Turn

Made = TypeVar("Made")

_ARRAYS = {"prompt_ids": "<i4", "action_ids": "<i4", "logprobs": "<f4", "entropies": "<f4"}
_PROCESSING = {"counts": "<i4", "ids": "<i4", "forced": "|b1", "temperatures": "<f4", "like": "<i4"}


def to_record(trajectory: Trajectory) -> dict[str, Any]:
    """Every field of the trajectory, nested as it is; later ones only where there is something in them."""
    record: dict[str, Any] = _plain(trajectory)
    for later in ("last_anchor", "given", "grading", "num_refused", "answer", "last_state_key", "turnless_reward"):
        if not record[later]:
            del record[later]  # as before there was one
    if trajectory.grading is not None and not trajectory.grading.turnless:
        del record["grading"]["turnless"]
    for later in ("stored", "tokens") if record["fork"] else ():
        if not record["fork"][later]:
            del record["fork"][later]
    record["turns"] = [_turn_record(turn) for turn in trajectory.turns]
    return record


def from_record(record: Mapping[str, Any]) -> Trajectory:
    """The inverse of ``to_record``; raises ValueError for a record that is not one."""
    try:
        values = dict(record)
        values["task"] = _checked(Task, values["task"])
        values["fork"] = None if values["fork"] is None else _checked(Fork, values["fork"])
        values["turns"] = tuple(_turn(turn) for turn in values["turns"])
        if values.get("grading") is not None:
            values["grading"] = _grading(values["grading"], len(values["turns"]))
        if values["end"] not in get_args(End):
            raise ValueError(f"end is {values['end']!r}, expected one of {', '.join(get_args(End))}")
        return _checked(Trajectory, values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"Not a trajectory record ({type(error).__name__}: {error})") from error


def _plain(item: Any) -> Any:
    """Dataclasses as dicts, numpy scalars as Python numbers."""
    if isinstance(item, Task | Fork | Trajectory | Grading | Grade):
        return {f.name: _plain(getattr(item, f.name)) for f in fields(item) if f.name != "turns"}
    if isinstance(item, tuple):
        return [_plain(inner) for inner in item]
    return item.item() if isinstance(item, np.generic) else item


def _turn_record(turn: Turn) -> dict[str, Any]:
    record = {f.name: _plain(getattr(turn, f.name)) for f in fields(turn) if f.name != "processing"}
    if not turn.thought_tokens:
        del record["thought_tokens"]  # as before there were any
    for later in ("request", "state_key"):
        if not record[later]:
            del record[later]
    record |= _texts(record, _ARRAYS)
    if turn.processing is not None:
        found = {name: getattr(turn.processing, name) for name in _PROCESSING}
        record["processing"] = _texts(found, _PROCESSING)
        if not len(found["like"]):
            del record["processing"]["like"]  # as before there was one
    return record


def _texts(arrays: Mapping[str, Any], kinds: Mapping[str, str]) -> dict[str, str]:
    return {
        name: base64.b64encode(np.asarray(arrays[name]).astype(dtype).tobytes()).decode("ascii")
        for name, dtype in kinds.items()
    }


def _arrays(texts: Mapping[str, Any], kinds: Mapping[str, str]) -> dict[str, Any]:
    found = {}
    for name, dtype in kinds.items():
        array = np.frombuffer(base64.b64decode(texts[name], validate=True), dtype)
        found[name] = array.astype(array.dtype.newbyteorder("="))  # a native, writable copy
    return found


def _turn(record: Mapping[str, Any]) -> Turn:
    values = {**record, **_arrays(record, _ARRAYS)}
    if record.get("processing") is not None:
        made = Processing(**_arrays({"like": "", **record["processing"]}, _PROCESSING))
        num = len(values["action_ids"])
        fits = (len(made.counts), len(made.forced)) == (num, num) and len(made.like) in (0, num)
        if not fits or (made.like > np.arange(len(made.like))).any() or made.sizes().sum() != len(made.ids):
            raise ValueError(f"processing does not fit a reply of {num} tokens")
        values["processing"] = made
    return _checked(Turn, values)


def _grading(record: Mapping[str, Any], num_turns: int) -> Grading:
    world = tuple(float(reward) for reward in record["world"])
    if len(world) != num_turns:
        raise ValueError(f"grading has the world's rewards of {len(world)} turns, and there are {num_turns}")
    grades = tuple(_checked(Grade, grade) for grade in record["grades"])
    return _checked(Grading, {**record, "world": world, "grades": grades})


def _checked(kind: type[Made], values: Mapping[str, Any]) -> Made:
    """``kind(**values)``; TypeError for a text, number or truth value that is something else."""
    for name, allowed in _PLAIN[kind]:
        if name in values and not isinstance(values[name], allowed):
            raise TypeError(f"{name} is {values[name]!r}"[:200])
    return kind(**values)


def _plain_fields(kind: type) -> list[tuple[str, tuple[type, ...]]]:
    """Field names and the classes of their values, for those that JSON holds as they are; an int is a float, too."""
    found = []
    for name, hint in get_type_hints(kind).items():
        classes = get_args(hint) or (hint,)
        if {str, int, float, bool} & set(classes) and all(isinstance(each, type) for each in classes):
            found.append((name, (*classes, int) if float in classes else classes))
    return found


_PLAIN: dict[type, list[tuple[str, tuple[type, ...]]]] = {
    kind: _plain_fields(kind) for kind in (Task, Fork, Turn, Trajectory, Grade, Grading)
}
