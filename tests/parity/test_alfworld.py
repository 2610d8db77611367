"""Our ALFWorld against the official engine: recorded transcripts, walkthroughs, and the released splits.

Recordings (``alfworld*.jsonl`` in ``TURNWISE_GOLDEN_ENVS``) were made with alfworld 0.4.2 on textworld 1.7.0.
A line is one episode: {game, mode, seed, reset, steps}, with {obs, admissible, reward, done, won} each time.
"""

from __future__ import annotations

import json
import os
import resource
import time
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from turnwise.envs.alfworld.data import open_archive, open_directory
from turnwise.envs.alfworld.env import ALFWorldEnv
from turnwise.envs.alfworld.game import Game
from turnwise.envs.alfworld.knowing import next_command
from turnwise.envs.alfworld.simulator import Simulator
from turnwise.envs.alfworld.store import StoredGames

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("TURNWISE_DATA") or ROOT.parent / "shared/data") / "alfworld"
GOLDEN = Path(os.environ.get("TURNWISE_GOLDEN_ENVS") or ROOT.parent / "shared/golden/envs")
ARCHIVE, OLDER = DATA / "games_2.1.3.jsonl.xz", DATA / "games_2.1.1"

needs_games = pytest.mark.skipif(not ARCHIVE.is_file(), reason=f"no {ARCHIVE} (TURNWISE_DATA)")


@cache
def games() -> StoredGames:
    return open_archive(ARCHIVE)


@cache
def older_games() -> StoredGames:
    return open_directory(OLDER)


# ---------------------------------------------------------------------- recordings


def recordings() -> list[Any]:
    """One parameter for each recorded line; one skipped parameter where there are none."""
    files = sorted(GOLDEN.glob("alfworld*.jsonl"))
    if not files:
        return [pytest.param("", marks=pytest.mark.skip(reason=f"no recordings in {GOLDEN}"), id="none")]
    return [
        pytest.param(line, id=f"{path.stem}-{number}")
        for path in files
        for number, line in enumerate(path.read_text().splitlines(), start=1)
    ]


@needs_games
@pytest.mark.parametrize("line", recordings())
def test_every_recorded_line_is_reproduced(line: str) -> None:
    record = json.loads(line)
    env = env_for(record)
    observation, info = env.reset(options=start_of(record))
    first = record["reset"]
    assert observation == first["obs"]
    assert info["admissible_actions"] == first["admissible"]
    assert info["success"] == first["won"]
    for number, step in enumerate(record["steps"]):
        observation, reward, terminated, _, info = env.step(step["action"])
        where = f"step {number}, {step['action']!r}"
        assert observation == step["obs"], where
        assert info["admissible_actions"] == step["admissible"], where
        assert (reward, terminated) == (step["reward"], step["done"]), where
        assert info["success"] == step["won"], where
        assert info["valid"] == (step["obs"] != "Nothing happens."), where


def source_for(record: dict[str, Any]) -> StoredGames:
    """Older games have no `help`."""
    if "help" in record["reset"]["admissible"]:
        return games()
    if not OLDER.is_dir():
        pytest.skip(f"no {OLDER} (TURNWISE_DATA)")
    return older_games()


def env_for(record: dict[str, Any]) -> ALFWorldEnv:
    return ALFWorldEnv(source_for(record), step_limit=10_000)


def start_of(record: dict[str, Any]) -> dict[str, Any]:
    task = source_for(record).task(record["game"])
    return {"split": task.split, "task": task.index}


# ---------------------------------------------------------------------- the released games


def every_game(split: str, stride: int = 1) -> list[Game]:
    return [games().game(split, index) for index in range(0, len(games().panel(split)), stride)]


def assert_walkthrough_wins(game: Game) -> None:
    simulator = Simulator(game)
    for number, command in enumerate(game.walkthrough):
        assert not simulator.won, (game.id, number)
        assert simulator.step(command)[1], (game.id, command)
    assert simulator.won, game.id


def expert_steps(game: Game) -> int:
    """Steps in which the knowing expert wins; it never says anything inadmissible."""
    simulator, num_steps = Simulator(game), 0
    while not simulator.won:
        assert num_steps < 20, game.id
        assert simulator.step(next_command(simulator))[1], game.id
        num_steps += 1
    return num_steps


@needs_games
def test_sampled_walkthroughs_win() -> None:
    for split in games().splits:
        for game in every_game(split, stride=20):
            assert_walkthrough_wins(game)


@pytest.mark.long
@needs_games
def test_all_4027_walkthroughs_win_and_the_knowing_expert_is_nearly_as_short() -> None:
    steps, official, num_games = 0, 0, 0
    for split in games().splits:
        for game in every_game(split):
            assert_walkthrough_wins(game)
            steps += expert_steps(game)
            official += len(game.walkthrough)
            num_games += 1
    assert num_games == 4027
    assert steps < 1.02 * official


@needs_games
@pytest.mark.parametrize("split", ["valid_seen", "valid_unseen"])
def test_the_knowing_expert_wins_every_evaluation_game(split: str) -> None:
    steps = [expert_steps(game) for game in every_game(split)]
    assert sum(steps) / len(steps) < 6.0


@needs_games
def test_the_splits_are_the_released_ones_and_disjoint_by_content() -> None:
    panels = {split: games().panel(split) for split in games().splits}
    assert {split: len(panel) for split, panel in panels.items()} == {
        "train": 3553,
        "valid_seen": 140,
        "valid_unseen": 134,
        "valid_train": 200,
    }
    keys = Counter(task.key for panel in panels.values() for task in panel)
    assert len(keys) == 4027
    assert set(keys.values()) == {1}, "no problem is in two splits, or twice in one"
    assert Counter(task.type for task in panels["valid_unseen"]) == {
        "pick_and_place_simple": 24,
        "look_at_obj_in_light": 18,
        "pick_clean_then_place_in_recep": 31,
        "pick_heat_then_place_in_recep": 23,
        "pick_cool_then_place_in_recep": 21,
        "pick_two_obj_and_place": 17,
    }


@needs_games
def test_the_panels_never_change() -> None:
    """Evaluations that name these hashes are of the same games in the same order."""
    panels = {split: games().panel(split) for split in games().splits}
    assert {split: panel.hash for split, panel in panels.items()} == PANEL_HASHES
    assert all(len({task.type for task in panel[:24]}) == 6 for panel in panels.values())


PANEL_HASHES = {
    "train": "4b7e2c4dd66c4d91",
    "valid_seen": "5a95af0922d71c72",
    "valid_unseen": "c31ceaf09f2af6c8",
    "valid_train": "d3f282fce3c3c622",
}


@needs_games
@pytest.mark.skipif(not OLDER.is_dir(), reason=f"no {OLDER} (TURNWISE_DATA)")
def test_both_releases_of_a_problem_have_one_key() -> None:
    num_games = 0
    for split in older_games().splits:
        for index, older in enumerate(older_games().panel(split)):
            game = older_games().game(split, index)
            assert game.dialect == "2.1.1"
            assert games().task(game.id).key == game.key == older.key
            num_games += 1
    assert num_games == 5


@needs_games
def test_loading_a_game_is_quick() -> None:
    """The median of many, in CPU time: below the 5 ms that are promised even on a busy machine."""
    costs = []
    for index in range(0, 3553, 100):
        began = time.process_time()
        Simulator(games().game("train", index))
        costs.append(time.process_time() - began)
    assert sorted(costs)[len(costs) // 2] < 0.005


@pytest.mark.long
@needs_games
def test_memory_does_not_grow_over_ten_thousand_real_episodes() -> None:
    """Peak memory of the process, KiB."""
    env, peaks = ALFWorldEnv(games(), step_limit=20), []
    for num_episodes in (1_000, 10_000):
        for episode in range(num_episodes):
            _, info = env.reset(options={"split": "train", "task": 7 * episode % 3553})
            over = False
            while not over:
                actions = info["admissible_actions"]
                _, _, terminated, truncated, info = env.step(actions[episode % len(actions)])
                over = terminated or truncated
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert peaks[1] - peaks[0] < 8 * 1024
