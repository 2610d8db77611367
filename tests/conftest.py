"""What the tests share: a folder of this session, a model on disk, warm starts; and the processor time they took."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # models of some thousand weights: more threads only wait for each other


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all processes of this session: pytest-xdist gives each worker a folder inside it."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with random weights as a Hugging Face folder. Tests only read it."""
    from tests.models import scratch_folder

    return scratch_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def shared_cache(session_folder: Path) -> Iterator[None]:
    """``TURNWISE_CACHE`` of this session: each warm start is made once, whichever module needs it first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TURNWISE_CACHE", str(session_folder / "cache"))
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is long is slow: ``-m "not slow"`` leaves both out."""
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.slow)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The sum of processor seconds, with those of workers and of all processes that have ended."""
    times = os.times()
    spent = times.user + times.system + times.children_user + times.children_system
    terminalreporter.write_line(f"{spent:.0f} CPU seconds, child processes included")
