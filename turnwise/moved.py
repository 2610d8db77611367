"""Old import paths: an error that names the new place (docs/migration.md)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType

_MODELS = (
    *("attention", "cache", "decoder", "drawing", "engine", "head", "layers", "loading", "merging", "packing"),
    *("policy", "scratch"),
)
_LEARNING = ("credit", "metrics", "optimizer", "parts", "planning", "primitives", "recipe", "rewards", "schedules")
_RUNS = ("checkpoints", "exporting", "lock", "trajectories", "trajectory_tables", "translating")
_SECTIONS = ("EvalConfig", "GameConfig", "RolloutConfig")

MODULES = {
    **{f"turnwise.agents.{name}": f"turnwise.models.{name}" for name in _MODELS},
    **{f"turnwise.algorithms.{name}": f"turnwise.learning.{name}" for name in _LEARNING},
    **{f"turnwise.records.{name}": f"turnwise.runs.{name}" for name in _RUNS},
    **{
        f"turnwise.{part}.{name}": "turnwise.shards" for part in ("agents", "models") for name in ("parallel", "remote")
    },
    "turnwise.algorithms.recipe": "turnwise.learning.recipe (Settings and RunInfo: turnwise.learning.settings)",
    "turnwise.algorithms.update": "turnwise.learning.learner",
    "turnwise.configfile": "turnwise.config.files",
    "turnwise.envs.cache": "turnwise.cache",
    "turnwise.envs.child": "turnwise.childprocess",
    "turnwise.naming": "turnwise.errors",
    "turnwise.players": "turnwise.assembly.players",
    "turnwise.record": "turnwise.monitoring.record",
    "turnwise.records": "turnwise.runs",
    "turnwise.records.replaying": "turnwise.runs.reproducing",
    "turnwise.records.rundir": "turnwise.runs.directory",
    "turnwise.runs.replaying": "turnwise.runs.reproducing",
    "turnwise.settingnames": "turnwise.config.names",
    "turnwise.training.cloning": "turnwise.cloning.cloner",
    "turnwise.training.experiment": "turnwise.jobs",
    "turnwise.training.mirrors": "turnwise.monitoring.mirrors",
    "turnwise.training.warmstart": "turnwise.cloning.warmstart",
    "turnwise.training.watchdog": "turnwise.monitoring.watchdog",
}
"""Module of version 0.1 or 0.2 -> where its content is now."""


def told(old: str) -> str | None:
    """What to say of an old module or name; None for one that never was."""
    name = old.rpartition(".")[2]
    classes = name.endswith("Config") and old in (f"turnwise.{name}", f"turnwise.config.{name}")
    module = "sections" if name in _SECTIONS else "schema"
    new = f"turnwise.config.{module}.{name}" if classes else MODULES.get(old)
    return None if new is None else f"{old} has moved in version 0.2: import {new} (docs/migration.md)"


class _OldPlaces(MetaPathFinder):
    """Asked last, for modules that nothing else finds."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> None:
        if name.startswith("turnwise.") and (text := told(name)):
            raise ImportError(text, name=name)


def install() -> None:
    """Have Python's import ask here for what is nowhere else."""
    if not any(isinstance(finder, _OldPlaces) for finder in sys.meta_path):
        sys.meta_path.append(_OldPlaces())
