"""Options of the command line that stand for a world and its settings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from turnwise.envs.tools.world import ENV_ID as TOOLS


def world_of(
    env: str | None,
    *,
    tools: str | None = None,
    mcp: Sequence[str] = (),
    tasks: str | None = None,
    reward: str | None = None,
) -> tuple[str | None, list[str]]:
    """The world that ``--tools`` and ``--mcp`` stand for, and the settings of ``--tasks`` and ``--reward``.

    Files are named from the root, so that a run goes on from any folder. Raises ValueError for ``--tools`` beside
    ``--env``, and for an option without those that it needs.
    """
    given: dict[str, str | list[str] | None] = {"tools": tools, "mcp": list(mcp), "tasks": tasks, "reward": reward}
    named = [f"--{name}" for name, value in given.items() if value]
    if not named:
        return env, []
    if not tools and not mcp:
        raise ValueError(
            f"{' and '.join(named)} need --tools module:NAME or --mcp SERVER; the settings of another world are "
            "env.kwargs.NAME=VALUE"
        )
    if env is not None:
        raise ValueError(f"{named[0]} stands for --env {TOOLS}: give one of them")
    if missing := [f"--{name}" for name in ("tasks", "reward") if not given[name]]:
        raise ValueError(f"{named[0]} needs {' and '.join(missing)} too")
    assert tasks is not None
    place = tasks if tasks.startswith("hf:") else str(Path(tasks).expanduser().resolve())
    settings = {name: value for name, value in {**given, "tasks": place}.items() if value}
    return TOOLS, [f"env.kwargs.{name}={json.dumps(value)}" for name, value in settings.items()]
