"""The command line with words of every kind, and with runs whose files were damaged. Nothing here trains for long."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import torch
import typer

from tests.fuzz.configurations import setting
from tests.fuzz.harness import clear
from tests.fuzz.texts import damaged, text, value
from tests.models import scratch_folder
from tests.stored import ECHO
from turnwise import cli
from turnwise.config.files import load_config
from turnwise.jobs import train

_BAD_SETTINGS = ["optimizr.lr=1", "num_updates=x", "eval.tasks=-1", "device=gpu", "env.id=a/B-v0"]
_NAMES = ["run", "random", "expert", "expert:knowing", "nowhere", "grpo", "epo", "smoke", "turnwise/Sokoban-v0"]
_NUMBERS = ["-1", "0", "1", "2", "2.5", "1e9", "nan", "x", ""]
_FEW = {"--tasks": "2", "--samples": "2", "--slots": "2", "--threads": "1", "--seconds": "1"}
_OPTIONS_LEFT_OUT = {"--help", "--serve", "--fresh", "--base-url", "--smoke", "--resume", "--install-completion"}


def command(rng: random.Random, folder: Path) -> str:
    """Any command with any words and options; train, warmstart and demo with a setting that is wrong at least."""
    if rng.random() < 0.4:
        shutil.copytree(finished_run(), folder / "run")
    name = rng.choice(sorted(set(_commands()) - {"serve-search", "serve-vllm"}))
    words = [name, *_arguments(rng, name), *_options(rng, name)]
    if name in ("train", "warmstart", "demo"):
        words.append(rng.choice(_BAD_SETTINGS))
    if name == "evaluate":
        words += ["--tasks", "1", "--slots", "2"]
    return called([word for word in words if _harmless(word)], folder)


def run_folder(rng: random.Random, folder: Path) -> str:
    """One or two accidents to the files of a finished run, then a command that reads it."""
    run = folder / "run"
    shutil.copytree(finished_run(), run)
    for _ in range(rng.choice([1, 1, 2])):
        near = rng.choice(["*", "*", "checkpoints/**/*", "**/*"])  # mostly what turnwise itself writes
        _damage(rng, rng.choice(sorted(path for path in run.glob(near) if path.is_file())))
    words = rng.choice(
        [
            ["compare", "run"],
            ["trajectories", "run"],
            ["trajectories", "run", "--export", "x.jsonl", "--format", "sft"],
            ["replay", "run", "--all"],
            ["export", "run", "--to", "out"],
            ["evaluate", "run", "--tasks", "1", "--slots", "2"],
            ["train", "--resume", "run"],
            ["view", "run"],
        ]
    )
    return called(words, folder, about="run")


def called(words: list[str], folder: Path, about: str = "") -> str:
    """``turnwise WORDS`` in this process and in ``folder``; whatever escapes ``main`` would have been a traceback.
    An error names what it is ``about``.
    """
    before, path, arguments = Path.cwd(), list(sys.path), sys.argv
    offline, huggingface_hub.constants.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE, True
    out, err = io.StringIO(), io.StringIO()
    os.chdir(folder)
    sys.argv = ["turnwise", *words]
    stdin, sys.stdin = sys.stdin, io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as ended:
        code = ended.code or 0
    else:
        code = 0
    finally:
        os.chdir(before)
        sys.path[:], sys.argv, sys.stdin = path, arguments, stdin
        huggingface_hub.constants.HF_HUB_OFFLINE = offline
        torch.set_num_threads(1)
    said = err.getvalue()
    assert "Traceback" not in said + out.getvalue(), said[-2000:]
    if code in (0, 1) or not words:
        return f"exit {code}"
    assert "TURNWISE_DEBUG" not in said or "[Errno" in said, f"{words}: {said[-2000:]}"
    assert "Error" in said, (words, code, said[-2000:])
    assert about in said, (words, said[-2000:])
    return f"exit {code}: {clear(said)}"


def _arguments(rng: random.Random, name: str) -> list[str]:
    kinds = [
        lambda: rng.choice(_NAMES),
        lambda: text(rng),
        lambda: setting(rng, rng.choice(["seed", "agent.window", "x"])),
    ]
    return [rng.choice(kinds)() for _ in range(rng.choice([0, 1, 1, 1, 2, 3]))]


def _options(rng: random.Random, name: str) -> list[str]:
    words: list[str] = []
    for option in rng.sample(_commands()[name], k=min(len(_commands()[name]), rng.choice([0, 1, 1, 2, 3]))):
        flag = rng.choice([*option.opts, *([] if rng.random() < 0.9 else ["--nonsense"])])
        words.append(flag)
        if not option.is_flag:
            words.append(_FEW.get(flag) or rng.choice([*_NUMBERS, *_NAMES, text(rng), "x.jsonl", "test", "yes"]))
    return words


def _harmless(word: str) -> bool:
    """Neither a place outside the folder nor a world that takes long."""
    return ".." not in word and not word.startswith(("/", "~", "-c")) and "\0" not in word and word != "check-env"


@cache
def _commands() -> dict[str, list[Any]]:
    """Command names and their options. Those that measure this machine are groups, and left out."""
    group: Any = typer.main.get_command(cli.app)
    return {
        name: [p for p in found.params if p.param_type_name == "option" and not _OPTIONS_LEFT_OUT & set(p.opts)]
        for name, found in group.commands.items()
        if not hasattr(found, "commands")
    }


def _damage(rng: random.Random, path: Path) -> None:
    way = rng.random()
    if way < 0.15:
        path.unlink()
    elif way < 0.2:
        path.unlink()
        path.mkdir()
    elif way < 0.5 and path.suffix == ".json":
        with contextlib.suppress(ValueError):  # damaged already
            path.write_text(json.dumps(_changed(rng, json.loads(path.read_text()))))
    else:
        path.write_bytes(damaged(rng, path.read_bytes()))


def _changed(rng: random.Random, raw: Any) -> Any:
    """The same with another value somewhere."""
    if not isinstance(raw, dict) or not raw or rng.random() < 0.1:
        return value(rng)
    key = rng.choice(list(raw))
    return {**raw, key: _changed(rng, raw[key])}


@cache
def finished_run() -> Path:
    """A run of two updates on a world of three turns."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz"))
    words = [
        f"model.path={scratch_folder(folder / 'model')}",
        "warmstart=null",
        "num_updates=2",
        "env.success_threshold=1.0",
        "rollout.num_tasks=2",
        "rollout.group_size=2",
        "rollout.num_slots=4",
        "eval.every=0",
        "eval.test_tasks=3",
        "agent.max_reply_tokens=4",
        "agent.max_context_tokens=256",
        "optimizer.num_minibatches=1",
    ]
    train(load_config("default", words, env=ECHO, algorithm="grpo"), folder / "run")
    return folder / "run"
