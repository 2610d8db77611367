"""JSON files: reading one that may be damaged, and writing one atomically. A leaf: standard library only."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ValueError, which names the file, where it holds something else."""
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: it is not JSON ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: expected a JSON object, found {type(found).__name__}")
    return found


def without_nan(value: Any) -> Any:
    """The value with None in place of nan and infinity, which JSON does not have; nested values included."""
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace a file atomically and synchronise it to the disk: a reader sees the old file or the new one."""
    partial = path.with_suffix(path.suffix + ".tmp")
    with partial.open("w") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
