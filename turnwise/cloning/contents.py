"""What the files hold that a clone depends on by name: the user's worlds, their arguments, and a model's folder.

A name stays as it is when its file is edited. A key of names alone would find the clone of another world.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

_OF_A_MODEL = ("config.json", "adapter_config.json", "tokenizer.json", "*.safetensors", "*.bin")


def contents(worlds: Mapping[str, Mapping[str, Any]], model: str | None) -> dict[str, str]:
    """Hashes by name, of those that there are. ``worlds`` maps ids to the arguments of each world.

    Of an id ``module:ns/Id-v0`` the file of the module counts, of arguments those that name a file, and of a ``model``
    in a local folder its weights and tokenizer. What these files import or name in turn does not.
    """
    files: dict[str, list[Path]] = {}
    for env_id, kwargs in worlds.items():
        if (module := env_id.rpartition(":")[0]) and (file := _module_file(module)) is not None:
            files[module] = [file]
        files |= {text: [Path(text).expanduser()] for text in _texts(kwargs) if _is_file(text)}
    if model is not None:
        place = Path(model).expanduser()
        found = [file for pattern in _OF_A_MODEL for file in sorted(place.glob(pattern))] if place.is_dir() else []
        files |= {model: found or [place]} if found or _is_file(model) else {}
    return {name: hashlib.sha256("".join(map(_hash, found)).encode()).hexdigest() for name, found in files.items()}


def _module_file(module: str) -> Path | None:
    """The file of a user's module; None of a package without one, of our own, and of one that is not there."""
    if module.partition(".")[0] == "turnwise":
        return None
    try:
        found = importlib.util.find_spec(module)
    except Exception:  # a package around it is imported, which may fail in any way: making the world says so
        return None
    origin = None if found is None else found.origin
    return Path(origin) if origin is not None and _is_file(origin) else None


def _texts(value: Any) -> Iterator[str]:
    """Every string in the arguments of a world."""
    if isinstance(value, str | Path):
        yield str(value)
    elif isinstance(value, Mapping):
        yield from (text for inner in value.values() for text in _texts(inner))
    elif isinstance(value, list | tuple):
        yield from (text for inner in value for text in _texts(inner))


def _is_file(name: str) -> bool:
    """Whether there is such a file; False for texts that no file can have as its name."""
    try:
        return Path(name).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):
        return False


def _hash(file: Path) -> str:
    told = file.stat()
    return _hash_once(os.fspath(file), told.st_mtime_ns, told.st_size)


@lru_cache
def _hash_once(file: str, changed_ns: int, size: int) -> str:
    """A file's hash, made again where it was changed: a large model's takes seconds, and a run asks several times."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
