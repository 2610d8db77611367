"""The command line: every command answers, and a user's mistake is one message with exit code 2."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def run(*words: str, cwd: Path, cache: Path | None = None) -> subprocess.CompletedProcess[str]:
    import os

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
        (["train", "--algorithm", "eppo"], "Did you mean 'epo'?"),
        (["train", "--env", "turnwise/Hous-v0"], "Did you mean 'turnwise/Household-v0'?"),
        (["train", "--env", "nomodule:a/B-v0"], "cannot import module 'nomodule'"),
        (["train", "--resume", "nowhere"], "no run at nowhere"),
        (["evaluate", "random", "--env", "turnwise/Household-v0", "--split", "tset"], "Did you mean 'test'?"),
        (["evaluate", "./nomodel"], "no model at './nomodel'"),
        (["play", "--agent", "robot"], "unknown agent 'robot'"),
        (["export", "nowhere", "--to", "x"], "no run at nowhere"),
        (["settings", "nothing"], "no settings under 'nothing'"),
        (["train", "device=gpu"], "unknown device 'gpu'"),
        (["train", "optimizer.betas=[0.9"], "is not a YAML value"),
        (["demo", "seed=x"], "seed: Input should be a valid integer"),
        (["evaluate", "random", "--out", "nodir/x.json", "--tasks", "1"], "nodir/x.json"),
        (["evaluate", "random", "agent.contxt=full", "--tasks", "1"], "random plays without a model"),
    ],
)
def test_mistakes_are_one_message(words: list[str], message: str, tmp_path: Path) -> None:
    asked = run(*words, cwd=tmp_path)
    assert asked.returncode == 2
    assert message in asked.stderr
    assert "Traceback" not in asked.stderr
    assert not list(tmp_path.glob("runs/*")), "nothing is left behind"


def test_looking_around(tmp_path: Path) -> None:
    assert "turnwise/Household-v0" in run("envs", cwd=tmp_path).stdout
    assert "household" in run("configs", cwd=tmp_path).stdout
    assert "learning rate" in run("settings", "optimizer", cwd=tmp_path).stdout
    played = run("play", "--agent", "expert", "--task", "3", cwd=tmp_path)
    assert "success after" in played.stdout
    report = run("evaluate", "expert", "--env", "turnwise/Household-v0", "--tasks", "12", "--json", cwd=tmp_path)
    assert json.loads(report.stdout)["success"]["value"] == 1.0
    assert "all" in run("evaluate", "random", "--tasks", "6", cwd=tmp_path).stdout


def test_a_person_can_play(tmp_path: Path) -> None:
    import os

    asked = subprocess.run(
        [sys.executable, "-m", "turnwise.cli", "play"],
        input="?\nlook\nfly\n",
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "160"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert asked.returncode == 0
    assert "go to" in asked.stdout, "? lists the admissible actions"
    assert "Nothing happens." in asked.stdout
    assert "stopped" in asked.stdout


def test_smoke_demo_then_resume_evaluate_and_export(tmp_path: Path) -> None:
    small = ["warmstart.max_tokens=20000", "warmstart.tokenizer_episodes=40", "model.hidden_size=32", "num_updates=2"]
    made = run("demo", "--smoke", "--out", "first", *small, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "Success on unseen tasks" in made.stdout
    assert "run: first" in made.stdout
    assert run("train", "--resume", "first", cwd=tmp_path).returncode == 0
    assert run("evaluate", "first", "--tasks", "4", "--temperature", "0", cwd=tmp_path).returncode == 0
    exported = run("export", "first", "--to", "merged", cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    assert (tmp_path / "merged" / "model.safetensors").exists()
