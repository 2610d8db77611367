"""Options of the command line that stand for a world and its settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from turnwise.envs.programs.world import ENV_ID as PROGRAM
from turnwise.envs.tools.world import ENV_ID as TOOLS


def world_of(
    env: str | None,
    *,
    tools: str | None = None,
    mcp: Sequence[str] = (),
    program: str | None = None,
    tasks: str | None = None,
    reward: str | None = None,
) -> tuple[str | None, list[str]]:
    """The world that ``--tools`` and ``--mcp``, or ``--program``, stand for, and the settings of ``--tasks`` and
    ``--reward``.

    Files are named from the root, so that a run goes on from any folder. Raises ValueError for two worlds, and for an
    option without those that it needs.
    """
    if program:
        return _program(program, tasks, {"--env": env, "--tools": tools, "--mcp": mcp, "--reward": reward})
    given: dict[str, str | list[str] | None] = {"tools": tools, "mcp": list(mcp), "tasks": tasks, "reward": reward}
    named = [f"--{name}" for name, value in given.items() if value]
    if not named:
        return env, []
    if not tools and not mcp:
        raise ValueError(
            f"{' and '.join(named)} {'needs' if len(named) == 1 else 'need'} --tools module:NAME, --mcp SERVER or "
            "--program module:NAME; the settings of another world are env.kwargs.NAME=VALUE"
        )
    if env is not None:
        raise ValueError(f"{named[0]} stands for --env {TOOLS}: give one of them")
    if missing := [f"--{name}" for name in ("tasks", "reward") if not given[name]]:
        raise ValueError(f"{named[0]} needs {' and '.join(missing)} too")
    assert tasks is not None
    settings = {name: value for name, value in {**given, "tasks": _place(tasks)}.items() if value}
    return TOOLS, [f"env.kwargs.{name}={json.dumps(value)}" for name, value in settings.items()]


def _program(program: str, tasks: str | None, others: Mapping[str, object]) -> tuple[str, list[str]]:
    """The world that ``--program`` stands for; ``others`` are options that it has no use for."""
    if given := [name for name, value in others.items() if value]:
        raise ValueError(
            f"--program stands for --env {PROGRAM}, and a program has its own tools and returns its reward: leave "
            f"{' and '.join(given)} out"
        )
    if not tasks:
        raise ValueError("--program needs --tasks too, such as --tasks questions.jsonl")
    return PROGRAM, [f"env.kwargs.run={json.dumps(program)}", f"env.kwargs.tasks={json.dumps(_place(tasks))}"]


def _place(tasks: str) -> str:
    """A file from the root; the name of a dataset as it is."""
    return tasks if tasks.startswith("hf:") else str(Path(tasks).expanduser().resolve())
