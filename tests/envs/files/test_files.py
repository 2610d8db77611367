"""Files and a calculator: numbers count, nothing else may change, and no path leads out of the folder."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnwise.envs.files.folder import MAX_FILES, Folder, number_in, value_of, written
from turnwise.envs.files.problems import LEVELS
from turnwise.envs.files.world import FilesEnv
from turnwise.envs.said import Call, said


def world(kind: str) -> FilesEnv:
    env = FilesEnv("hard")
    env.reset(options={"split": "test", "task": LEVELS["hard"].kinds.index(kind)})
    assert env.problem.kind == kind
    return env


def told(env: FilesEnv, name: str, **arguments: Any) -> str:
    return env.step(said(calls=[Call(name, arguments)]))[0]


@pytest.mark.parametrize("difficulty", LEVELS)
@pytest.mark.parametrize("expert", ["searching", "knowing"])
def test_experts_win(difficulty: str, expert: str) -> None:
    env, kinds = FilesEnv(difficulty), set()
    for index in range(2 * len(LEVELS[difficulty].kinds)):
        observation, info = env.reset(options={"split": "validation", "task": index})
        player, terminated = env.expert(expert), False
        player.begin(observation, info)
        while not terminated:
            observation, reward, terminated, truncated, info = env.step(player.act(observation, info))
            assert not truncated
            assert "Error" not in observation
        assert (reward, info["success"]) == (1.0, True)
        kinds.add(env.problem.kind)
    assert kinds == set(LEVELS[difficulty].kinds)


@pytest.mark.parametrize("kind", LEVELS["hard"].kinds)
def test_answers_are_worked_out_from_the_files(kind: str) -> None:
    """By hand, from the question and the files before."""
    env = world(kind)
    made, files = env.problem, dict(env.problem.files)
    named = [part for part in made.question.split("'") if part in files]
    numbers = [int(files[path]) for path in named if files[path].isdigit()]
    in_folder = [int(text) for path, text in files.items() if path.split("/")[0] in made.question.split("'")]
    expected = {
        "read": lambda: numbers[0],
        "sum": lambda: sum(numbers),
        "total": lambda: int(files[named[0]].split()[0]) * int(files[named[0]].split()[2]),
        "write sum": lambda: sum(numbers),
        "larger": lambda: max(named, key=lambda path: int(files[path])),
        "folder sum": lambda: sum(in_folder),
        "write folder sum": lambda: sum(in_folder),
    }[kind]()
    changed = dict(made.after).keys() - files.keys()
    found = dict(made.after)[changed.pop()] if changed else made.answer
    assert found == str(expected)


def test_what_is_changed_beside_it_fails() -> None:
    for spoil in ("write_file", "delete_file"):
        env = world("read")
        path = env.problem.files[0][0]
        told(env, spoil, **({"path": path, "text": "0"} if spoil == "write_file" else {"path": path}))
        assert env.step(env.problem.answer)[1] == 0.0
    env = world("write sum")
    assert env.step("Done.")[1] == 0.0
    env = world("write sum")
    total = dict(env.problem.after)["sum.txt"]
    assert told(env, "write_file", path="./sum.txt", text=f" {total}.0\n") == "written"
    assert env.step("Done.")[1] == 1.0


OUTSIDE = ["/etc/passwd", "../secret.txt", "may/../../secret.txt", "..", ".", "", "a\\b", "x\0y", "~/x/" + "y" * 300]


@pytest.mark.parametrize("path", OUTSIDE)
def test_no_path_leads_out(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    env = world("read")
    for name, more in (("read_file", {}), ("write_file", {"text": "x"}), ("delete_file", {})):
        assert "is no path in the folder" in told(env, name, path=path, **more)
    told(env, "write_file", path="mine.txt", text="x")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_listed_and_has_an_end() -> None:
    folder = Folder({"may/food.txt": "1", "maybe.txt": "2"})
    assert folder.list_files("may") == folder.list_files("./may/") == "may/food.txt"
    assert folder.list_files() == folder.list_files(".") == "may/food.txt\nmaybe.txt"
    assert folder.list_files("june") == "no files"
    with pytest.raises(ValueError, match="at most"):
        folder.write_file("long.txt", "x" * 20_000)
    for n in range(MAX_FILES - 2):
        folder.write_file(f"{n}.txt", "x")
    with pytest.raises(ValueError, match="at most"):
        folder.write_file("more.txt", "x")


@given(st.lists(st.integers(-999, 999), min_size=1, max_size=5), st.lists(st.sampled_from("+-*"), min_size=4))
def test_calculations_are_python_s(numbers: list[int], operations: list[str]) -> None:
    text = str(numbers[0]) + "".join(f" {o} {n}" for o, n in zip(operations, numbers[1:], strict=False))
    expected = eval(text)
    if abs(expected) < 10**12:
        assert value_of(text) == expected


@pytest.mark.parametrize(
    "expression",
    [
        *("2 ** 99999", "9" * 100, "__import__('os')", "x", "1 + ", "(" * 150 + "1"),
        *("1 if 1 else 2", "True", "'a' * 9", "1e300"),
    ],
)
def test_anything_else_is_no_calculation(expression: str) -> None:
    with pytest.raises(ValueError, match=r"expression|too large"):
        value_of(expression)


def test_numbers() -> None:
    assert written(value_of("(1 + 2) / 4")) == "0.75"
    assert written(value_of("1 / 3")) == "0.333333"
    assert (number_in(" 12.50. "), number_in("1e999999999"), number_in("a")) == (Fraction("12.5"), None, None)
    assert told(world("read"), "calculate", expression="1 / 0").startswith("Error: ZeroDivisionError")
