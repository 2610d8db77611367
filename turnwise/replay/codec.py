"""A trajectory as a JSON-able record and back, without loss.

Arrays are base64 of their little-endian bytes (int32 ids, float32 nats), so float32 values return to the bit;
Python floats are written with the shortest digits that read back as the same number.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from turnwise.trajectory import Fork, Task, Trajectory, Turn

_ARRAYS = {"prompt_ids": "<i4", "action_ids": "<i4", "logprobs": "<f4", "entropies": "<f4"}


def to_record(trajectory: Trajectory) -> dict[str, Any]:
    """Every field of the trajectory, nested as it is."""
    record: dict[str, Any] = _plain(trajectory)
    record["turns"] = [_turn_record(turn) for turn in trajectory.turns]
    return record


def from_record(record: Mapping[str, Any]) -> Trajectory:
    """The inverse of ``to_record``; raises ValueError for a record that is not one."""
    try:
        values = dict(record)
        values["task"] = Task(**values["task"])
        values["fork"] = None if values["fork"] is None else Fork(**values["fork"])
        values["turns"] = tuple(_turn(turn) for turn in values["turns"])
        return Trajectory(**values)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"Not a trajectory record: {error!r}") from error


def _plain(item: Any) -> Any:
    """Dataclasses as dicts, numpy scalars as Python numbers."""
    if isinstance(item, Task | Fork | Trajectory):
        return {f.name: _plain(getattr(item, f.name)) for f in fields(item) if f.name != "turns"}
    return item.item() if isinstance(item, np.generic) else item


def _turn_record(turn: Turn) -> dict[str, Any]:
    record = {f.name: _plain(getattr(turn, f.name)) for f in fields(turn)}
    for name, dtype in _ARRAYS.items():
        record[name] = base64.b64encode(np.asarray(record[name]).astype(dtype).tobytes()).decode("ascii")
    return record


def _turn(record: Mapping[str, Any]) -> Turn:
    values = dict(record)
    for name, dtype in _ARRAYS.items():
        array = np.frombuffer(base64.b64decode(values[name], validate=True), dtype)
        values[name] = array.astype(array.dtype.newbyteorder("="))  # a native, writable copy
    return Turn(**values)
