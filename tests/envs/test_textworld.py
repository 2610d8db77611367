"""TextWorldEnv: generated and given games, compact text, and an expert that survives strange actions."""

from __future__ import annotations

import builtins
import json
import random
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

from turnwise.commands.lists import splits_of
from turnwise.envs.interface import HasExpert, HasTasks, capability
from turnwise.envs.tasks import make_env
from turnwise.envs.textworld.env import TextWorldEnv
from turnwise.envs.textworld.game import Game, compact
from turnwise.envs.textworld.games import GeneratedGames, GivenGames, split_of
from turnwise.envs.textworld.generation import KINDS

SMALL: dict[str, Any] = {"kind": "treasure_hunter", "settings": {"level": 3}, "num_tasks": 4}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    pytest.importorskip("textworld", reason="needs the textworld package")
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TURNWISE_CACHE", str(folder))
        yield folder


@pytest.fixture
def env(cache: Path) -> Iterator[TextWorldEnv]:
    made = TextWorldEnv(**SMALL)
    yield made
    made.close()


@pytest.fixture
def files(cache: Path) -> list[Path]:
    """Three compiled games."""
    games = GeneratedGames(**SMALL)
    return [games.path(split, 0) for split in games.splits]


def _play(env: TextWorldEnv, index: int, actions: list[str]) -> list[Any]:
    return [env.reset(options={"task": index}), *(env.step(action) for action in actions)]


def _random_actions(env: TextWorldEnv, index: int, count: int) -> list[str]:
    rng, chosen = random.Random(0), []
    info = env.reset(options={"task": index})[1]
    for _ in range(count):
        chosen.append(rng.choice(info["admissible_actions"]))
        _, _, terminated, _, info = env.step(chosen[-1])
        if terminated:
            break
    return chosen


# Settings: nothing is generated.


def test_sizes_are_known_without_a_game(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Listing the worlds must not take the minutes that making their games takes."""
    pytest.importorskip("textworld", reason="needs the textworld package")
    monkeypatch.setenv("TURNWISE_CACHE", str(tmp_path))
    assert "train (64), validation (32), test (32)" in splits_of("turnwise/TextWorld-v0")
    assert not list(tmp_path.rglob("*.z8"))


def test_sizes_are_those_of_the_panels(env: TextWorldEnv) -> None:
    """Takes seconds: the compiler makes the four games that every test of this file plays."""
    assert env.sizes == {split: len(env.tasks(split)) for split in env.splits}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "treasure"}, "Did you mean 'treasure_hunter'"),
        ({"kind": "cooking", "settings": {"recipes": 1}}, "Did you mean 'recipe'"),
        ({"kind": "cooking", "num_tasks": 3}, "at least 4"),
        ({"kind": "cooking", "games": "somewhere"}, "got both"),
        ({"games": "nowhere.z8"}, "no game and no folder of games"),
        ({"games": {"trian": "nowhere.z8"}}, "Did you mean 'train'"),
        ({"step_limit": 0}, "at least 1"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextWorldEnv(**settings)


def test_glulx_games_and_empty_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "game.ulx").write_bytes(b"Glul")
    for given in (tmp_path / "game.ulx", tmp_path):
        with pytest.raises(ValueError, match=r"plays no \.ulx"):
            GivenGames(given)


def test_a_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "textworld":
            raise ImportError(f"No module named {name!r}")
        return real(name, *rest)

    (tmp_path / "game.z8").write_bytes(bytes([8, *[0] * 63]))  # a header that states neither length nor sum
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r'pip install -e "\.\[envs\]"'):
        TextWorldEnv(games={"train": tmp_path}).reset()


def test_compact_text() -> None:
    banner = "   ________  \n  |        \\ \n   \\$$$$$$$$ \n"
    raw = f"{banner}\nWelcome!  Go   east.\n\n-= Hall =-\nA hall.\n\n\n>        -= Hall =-0/1"
    assert compact(raw) == "Welcome! Go east.\n-= Hall =-\nA hall."
    question = "Would you like to RESTART, RESTORE a saved game, QUIT or UNDO the last command?"
    assert compact(f"*** The End ***\n\n{question}\n>   -= Hall =-1/2") == "*** The End ***"


# Panels.


@pytest.mark.slow
def test_panels_are_split_by_content_and_made_once(env: TextWorldEnv, cache: Path) -> None:
    panels = {split: env.tasks(split) for split in env.splits}
    assert {split: len(panel) for split, panel in panels.items()} == {"train": 2, "validation": 1, "test": 1}
    keys = [task.key for panel in panels.values() for task in panel]
    assert len(set(keys)) == 4
    assert all(split_of(task.key) == split for split, panel in panels.items() for task in panel)
    stamps = {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}
    again = TextWorldEnv(**SMALL)
    again.reset()
    again.close()
    assert again.tasks("train").hash == panels["train"].hash
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()} == stamps


@pytest.mark.slow
def test_a_game_that_was_deleted_is_made_again_the_same(env: TextWorldEnv) -> None:
    path = env.source.path("test", 0)
    before, story = path.with_suffix(".json").read_bytes(), path.read_bytes()
    shutil.rmtree(path.parent)
    assert GeneratedGames(**SMALL).path("test", 0) == path
    assert json.loads(path.with_suffix(".json").read_bytes()) == json.loads(before)
    assert len(path.read_bytes()) == len(story)


@pytest.mark.slow
def test_impossible_settings_name_the_reason(cache: Path) -> None:
    with pytest.raises(ValueError, match=r"Expected level to be within \[1-30\]"):
        GeneratedGames("treasure_hunter", {"level": 99}, num_tasks=4).panel("train")


def test_given_games(files: list[Path]) -> None:
    by_split = TextWorldEnv(games={"train": files[:2], "test": files[2]})
    assert [len(by_split.tasks(split)) for split in ("train", "test")] == [2, 1]
    with pytest.raises(ValueError, match="No given game is in split 'validation'"):
        by_split.tasks("validation")
    info = by_split.reset(options={"split": "test", "task": 0})[1]
    assert "look" in info["admissible_actions"]
    by_split.close()
    with pytest.raises(ValueError, match="The same game is in splits"):
        GivenGames({"train": files, "test": files[2]})
    mixed = GivenGames(files)
    found = [task for split in mixed.splits if mixed._games[split] for task in mixed.panel(split)]
    assert len({task.key for task in found}) == 3
    assert all(split_of(task.key) == task.split for task in found)


def test_a_game_without_its_json_is_text_only(files: list[Path], tmp_path: Path) -> None:
    shutil.copy(files[0], tmp_path / "bare.z8")
    env = TextWorldEnv(games={"train": tmp_path})
    observation, info = env.reset()
    assert "-= " in observation
    assert "admissible_actions" not in info
    assert env.step("look")[0].startswith("-= ")
    env.close()


def damaged(story: bytes, how: str) -> bytes:
    flipped = bytearray(story)
    flipped[5000] ^= 1
    return {"cut": story[: len(story) // 2], "noise": b"PK" * 5000, "empty": b"", "flipped": bytes(flipped)}[how]


@pytest.mark.parametrize("how", ["cut", "noise", "empty", "flipped"])
def test_a_damaged_game_is_one_clear_error_and_not_the_end_of_the_process(
    files: list[Path], tmp_path: Path, how: str
) -> None:
    story = tmp_path / "bad.z8"
    story.write_bytes(damaged(files[0].read_bytes(), how))
    with pytest.raises(ValueError, match=r"bad\.z8 is damaged"):
        TextWorldEnv(games={"train": story})
    with pytest.raises(ValueError, match=r"bad\.z8 is damaged"):
        Game(story)


def test_damaged_notes_of_a_game_are_one_clear_error(files: list[Path], tmp_path: Path) -> None:
    shutil.copy(files[0], tmp_path / "game.z8")
    (tmp_path / "game.json").write_text("{cut")
    env = TextWorldEnv(games={"train": tmp_path})
    with pytest.raises(ValueError, match=r"game\.json is not what TextWorld wrote"):
        env.reset()


# The contract.


def test_gymnasium_accepts_it(env: TextWorldEnv) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env, skip_render_check=True, skip_close_check=True)


def test_made_by_its_id_it_offers_tasks_and_an_expert(cache: Path) -> None:
    env = make_env("turnwise/TextWorld-v0", **SMALL)
    assert capability(env, HasTasks) is not None
    assert capability(env, HasExpert) is not None
    env.close()


def test_equal_actions_equal_transcripts_even_interleaved(env: TextWorldEnv, cache: Path) -> None:
    actions = _random_actions(env, 0, 12)
    alone = _play(env, 0, actions)
    other = TextWorldEnv(**SMALL)
    assert _play(other, 0, actions) == alone
    seen: list[Any] = [env.reset(options={"task": 0})]
    other.reset(options={"task": 1})
    for action in actions:
        seen.append(env.step(action))
        other.step("look")
    other.close()
    assert seen == alone


def test_it_leaves_the_global_generators_alone(env: TextWorldEnv) -> None:
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002  (this is what nobody may touch)
    env.reset(options={"task": 0})
    env.step("look")
    after = random.random(), np.random.rand()  # noqa: NPY002
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    assert after == (random.random(), np.random.rand())  # noqa: NPY002


def test_the_step_limit_truncates_and_the_end_is_final(cache: Path) -> None:
    env = TextWorldEnv(**SMALL, step_limit=2)
    with pytest.raises(ResetNeeded):
        env.step("look")
    env.reset(options={"task": 0})
    assert env.step("look")[2:4] == (False, False)
    assert env.step("look")[2:4] == (False, True)
    with pytest.raises(ResetNeeded):
        env.step("look")
    env.close()


def test_what_the_parser_does_not_understand(env: TextWorldEnv) -> None:
    env.reset(options={"task": 0})
    for action in ("", "frobnicate", "take xyzzy", "\ud800 🚀", "look. look", "look then look", "y" * 5000):
        assert env.step(action)[-1]["valid"] is False, action
    assert env.step("  LOOK ")[-1]["valid"] is True


def test_commands_to_the_interpreter_do_nothing(
    env: TextWorldEnv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    room = _play(env, 0, ["look"])[-1][0]
    for action in ("save", "script", "quit", "y", "restart", "QUIT", "tw-trace-actions", "look\nsave"):
        env.step(action)
    assert env.step("look")[0] == room
    assert list(tmp_path.iterdir()) == []


def test_without_admissible_actions(cache: Path) -> None:
    env = TextWorldEnv(**SMALL, admissible=False)
    assert "admissible_actions" not in env.reset(options={"task": 0})[1]
    expert, over = env.expert(), False
    while not over:
        _, reward, over, _, info = env.step(expert.act("", {}))
    assert (reward, info["success"], info["score"]) == (1.0, True, 1.0)
    env.close()


# The expert.


def test_the_expert_wins_every_game_whatever_is_played_in_between(env: TextWorldEnv) -> None:
    rng = random.Random(0)
    for noise in (0.0, 0.3):
        for split in env.splits:
            for task in env.tasks(split):
                observation, info = env.reset(options={"split": split, "task": task.index})
                expert, rewards, over = env.expert(), 0.0, False
                expert.begin(observation, info)
                while not over:
                    action = expert.act(observation, info)
                    assert action in info["admissible_actions"]
                    if rng.random() < noise:
                        action = rng.choice(info["admissible_actions"])
                    observation, reward, terminated, truncated, info = env.step(action)
                    rewards, over = rewards + reward, terminated or truncated
                assert info["success"]
                assert rewards == info["score"] == 1.0


def test_an_expert_without_a_walkthrough_says_that_it_has_none(files: list[Path], tmp_path: Path) -> None:
    shutil.copy(files[0], tmp_path / "bare.z8")
    env = TextWorldEnv(games={"train": tmp_path})
    observation, info = env.reset()
    with pytest.raises(ValueError, match=r"bare\.z8 has no expert: TextWorld's bare\.json.* is not beside it"):
        env.expert().begin(observation, info)
    env.close()


def test_the_expert_takes_over_in_the_middle_of_an_episode(cache: Path) -> None:
    env = TextWorldEnv(**SMALL)
    info = env.reset(options={"task": 1})[1]
    played = env.step(info["admissible_actions"][0])
    assert env.way_to_win()  # the game was loaded again, and played again up to here
    assert env.step("look")[0] == _play(TextWorldEnv(**SMALL), 1, [info["admissible_actions"][0], "look"])[-1][0]
    assert played[2] is False
    env.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"treasure_hunter"}))
def test_every_kind_is_generated_and_won(kind: str, cache: Path) -> None:
    settings = {"recipe": 2, "take": 2, "go": 6, "open": True, "cook": True, "cut": True} if kind == "cooking" else {}
    env = TextWorldEnv(kind=kind, settings=settings, num_tasks=4)
    for task in env.tasks("train"):
        observation, info = env.reset(options={"task": task.index})
        expert, over = env.expert(), False
        while not over:
            observation, _, terminated, truncated, info = env.step(expert.act(observation, info))
            over = terminated or truncated
        assert info["success"]
        assert info["task_type"] == kind
    env.close()
