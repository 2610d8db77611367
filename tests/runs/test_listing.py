"""The totals below a list of stored episodes."""

from __future__ import annotations

from typing import Any

import numpy as np

from turnwise.runs.trajectories import Stored
from turnwise.runs.trajectory_tables import Listing
from turnwise.trajectory import Task, Trajectory, Turn


def stored(reward: float, end: Any, success: bool | None) -> Stored:
    ids, floats = np.array([1], np.int32), np.array([0.5], np.float32)
    turn = Turn("seen", ids, False, ids, floats, floats, "go", "go", True, reward)
    return Stored(0, Trajectory("e", Task("world", "train", 0, "key"), 0, 0, (turn,), end, success, None))


def test_a_failed_episode_is_no_return_of_what_it_was_paid_so_far() -> None:
    sound, failed = stored(1.0, "terminated", True), stored(0.0, "error", None)
    assert Listing.of([sound, failed, sound], 0).summary() == (
        "3 trajectories · success 2 of 2 · mean return 1 · 1 failed and left out"
    )
    assert Listing.of([sound], 0).summary() == "1 trajectories · success 1 of 1 · mean return 1"
    assert Listing.of([failed], 0).summary() == "1 trajectories · 1 failed and left out"
