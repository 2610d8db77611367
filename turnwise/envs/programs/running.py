"""Running an agent program: a coroutine on a shared event loop, a function in a thread, or a command line.

    async def agent(task, model): ...      awaited on one loop, which all programs of this process share
    def agent(task, model): ...            called in a thread of its own
    python my_cli.py                       a process, which is told by environment variables

A program gets its ``task`` (a dictionary) and ``model``, which says where its model is. It returns its reward: a
number, or {"reward": number, "success": bool, "score": number in [0, 1]}. A command writes that as the last line of its
standard output, and exits with code 0. Programs run with the rights of whoever trains.

One loop, not one for each episode: some libraries keep an asynchronous client for the whole process, which works in the
loop that it was made in and in no other. A program that blocks this loop stops all of them, and is found by the loop's
heartbeat.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import IO, Any, Protocol

from turnwise.envs.programs.results import Outcome, outcome_of, raised
from turnwise.errors import AgentError, with_place

BLOCKED_S = 16.0
"""Seconds without a heartbeat after which the event loop counts as blocked."""
MAX_THREADS = 512
"""Threads of ``asyncio.to_thread`` that the programs of a loop have at once: each waits for a reply of its own."""
MAX_STRAY = 32
"""Threads of functions that go on after their episode; with more the run ends."""
_BEAT_S = 0.5
_GRACE_S = 5.0  # in which the output of a command that has ended is read; its own children may hold it open for ever
_TAIL = 65_536  # bytes of a command's output that are read
_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True, slots=True)
class Model:
    """Where a program's model is. ``env`` are the variables by which OpenAI's clients find it in a subprocess.

    ``seed`` is for what the program draws by itself: it is the same whenever the episode is played again.
    """

    base_url: str
    api_key: str
    name: str = "agent"
    seed: int = 0

    @property
    def env(self) -> dict[str, str]:
        told = {"BASE_URL": self.base_url, "API_KEY": self.api_key, "MODEL": self.name}
        return {f"OPENAI_{name}": value for name, value in told.items()}


Done = Callable[[Outcome], None]


class Running(Protocol):
    """A program at work on one task."""

    def stop(self) -> None:
        """End it, as far as that can be done. Its outcome no longer counts."""

    def check(self) -> None:
        """Raises AgentError where no such program can go on."""


class Program(Protocol):
    """A program that can be run many times at once. ``done`` is called at its end, from another thread."""

    name: str

    def start(self, task: Mapping[str, Any], model: Model, done: Done) -> Running: ...


def program_of(run: str, env: Sequence[str] = ()) -> Program:
    """The program that ``module:function`` or a command line names. ``env``: variables that a command also gets.

    Raises ValueError where there is none, and where its function takes other arguments than a task and a model.
    """
    if not _NAME.fullmatch(run.strip()):
        return Command(run, env)
    if env:
        raise ValueError(f"env.kwargs.env is for command lines; {run} runs in this process: leave it out")
    module, _, attribute = run.strip().partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a module of the user's: it may fail in any way
        told = str(error) if isinstance(error, ImportError | AttributeError) else with_place(error)
        raise ValueError(
            f"program {run!r} cannot be imported as module:function ({told}); a command line holds a space, such as "
            '"python my_cli.py"'
        ) from error
    try:
        inspect.signature(found).bind(None, None)
    except (TypeError, ValueError):
        raise ValueError(f"program {run!r} is not callable as agent(task, model): give it these arguments") from None
    method = getattr(type(found), "__call__", None)  # noqa: B004  (of an object: it may be async)
    awaited = inspect.iscoroutinefunction(found) or inspect.iscoroutinefunction(method)
    return Coroutine(run, found) if awaited else Function(run, found)


class Coroutine:
    """An ``async def``."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name, self._function = name, function

    def start(self, task: Mapping[str, Any], model: Model, done: Done) -> _Awaited:
        shared = shared_loop()
        return _Awaited(self.name, shared, asyncio.run_coroutine_threadsafe(self._work(task, model, done), shared.loop))

    async def _work(self, task: Mapping[str, Any], model: Model, done: Done) -> None:
        try:
            done(outcome_of(self.name, await self._function(dict(task), model)))
        except asyncio.CancelledError as error:  # by ``stop``, or by the program itself
            done(Outcome(error=raised(self.name, error)))
            raise
        except BaseException as error:  # also SystemExit, which would end the loop of all programs
            done(Outcome(error=raised(self.name, error)))


@dataclass(frozen=True, slots=True)
class _Awaited:
    name: str
    shared: EventLoop
    future: Any

    def stop(self) -> None:
        self.future.cancel()

    def check(self) -> None:
        if (silent := self.shared.silence()) > BLOCKED_S:
            self.shared.is_blocked = True
            raise AgentError(
                f"{self.name} blocks the event loop: for {silent:.0f} s nothing else could run on it. Await an async "
                "client (AsyncOpenAI, ainvoke), or write it as a plain def, which gets a thread of its own"
            )


class EventLoop:
    """An event loop in a thread, whose heart beats while nothing blocks it."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        # The usual one has a few threads more than there are processors: programs would wait for each other in it.
        self.loop.set_default_executor(ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="program"))
        self.is_blocked = False
        self._beat = time.monotonic()
        self.loop.call_soon(self._keep_beating)
        self._thread = threading.Thread(target=self.loop.run_forever, name="programs", daemon=True)
        self._thread.start()

    def _keep_beating(self) -> None:
        self._beat = time.monotonic()
        self.loop.call_later(_BEAT_S, self._keep_beating)

    def silence(self) -> float:
        """Seconds since the last heartbeat. An import counts as one: it may take long the first time, and ends."""
        if self._is_importing():
            self._beat = time.monotonic()
        return time.monotonic() - self._beat

    def _is_importing(self) -> bool:
        frame = sys._current_frames().get(self._thread.ident or 0)
        while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
            frame = frame.f_back
        return frame is not None


_loop_lock = threading.Lock()
_loops: list[EventLoop] = []


def shared_loop() -> EventLoop:
    """The one loop of this process, or a new one in the place of a loop that was found blocked."""
    with _loop_lock:
        if not _loops or _loops[-1].is_blocked:
            _loops[:] = [EventLoop()]
        return _loops[-1]


class Function:
    """A plain ``def``. Its thread cannot be ended from outside: one that goes on after its episode is a stray."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name, self._function = name, function
        self._strays: list[threading.Thread] = []

    def start(self, task: Mapping[str, Any], model: Model, done: Done) -> _Called:
        thread = threading.Thread(target=self._work, args=(task, model, done), name=self.name, daemon=True)
        thread.start()
        return _Called(thread, self._strays)

    def _work(self, task: Mapping[str, Any], model: Model, done: Done) -> None:
        try:
            done(outcome_of(self.name, self._function(dict(task), model)))
        except BaseException as error:  # also SystemExit
            done(Outcome(error=raised(self.name, error)))


@dataclass(frozen=True, slots=True)
class _Called:
    thread: threading.Thread
    strays: list[threading.Thread]

    def stop(self) -> None:
        if self.thread.is_alive():
            self.strays.append(self.thread)

    def check(self) -> None:
        self.strays[:] = [thread for thread in self.strays if thread.is_alive()]
        if len(self.strays) > MAX_STRAY:
            raise AgentError(
                f"{self.thread.name}: {len(self.strays)} threads of it still run after their episodes have ended: let "
                "the errors of its client end it, and give what it waits for a time limit"
            )


class Command:
    """A command line, run without a shell in the working folder.

    It gets ``TURNWISE_TASK`` (the task as JSON), ``TURNWISE_SEED``, ``OPENAI_BASE_URL``, ``OPENAI_API_KEY`` and
    ``OPENAI_MODEL``, the ``PATH``, and of the other variables those that ``env`` names.
    """

    def __init__(self, name: str, env: Sequence[str] = ()) -> None:
        self.name = name
        try:
            self._words = shlex.split(name)
        except ValueError as error:
            raise ValueError(f"program {name!r} is no command line: {error}") from None
        if not self._words or shutil.which(self._words[0]) is None:
            raise ValueError(
                f"program {name!r}: there is no command {self._words[0] if self._words else ''!r}. Expected "
                'module:function, such as my_agent:agent, or a command line, such as "python my_cli.py"'
            )
        if missing := [variable for variable in env if variable not in os.environ]:
            raise ValueError(f"program {name!r} is to get the variables {', '.join(missing)}, which are not set")
        self._env = {variable: os.environ[variable] for variable in ("PATH", *env) if variable in os.environ}

    def start(self, task: Mapping[str, Any], model: Model, done: Done) -> _Process:
        told = {"TURNWISE_TASK": json.dumps(dict(task)), "TURNWISE_SEED": str(model.seed)}
        process = subprocess.Popen(
            self._words,
            env={**self._env, **told, **model.env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # so that its own children end with it
        )
        threading.Thread(target=self._watch, args=(process, done), name=self.name, daemon=True).start()
        return _Process(process)

    def _watch(self, process: subprocess.Popen[bytes], done: Done) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        errors, output = _Tail(process.stderr), _Tail(process.stdout)
        code = process.wait()
        last = next((line for line in reversed(output.text.splitlines()) if line.strip()), "")
        if code:
            why = next((line for line in reversed(errors.text.splitlines()) if line.strip()), "it wrote no error")
            done(Outcome(error=f"{self.name} ended with code {code}: {why}"))
            return
        try:
            done(outcome_of(self.name, json.loads(last)))
        except ValueError:
            done(Outcome(error=f"{self.name} wrote {last[:80]!r} as its last line: write the reward there, as JSON"))


@dataclass(frozen=True, slots=True)
class _Process:
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def check(self) -> None:
        """A process disturbs nobody else."""


class _Tail:
    """Reads a stream to its end in a thread, and keeps the last part."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._kept = stream, b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with self._stream:
            while piece := self._stream.read1(_TAIL):  # type: ignore[attr-defined]
                self._kept = (self._kept + piece)[-_TAIL:]

    @cached_property
    def text(self) -> str:
        self._thread.join(_GRACE_S)
        return self._kept.decode(errors="replace")
