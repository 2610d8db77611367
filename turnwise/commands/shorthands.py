"""Options of the command line that stand for a world and its settings."""

from __future__ import annotations

import json
from pathlib import Path

from turnwise.envs.tools.world import ENV_ID as TOOLS


def world_of(
    env: str | None, *, tools: str | None = None, tasks: str | None = None, reward: str | None = None
) -> tuple[str | None, list[str]]:
    """The world that ``--tools`` stands for, and the settings of ``--tasks`` and ``--reward``.

    Files are named from the root, so that a run goes on from any folder. Raises ValueError for ``--tools`` beside
    ``--env``, and for an option without those that it needs.
    """
    given = {"tools": tools, "tasks": tasks, "reward": reward}
    if not any(given.values()):
        return env, []
    if tools is None:
        named = " and ".join(f"--{name}" for name, value in given.items() if value)
        raise ValueError(f"{named} need --tools module:NAME; the settings of another world are env.kwargs.NAME=VALUE")
    if env is not None:
        raise ValueError(f"--tools stands for --env {TOOLS}: give one of them")
    if missing := [f"--{name}" for name, value in given.items() if not value]:
        raise ValueError(f"--tools needs {' and '.join(missing)} too")
    assert tasks is not None
    place = tasks if tasks.startswith("hf:") else str(Path(tasks).expanduser().resolve())
    return TOOLS, [f"env.kwargs.{name}={json.dumps(value)}" for name, value in {**given, "tasks": place}.items()]
