"""Reading games: the file format, the sources, the cache, and every way in which data can be wrong."""

from __future__ import annotations

import json
import lzma
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.envs.alfworld_house import GOAL_TEXT, GRAMMAR, game_data
from turnwise.envs.alfworld.data import FileGames, _open_directory, open_archive, open_directory, open_games
from turnwise.envs.alfworld.env import ALFWorldEnv
from turnwise.envs.alfworld.game import Game, Goal, Thing
from turnwise.envs.alfworld.pddl import parse_game, read_game_file
from turnwise.envs.panels import mixed


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNWISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)
    monkeypatch.delenv("TURNWISE_DATA", raising=False)


def save(path: Path, data: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def parse(path: Path) -> Game:
    return parse_game(read_game_file(path))


# ---------------------------------------------------------------------- one file


def test_a_game_file_becomes_a_game(tmp_path: Path) -> None:
    game = parse(save(tmp_path / "train/pick/trial/game.tw-pddl", game_data()))
    assert game.id == "train/pick/trial"
    assert (game.dialect, game.task, game.start) == ("2.1.3", "put a cup in drawer.", "loc_bar_0")
    assert game.goal == Goal("pick_and_place_simple", "CupType", "DrawerType")
    assert game.walkthrough == ("take cup 1 from desk 1",)
    assert game.can_contain == {("DrawerType", "CupType")}
    assert [(r.id, r.openable) for r in game.receptacles] == [("Desk_bar_1", False), ("Drawer_bar_1", True)]
    cup, egg, pen = game.things
    assert cup == Thing(
        *("Cup_bar_1", "CupType", "loc_bar_1", "Desk_bar_1"),
        pickupable=True,
        cool=True,
        also_in=("Drawer_bar_1",),
    )
    assert (egg.type, egg.location, egg.receptacle) == ("", None, None), "two official games have such an egg"
    assert pen.inside == "Cup_bar_1"


def test_the_older_dialect_is_recognised(tmp_path: Path) -> None:
    assert parse(save(tmp_path / "game.tw-pddl", game_data(dialect="2.1.1"))).dialect == "2.1.1"


def test_the_key_is_of_the_problem_alone(tmp_path: Path) -> None:
    key = parse(save(tmp_path / "a", game_data())).key
    assert len(key) == 16
    assert int(key, 16) >= 0
    same = [game_data(name="other"), game_data(dialect="2.1.1"), game_data(task="find a cup.")]
    commented = game_data()
    commented["pddl_problem"] = str(commented["pddl_problem"]).replace("(:init", "(:init ; a comment (x y)\n")
    other = game_data(goal=GOAL_TEXT.replace("DrawerType", "DeskType"))
    for data in (*same, commented):
        assert parse(save(tmp_path / "b", data)).key == key
    assert parse(save(tmp_path / "c", other)).key != key


TWO = """(:goal (exists (?r - receptacle) (exists (?o1 - object) (and (objectType ?o1 CupType)
    (receptacleType ?r DrawerType) (inReceptacle ?o1 ?r) (exists (?o2 - object) (and (not (= ?o1 ?o2))
    (objectType ?o2 CupType) (receptacleType ?r DrawerType) (inReceptacle ?o2 ?r)))))))"""
LOOK = """(:goal (and (exists (?ot - object ?r - receptacle ?a - agent ?l - location) (and
    (objectType ?ot DeskLampType) (toggleable ?ot) (isToggled ?ot) (receptacleAtLocation ?r ?l)
    (atLocation ?a ?l) (inReceptacle ?ot ?r))) (exists (?o - object ?a - agent) (and
    (objectType ?o CupType) (holds ?a ?o)))))"""


def changed(trait: str, mark: str) -> str:
    return f"""(:goal (and (exists (?r - receptacle) (exists (?o - object) (and ({trait} ?o)
        (objectType ?o CupType) (receptacleType ?r DrawerType) ({mark} ?o) (inReceptacle ?o ?r))))))"""


@pytest.mark.parametrize(
    ("text", "goal"),
    [
        (TWO, Goal("pick_two_obj_and_place", "CupType", "DrawerType", count=2)),
        (LOOK, Goal("look_at_obj_in_light", "CupType", lamp_type="DeskLampType")),
        (
            changed("cleanable", "isClean"),
            Goal("pick_clean_then_place_in_recep", "CupType", "DrawerType", "clean"),
        ),
        (changed("heatable", "isHot"), Goal("pick_heat_then_place_in_recep", "CupType", "DrawerType", "hot")),
        (
            changed("coolable", "isCool"),
            Goal("pick_cool_then_place_in_recep", "CupType", "DrawerType", "cool"),
        ),
    ],
)
def test_the_other_goals(tmp_path: Path, text: str, goal: Goal) -> None:
    assert parse(save(tmp_path / "game.tw-pddl", game_data(goal=text))).goal == goal


def without(field: str) -> dict[str, object]:
    return {name: value for name, value in game_data().items() if name != field}


def replaced(old: str, new: str, field: str = "pddl_problem") -> dict[str, object]:
    data = game_data()
    assert old in str(data[field])
    data[field] = str(data[field]).replace(old, new)
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (json.dumps(game_data())[:300], "expected JSON, and it breaks off or is damaged"),
        ("[1, 2]", "expected a JSON object with the text field 'pddl_problem'"),
        (without("pddl_problem"), "expected a JSON object with the text field 'pddl_problem'"),
        (without("grammar"), "expected a JSON object with the text field 'grammar'"),
        (replaced("(:init", "(:start"), r"expected a whole PDDL problem, \(:init"),
        (replaced("\n)\n", "\n"), "expected a whole PDDL problem"),
        (replaced("(atLocation agent1 loc_bar_0)", ""), "expected exactly one .atLocation"),
        (replaced("(receptacleAtLocation Desk_bar_1 loc_bar_1)", ""), "a location for receptacle Desk_bar_1"),
        (
            replaced("action help", "action aid", "grammar"),
            "the wording of release 2.1.1 or 2.1.3, got neither",
        ),
        (replaced('"task"', '"chore"', "grammar"), 'expected a "task" rule'),
        (replaced("Your task is to: ", "Please ", "grammar"), "expected a task that begins with"),
        (game_data(goal="(:goal (and (opened Drawer_bar_1)))"), "expected one of the six goals"),
        (
            game_data(goal=changed("sliceable", "isSliced")),
            "asks for isSliced, which the official text set leaves out. Leave games with sliced goals",
        ),
        (game_data(goal=TWO.replace("?o2 CupType", "?o2 PenType")), "one type of object"),
    ],
)
def test_a_damaged_file_is_one_clear_error(tmp_path: Path, data: Any, message: str) -> None:
    path = save(tmp_path / "trial" / "game.tw-pddl", data)
    with pytest.raises(ValueError, match=message) as caught:
        parse(path)
    assert str(path) in str(caught.value)


# ---------------------------------------------------------------------- sources


def official(root: Path) -> Path:
    """A folder as ``alfworld-download`` leaves it, with three playable games and three that are left out."""
    release = root / "json_2.1.1"
    save(release / "train/pick-B/trial_1/game.tw-pddl", game_data("b"))
    save(release / "train/pick-A/trial_2/game.tw-pddl", game_data("a", goal=TWO))
    save(release / "train/pick-C/trial_1/game.tw-pddl", {**game_data("c"), "solvable": False})
    save(release / "train/movable-D/trial_1/game.tw-pddl", "not even JSON")
    save(release / "train/pick-AppleSliced-E/trial_1/game.tw-pddl", "not even JSON")
    save(release / "valid_seen/look-F/trial_1/game.tw-pddl", game_data("f", "2.1.1", goal=LOOK))
    return root


def archive(path: Path) -> Path:
    """The playable games of ``official`` in the compact form, in another order."""
    lines: list[dict[str, Any]] = [
        {"grammar_template": GRAMMAR["2.1.3"].replace("TASK", "@@TASK@@").replace("Your task is to: ", "", 1)}
    ]
    for id, data in (
        ("valid_seen/look-F/trial_1", game_data("f", goal=LOOK)),
        ("train/pick-B/trial_1", game_data("b")),
        ("train/pick-A/trial_2", game_data("a", goal=TWO)),
    ):
        task = 'Your task is to: put a "cup" in drawer.'
        lines.append({"id": id, "task": task, "pddl_problem": data["pddl_problem"], "walkthrough": ["look"]})
    with lzma.open(path, "wt") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    return path


def test_types_are_mixed_in_their_shares() -> None:
    types = [*"aaaaaa", *"bbb", *"c"]
    order = mixed(types)
    assert sorted(order) == list(range(10))
    for num in range(1, 11):
        seen = Counter(types[place] for place in order[:num])
        assert all(abs(seen[name] - num * share / 10) <= 1 for name, share in Counter(types).items())
    assert [place for place in order if types[place] == "a"] == list(range(6))
    assert mixed([*"abcabcab"]) == list(range(8))  # types that take turns stay as they are
    assert mixed([]) == []


@pytest.mark.parametrize("below", [".", "json_2.1.1"])
def test_the_downloaded_folder(tmp_path: Path, below: str) -> None:
    source = open_directory(official(tmp_path / "data") / below)
    assert source.splits == ("train", "valid_seen")
    assert [task.type for task in source.panel("train")] == [
        *("pick_two_obj_and_place", "pick_and_place_simple"),
    ]
    assert [source.game("train", index).id for index in range(2)] == [
        *("train/pick-A/trial_2", "train/pick-B/trial_1"),
    ]
    game = source.game("valid_seen", 0)
    assert (game.dialect, game.key) == ("2.1.1", source.panel("valid_seen")[0].key)
    assert source.task("train/pick-B/trial_1") == source.panel("train")[1]


def test_the_archive_gives_the_same_panels_as_the_folder(tmp_path: Path) -> None:
    folder = open_directory(official(tmp_path / "data"))
    packed = open_archive(archive(tmp_path / "games.jsonl.xz"))
    for split in ("train", "valid_seen"):
        assert folder.panel(split) == packed.panel(split)
    assert packed.game("train", 0).task == 'put a "cup" in drawer.'
    assert packed.game("train", 0).walkthrough == ("look",)


def test_single_files(tmp_path: Path) -> None:
    paths = [save(tmp_path / name / "game.tw-pddl", game_data(name, goal=goal)) for name, goal in GOALS]
    source = FileGames(paths)
    assert source.splits == ("train",)
    assert [task.type for task in source.panel("train")] == ["pick_and_place_simple", "look_at_obj_in_light"]
    assert source.game("train", 1).key == source.panel("train")[1].key
    assert open_games(paths).panel("train") == source.panel("train")
    assert len(open_games(paths[0]).panel("train")) == 1


GOALS = [("a", GOAL_TEXT), ("b", LOOK)]


def test_the_second_opening_reads_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive(tmp_path / "games.jsonl.xz")
    panel = open_archive(path).panel("train")
    stored = list((tmp_path / "cache" / "alfworld").iterdir())
    assert len(stored) == 1, "one whole file, nothing left over"

    def refuse(*_: Any) -> Any:
        raise AssertionError("read again")

    monkeypatch.setattr("turnwise.envs.alfworld.data._read_archive", refuse)
    moved = path.rename(tmp_path / "moved.jsonl.xz")
    assert open_archive(moved).panel("train") == panel, "known by its content, wherever it lies"


def test_a_changed_folder_is_read_again(tmp_path: Path) -> None:
    root = official(tmp_path / "data")
    assert len(open_directory(root).panel("train")) == 2
    save(root / "json_2.1.1/train/pick-0/trial_1/game.tw-pddl", game_data("new", goal=LOOK))
    assert open_directory(root).game("train", 0).id == "train/pick-0/trial_1"


def test_a_source_can_be_pickled(tmp_path: Path) -> None:
    source = open_archive(archive(tmp_path / "games.jsonl.xz"))
    assert pickle.loads(pickle.dumps(source)).game("train", 0) == source.game("train", 0)


def test_where_the_default_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(ValueError, match=r"alfworld-download.*turnwise/Household-v0"):
        open_games()
    (tmp_path / "shared/data/alfworld").mkdir(parents=True)
    archive(tmp_path / "shared/data/alfworld/games_2.1.3.jsonl.xz")
    assert "shared" in open_games().name
    (tmp_path / "own/alfworld").mkdir(parents=True)
    archive(tmp_path / "own/alfworld/games_2.1.3.jsonl.xz")
    monkeypatch.setenv("TURNWISE_DATA", str(tmp_path / "own"))
    assert "own" in open_games().name
    monkeypatch.setenv("ALFWORLD_DATA", str(official(tmp_path / "downloaded")))
    assert "downloaded" in open_games().name
    assert ALFWorldEnv(data=tmp_path / "own/alfworld/games_2.1.3.jsonl.xz").reset(seed=0)[1]["task"]


# ---------------------------------------------------------------------- wrong data


def cut(path: Path) -> Path:
    path.write_bytes(archive(path).read_bytes()[:-200])
    return path


def garbled(line: str) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        with lzma.open(archive(path), "rt") as file:
            lines = file.read().splitlines()
        with lzma.open(path, "wt") as file:
            file.write("\n".join([lines[0], line, *lines[2:]]))
        return path

    return write


def headless(path: Path) -> Path:
    with lzma.open(path, "wt") as file:
        file.write('{"id": "train/a/b"}\n')
    return path


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "is damaged, not a whole .jsonl.xz"),
        (garbled('{"id": "train/a/b", "task"'), "Line 2 of .* is damaged"),
        (
            garbled('{"id": "train/a/b"}'),
            "Line 2 of .* is damaged .*expected JSON with id, task, pddl_problem",
        ),
        (headless, "Line 1 of .* is damaged .*expected JSON with grammar_template"),
        (
            garbled('{"id": "train/a/b", "task": "Your task is to: x", "pddl_problem": "(:init"}'),
            "Line 2 of .* is not a playable ALFWorld text game: expected a whole PDDL problem",
        ),
    ],
)
def test_a_damaged_archive_is_one_clear_error(tmp_path: Path, damage: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_archive(damage(tmp_path / "games.jsonl.xz"))
    assert not list((tmp_path / "cache" / "alfworld").iterdir()), "nothing half-read stays in the cache"


def test_a_damaged_file_in_the_folder_is_named(tmp_path: Path) -> None:
    root = official(tmp_path / "data")
    bad = save(root / "json_2.1.1/train/pick-Z/trial_1/game.tw-pddl", replaced("(:init", "(:start"))
    with pytest.raises(ValueError, match="expected a whole PDDL problem") as caught:
        open_directory(root)
    assert str(bad) in str(caught.value)


def test_trials_without_a_game_are_counted_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = official(tmp_path / "data")
    save(root / "json_2.1.1/train/pick-0/trial_1/traj_data.json", {})
    save(root / "json_2.1.1/train/movable-D/trial_2/traj_data.json", {})
    for _ in range(2):  # the second opening reads the cache, and says the same
        caplog.clear()
        env = ALFWorldEnv(data=root)
        panels = [env.tasks("train"), env.tasks("train"), env.tasks("valid_seen")]
        env.reset(options={"split": "train", "task": 0})
        assert [len(panel) for panel in panels] == [2, 2, 1]
        (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert line.startswith("train: 2 games; 2 trials of ")
        assert line.endswith(
            "are left out (no game.tw-pddl: 1, its game is not marked solvable: 1), the first is train/pick-0/trial_1"
        )
        _open_directory.cache_clear()


def test_a_folder_without_games_says_so(tmp_path: Path) -> None:
    (tmp_path / "bare/json_2.1.1/train").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"There are no games of split 'train' in .*, nor of any other split"):
        ALFWorldEnv(data=tmp_path / "bare").tasks("train")
    root = official(tmp_path / "data")
    save(root / "json_2.1.1/valid_unseen/pick-0/trial_1/traj_data.json", {})
    with pytest.raises(ValueError, match=r"no games of split 'valid_unseen'.*games of train, valid_seen: 1 trials of "):
        ALFWorldEnv(data=root).tasks("valid_unseen")


@pytest.mark.parametrize(
    "data",
    [
        {**game_data("x"), "walkthrough": 5},
        {**game_data("x"), "grammar": GRAMMAR["2.1.3"].replace("TASK", "a \\x b")},
        replaced("(receptacleType ", "(receptacleType one "),
    ],
    ids=["walkthrough", "task", "receptacles"],
)
def test_odd_damage_names_the_file_too(tmp_path: Path, data: Any) -> None:
    path = save(tmp_path / "game.tw-pddl", data)
    with pytest.raises(ValueError, match="is not a playable ALFWorld text game") as caught:
        parse(path)
    assert str(path) in str(caught.value)


def test_unknown_places_splits_and_tasks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere: it does not exist.*alfworld-download"):
        open_games(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"No ALFWorld games in .*empty: expected json_2.1.1/train"):
        open_games(tmp_path / "empty")
    with pytest.raises(ValueError, match="at least one"):
        open_games([])
    source = open_directory(official(tmp_path / "data"))
    with pytest.raises(ValueError, match=r"Unknown split 'valid'.*mean 'valid_seen'.*train, valid_seen"):
        source.panel("valid")
    with pytest.raises(ValueError, match=r"No task 2 in split 'train': expected 0 to 1"):
        source.game("train", 2)
    with pytest.raises(ValueError, match="No game 'train/x'"):
        source.task("train/x")


def test_a_damaged_cache_says_what_to_do(tmp_path: Path) -> None:
    source = open_archive(archive(tmp_path / "games.jsonl.xz"))
    source.path.write_bytes(b"not a database" * 1000)
    with pytest.raises(ValueError, match=r"is damaged .*Delete it: it is built again"):
        source.game("train", 0)


def test_a_cache_that_cannot_be_written_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "file", "")
    monkeypatch.setenv("TURNWISE_CACHE", str(tmp_path / "file"))
    with pytest.raises(ValueError, match="Set TURNWISE_CACHE"):
        open_archive(archive(tmp_path / "games.jsonl.xz"))
