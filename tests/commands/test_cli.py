"""The command line: every command answers, and a user's mistake is one message with exit code 2."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import typer
from rich.console import Console
from rich.markup import render

from turnwise import cli


def run(*words: str, cwd: Path, cache: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TURNWISE_CACHE": str(cache or cwd / "cache"), "COLUMNS": "160"}
    return subprocess.run(
        [sys.executable, "-m", "turnwise.cli", *words],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "optimizr.lr=1"], "Did you mean 'optimizer'?"),
        (["train", "nosuchconfig"], "no configuration 'nosuchconfig'"),
        (["train", "--algorithm", "gprpo"], "Did you mean 'grpo'?"),
        (["train", "--env", "turnwise/Hous-v0"], "Did you mean 'turnwise/Household-v0'?"),
        (["train", "--env", "nomodule:a/B-v0"], "cannot import module 'nomodule'"),
        (["train", "--resume", "nowhere"], "no run at nowhere"),
        (["evaluate", "random", "--env", "turnwise/Household-v0", "--split", "tset"], "Did you mean 'test'?"),
        (["evaluate", "./nomodel"], "no model at './nomodel'"),
        (["play", "--agent", "robot"], "unknown agent 'robot'"),
        (["evaluate", "randm"], "unknown agent 'randm'. Did you mean 'random'?"),
        (["export", "nowhere", "--to", "x"], "no run at nowhere"),
        (["settings", "nothing"], "no settings under 'nothing'. Try env"),
        (["settings", "optimizr"], "no settings under 'optimizr'. Did you mean 'optimizer'?"),
        (["settings", "optimizer.lrr"], "Did you mean 'optimizer.lr'?"),
        (["train", "device=gpu"], "unknown device 'gpu'"),
        (["train", "optimizer.betas=[0.9"], "is not a YAML value"),
        (["train", "smoke", "--seed", "3", "seed=4"], "two values of seed are asked for, 3 by an option and 4 by a"),
        (["demo", "--smoke", "--seed", "3", "seed=4"], "two values of seed are asked for, 3 by an option and 4 by a"),
        (["train", "--env", "turnwise/Sokoban-v0", "env.id=turnwise/Wordle-v0"], "two worlds are asked for"),
        (["train", "--program", "a:b", "--tasks", "x", "env.kwargs.run=c:d"], "two values of env.kwargs.run"),
        (["train", "--program", "a:b", "--tasks", "x", "env.kwargs={}"], "two values of env.kwargs.run"),
        (["warmstart", "--model", "one", "model.path=two"], 'model.path are asked for, "one" by an option and "two"'),
        (["plan", "--model", "one", "model.path=two"], 'model.path are asked for, "one" by an option and "two"'),
        (["bench", "update", "./one", "model.path=two"], 'model.path are asked for, "./one" by name and "two"'),
        (["bench", "rollout", "--against", "vllm", "./one", "model.path=two"], 'asked for, "./one" by name and "two"'),
        (["evaluate", "random", "--shards", "2", "rollout.shards=3"], "rollout.shards are asked for, 2 by an option"),
        (["evaluate", "random", "--base-url", "a", "endpoint.base_url=b"], "endpoint.base_url are asked for"),
        (["rejudge", "nowhere", "--model", "openai:a", "judge.model=openai:b"], "rewards.judge.model are asked for"),
        (["demo", "seed=x"], "seed: Input should be a valid integer"),
        (["evaluate", "random", "--out", "nodir/x.json", "--tasks", "1"], "no file can be made at nodir/x.json"),
        (["evaluate", "random", "agent.contxt=full", "--tasks", "1"], "random plays without a model"),
    ],
)
def test_mistakes_are_one_message(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["turnwise", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir()), "nothing is left behind"


@pytest.mark.parametrize("debug", [False, True])
def test_what_a_user_s_own_code_raises_is_one_message(
    debug: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        {}["floor"]

    monkeypatch.setattr(cli, "app", fails)
    monkeypatch.setenv("TURNWISE_DEBUG", "1" if debug else "")
    with pytest.raises(KeyError if debug else SystemExit):
        cli.main()
    told = capsys.readouterr().err
    assert bool(re.match(r"Error: KeyError \(test_cli\.py, line \d+\): 'floor'", told)) is not debug


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "place", lambda error: "")
    monkeypatch.setattr(cli, "app", lambda: {}["ours"])
    with pytest.raises(KeyError):
        cli.main()


def test_help_shows_its_brackets() -> None:
    """To rich, ``[@URL]`` is markup: it would vanish."""
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    told = [getattr(param, "help", None) or "" for command in commands.values() for param in command.params]
    assert len(told) > 100
    for text in told:
        assert render(text).plain == text.replace("\\[", "["), text


def test_a_warning_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("warnings.formatwarning", warnings.formatwarning)
    monkeypatch.setattr(sys, "argv", ["turnwise", "--version"])
    with pytest.raises(SystemExit):
        cli.main()
    gymnasiums = "\x1b[33mWARN: The reward is a NaN value.\x1b[0m"
    assert (
        warnings.formatwarning(gymnasiums, UserWarning, "file.py", 1) == "Warning: WARN: The reward is a NaN value.\n"
    )


def test_a_mistake_shows_no_traceback(tmp_path: Path) -> None:
    """Takes seconds: the one test here that starts a process, as a person does."""
    asked = run("train", "optimizr.lr=1", cwd=tmp_path)
    assert (asked.returncode, asked.stdout) == (2, "")
    assert asked.stderr.strip() == "Error: Unknown setting 'optimizr'. Did you mean 'optimizer'?"


def shown(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command prints, run in this process."""
    monkeypatch.setattr(sys, "argv", ["turnwise", *words])
    monkeypatch.setattr(cli, "console", Console(width=160))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code in (0, None)
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["envs"], "turnwise/Household-v0"),
        (["configs"], "household"),
        (["algorithms"], "planners"),
        (["algorithms", "clip_cov"], "SPEAR's replay 0.02"),
        (["settings", "optimizer"], "learning rate"),
        (["settings", "algorithm"], "corridor"),
        (["play", "--agent", "expert", "--task", "3"], "success after"),
        (["evaluate", "random", "--tasks", "6"], "pick_and_place_simple"),
    ],
)
def test_looking_around(
    words: list[str], expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in shown(words, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("words", "expected"),
    [(["envs"], '".[games]"'), (["algorithms", "epo"], "tuple[float, float]")],
)
def test_brackets_in_tables_are_shown(
    words: list[str], expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rich takes ``[games]`` in a plain string for markup and prints nothing in its place."""
    monkeypatch.setattr("turnwise.commands.lists.splits_of", lambda env_id: 'needs pip install -e ".[games]"')
    assert expected in shown(words, monkeypatch, capsys)


def test_brackets_in_offered_actions_are_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("?\n"))
    assert "  search[" in shown(["play", "turnwise/WebShop-v0"], monkeypatch, capsys)


def test_json_is_for_machines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    long = f"env.kwargs={{{' ' * 5000}}}"  # no file can have such a name
    found = json.loads(shown(["evaluate", "expert", long, "--tasks", "12", "--json"], monkeypatch, capsys))
    assert found["targets"][0]["reports"]["sampled"]["success"]["value"] == 1.0


def test_a_person_can_play(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("?\nlook\nfly\n"))
    played = shown(["play"], monkeypatch, capsys)
    assert "go to" in played, "? lists the admissible actions"
    assert "Nothing happens." in played
    assert "stopped" in played


def test_smoke_demo_then_resume_evaluate_and_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Takes seconds: five commands, one after the other, on what the one before has made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TURNWISE_CACHE", str(tmp_path / "cache"))
    small = ["warmstart.max_tokens=8000", "warmstart.tokenizer_episodes=40", "model.hidden_size=32", "num_updates=2"]
    small += [
        "agent.max_turns=6",
        "agent.max_reply_tokens=8",
        "rollout.num_tasks=2",
        "eval.tasks=2",
        "eval.test_tasks=4",
    ]
    made = shown(["demo", "--smoke", "--out", "first", *small], monkeypatch, capsys)
    assert "Nothing is expected to be learned in it" in made.splitlines()[0]
    assert "Warm start: cloning the expert" in made
    assert "Every part ran: warm start, measuring, 2 updates" in made
    assert "run: first" in made.splitlines()[-1]
    assert "watchdog" not in made
    assert "Success on unseen tasks" not in made, "a table of zeros"
    again = shown(["train", "--resume", "first"], monkeypatch, capsys)
    assert "Success on unseen tasks" in again
    assert "run: first" in again
    assert "all" in shown(["evaluate", "first", "--tasks", "4", "--temperature", "0"], monkeypatch, capsys)
    assert "success in %" in shown(["compare", "first", "--plot", "plots/curves.svg"], monkeypatch, capsys)
    assert (tmp_path / "plots" / "curves.svg").stat().st_size > 500
    assert "merged" in shown(["export", "first", "--to", "merged"], monkeypatch, capsys)
    assert (tmp_path / "merged" / "model.safetensors").exists()
    assert "all" in shown(["evaluate", "./merged", "--tasks", "4"], monkeypatch, capsys)
