"""turnwise: multi-turn reinforcement learning for language-model agents in text worlds.

import turnwise
result = turnwise.train(turnwise.load_config("household"), out="runs/first")
report = turnwise.evaluate("runs/first", split="test")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from turnwise.config.files import load_config
    from turnwise.config.schema import RunConfig
    from turnwise.evaluation.evaluate import evaluate
    from turnwise.training.experiment import resume, train

__version__ = "0.1.0"
__all__ = ["RunConfig", "__version__", "evaluate", "load_config", "resume", "train"]

_HOMES = {
    "RunConfig": "turnwise.config.schema",
    "load_config": "turnwise.config.files",
    "evaluate": "turnwise.evaluation.evaluate",
    "resume": "turnwise.training.experiment",
    "train": "turnwise.training.experiment",
}


def __getattr__(name: str) -> Any:
    """Import on first use: ``import turnwise`` alone loads neither torch nor transformers."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'turnwise' has no attribute {name!r}")
