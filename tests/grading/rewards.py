"""Reward functions for tests."""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import Any

from turnwise.trajectory import Trajectory

THREADS: set[str] = set()
LOOPS: set[int] = set()


def length(episode: Trajectory, task: dict[str, Any]) -> float:
    THREADS.add(threading.current_thread().name)
    return float(sum(len(turn.reply) % 7 for turn in episode.turns))


async def slow_length(episode: Trajectory, task: dict[str, Any]) -> float:
    LOOPS.add(id(asyncio.get_running_loop()))
    await asyncio.sleep(0.001)
    return length(episode, task)


async def never(episode: Trajectory, task: dict[str, Any]) -> float:
    await asyncio.sleep(60)
    return 1.0


def exact(episode: Trajectory, task: dict[str, Any]) -> bool:
    return task["answer"] in episode.turns[-1].reply


def nothing(episode: Trajectory, task: dict[str, Any]) -> None:
    return None


def nan(episode: Trajectory, task: dict[str, Any]) -> float:
    return float("nan")


def text(episode: Trajectory, task: dict[str, Any]) -> str:
    return "1.0"


def raising(episode: Trajectory, task: dict[str, Any]) -> float:
    raise KeyError("answer")


def leaving(episode: Trajectory, task: dict[str, Any]) -> float:
    sys.exit(3)


def of_one(episode: Trajectory) -> float:
    return 1.0


def of_three(episode: Trajectory, task: dict[str, Any], shop: object) -> float:
    return 1.0


number = 3.0


def word(episode: Trajectory, task: dict[str, Any]) -> int:
    return int(task["word"])


def by_seat(episode: Trajectory, task: dict[str, Any]) -> int:
    return ("first", "second").index(episode.player) + 1


def only_even(episode: Trajectory, task: object) -> float:
    """Fails on every second task."""
    return 1.0 / ((episode.task.index + 1) % 2)
