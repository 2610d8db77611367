"""The thirty tasks, their variations, and the official splits, known without starting the simulator.

Of a task's n variations the first 2 * (n // 4) are for training, the next n // 4 for development, the rest for
tests: 3592, 1796 and 1819 in all. A test compares the table with the simulator.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

from turnwise.envs.interface import Panel
from turnwise.envs.panels import content_key
from turnwise.errors import unknown
from turnwise.trajectory import Task

ENV_ID = "turnwise/ScienceWorld-v0"
VERSION = "1.2.3"
"""Release of the PyPI package ``scienceworld``; others hold other worlds."""
SPLITS = ("train", "dev", "test")
SIMPLIFICATIONS = (
    "easy",
    "teleportAction",
    "openDoors",
    "openContainers",
    "selfWateringFlowerPots",
    "noElectricalAction",
)
"""What ``simplifications`` is made of; "easy" stands alone: all but openContainers, and noElectricalAction only where
the task needs no circuit."""
VARIATIONS: Mapping[str, int] = {
    "boil": 30,
    "change-the-state-of-matter-of": 30,
    "chemistry-mix": 32,
    "chemistry-mix-paint-secondary-color": 36,
    "chemistry-mix-paint-tertiary-color": 36,
    "find-animal": 300,
    "find-living-thing": 300,
    "find-non-living-thing": 300,
    "find-plant": 300,
    "freeze": 30,
    "grow-fruit": 126,
    "grow-plant": 126,
    "identify-life-stages-1": 14,
    "identify-life-stages-2": 10,
    "inclined-plane-determine-angle": 168,
    "inclined-plane-friction-named-surfaces": 1386,
    "inclined-plane-friction-unnamed-surfaces": 162,
    "lifespan-longest-lived": 125,
    "lifespan-longest-lived-then-shortest-lived": 125,
    "lifespan-shortest-lived": 125,
    "measure-melting-point-known-substance": 436,
    "measure-melting-point-unknown-substance": 300,
    "melt": 30,
    "mendelian-genetics-known-plant": 120,
    "mendelian-genetics-unknown-plant": 480,
    "power-component": 20,
    "power-component-renewable-vs-nonrenewable-energy": 20,
    "test-conductivity": 900,
    "test-conductivity-of-unknown-substances": 600,
    "use-thermometer": 540,
}
"""Task -> number of variations, in the simulator's order (the papers' task numbers)."""

Start = tuple[str, int]
"""Task name and variation."""


def chosen_tasks(tasks: str | Sequence[str] | None) -> tuple[str, ...]:
    """The names, checked; None is all thirty. Raises ValueError for an unknown or repeated one, or for none."""
    names = tuple(VARIATIONS) if tasks is None else (tasks,) if isinstance(tasks, str) else tuple(tasks)
    for name in names:
        if name not in VARIATIONS:
            raise unknown("task", name, VARIATIONS, ENV_ID)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"tasks must name at least one task and none twice, got {list(names)}.")
    return names


def checked_simplifications(given: str, tasks: Sequence[str]) -> str:
    """One spelling of a comma list. Raises ValueError for an unknown one, or one that makes a task impossible."""
    names = sorted({part.strip() for part in given.split(",")} - {""})
    for name in names:
        if name not in SIMPLIFICATIONS:
            raise unknown("simplification", name, SIMPLIFICATIONS, ENV_ID)
    if "easy" in names and len(names) > 1:
        raise ValueError(f'simplifications: "easy" is a preset and stands alone, got {given!r}.')
    circuits = [task for task in tasks if "power-component" in task or "conductivity" in task]
    if "noElectricalAction" in names and circuits:
        raise ValueError(
            f"simplifications: noElectricalAction takes away what {circuits} need. Leave these tasks or it out, "
            'or take "easy", which applies it only where it can.'
        )
    return ",".join(names)


def variations(task: str, split: str) -> range:
    """The official split of a task's variations."""
    total = VARIATIONS[task]
    quarter = total // 4
    bounds = {"train": (0, 2 * quarter), "dev": (2 * quarter, 3 * quarter), "test": (3 * quarter, total)}
    return range(*bounds[split])


@lru_cache(maxsize=64)
def starts(tasks: tuple[str, ...], split: str) -> tuple[Start, ...]:
    """The episodes of a split: the tasks take turns while they last, each in a fixed shuffled order.

    Any first N are therefore as balanced as N allows. Raises ValueError for an unknown split.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS, ENV_ID)
    return tuple(_taking_turns([_shuffled(task, split) for task in tasks]))


def panel(tasks: tuple[str, ...], split: str, simplifications: str) -> Panel:
    """The same as tasks of turnwise; a key is made of task, variation, simplifications and release."""
    entries = (
        Task(ENV_ID, split, index, content_key(f"scienceworld {VERSION}|{task}|{variation}|{simplifications}"), task)
        for index, (task, variation) in enumerate(starts(tasks, split))
    )
    return Panel(ENV_ID, split, tuple(entries))


def _shuffled(task: str, split: str) -> list[Start]:
    order = list(variations(task, split))
    random.Random(f"scienceworld {task} {split}").shuffle(order)
    return [(task, variation) for variation in order]


def _taking_turns(queues: Sequence[Sequence[Start]]) -> Iterator[Start]:
    for position in range(max(map(len, queues))):
        yield from (queue[position] for queue in queues if position < len(queue))
