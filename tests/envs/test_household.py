"""HouseholdEnv: the gymnasium contract, and what the panels claim about random and searching players."""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Callable

import gymnasium
import pytest
from gymnasium.utils.env_checker import check_env

import turnwise.envs  # noqa: F401  (registers the environments)
from turnwise.envs.alfworld.searching import SearchingExpert
from turnwise.envs.household.env import HouseholdEnv
from turnwise.envs.household.generator import PRESETS, Settings
from turnwise.envs.household.rooms import TASK_TYPES
from turnwise.envs.interface import HasExpert, HasSnapshots, HasTasks, Info, capability

ENV_ID = "turnwise/Household-v0"
PANEL = 256

Player = Callable[[str, Info], str]


def _episode(env: HouseholdEnv, index: int, player: Player, split: str = "test") -> tuple[bool, int]:
    """(success, turns) of one task of the panel."""
    observation, info = env.reset(options={"split": split, "task": index})
    turns, over = 0, False
    while not over:
        observation, _, terminated, truncated, info = env.step(player(observation, info))
        turns, over = turns + 1, terminated or truncated
    return bool(info["success"]), turns


def _random_player(seed: int) -> Player:
    rng = random.Random(seed)
    return lambda observation, info: rng.choice(info["admissible_actions"])


class _Searching:
    """A searching expert as a player; it begins anew on every first observation."""

    def __init__(self) -> None:
        self.expert = SearchingExpert()

    def __call__(self, observation: str, info: Info) -> str:
        if "Your task is to" in observation:
            self.expert.begin(observation, info)
        return self.expert.act(observation, info)


def test_gymnasium_accepts_it() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(HouseholdEnv(), skip_render_check=True)


def test_made_by_its_id_it_offers_everything() -> None:
    env = gymnasium.make(ENV_ID, difficulty="medium", split="validation")
    for protocol in (HasTasks, HasSnapshots, HasExpert):
        assert capability(env, protocol) is not None
    observation, info = env.reset(seed=1)
    assert observation.startswith("-= Welcome to TextWorld, ALFRED! =-")
    assert info["task"] in observation
    assert info["task_type"] in TASK_TYPES


@pytest.mark.parametrize("difficulty", sorted(PRESETS))
def test_the_preset_sets_the_step_limit(difficulty: str) -> None:
    limit = PRESETS[difficulty].step_limit
    assert _episode(HouseholdEnv(difficulty), 0, lambda *_: "look") == (False, limit)
    assert _episode(HouseholdEnv(difficulty, step_limit=3), 0, lambda *_: "look") == (False, 3)
    own = HouseholdEnv(Settings(step_limit=4))
    assert _episode(own, 0, lambda *_: "look") == (False, 4)


def test_same_seed_same_transcript_and_interleaved_envs_do_not_disturb_each_other() -> None:
    def transcript(envs: list[HouseholdEnv]) -> list[list[str]]:
        players = [_random_player(7) for _ in envs]
        now = [env.reset(seed=3) for env in envs]
        record = [[observation] for observation, _ in now]
        for _ in range(12):
            for which, env in enumerate(envs):
                action = players[which](*now[which])
                observation, _, _, _, info = env.step(action)
                now[which] = observation, info
                record[which] += [action, observation]
        return record

    (alone,) = transcript([HouseholdEnv()])
    first, second = transcript([HouseholdEnv(), HouseholdEnv()])
    assert alone == first == second


def test_a_snapshot_continues_exactly_in_another_env() -> None:
    env, player = HouseholdEnv("medium"), _random_player(5)
    observation, info = env.reset(options={"split": "train", "task": 12})
    for _ in range(10):
        observation, *_, info = env.step(player(observation, info))
    copy = HouseholdEnv("easy")
    copy.reset(seed=0)
    copy.restore(env.snapshot())
    while True:
        action = player(observation, info)
        observation, reward, terminated, truncated, info = env.step(action)
        assert copy.step(action) == (observation, reward, terminated, truncated, info)
        if terminated or truncated:
            break


def test_a_random_player_wins_less_than_three_percent_of_the_easy_panel() -> None:
    env, wins = HouseholdEnv(), Counter[str]()
    panel = env.tasks("test")
    for seed in range(8):
        player = _random_player(seed)
        for task in panel[:PANEL]:
            wins[task.type] += _episode(env, task.index, player)[0]
    assert sum(wins.values()) / (8 * PANEL) < 0.03
    assert max(wins.values()) / (8 * PANEL / 6) < 0.06


@pytest.mark.parametrize(("difficulty", "turns_at_most"), [("easy", 10.0), ("medium", 12.0), ("hard", 15.0)])
def test_the_searching_expert_wins_the_panel(difficulty: str, turns_at_most: float) -> None:
    env, player = HouseholdEnv(difficulty), _Searching()
    outcomes = [_episode(env, index, player) for index in range(PANEL)]
    assert sum(success for success, _ in outcomes) / PANEL > 0.97
    assert sum(turns for _, turns in outcomes) / PANEL < turns_at_most


def test_the_knowing_expert_wins_every_task_faster() -> None:
    env, searching = HouseholdEnv(), _Searching()
    total = {"knowing": 0, "searching": 0}
    for index in range(60):
        observation, info = env.reset(options={"split": "validation", "task": index})
        expert = env.expert("knowing")
        expert.begin(observation, info)
        success, turns = _episode(env, index, expert.act, "validation")
        assert success
        total["knowing"] += turns
        total["searching"] += _episode(env, index, searching, "validation")[1]
    assert total["knowing"] < total["searching"]
