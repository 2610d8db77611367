"""A run on disk: configuration, metrics, trajectories, checkpoints. Reading one executes nothing.

config.yaml        the resolved configuration
run.json           versions, commit, hashes of the panels, command, how tokens are drawn; locked during training
model/             the base model (scratch models; a pretrained one stays where it is)
steering.safetensors    the vector of a steered run
metrics.jsonl      one record per update, on the disk before the next update begins
trajectories.jsonl.gz   every training episode
checkpoints/       turnwise.runs.checkpoints
evaluation.json    measurements before and after
changes.jsonl      settings that were changed at a resume, and after which update
"""

from __future__ import annotations

import difflib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from turnwise import __version__
from turnwise.config.files import dump_config, parse_config
from turnwise.config.schema import RunConfig
from turnwise.models.drawing import DRAW, other_draw
from turnwise.models.settings import PretrainedModelConfig
from turnwise.replay.store import truncate_after
from turnwise.runs.checkpoints import Checkpoint, CheckpointFolder, CheckpointName, write_text
from turnwise.runs.lock import locked
from turnwise.runs.records import read_records
from turnwise.runs.translating import translated

FORMAT = 2
"""Of the run folder. Format 1 has rewards in the algorithm's section; ``runs/translating.py`` reads it."""

_PACKAGES = ("torch", "transformers", "peft", "gymnasium", "numpy")


class RunDirectory:
    """One run's folder: where its files are, and how they are read and written."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = CheckpointFolder(self.path / "checkpoints")
        self._config: RunConfig | None = None

    @classmethod
    def create(cls, path: str | Path, config: RunConfig, panels: Mapping[str, str]) -> RunDirectory:
        """Make the folder, with run.json and config.yaml in it. ``panels`` are the hashes of the run's task panels.

        Raises ValueError where the folder is not empty or cannot be made.
        """
        run = cls(path)
        if (run.path / "config.yaml").exists():
            raise ValueError(
                f"{run.path} already holds a run: continue it with `turnwise train --resume {run.path}`, "
                "or choose another --out"
            )
        if run.path.exists() and (not run.path.is_dir() or any(run.path.iterdir())):
            raise ValueError(f"{run.path} is not an empty folder: choose another --out")
        try:
            run.checkpoints.path.mkdir(parents=True)
            made = {"format": FORMAT, **provenance(), "panels": dict(panels), "draw": DRAW}
            write_text(run.path / "run.json", json.dumps(made, indent=1))
            write_text(run.path / "config.yaml", dump_config(config))
        except OSError as error:
            raise ValueError(f"no run can be made at {run.path} ({error.strerror}): choose another --out") from error
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunDirectory:
        """An existing run. Raises ValueError where there is none."""
        run = cls(path)
        if not (run.path / "config.yaml").is_file():
            raise ValueError(
                f"no run at {run.path}: expected a folder with config.yaml, as `turnwise train` makes it"
                f"{_nearest(run.path)}"
            )
        return run

    @classmethod
    def find(cls, path: str | Path) -> RunDirectory | None:
        """The run at ``path``, if there is one; None for what may be something else, such as a model.

        Raises ValueError where nothing is at ``path``, in a folder of runs: a hub would be asked for it in vain.
        """
        place = Path(path)
        if len(place.parts) > 1 and not place.exists() and _runs_beside(place):
            raise ValueError(f"no run and no model at {place}{_nearest(place)}")
        return cls(place) if (place / "config.yaml").is_file() else None

    def config(self) -> RunConfig:
        """The run's configuration, read once. Raises ValueError where it cannot be read."""
        if self._config is None:
            self._config = self._read_config()
        return self._config

    def _read_config(self) -> RunConfig:
        _check_format(self.path / "run.json")
        try:
            found = parse_config(translated(yaml.safe_load((self.path / "config.yaml").read_text())))
        except (yaml.YAMLError, ValueError) as error:
            raise ValueError(f"{self.path / 'config.yaml'} cannot be read: {error}") from None
        return found.model_copy(update={"agent": found.agent.kept_in(self.path)})

    @property
    def model_path(self) -> Path:
        return self.path / "model"

    def base_model(self) -> str:
        """The folder or hub name of the model that the run began with.

        Raises ValueError where its warm start did not finish.
        """
        if self.model_path.exists():
            return str(self.model_path)
        model = self.config().model
        if not isinstance(model, PretrainedModelConfig):
            raise ValueError(f"{self.path} has no model folder: its warm start did not finish; start a new run")
        return model.path

    @property
    def trajectories_path(self) -> Path:
        return self.path / "trajectories.jsonl.gz"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def evaluation_path(self) -> Path:
        return self.path / "evaluation.json"

    def locked(self) -> AbstractContextManager[None]:
        """A context in which no other process trains here. Raises ValueError where one does."""
        return locked(
            self.path / "run.json",
            f"another process is training in {self.path}: wait for it or end it, or choose another --out",
        )

    def check_unchanged(self, panels: Mapping[str, str]) -> None:
        """Check that the run can be resumed to the same numbers.

        Raises ValueError where the tasks, or the way tokens are drawn, are not those that the run began with. Warns
        where versions of packages differ.
        """
        try:
            made = json.loads((self.path / "run.json").read_text())
            before, versions, draw = dict(made["panels"]), dict(made["versions"]), made.get("draw", 1)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.path / 'run.json'} cannot be read: {error}") from None
        if told := other_draw(draw):
            raise ValueError(
                f"{self.path} cannot go on: {told}, and a run keeps to one way. It can still be evaluated, exported "
                f"and compared. To train on, start a new run from its model: `turnwise export {self.path} --to MODEL`, "
                "then `turnwise train model.path=MODEL warmstart=null` with its other settings"
            )
        changed = [name for name, value in panels.items() if value != before.get(name, value)]
        if changed:
            raise ValueError(
                f"{self.path} cannot go on: the tasks of {', '.join(changed)} are not those that it began with. "
                "Bring its data back, or start a new run"
            )
        others = [f"{name} {versions[name]} → {now}" for name, now in _versions().items() if versions.get(name) != now]
        if others:
            warnings.warn(f"{self.path} goes on with other versions ({', '.join(others)})", stacklevel=2)

    def change(self, config: RunConfig, note: Mapping[str, Any]) -> None:
        """Change the run's configuration: add a line to changes.jsonl, then replace config.yaml."""
        with (self.path / "changes.jsonl").open("a") as file:
            file.write(json.dumps({**note, "command": provenance()["command"]}) + "\n")
        write_text(self.path / "config.yaml", dump_config(config))
        self._config = config

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Append a record to metrics.jsonl and synchronise it to the disk."""
        with self.metrics_path.open("a") as file:
            file.write(json.dumps(metrics) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def metrics(self) -> list[dict[str, Any]]:
        """All complete records of metrics.jsonl. Raises ValueError, which names the line, where one is damaged."""
        return list(read_records(self.metrics_path).lines)

    def logged(self) -> tuple[list[dict[str, Any]], str]:
        """As ``metrics``, with what is missing of the updates that the newest checkpoint is after; "" for nothing."""
        finished = max(self.checkpoints.updates(), default=0)  # read first: a run in progress logs, then saves
        found = read_records(self.metrics_path)
        return list(found.lines), found.lacks(finished)

    def cut(self, finished: int) -> None:
        """Drop checkpoints, trajectories and records after ``finished`` updates, which the run will repeat.

        After a crash in here it can be called again.
        """
        self.checkpoints.drop_after(finished)
        if self.trajectories_path.exists():
            truncate_after(self.trajectories_path, finished - 1)
        if self.metrics_path.exists():
            os.truncate(self.metrics_path, read_records(self.metrics_path).end_of(finished))
        if missing := read_records(self.metrics_path).lacks(finished):
            warnings.warn(f"{missing}: the run goes on without them", stacklevel=2)

    def restart(self, *, keep_model: bool = False) -> None:
        """Drop the files of a run that stopped before its first checkpoint.

        Raises ValueError where its updates have begun: such a run had a checkpoint, and its episodes would be lost.
        """
        if self.metrics_path.exists() or self.trajectories_path.exists():
            raise ValueError(f"{self.path} has trained and holds no checkpoint: it cannot go on; start a new run")
        if not keep_model:
            shutil.rmtree(self.model_path, ignore_errors=True)
        self.evaluation_path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete the folder with all that is in it, as far as that is possible."""
        shutil.rmtree(self.path, ignore_errors=True)

    def save(self, checkpoint: Checkpoint) -> None:
        self.checkpoints.save(checkpoint)

    def load(self, name: CheckpointName) -> Checkpoint:
        """The newest sound checkpoint (``last``), or the best. Raises ValueError where there is none."""
        return self.checkpoints.newest() if name == "last" else self.checkpoints.best()

    def sides(self) -> list[str]:
        """Names of the sides in the newest checkpoint: roles or players, or ``[""]`` for a single policy."""
        return list(self.load("last").state["sides"]) if self.has_checkpoint else [""]

    @property
    def has_checkpoint(self) -> bool:
        return bool(self.checkpoints.updates())


def _nearest(path: Path) -> str:
    """Which run beside ``path`` may be meant, as the end of an error."""
    near = difflib.get_close_matches(path.name, _runs_beside(path), n=1)
    return f". Did you mean {path.with_name(near[0])}?" if near else ""


def _runs_beside(path: Path) -> list[str]:
    """The names of the runs in the folder that ``path`` would be in."""
    if not path.parent.is_dir():
        return []
    return sorted(each.name for each in path.parent.iterdir() if (each / "config.yaml").is_file())


def _check_format(made: Path) -> None:
    """Raise ValueError for a run of a later format. A missing or damaged run.json is no error here: not all need it."""
    try:
        number = json.loads(made.read_text()).get("format", 1)
    except (OSError, ValueError, AttributeError):
        return
    if isinstance(number, int) and number > FORMAT:
        raise ValueError(
            f"{made.parent} is a run of format {number}; this version of turnwise reads formats 1 to {FORMAT}: "
            "read it with the version that made it, or a later one"
        )


def provenance() -> dict[str, Any]:
    """Where numbers come from: versions, platform, commit (in a checkout of turnwise) and command."""
    return {
        "versions": _versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "commit": _commit(),
        "command": typed_command(),
    }


def typed_command() -> str:
    """The command of this process as it was typed, quoted where a shell needs it: ``turnwise train 'a.b=c d'``,
    ``python -m turnwise.cli demo``, ``python my/loop.py --seed 1``.
    """
    program = Path(sys.argv[0])
    if program.suffix in ("", ".exe") and program.name not in ("", "-c"):
        return shlex.join([program.stem, *sys.argv[1:]])  # an installed script: its folder was the shell's to find
    return shlex.join([Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]])


def _versions() -> dict[str, str]:
    found = {"turnwise": __version__}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _commit() -> str | None:
    asked = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return asked.stdout.strip() or None if asked.returncode == 0 else None
