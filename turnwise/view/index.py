"""The index of a run's trajectories: the columns that a browser filters and sorts by before it unpacks a block."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from turnwise.algorithms.tree import TreePlanner
from turnwise.statistics import Estimate
from turnwise.view.credit import Name, Replayed

DIGITS = 4  # of rounded numbers, after the point


@dataclass
class Update:
    """What the page needs of one update: its rows of the index, its packed blocks, and the outcome of its tasks."""

    number: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    blocks: list[tuple[int, str]] = field(default_factory=list)  # (first row, packed)
    outcome: Estimate | None = None
    replayed: list[Replayed] = field(default_factory=list)
    ids: set[int] = field(default_factory=set)


def short(value: Any) -> Any:
    """A float rounded, or None where it is not finite; anything else as it is."""
    if not isinstance(value, float):
        return value
    return round(value, DIGITS) if math.isfinite(value) else None


def index_of(updates: Sequence[Update], texts: Mapping[int, str], planner: TreePlanner | None) -> dict[str, Any]:
    """The rows as columns. Tasks and repeated words become numbers; parents and replays are numbers of rows."""
    rows = [row for update in updates for row in update.rows]
    numbers: dict[Name, int] = {(row["episode"], row["player"]): n for n, row in enumerate(rows)}
    tasks: dict[str, int] = {}
    listed = []
    for row in rows:
        task, label = row.pop("task"), row.pop("label")
        if task.key not in tasks:
            tasks[task.key] = len(tasks)
            listed.append({**asdict(task), "label": label})
        row["task"] = tasks[task.key]
        row["parent"] = numbers.get((row["parent"], row["player"]), -1) if row["parent"] is not None else None
    starts, before = [], 0
    for update in updates:
        starts += [before + first for first, _ in update.blocks]
        before += len(update.rows)
    columns = {name: [row[name] for row in rows] for name in (rows[0] if rows else {})}
    return {
        "num": len(rows),
        "columns": {name: _coded(values) for name, values in columns.items()},
        "tasks": listed,
        "starts": starts,
        "replays": _replays(updates, numbers),
        "texts": {str(number): text for number, text in texts.items()},
        "tree": _tree(planner) if planner is not None else None,
        "telling": telling(rows),
    }


def telling(rows: Sequence[Mapping[str, Any]]) -> int | None:
    """The row that the page opens on: a late win at a task whose attempts in an earlier update were all lost.

    Where there is none it is the latest win in a group with losses, of groups in one update the one with the most.
    Without such a win it is any win, and without a win the first row. None where there are no rows.
    """
    outcomes: dict[tuple[int, int, int], list[int]] = {}
    for row in rows:
        if row["success"] is not None and not row["error"]:
            outcomes.setdefault((row["task"], row["update"], row["group"]), []).append(row["success"])
    lost: dict[int, int] = {}  # task -> the first update in which every attempt lost
    for (task, update, _), found in outcomes.items():
        if not any(found):
            lost[task] = min(lost.get(task, update), update)

    def worth(place: int) -> tuple[bool, bool, bool, int, float, int]:
        row = rows[place]
        group = outcomes[row["task"], row["update"], row["group"]]
        share = sum(group) / len(group)
        learned = lost.get(row["task"], row["update"]) < row["update"]
        trained = row["stream"] not in ("left out", "looked at")
        return learned, share < 1, trained, row["update"], -share, -place

    won = [place for place, row in enumerate(rows) if row["success"] == 1 and not row["error"]]
    return max(won, key=worth) if won else 0 if rows else None


def _tree(planner: TreePlanner) -> dict[str, Any]:
    """The planner's settings, and ``log_vocabulary``, by which it divides entropies in nats."""
    settings: dict[str, Any] = planner.settings.model_dump(mode="json", exclude={"base"})
    return {**settings, "log_vocabulary": short(planner.log_vocabulary)}


def _coded(values: list[Any]) -> list[Any] | dict[str, list[Any]]:
    """A column; where it has few different texts, a list of these and a number for each row."""
    if not values or not any(isinstance(value, str) for value in values):
        return values
    words = list(dict.fromkeys(values))
    if len(words) > len(values) // 2 + 1:
        return values
    places = {word: place for place, word in enumerate(words)}
    return {"words": words, "codes": [places[value] for value in values]}


def _replays(updates: Iterable[Update], numbers: Mapping[Name, int]) -> dict[str, list[list[Any]]]:
    """By row number: [update, staleness, mean advantage] of each time that the row was replayed."""
    found: dict[str, list[list[Any]]] = {}
    for replayed in (r for update in updates for r in update.replayed):
        if replayed.name in numbers:
            use = [replayed.update, replayed.staleness, short(replayed.advantage)]
            found.setdefault(str(numbers[replayed.name]), []).append(use)
    return found


def ages(updates: Sequence[Update]) -> dict[str, list[Any]] | None:
    """By update: how many rows were replayed, and their mean and greatest age in updates. None without replays."""
    if not any(update.replayed for update in updates):
        return None
    ages = [[r.staleness for r in update.replayed] for update in updates]
    return {
        "update": [update.number for update in updates],
        "num": [len(found) for found in ages],
        "mean": [short(float(np.mean(found))) if found else None for found in ages],
        "max": [max(found, default=None) for found in ages],
    }
