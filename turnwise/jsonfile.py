"""JSON: reading a file that may be damaged, writing one atomically, and values that JSON lacks."""

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
    """For JSON, which has no nan: None in its place, however deep."""
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write atomically, down to the disk: a reader sees the old file or the new one, after a crash too."""
    partial = path.with_suffix(path.suffix + ".tmp")
    with partial.open("w") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
