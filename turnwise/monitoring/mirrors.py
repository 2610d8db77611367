"""Copies of metrics.jsonl for TensorBoard and Weights & Biases (``mirrors: [tensorboard, wandb]``), both extras.

They hold the numbers of the records and nothing else. Weights & Biases stays offline and writes to the run's folder,
unless WANDB_MODE=online is set; only then does anything leave the machine. ``wandb sync`` sends an offline run later.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

MirrorName = Literal["tensorboard", "wandb"]


class Mirror(Protocol):
    """A place that records are copied to, beside metrics.jsonl."""

    def log(self, record: Mapping[str, Any]) -> None: ...
    def close(self) -> None: ...


def scalars(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers in a record as (name, value): nested ones by path, events as ``watchdog/NAME``."""
    for name, value in record.items():
        if name == "events":
            yield from ((f"watchdog/{event['name']}", float(event["value"])) for event in value)
        elif isinstance(value, Mapping):
            yield from scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name != "update":
            yield f"{prefix}{name}", float(value)


class TensorBoard:
    """Event files in RUN/tensorboard. A resumed run drops the entries from update ``finished`` on and repeats them."""

    def __init__(self, run: Path, finished: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(run / "tensorboard"), purge_step=finished)

    def log(self, record: Mapping[str, Any]) -> None:
        for name, value in scalars(record):
            self._writer.add_scalar(name, value, record["update"])
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A run in RUN/wandb. Its id is a hash of the folder's path, so a resumed run keeps it."""

    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "turnwise"),
            name=run.name,
            id=hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:16],
            dir=str(run),
            config=dict(config),
            resume="allow",
            mode=os.environ.get("WANDB_MODE", "offline"),
            settings=wandb.Settings(disable_git=True, disable_code=True, silent=True, x_disable_stats=True),
        )

    def log(self, record: Mapping[str, Any]) -> None:
        self._run.log(dict(scalars(record)), step=record["update"])

    def close(self) -> None:
        self._run.finish()


class Mirrors:
    """The mirrors that a run names. They open with its first record, which says where a resumed run continues."""

    def __init__(self, names: Sequence[MirrorName], run: Path, config: Mapping[str, Any]) -> None:
        self._names, self._run, self._config = names, run, config
        self._opened: list[Mirror] | None = None

    def log(self, record: Mapping[str, Any]) -> None:
        if self._opened is None:
            self._opened = [self._open(name, record["update"]) for name in dict.fromkeys(self._names)]
        for mirror in self._opened:
            mirror.log(record)

    def _open(self, name: MirrorName, finished: int) -> Mirror:
        return TensorBoard(self._run, finished) if name == "tensorboard" else WandB(self._run, self._config)

    def close(self) -> None:
        for mirror in self._opened or ():
            mirror.close()


def check_mirrors(names: Sequence[MirrorName]) -> None:
    """Raise ValueError for a mirror whose package is missing, with the command that installs it."""
    for name in names:
        if find_spec(name) is None:
            raise ValueError(f"mirrors names {name}, which is not installed: pip install -e '.[{name}]'")
