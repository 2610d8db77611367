"""Where ALFWorld's games come from: the downloaded folder, single files, or the compact archive.

``open_games`` finds them. The folder and the archive are read once into a store (``store.py``) in the cache
directory; the games of both are ordered by their ids, so that both give the same panels.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from turnwise.envs.alfworld.game import Game
from turnwise.envs.alfworld.pddl import (
    GameText,
    parse_game,
    read_game_file,
    read_grammar,
)
from turnwise.envs.alfworld.store import (
    ENV_ID,
    SPLIT_ORDER,
    GameSource,
    LeftOut,
    StoredGames,
    cached_store,
    check_index,
    check_split,
)
from turnwise.envs.interface import Panel
from turnwise.trajectory import Task

__all__ = ["FileGames", "GameSource", "open_archive", "open_directory", "open_games"]

GAME_FILE = "game.tw-pddl"
RECORDING = "traj_data.json"
ARCHIVE = "games_2.1.3.jsonl.xz"
RELEASES = ("json_2.1.3", "json_2.1.2", "json_2.1.1", "2.1.3", "2.1.2", "2.1.1")
OUTSIDE = ("movable", "Sliced")  # in a folder's name: games that the official text set leaves out

_HOW_TO_GET = (
    "Get the games with `pip install alfworld && alfworld-download` and set ALFWORLD_DATA to their folder, "
    "or pass data=<folder, game.tw-pddl or games_2.1.3.jsonl.xz>. turnwise/Household-v0 plays games of the "
    "same kind and needs no data."
)


def open_games(data: str | Path | Sequence[str | Path] | None = None) -> GameSource:
    """The games at ``data``: a folder, an archive (``.jsonl.xz``), a ``game.tw-pddl`` file or several.

    Without ``data``: the folder ``ALFWORLD_DATA``, else the archive below ``TURNWISE_DATA``, else the archive
    in ``../shared/data``. Raises ValueError that says how to get the games where there are none.
    """
    if data is None:
        data = _default_data()
    if not isinstance(data, str | Path):
        return FileGames(data)
    path = Path(data).expanduser()
    if path.is_dir():
        return open_directory(path)
    if not path.is_file():
        raise ValueError(f"No ALFWorld games at {path}: it does not exist. {_HOW_TO_GET}")
    return open_archive(path) if path.name.endswith(".jsonl.xz") else FileGames([path])


def _default_data() -> Path:
    if folder := os.environ.get("ALFWORLD_DATA"):
        return Path(folder)
    places = [Path("../shared/data")]
    if tests := os.environ.get("TURNWISE_DATA"):
        places.insert(0, Path(tests))
    for place in places:
        if (archive := place / "alfworld" / ARCHIVE).is_file():
            return archive
    raise ValueError(f"No ALFWorld games: ALFWORLD_DATA is not set. {_HOW_TO_GET}")


# ---------------------------------------------------------------------- single files


class FileGames:
    """Single game files as one split, in the given order; read when they are asked for."""

    def __init__(self, paths: Sequence[str | Path], split: str = "train") -> None:
        if not paths:
            raise ValueError("Expected at least one game.tw-pddl file, got an empty list.")
        self.paths = tuple(map(Path, paths))
        self.name = str(self.paths[0]) + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
        self.splits: tuple[str, ...] = (split,)
        self._panel: Panel | None = None

    def panel(self, split: str) -> Panel:
        check_split(self, split)
        if self._panel is None:
            games = enumerate(map(self._read, self.paths))
            tasks = (Task(ENV_ID, split, index, game.key, game.goal.type) for index, game in games)
            self._panel = Panel(ENV_ID, split, tuple(tasks))
        return self._panel

    def game(self, split: str, index: int) -> Game:
        check_index(self, split, index)
        return self._read(self.paths[index])

    @staticmethod
    def _read(path: Path) -> Game:
        return parse_game(read_game_file(path))


# ---------------------------------------------------------------------- the downloaded folder


def open_directory(root: str | Path) -> StoredGames:
    """What ``alfworld-download`` lays out: ``json_2.1.1/<split>/<folder>/<trial>/game.tw-pddl``.

    ``root`` may also be the release's folder itself. Folders of sliced or movable-receptacle tasks are no part of the
    text set. Other trials without a game, or whose game is not marked solvable, are left out, as the official loader
    does; the store counts them. Raises ValueError for a game file that is damaged.
    """
    root = _release(Path(root).expanduser().resolve())
    listing = [f"{trial.relative_to(root)} {_stamp(trial / GAME_FILE)}" for trial in sorted(_trials(root))]
    return _open_directory(str(root), _digest("\n".join(listing).encode()))


@lru_cache(maxsize=8)
def _open_directory(root: str, fingerprint: str) -> StoredGames:
    return cached_store(root, fingerprint, lambda: _read_directory(Path(root)))


def _release(root: Path) -> Path:
    """The folder whose children are the splits."""
    for folder in (root, *(root / release for release in RELEASES)):
        if any((folder / split).is_dir() for split in SPLIT_ORDER):
            return folder
    raise ValueError(
        f"No ALFWorld games in {root}: expected {'/'.join(('json_2.1.1', SPLIT_ORDER[0]))} or one of "
        f"{', '.join(SPLIT_ORDER)} below it. {_HOW_TO_GET}"
    )


def _trials(root: Path) -> Iterator[Path]:
    """The folders of the text set that hold a game, or the recording that one is made from."""
    for split in SPLIT_ORDER:
        for trial in {path.parent for name in (GAME_FILE, RECORDING) for path in (root / split).glob(f"*/*/{name}")}:
            if not any(word in trial.parent.name for word in OUTSIDE):
                yield trial


def _stamp(path: Path) -> str:
    """What changes when a file does."""
    return f"{path.stat().st_size} {path.stat().st_mtime_ns}" if path.exists() else "missing"


def _read_directory(root: Path) -> Iterator[tuple[str, GameText | LeftOut]]:
    for trial in sorted(_trials(root)):
        split, id = trial.relative_to(root).parts[0], "/".join(trial.relative_to(root).parts)
        if not (trial / GAME_FILE).exists():
            yield split, LeftOut(id, f"no {GAME_FILE}")
            continue
        text = read_game_file(trial / GAME_FILE, id=id)
        yield split, text if text.solvable else LeftOut(id, "its game is not marked solvable")


# ---------------------------------------------------------------------- the compact archive


def open_archive(path: str | Path) -> StoredGames:
    """``games_2.1.3.jsonl.xz``: the shared grammar, then {id, task, pddl_problem, walkthrough} a line."""
    path = Path(path).expanduser().resolve()
    stat = path.stat()
    return _open_archive(str(path), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=8)
def _open_archive(path: str, _size: int, _mtime_ns: int) -> StoredGames:
    fingerprint = _digest(Path(path).read_bytes())
    return cached_store(path, fingerprint, lambda: _read_archive(path))


def _read_archive(path: str) -> Iterator[tuple[str, GameText]]:
    try:
        with lzma.open(path, "rt", encoding="utf-8") as lines:
            yield from _read_lines(lines, path)
    except (EOFError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged, not a whole .jsonl.xz ({error}). Copy it again.") from error


def _read_lines(lines: Iterable[str], path: str) -> Iterator[tuple[str, GameText]]:
    number, template = 1, ""
    try:
        for number, line in enumerate(lines, start=1):
            record = json.loads(line)
            if number == 1:
                template = record["grammar_template"]
                continue
            grammar = template.replace("@@TASK@@", record["task"].replace("\\", "\\\\").replace('"', '\\"'))
            dialect, task = read_grammar(grammar, origin=(origin := f"Line {number} of {path}"))
            id, walkthrough = record["id"], tuple(record.get("walkthrough", ()))
            text = GameText(id, task, dialect, record["pddl_problem"], walkthrough, origin=origin)
            yield id.split("/")[0], text
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"Line {number} of {path} is damaged ({type(error).__name__}: {error}): expected JSON with "
            f"{'grammar_template' if number == 1 else 'id, task, pddl_problem'}. Copy the archive again."
        ) from error


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
