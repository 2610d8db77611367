"""turnwise: multi-turn reinforcement learning for language-model agents in text worlds.

import turnwise

result = turnwise.train(env="turnwise/Household-v0", algorithm="grpo", out="runs/first")
report = turnwise.evaluate("runs/first", split="test")
agent = turnwise.Agent.load("runs/first")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from turnwise.moved import install, told

if TYPE_CHECKING:
    from turnwise.api import Agent, evaluate, resume, train
    from turnwise.config.files import load_config
    from turnwise.training.observing import Callback

__version__ = "0.2.0"
__all__ = ["Agent", "Callback", "__version__", "evaluate", "load_config", "resume", "train"]

_HOMES = {
    "Agent": "turnwise.api",
    "Callback": "turnwise.training.observing",
    "evaluate": "turnwise.api",
    "load_config": "turnwise.config.files",
    "resume": "turnwise.api",
    "train": "turnwise.api",
}


install()


def __getattr__(name: str) -> Any:
    """Import on first use: ``import turnwise`` alone loads neither torch nor transformers."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(told(f"turnwise.{name}") or f"module 'turnwise' has no attribute {name!r}")
