"""Runs whose attempts start in stored states, where a world does not come to such a state again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.faults.runs import config, trainer
from turnwise.algorithms.stored import StoredStarts
from turnwise.replay.store import TrajectoryReader


def test_a_state_that_its_world_does_not_come_to_again_ends_no_run(model: Path, tmp_path: Path) -> None:
    """A third of an update's attempts fail, more than rollout.max_error_share; the episode is gone."""
    made = trainer(config(model, "algorithm=drpo"), tmp_path / "run")
    planner = made.planner
    assert isinstance(planner, StoredStarts)
    while not any(len(episode.turns) > planner.won.depth for episode in planner.won.by_task.values()):
        made.step()
    (key, episode), *_ = planner.won.by_task.items()
    other = replace(episode.turns[1], observation="what nobody saw")
    planner.won.by_task = {key: replace(episode, turns=(episode.turns[0], other, *episode.turns[2:]))}
    planner.won.depth = len(episode.turns) - 1
    record = made.step()
    assert record["mechanisms/StoredStarts/lost_share"] == 1.0
    assert (record["errors"], record["episodes"]) == (4, 8), "the task that gave its place was played after all"
    *_, last = TrajectoryReader(made.run.trajectories_path).flushes()
    lost = [t for t in last.trajectories if t.end == "error"]
    assert {t.stored_start for t in lost} == {(episode.episode, 1)}
    saved = made.run.load("last").state["sides"][""]["learner"]["parts"]["0.RememberedWins"]["own"]
    assert episode.episode not in [kept["episode"] for kept in saved["episodes"]]
    made.close()
