"""Trying a mutant against the tests that reach it, in a child of a process that has everything heavy imported.

The parent imports libraries and neither turnwise nor tests. A child compiles the one module from its changed tree when
it is first imported, and runs pytest in itself. Nothing is written to the source.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import io
import json
import os
import select
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any

from operators import Mutant, mutated

OURS = ("turnwise", "tests", "benchmarks")
HEAVY = (
    "numpy", "torch", "torch.optim", "torch.testing", "pydantic", "pytest", "hypothesis", "gymnasium", "pettingzoo",
    "safetensors.torch", "transformers", "peft", "rich.console", "yaml", "typer",
)  # fmt: skip
SLACK_S = 10.0  # a test may take this and ten times what it takes unchanged, before it counts as endless


@dataclass(frozen=True, slots=True)
class Test:
    """One test as it runs unchanged; ``calls`` are the functions of ours that it enters, as ``file:first line``."""

    name: str
    seconds: float
    calls: frozenset[str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """``killed`` by a failing test (or an import that fails, or no end), ``survived``, or ``unreached`` by any test.

    ``tried`` of ``reaching`` tests were run: fewer where the time for one mutant was over.
    """

    verdict: str
    by: str
    seconds: float
    tried: int
    reaching: int


def load_libraries() -> None:
    """Import what children would otherwise import each."""
    for name in HEAVY:
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    assert not [name for name in sys.modules if name.partition(".")[0] in OURS], "our code must be imported in children"


def in_child(work: Callable[[], Any], limit_s: float) -> tuple[Any, int]:
    """(what ``work`` returned in a forked child, or None; wait status, -1 where it was ended after ``limit_s``)."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            found = json.dumps(work()).encode()
            with os.fdopen(writing, "wb") as pipe:
                pipe.write(found)
        finally:
            os._exit(0)
    os.close(writing)
    received = _received(reading, child, time.monotonic() + limit_s)
    if received is None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return None, -1
    _, status = os.waitpid(child, 0)
    return (json.loads(received) if received else None), status


def _received(reading: int, child: int, until: float) -> bytes | None:
    """All that the child writes before it closes its end, None if that takes too long."""
    parts = list[bytes]()
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        while (left := until - time.monotonic()) > 0:
            if select.select([pipe], [], [], left)[0]:
                part = pipe.read(1 << 16)
                if not part:
                    return b"".join(parts)
                parts.append(part)
    return None


def measured(root: Path, tests: Sequence[str], watched: Sequence[str], marks: str, limit_s: float) -> list[Test]:
    """Every test, run once unchanged. Raises RuntimeError where one fails."""
    found, _ = in_child(lambda: _measure(root, tests, watched, marks), limit_s)
    if found is None or found["failed"] or not found["tests"]:
        raise RuntimeError(f"the tests must pass unchanged: {(found or {}).get('failed') or 'they did not end'}")
    return [Test(name, seconds, frozenset(calls)) for name, seconds, calls in found["tests"]]


def _measure(root: Path, tests: Sequence[str], watched: Sequence[str], marks: str) -> dict[str, Any]:
    watch = _Watch(root, watched)
    code = _pytest(root, [*tests, "-m", marks], watch)
    return {"tests": watch.tests, "failed": watch.failed or ([f"exit code {code}"] if code else [])}


class _Watch:
    """A pytest plugin that notes each test's time and the functions of the watched folders that it enters."""

    def __init__(self, root: Path, watched: Sequence[str]) -> None:
        self.prefixes = tuple(str(root / folder) for folder in watched)
        self.root, self.entered = root, set[CodeType]()
        self.tests: list[tuple[str, float, list[str]]] = []
        self.failed: list[str] = []

    def _trace(self, frame: FrameType, event: str, arg: Any) -> None:
        code = frame.f_code
        if code not in self.entered and code.co_filename.startswith(self.prefixes):
            self.entered.add(code)

    def pytest_runtest_protocol(self, item: Any) -> None:
        import threading

        self.entered.clear()
        threading.settrace(self._trace)
        sys.settrace(self._trace)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed.append(report.nodeid)
        if report.when == "call" and not report.skipped:
            root = f"{self.root}/"
            calls = sorted(f"{c.co_filename.removeprefix(root)}:{c.co_firstlineno}" for c in self.entered)
            self.tests.append((report.nodeid, report.duration, calls))
        if report.when == "teardown":
            sys.settrace(None)


def reaching(mutant: Mutant, tests: Sequence[Test]) -> list[Test]:
    """The tests that enter the mutant's function, the quickest first.

    What is not in a function runs when its module is imported: then those that enter anything of the module, then all
    others.
    """
    by_time = sorted(tests, key=lambda test: test.seconds)
    if mutant.first_line:
        place = f"{mutant.file}:{mutant.first_line}"
        return [test for test in by_time if place in test.calls]
    near = [any(call.startswith(f"{mutant.file}:") for call in test.calls) for test in by_time]
    return [t for t, n in zip(by_time, near, strict=True) if n] + [
        t for t, n in zip(by_time, near, strict=True) if not n
    ]


def tried(root: Path, mutant: Mutant, tests: Sequence[Test], budget_s: float) -> Outcome:
    """The mutant against its tests until one fails, all have passed, or ``budget_s`` are over."""
    began = time.monotonic()
    if not tests:
        return Outcome("unreached", "", 0.0, 0, 0)
    longest = max(10 * test.seconds for test in tests) + SLACK_S
    found, status = in_child(lambda: _try(root, mutant, tests, budget_s), budget_s + longest + 60.0)
    seconds = time.monotonic() - began
    if found is None:
        ended = os.WIFSIGNALED(status) and os.WTERMSIG(status) if status >= 0 else signal.SIGKILL
        by = "no end" if ended in (signal.SIGALRM, signal.SIGKILL) else f"the process ended (status {status})"
        return Outcome("killed", by, seconds, 0, len(tests))
    return Outcome(found["verdict"], found["by"], seconds, found["tried"], len(tests))


def _try(root: Path, mutant: Mutant, tests: Sequence[Test], budget_s: float) -> dict[str, Any]:
    sys.meta_path.insert(0, _Changed(root, mutant))
    until, number = time.monotonic() + budget_s, 0
    for part in _parts(tests):
        chosen = _Chosen(part, until)
        code = _pytest(root, [*dict.fromkeys(_file_of(test) for test in part), "-x"], chosen)
        number += chosen.tried
        if chosen.failed:
            return {"verdict": "killed", "by": chosen.failed, "tried": number}
        if chosen.over:
            break
        if code:
            return {"verdict": "killed", "by": "the tests cannot be collected", "tried": number}
    return {"verdict": "survived", "by": "", "tried": number}


def _parts(tests: Sequence[Test], quick: int = 60, files: int = 2) -> list[list[Test]]:
    """Some quick tests out of few files first: most mutants die of them, and other files need not be imported."""
    common = [name for name, _ in Counter(map(_file_of, tests[:quick])).most_common(files)]
    first = [test for test in tests[:quick] if _file_of(test) in common]
    names = {test.name for test in first}
    return [part for part in (first, [test for test in tests if test.name not in names]) if part]


def _file_of(test: Test) -> str:
    return test.name.partition("::")[0]


class _Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the mutant's module, and makes it from the changed tree."""

    def __init__(self, root: Path, mutant: Mutant) -> None:
        self.path, self.root, self.key = root / mutant.file, root, mutant.key
        self.name = mutant.file.removesuffix(".py").replace("/", ".")

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name != self.name:
            return None
        return importlib.machinery.ModuleSpec(name, self, origin=str(self.path))

    def exec_module(self, module: ModuleType) -> None:
        module.__file__ = str(self.path)
        exec(compile(mutated(self.path, self.root, self.key), str(self.path), "exec"), module.__dict__)


class _Chosen:
    """A pytest plugin: the chosen tests alone, in their order; an alarm ends a test that does not end."""

    def __init__(self, tests: Sequence[Test], until: float) -> None:
        self.order = {test.name: number for number, test in enumerate(tests)}
        self.limits = {test.name: 10 * test.seconds + SLACK_S for test in tests}
        self.until, self.tried, self.failed, self.over = until, 0, "", False

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = sorted((i for i in items if i.nodeid in self.order), key=lambda i: self.order[i.nodeid])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        signal.alarm(int(self.limits[nodeid]) + 1)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid
        if report.when == "teardown":
            signal.alarm(0)
            self.tried += 1

    def pytest_runtest_makereport(self, item: Any, call: Any) -> None:
        if call.when == "teardown" and time.monotonic() > self.until:
            self.over = True
            item.session.shouldstop = "the time for this mutant is over"


def _pytest(root: Path, words: Sequence[str], plugin: object) -> int:
    """pytest in this process, silently, without a trace on the disk."""
    import hypothesis
    import pytest

    os.chdir(root)
    if str(root) not in sys.path[:1]:
        sys.path.insert(0, str(root))
    sys.dont_write_bytecode = True
    os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", tempfile.mkdtemp(prefix="mutants-"))
    hypothesis.settings.register_profile("mutants", derandomize=True, database=None, deadline=None)
    hypothesis.settings.load_profile("mutants")
    base = ["-q", "-p", "no:cacheprovider", "-W", "ignore", "--no-header", "--tb=no"]
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        return int(pytest.main([*base, *words], plugins=[plugin]))


def as_record(mutant: Mutant, outcome: Outcome) -> dict[str, Any]:
    """For the file of results."""
    return {"key": mutant.key, **asdict(mutant), **asdict(outcome)}
