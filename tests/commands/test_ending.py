"""How runs end on the console: percent, a win on an unseen task, the next commands, and Ctrl-C."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from rich.text import Text

from tests.faults.runs import config
from tests.models import scratch_folder
from turnwise import cli
from turnwise import jobs as experiment
from turnwise.assembly.run import Assembly
from turnwise.cloning.cloner import Progress
from turnwise.commands import ending
from turnwise.commands.display import LiveDisplay
from turnwise.config.files import load_config
from turnwise.evaluation.report import Report, summarize
from turnwise.jobs import Result
from turnwise.runs.directory import RunDirectory
from turnwise.statistics import Estimate
from turnwise.training.faults import InterruptedRunError
from turnwise.trajectory import Task, Trajectory, Turn

TASKS = [Task("env", "test", i, f"key{i}", "heat_then_place") for i in range(4)]


def played(task: Task, success: bool | None, num_turns: int = 2) -> Trajectory:
    ids, floats = np.array([1, 2], np.int32), np.array([0.5, 1.5], np.float32)
    turns = [
        Turn(f"seen {task.key} {n}", ids, n > 0, ids, floats, floats, f"go {n}", f"go {n}", True, 0.0)
        for n in range(num_turns)
    ]
    return Trajectory(f"{task.index}", task, 0, 0, tuple(turns), "terminated", success, None)


def report(*outcomes: bool | None) -> Report:
    episodes = [played(task, success) for task, success in zip(TASKS, outcomes, strict=True)]
    return summarize("agent", TASKS, episodes, samples=1, temperature=1.0)


def result(before: Report | None, after: Report, path: Path = Path("runs/one two")) -> Result:
    return Result(path, {"sampled": before} if before else {}, {"sampled": after}, None, 1.0, 1.0)


def wins(*lengths: int) -> dict[str, Trajectory]:
    """Of every task, in so many turns; 0: not won."""
    return {task.key: played(task, True, n) for task, n in zip(TASKS, lengths, strict=True) if n}


def shown(part: Any, width: int = 100) -> str:
    console = Console(record=True, width=width, file=io.StringIO())
    console.print(part, soft_wrap=isinstance(part, Text))
    return console.export_text()


# --- the win


def test_the_win_is_of_a_task_that_was_lost_before_and_of_median_length() -> None:
    before, after = report(True, False, False, False), report(True, True, True, True)
    found = ending.unseen_win(result(before, after), wins(1, 9, 3, 5))
    assert found is not None
    assert (found[0].task, found[1]) == (TASKS[3], True)


def test_where_none_was_lost_before_any_win_does() -> None:
    always = report(True, False, False, False)
    found = ending.unseen_win(result(always, always), wins(2, 0, 0, 0))
    assert found is not None
    assert (found[0].task, found[1]) == (TASKS[0], False)
    text = shown(ending.won_episode(result(always, always), wins(2, 0, 0, 0)))
    assert "An unseen task that the agent wins " in text
    assert "lost before" not in text


def test_a_win_by_greedy_decoding_alone_is_none_of_the_measured_one() -> None:
    before, after = report(False, False, False, False), report(False, True, False, False)
    found = ending.unseen_win(result(before, after), wins(2, 2, 2, 2))
    assert found is not None
    assert found[0].task == TASKS[1]


@pytest.mark.parametrize("outcome", [False, None])
def test_without_a_win_there_is_none_to_show(outcome: bool | None) -> None:
    nothing = report(*[outcome] * 4)
    assert ending.unseen_win(result(nothing, nothing), wins(2, 2, 2, 2)) is None
    assert "won no task of the test panel" in shown(ending.won_episode(result(nothing, nothing), {}))


def test_the_win_is_told_turn_by_turn_and_its_text_is_never_markup() -> None:
    before, after = report(False, True, True, True), report(True, True, True, True)
    won = wins(3, 0, 0, 0)
    turn = won["key0"].turns[0]
    evil = Turn(
        **{n: getattr(turn, n) for n in Turn.__slots__} | {"observation": "a\x1b[2J [bold]b", "action": "[red]"}
    )
    won["key0"] = played(TASKS[0], True, 3)
    object.__setattr__(won["key0"], "turns", (evil, *won["key0"].turns[1:]))
    lines = shown(ending.won_episode(result(before, after), won)).splitlines()
    assert lines[0] == "An unseen task that the agent lost before training and wins now  (test task 0, heat then place)"
    assert [line.strip() for line in lines[1:] if line.strip()] == [
        *("1 a\\x1b[2J [bold]b", "> [red]", "2 seen key0 1", "> go 1", "3 seen key0 2", "> go 2", "Won in 3 turns.")
    ]


def test_the_display_keeps_the_wins_of_the_latest_measurement() -> None:
    display = LiveDisplay(Console(file=io.StringIO()), 1, "title")
    display.stage("measure")
    display.episode(played(TASKS[0], True))
    display.stage("train")
    display.episode(played(TASKS[1], True))  # validation, or training
    assert set(display.won) == {"key0"}
    display.stage("measure")
    display.episode(first := played(TASKS[2], True))
    display.episode(played(TASKS[2], True))  # greedy, after sampled
    display.episode(played(TASKS[3], False))
    assert display.won == {"key2": first}
    assert display.won["key2"] is first


# --- the next commands


def test_three_commands_name_the_folder_as_a_shell_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "command_name", lambda: "turnwise")
    text = shown(ending.next_commands(Path("runs/one two")), 40)  # a narrow terminal cuts no command in two
    commands = [line.strip() for line in text.splitlines() if "turnwise " in line]
    assert len(commands) == 3
    assert commands == [
        "turnwise view 'runs/one two'",
        "turnwise evaluate 'runs/one two' --samples 4",
        "turnwise train --resume 'runs/one two' num_updates=N",
    ]


def test_the_program_is_named_as_it_can_be_called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv" / "bin" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ending.command_name() == "python -m turnwise.cli"
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "turnwise").write_text("#!/bin/sh\n")
    assert ending.command_name() == ".venv/bin/turnwise"
    (tmp_path / "turnwise").write_text("#!/bin/sh\n")
    (tmp_path / "turnwise").chmod(0o755)
    assert ending.command_name() == "turnwise"


# --- the demo's last words, and a smoke run's


def run_of(folder: Path, *success: float) -> RunDirectory:
    run = RunDirectory.create(folder, load_config("smoke", []), {})
    for update, value in enumerate(success):
        run.log({"update": update, "success": value, "seconds": {"collect": 1.0, "update": 1.0}})
    return run


def last_words(end: ending.Ending, made: Result) -> str:
    console = Console(record=True, width=140, file=io.StringIO())
    display = LiveDisplay(console, 2, "title")
    display.won = wins(2, 2, 2, 2)
    end(console, made, display)
    return console.export_text()


def test_the_demo_ends_in_a_win_and_the_next_commands(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", 0.3125, 0.72)
    text = last_words(ending.demo_closing, result(report(*[False] * 4), report(*[True] * 4), run.path))
    assert "31.2 % → 72.0 %" in text
    places = [text.index(part) for part in ("Success on unseen tasks", "lost before training", "Next", "num_updates=N")]
    assert places == sorted(places)
    assert text.rstrip().endswith("train on, up to N updates")


def test_a_score_that_is_success_is_not_shown_twice(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", 0.5)
    scored = replace(report(True, True, False, False), score=Estimate(0.5, 0.3, 0.7, 4))
    assert "mean score" not in last_words(ending.closing, result(scored, scored, run.path))
    finer = replace(scored, score=Estimate(0.75, 0.6, 0.9, 4))
    assert "mean score" in last_words(ending.closing, result(scored, finer, run.path))


def test_a_run_without_an_update_shows_one_measurement_and_no_gain(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    measured = report(True, True, False, False)
    text = last_words(ending.closing, replace(result(measured, measured, run.path), trained=False))
    assert "no update was made" in text
    assert ("measured" in text, "before" in text, "after" in text) == (True, False, False)
    assert text.count("50.0 % [") == 2, "of all and of the type, once each"
    assert "gain, paired" not in text


def test_a_success_and_a_return_are_no_gain(tmp_path: Path) -> None:
    """A world that says it of some episodes only: its outcomes are successes before, and returns after."""
    run = run_of(tmp_path / "run", 0.5)
    before, after = report(True, True, False, False), report(True, None, False, False)
    assert (before.success is None, after.success is None) == (False, True)
    assert experiment._gain(before, after) is None
    assert "no gain: some episodes" in last_words(ending.closing, result(before, after, run.path))


def test_a_smoke_run_ends_in_no_table_of_zeros(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", 0.0, 0.0)
    text = last_words(ending.smoke_closing, result(report(*[False] * 4), report(*[False] * 4), run.path))
    assert "Every part ran" in text
    assert "2 updates" in text
    assert "Nothing was expected to be learned" in text
    assert "0.0 %" not in text


# --- the warm start


def test_the_cache_is_named_where_a_warm_start_comes_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNWISE_CACHE", str(tmp_path / "cache"))
    made = load_config("smoke", [])

    def clone(cloning: Any, *_: Any, **__: Any) -> Path:
        """In the place of the cloning."""
        folder = tmp_path / "cache" / "warmstart" / cloning.key
        folder.mkdir(parents=True, exist_ok=True)
        return Path(folder)

    monkeypatch.setattr("turnwise.assembly.warmstart.warmstart", clone)
    monkeypatch.setattr(Assembly, "trainer", stop_here)
    told = []
    for name in ("first", "second"):
        assert Assembly(made).warmstart.is_cached == (name == "second")
        console = Console(record=True, width=140, file=io.StringIO())
        with pytest.raises(KeyboardInterrupt):
            experiment.train(made, tmp_path / name, LiveDisplay(console, 1, "title"))
        told.append(console.export_text())
    assert all(text.startswith("Sampling: our own engine (device cpu is no GPU)\n") for text in told)
    assert "\nWarm start: cloning the expert" in told[0]
    assert "\nWarm start: from the cache" in told[1]


def stop_here(*given: Any) -> Any:
    raise KeyboardInterrupt


# --- rates


def test_rates_are_in_percent_while_it_runs() -> None:
    console = Console(record=True, width=140, file=io.StringIO())
    display = LiveDisplay(console, 4, "title")
    display.stage("clone")
    display.cloning(Progress(1000, 2000, 0.5, 0.352, 1.0))
    record = {
        **{"update": 0, "success": 0.3125, "reward": 0.3, "entropy": 0.5, "invalid_share": 0.125, "turns": 3.0},
        **{"eval_success": 0.406, "grad_norm": 0.1, "kl_behaviour": 0.0, "sampled_tokens": 10},
        "seconds": {"collect": 2.0, "update": 1.0, "evaluate": 0.0},
    }
    display.stage("train")
    display.update(record)
    console.print(display.render())
    text = console.export_text()
    assert "sampled success 35.2 %" in text
    assert "success 31.2 %  validation 40.6 %" in text
    assert "invalid 12.5 %" in text
    assert "1: 40.6 %" in text
    assert not any(bare in text for bare in ("0.31", "0.41", "0.35", "0.12"))


# --- Ctrl-C


def test_the_panel_leaves_room_for_what_a_terminal_echoes() -> None:
    console = Console(record=True, width=80, file=io.StringIO())
    display = LiveDisplay(console, 4, "title")
    display.stage("measure")
    console.print(display.render())
    assert max(len(line.rstrip()) for line in console.export_text().splitlines()) == 76


def interrupted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path, act: Callable[[], object]
) -> tuple[int, str, str]:
    """Exit code and what ``turnwise train`` says where training ends by ``act``."""

    def train(*given: Any) -> Any:
        act()

    monkeypatch.setattr(experiment, "train", train)
    monkeypatch.setattr(cli, "console", Console(width=200))
    monkeypatch.setattr(sys, "argv", ["turnwise", "train", "smoke", "--out", str(folder)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return (int(ended.value.code or 0), *capsys.readouterr())


def test_a_run_stopped_between_updates_is_no_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def act() -> None:
        raise InterruptedRunError("stopped after update 2 of 4, which is saved: `...` goes on", signal.SIGINT)

    code, out, err = interrupted(monkeypatch, capsys, tmp_path / "run", act)
    assert (code, err) == (130, "")
    assert out == "stopped after update 2 of 4, which is saved: `...` goes on\n"


def test_a_run_stopped_at_once_says_what_is_left_of_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"

    def nothing() -> None:
        raise KeyboardInterrupt

    def begun() -> None:
        RunDirectory.create(folder, load_config("smoke", []), {})
        raise KeyboardInterrupt

    def trained() -> None:
        (folder / "checkpoints" / "update-00002").mkdir()
        raise KeyboardInterrupt

    for act, told in ((nothing, "before the run began"), (begun, "begins the run again"), (trained, "goes on after")):
        code, out, err = interrupted(monkeypatch, capsys, folder, act)
        assert (code, err) == (130, "")
        assert told in out
        assert (f"turnwise train --resume {folder}" in out) == (act is not nothing)
        assert "rror" not in out


def test_what_is_said_is_true_of_a_real_run(tmp_path: Path) -> None:
    """Ctrl-C twice in a training run of a tiny model; its line names a command that works."""
    folder = tmp_path / "run"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    class Twice(LiveDisplay):
        def update(self, record: dict[str, Any]) -> None:
            if record["update"] == 1:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)

    try:
        with pytest.raises(KeyboardInterrupt), Twice(Console(file=io.StringIO()), 4, "title") as display:
            experiment.train(config(scratch_folder(tmp_path / "model")), folder, display)
    finally:
        signal.signal(signal.SIGINT, before)
    assert "goes on after its newest checkpoint" in ending.stopped_line(folder)
    experiment.resume(folder)
    assert len(RunDirectory.open(folder).metrics()) == 4
