"""Generated folders of bills, and what is to be found out or written down in them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from turnwise.envs.files.folder import Folder
from turnwise.envs.panels import GeneratedTasks, content_key
from turnwise.envs.said import Call, said

ENV_ID = "turnwise/Files-v0"
VERSION = 1

_MONTHS = ("january", "february", "march", "april", "may", "june", "july", "august")
_BILLS = (
    *("books", "clothes", "food", "gas", "insurance", "internet"),
    *("paint", "phone", "power", "rent", "repair", "trains"),
)


@dataclass(frozen=True, slots=True)
class Level:
    """What a difficulty asks: kinds of work, folders, files in each, and the replies that an episode may have."""

    kinds: tuple[str, ...]
    num_folders: int
    num_files: int
    step_limit: int


_EASY, _MEDIUM, _HARD = ("read", "sum"), ("total", "write sum", "larger"), ("folder sum", "write folder sum")
LEVELS = {
    "easy": Level(_EASY, 1, 4, 6),
    "medium": Level((*_EASY, *_MEDIUM), 2, 4, 8),
    "hard": Level((*_EASY, *_MEDIUM, *_HARD), 3, 5, 10),
}

Files = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """A folder, the work, the calls that do it reply by reply, the answer ("": any), and the folder afterwards."""

    files: Files
    kind: str
    question: str
    steps: tuple[tuple[Call, ...], ...]
    answer: str
    after: Files

    def actions(self, *, looks: bool) -> list[str]:
        """The work as an agent does it; without ``looks`` the writing alone."""
        needed = [[call for call in step if looks or call.name == "write_file"] for step in self.steps]
        return [*(said(calls=step) for step in needed if step), said(self.answer or "Done.")]


def _read(path: str) -> Call:
    return Call("read_file", {"path": path})


def _work_out(expression: str) -> Call:
    return Call("calculate", {"expression": expression})


def problem(level: Level, seed: int) -> Problem:
    """The problem of a seed. Its kind is ``seed % len(level.kinds)``."""
    rng, kind = random.Random(seed), level.kinds[seed % len(level.kinds)]
    months = rng.sample(_MONTHS, level.num_folders)
    paths = [f"{month}/{bill}.txt" for month in months for bill in rng.sample(_BILLS, level.num_files)]
    numbers = dict(zip(paths, rng.sample(range(10, 1000), len(paths)), strict=True))
    texts = {path: str(number) for path, number in numbers.items()}
    folder = Folder(texts)
    question, steps, answer = _WORK[kind](folder, numbers, rng)
    before = tuple(sorted(folder.files.items()))
    for step in steps:
        for each in step:
            getattr(folder, each.name)(**each.arguments)
    return Problem(before, kind, question, tuple(map(tuple, steps)), answer, tuple(sorted(folder.files.items())))


Work = tuple[str, list[list[Call]], str]


def _say(folder: Folder, numbers: dict[str, int], rng: random.Random) -> Work:
    path = rng.choice(list(numbers))
    return f"Which number is in '{path}'?", [[_read(path)]], str(numbers[path])


def _sum(folder: Folder, numbers: dict[str, int], rng: random.Random) -> Work:
    first, second = rng.sample(list(numbers), 2)
    steps = [[_read(first), _read(second)], [_work_out(f"{numbers[first]} + {numbers[second]}")]]
    return f"What is the sum of '{first}' and '{second}'?", steps, str(numbers[first] + numbers[second])


def _total(folder: Folder, numbers: dict[str, int], rng: random.Random) -> Work:
    path, count, price = rng.choice(list(numbers)), rng.randrange(2, 10), rng.randrange(11, 100)
    folder.files[path] = f"{count} times {price}"
    return f"How much is the bill '{path}'?", [[_read(path)], [_work_out(f"{count} * {price}")]], str(count * price)


def _write_sum(folder: Folder, numbers: dict[str, int], rng: random.Random) -> Work:
    first, second = rng.sample(list(numbers), 2)
    total = numbers[first] + numbers[second]
    steps = [
        [_read(first), _read(second)],
        [_work_out(f"{numbers[first]} + {numbers[second]}")],
        [Call("write_file", {"path": "sum.txt", "text": str(total)})],
    ]
    return f"Write the sum of '{first}' and '{second}' into 'sum.txt'.", steps, ""


def _larger(folder: Folder, numbers: dict[str, int], rng: random.Random) -> Work:
    first, second = rng.sample(list(numbers), 2)
    answer = first if numbers[first] > numbers[second] else second
    return f"Which file has the larger number, '{first}' or '{second}'?", [[_read(first), _read(second)]], answer


def _of_folder(numbers: dict[str, int], rng: random.Random) -> tuple[str, list[list[Call]], int]:
    month = rng.choice(list(numbers)).partition("/")[0]
    paths = sorted(path for path in numbers if path.startswith(f"{month}/"))
    steps = [
        [Call("list_files", {"folder": month})],
        [_read(path) for path in paths],
        [_work_out(" + ".join(str(numbers[path]) for path in paths))],
    ]
    return month, steps, sum(numbers[path] for path in paths)


def _folder_sum(folder: Folder, numbers: dict[str, int], rng: random.Random) -> Work:
    month, steps, total = _of_folder(numbers, rng)
    return f"What is the sum of all files of the folder '{month}'?", steps, str(total)


def _write_folder_sum(folder: Folder, numbers: dict[str, int], rng: random.Random) -> Work:
    month, steps, total = _of_folder(numbers, rng)
    wrote = [Call("write_file", {"path": f"{month}/total.txt", "text": str(total)})]
    return f"Write the sum of all files of the folder '{month}' into '{month}/total.txt'.", [*steps, wrote], ""


_WORK: dict[str, Callable[[Folder, dict[str, int], random.Random], Work]] = {
    "read": _say,
    "sum": _sum,
    "total": _total,
    "write sum": _write_sum,
    "larger": _larger,
    "folder sum": _folder_sum,
    "write folder sum": _write_folder_sum,
}


@lru_cache(maxsize=8)
def problems(difficulty: str) -> GeneratedTasks[Problem]:
    """The panels of a difficulty, which all instances share."""
    level = LEVELS[difficulty]
    return GeneratedTasks(
        ENV_ID,
        f"files|{VERSION}|{difficulty}",
        lambda seed: problem(level, seed),
        lambda made: content_key(json.dumps([made.files, made.question])),
        lambda made: made.kind,
        num_types=len(level.kinds),
    )
