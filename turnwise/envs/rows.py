"""Tasks from rows: lines of a JSONL file, or rows of a Hugging Face dataset.

    tasks: questions.jsonl                          one source: its rows are dealt to train, validation and test
    tasks: {train: a.jsonl, test: b.jsonl}          the splits as they are given
    tasks: hf:openai/gsm8k#main                     a dataset (pip install -e ".[export]"), all of its rows
    tasks: {train: "hf:openai/gsm8k#main:train"}    one of its splits; @REVISION after the name pins it

A row is a JSON object. Its content decides where it is dealt to (docs/adr/007-content-decides-the-split.md), and its
key is a hash of the content without "id". A row that comes twice counts once; one that two given splits hold is
refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from turnwise.envs.interface import Panel
from turnwise.envs.panels import content_key
from turnwise.errors import unknown
from turnwise.trajectory import Task

Row = dict[str, Any]
Source = str | Path | Sequence[Mapping[str, Any]]
"""A file, a dataset as ``hf:NAME``, or the rows themselves."""

DEALT: Mapping[str, str] = {"train": "0123456789", "validation": "abc", "test": "def"}
"""Splits of one source, by the first hexadecimal digit of a row's key."""

_HF = "hf:"


class Rows:
    """Panels of the tasks that rows hold. A row's "type" is its task's type.

    ``fields`` names columns otherwise: ``{"question": "prompt"}`` reads the column "prompt" as "question". Raises
    ValueError for a source that cannot be read, and for a row that two splits hold.
    """

    def __init__(self, env: str, tasks: Source | Mapping[str, Source], fields: Mapping[str, str] | None = None) -> None:
        self._env, fields = env, fields or {}
        if isinstance(tasks, Mapping):
            self._rows = {split: _keyed(source, fields) for split, source in tasks.items()}
            self._check_apart()
        else:
            found = _keyed(tasks, fields)
            self._rows = {
                split: {key: row for key, row in found.items() if key[0] in digits} for split, digits in DEALT.items()
            }
        self._listed = {split: list(rows.values()) for split, rows in self._rows.items()}

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have tasks."""
        return tuple(split for split, rows in self._rows.items() if rows)

    def __iter__(self) -> Iterator[Row]:
        """The rows of all splits."""
        return (row for rows in self._listed.values() for row in rows)

    def panel(self, split: str) -> Panel:
        """The tasks of a split. Raises ValueError for an unknown split, and for one to which no row was dealt."""
        if split in self._panels:
            return self._panels[split]
        if split in self._rows:
            total = sum(map(len, self._rows.values()))
            raise ValueError(f"none of the {total} rows belongs to {split!r}: give more rows, or a file for each split")
        raise unknown("split", split, self.splits, self._env)

    def row(self, split: str, index: int) -> Row:
        """The row of a task: a copy, which may be changed."""
        self.panel(split)
        found: Row = json.loads(json.dumps(self._listed[split][index]))
        return found

    @cached_property
    def _panels(self) -> dict[str, Panel]:
        return {
            split: Panel(
                self._env,
                split,
                tuple(
                    Task(self._env, split, n, key, "" if row.get("type") is None else str(row["type"]))
                    for n, (key, row) in enumerate(self._rows[split].items())
                ),
            )
            for split in self.splits
        }

    def _check_apart(self) -> None:
        first: dict[str, str] = {}
        for split, rows in self._rows.items():
            for key, row in rows.items():
                if key in first:
                    raise ValueError(
                        f"{first[key]!r} and {split!r} both hold the row {json.dumps(row, ensure_ascii=False)[:120]}: "
                        "take it out of one, or give all rows as one source, which are then dealt out"
                    )
                first[key] = split


def shared_rows(env: str, tasks: Source | Mapping[str, Source], fields: Mapping[str, str] | None = None) -> Rows:
    """The tasks, read once for all worlds of a process that name the same files as they are now."""
    sources = list(tasks.values()) if isinstance(tasks, Mapping) else [tasks]
    if not all(isinstance(source, str) for source in sources):
        return Rows(env, tasks, fields)
    files = [Path(str(source)).expanduser().absolute() for source in sources]
    stamps = tuple((str(file), file.stat().st_mtime_ns if file.is_file() else 0) for file in files)
    return _read_once(json.dumps([env, tasks, fields], default=dict), stamps)


@lru_cache(maxsize=8)
def _read_once(named: str, stamps: tuple[tuple[str, int], ...]) -> Rows:
    return Rows(*json.loads(named))


def _keyed(source: Source, fields: Mapping[str, str]) -> dict[str, Row]:
    """Rows by their keys, in their order, each content once."""
    found: dict[str, Row] = {}
    for place, row in _read(source):
        if not isinstance(row, Mapping):
            raise ValueError(f'{place}: expected a JSON object, such as {{"question": ...}}; got {str(row)[:60]}')
        made = _renamed(dict(row), fields, place)
        try:
            content = json.dumps({k: v for k, v in made.items() if k != "id"}, sort_keys=True, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{place}: a row holds JSON values only ({error})") from None
        found.setdefault(content_key(content), made)
    if not found:
        raise ValueError(f"{_name(source)} holds no rows")
    return found


def _renamed(row: Row, fields: Mapping[str, str], place: str) -> Row:
    for ours, theirs in fields.items():
        if theirs not in row:
            raise ValueError(f"{place}: {unknown('column', theirs, row)} (fields.{ours})")
    taken = {theirs: row[theirs] for theirs in fields.values()}
    left = {name: value for name, value in row.items() if name not in taken and name not in fields}
    return {**left, **{ours: taken[theirs] for ours, theirs in fields.items()}}


def _read(source: Source) -> Iterator[tuple[str, Any]]:
    """Rows, and what to call each in an error."""
    if isinstance(source, str) and source.startswith(_HF):
        yield from _numbered(source, _dataset(source.removeprefix(_HF)))
    elif isinstance(source, str | Path):
        yield from _lines(Path(source).expanduser())
    else:
        yield from _numbered("tasks", source)


def _numbered(name: str, rows: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    return ((f"{name}, row {number}", row) for number, row in enumerate(rows, start=1))


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # splitlines also cuts at letters that JSON may hold
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"no tasks can be read from {str(path)!r}: {error}") from None
    for number, line in enumerate(lines, start=1):
        if line.strip():
            place = f"{path}, line {number}"
            try:
                yield place, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{place}: not JSON ({error}); expected one JSON object a line") from None


def _dataset(name: str) -> Iterator[Mapping[str, Any]]:
    """The rows of a dataset: ``NAME[@REVISION][#CONFIGURATION][:SPLIT]``."""
    try:
        from datasets import load_dataset
    except ImportError:
        raise ValueError(f'tasks={_HF}{name} needs the package datasets: pip install -e ".[export]"') from None
    name, _, split = name.partition(":")
    name, _, configuration = name.partition("#")
    name, _, revision = name.partition("@")
    try:
        found = load_dataset(name, configuration or None, revision=revision or None, split=split or None)
    except Exception as error:  # a library that reads the network and other people's files: it may fail in any way
        raise ValueError(f"tasks={_HF}{name}: it cannot be loaded ({type(error).__name__}: {error})") from error
    for rows in [found] if split else found.values():
        yield from rows


def _name(source: Source) -> str:
    return str(source) if isinstance(source, str | Path) else "tasks"
