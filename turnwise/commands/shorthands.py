"""Options of the command line that stand for a world and its settings."""

from __future__ import annotations

import json
from pathlib import Path

from turnwise.envs.programs.world import ENV_ID as PROGRAM
from turnwise.envs.tools.world import ENV_ID as TOOLS

_NEEDED = {"tools": ("tasks", "reward"), "program": ("tasks",)}
_WORLDS = {"tools": TOOLS, "program": PROGRAM}


def world_of(
    env: str | None,
    *,
    tools: str | None = None,
    program: str | None = None,
    tasks: str | None = None,
    reward: str | None = None,
) -> tuple[str | None, list[str]]:
    """The world that ``--tools`` or ``--program`` stands for, and the settings of ``--tasks`` and ``--reward``.

    Files are named from the root, so that a run goes on from any folder. Raises ValueError for two worlds, and for an
    option without those that it needs or beside one that does not take it.
    """
    given = {"tools": tools, "program": program, "tasks": tasks, "reward": reward}
    named = {name: value for name, value in given.items() if value}
    if not named:
        return env, []
    worlds = [name for name in _WORLDS if name in named]
    if not worlds:
        options = " and ".join(f"--{name}" for name in named)
        raise ValueError(
            f"{options} need --tools module:NAME or --program module:NAME; the settings of another world are "
            "env.kwargs.NAME=VALUE"
        )
    if env is not None:
        raise ValueError(f"--{worlds[0]} stands for --env {_WORLDS[worlds[0]]}: give one of them")
    if len(worlds) > 1:
        raise ValueError("--tools and --program are two worlds: give one of them")
    (world,) = worlds
    if missing := [f"--{name}" for name in _NEEDED[world] if name not in named]:
        raise ValueError(f"--{world} needs {' and '.join(missing)} too")
    if world == "program" and reward is not None:
        raise ValueError("--reward is for --tools: a program returns its reward itself")
    named["tasks"] = place_of(named["tasks"])
    settings = {"run" if name == "program" else name: value for name, value in named.items()}
    return _WORLDS[world], [f"env.kwargs.{name}={json.dumps(value)}" for name, value in settings.items()]


def place_of(tasks: str) -> str:
    """A file from the root; the name of a dataset as it is."""
    return tasks if tasks.startswith("hf:") else str(Path(tasks).expanduser().resolve())
