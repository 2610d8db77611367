"""Settings of the smallest real runs, how to break one off, and what two of them have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from turnwise.runs.directory import RunDirectory
from turnwise.training.observing import Callback

MODEL = (
    *("model.hidden_size=32", "model.head_dim=16", "model.ffn_size=48", "agent.max_reply_tokens=8"),
    "warmstart.tokenizer_episodes=40",
)
"""A model of some thousand weights, and a tokenizer from few demonstrations."""


class StopError(Exception):
    """Stands for a crash."""


class StopAfter(Callback):
    """Stops a run once some updates are logged."""

    def __init__(self, updates: int) -> None:
        self.updates = updates

    def update(self, record: dict[str, Any]) -> None:
        if record["update"] + 1 == self.updates:
            raise StopError


def timeless(run: Path) -> list[dict[str, Any]]:
    """The metrics of a run without what was read off a clock."""
    return [{k: v for k, v in line.items() if k != "seconds"} for line in RunDirectory.open(run).metrics()]
