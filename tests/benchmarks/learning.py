"""The modules of benchmarks/learning, found as its scripts find them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "learning"


@contextmanager
def learning_modules() -> Iterator[tuple[Any, pytest.MonkeyPatch]]:
    """All of them by name, and what patches them until the end."""
    names = [path.stem for path in FOLDER.glob("*.py")]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names}), patch
    for name in names:
        sys.modules.pop(name)
