"""A run's configuration: its settings (``schema``, ``sections``), which of them fit together (``checks``), how
they are read (``files``), and how an error names them (``names``).
"""

from __future__ import annotations

from turnwise.moved import told


def __getattr__(name: str) -> object:
    """Only for names of version 0.1: where they are now."""
    if text := told(f"turnwise.config.{name}"):
        raise ImportError(text)
    raise AttributeError(f"module 'turnwise.config' has no attribute {name!r}")
