"""The lists of the command line: environments, settings, algorithms, and the page of one algorithm."""

from __future__ import annotations

import difflib
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from turnwise.agents.decoding import METHODS
from turnwise.envs import WORLDS
from turnwise.envs.tasks import make_env, panel


def _cells(*texts: str) -> list[Text]:
    """Cells of a row as plain text, since rich takes ``[envs]`` in a string for markup."""
    return [Text(text) for text in texts]


def envs_table() -> Table:
    """The worlds of turnwise, with their splits and sizes where the world's data is installed."""
    table = Table(title="Environments", title_justify="left")
    for column in ("id", "what", "splits (tasks)"):
        table.add_column(column, overflow="fold")
    for env_id, world in WORLDS.items():
        table.add_row(*_cells(env_id, world.summary, splits_of(env_id)))
    table.caption = "your own: register it with gymnasium and say --env your_module:Your/Env-v0"
    return table


def splits_of(env_id: str) -> str:
    """The splits of a world and their sizes, or what has to be installed for it."""
    try:
        env = make_env(env_id)
    except ValueError as error:
        return str(error).splitlines()[0]
    world: Any = env.unwrapped
    # Ask the world first: making a panel may generate all of its games.
    sizes = getattr(world, "sizes", None) or {name: len(panel(env, name)) for name in getattr(world, "splits", ())}
    return ", ".join(f"{name} ({size:,})" for name, size in sizes.items())


def settings_table(section: str) -> Table:
    """Name, default and meaning of the settings whose name starts with ``section``.

    Of algorithms there are the settings of the default one. Raises ValueError where no name starts so.
    """
    from turnwise.config.files import run_settings
    from turnwise.config.names import DEFAULT_ALGORITHM

    table = Table(title="Settings", title_justify="left")
    for column in ("setting", "default", "meaning"):
        table.add_column(column, overflow="fold")
    rows: list[tuple[str, object, str]] = []
    for name, info in run_settings():
        default = "required" if info.is_required() else info.get_default(call_default_factory=True)
        rows += [(name, default, info.description)] if info.description else []
    if "algorithm.".startswith(section) or section.startswith("algorithm."):
        from turnwise.algorithms.description import describe  # here: it brings torch

        rows += [(f"algorithm.{s.name}", s.default, s.meaning) for s in describe(DEFAULT_ALGORITHM).settings]
    known, rows = rows, [row for row in rows if row[0].startswith(section)]
    if not rows:
        names = {".".join(name.split(".")[: section.count(".") + 1]) for name, _, _ in known}
        near = difflib.get_close_matches(section, sorted(names), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"no settings under {section!r}.{hint} Try env, model, agent, warmstart, algorithm, optimizer, eval"
        )
    for name, default, meaning in rows:
        table.add_row(*_cells(name, str(default), meaning))
    if any(name.startswith("algorithm.") for name, *_ in rows):
        table.caption = f"algorithm: of {DEFAULT_ALGORITHM}; those of another: turnwise algorithms NAME"
    return table


def algorithms_table() -> Table:
    """Every algorithm by what it changes: a sentence about it, and whether it is put on another one; and decoding."""
    from turnwise.algorithms.description import by_kind

    table = Table(title="Algorithms", title_justify="left")
    table.add_column("name", no_wrap=True)
    table.add_column("what", overflow="fold")
    for kind, found in by_kind().items():
        table.add_section()
        table.add_row(Text(kind, style="bold"))
        for each in found:
            table.add_row(*_cells(each.name + ("*" if each.is_modifier else ""), each.summary))
    table.add_section()
    table.add_row(Text("decoding", style="bold"))
    for name, method in METHODS.items():
        table.add_row(*_cells(name, method.summary()))
    table.caption = (
        "* on a base: algorithm.base.type=NAME. Paper, equations, settings: turnwise algorithms NAME. "
        "Decoding goes with any of them: agent.decoding.NAME.KEY=VALUE, turnwise settings agent.decoding. "
        "One of your own: --algorithm your_module:recipe"
    )
    return table


def algorithm_page(name: str) -> RenderableType:
    """One algorithm: its paper, its text with the equations, its settings with where their defaults come from, and what
    differs between the paper, the released code and ours.
    """
    from turnwise.algorithms.description import describe

    found = describe(name)
    table = Table(title="Settings", title_justify="left")
    for column in ("algorithm.", "type", "default", "from", "meaning"):
        table.add_column(column, overflow="fold")
    for setting in found.settings:
        table.add_row(*_cells(setting.name, setting.type, str(setting.default), setting.source, setting.meaning))
    parts: list[RenderableType] = [Text(f"{name}\n", style="bold"), Text(found.text + "\n"), table]
    if found.about is not None:
        kind = f" ({found.about.kind})" if found.is_modifier else ""
        parts[0] = Text(f"{name}{kind}\n{found.about.cited}\n", style="bold")
        parts += [Text(f"\nNumbers held against {found.about.code}")] if found.about.code else []
        parts += [Text(f"- {line}") for line in found.about.differences]
    return Group(*parts)
