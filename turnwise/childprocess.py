"""A child process that holds an object, whose methods the parent calls with a time limit.

    child = Child(pickle.dumps(make_world), "forkserver", ("reset_timeout_s", 300.0), preload=("my_module",))
    observation, info = child.ask("reset", limit=("reset_timeout_s", 300.0))
    child.end()

The process ends with its ``Child`` object, and when the parent ends for any reason. Processes that it has started end
with it. It gets the parent's environment variables as they are at its start. It does not run the parent's script again,
so that no ``if __name__ == "__main__"`` is needed there.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess, parent_process
from multiprocessing.reduction import ForkingPickler
from types import ModuleType
from typing import Any

from gymnasium.error import ResetNeeded

Limit = tuple[str, float]
"""A time limit: the name of its setting, for messages, and its seconds."""

START_METHODS = tuple(m for m in ("forkserver", "spawn") if m in multiprocessing.get_all_start_methods())
"""Start methods that the system has, the fastest first.

"forkserver" forks a clean server process, which takes milliseconds. "spawn" starts a new interpreter, which imports
everything again. Neither forks the parent, whose torch threads would make that unsafe."""

_ALWAYS_FITS = 4096
"""Bytes of a message that a pipe takes up whether anybody reads it or not."""


class EnvTimeoutError(TimeoutError):
    """A call took longer than its limit. The process was killed."""


class EnvDiedError(RuntimeError):
    """The process ended during a call or before it."""


class EnvRaisedError(RuntimeError):
    """The method raised an exception.

    ``call`` is the call, ``type_name`` and ``message`` describe the exception, and ``trace`` is its traceback, which is
    also added as a note.
    """

    def __init__(self, call: str, type_name: str, message: str, trace: str) -> None:
        super().__init__(f"{call} raised {type_name}: {message}")
        self.call, self.type_name, self.message, self.trace = call, type_name, message, trace
        self.add_note(f"In the environment's process:\n{trace}")

    def __reduce__(self) -> tuple[type[EnvRaisedError], tuple[str, str, str, str]]:
        return type(self), (self.call, self.type_name, self.message, self.trace)


class Child:
    """A process with an object whose methods can be called.

    ``packed`` is a pickled function that makes the object there, within ``limit``. ``preload`` names the modules that
    it needs; with "forkserver" the server imports them once, at its first child. Messages call the object ``what``.
    Raises EnvTimeoutError, EnvDiedError and EnvRaisedError where the object cannot be made. After any failure of the
    process it is not started again.
    """

    def __init__(
        self, packed: bytes, start_method: str, limit: Limit, preload: Sequence[str], what: str = "environment"
    ) -> None:
        self._what = what
        self._then = " reset() starts a fresh one." if what == "environment" else ""
        context: Any = multiprocessing.get_context(start_method)
        if start_method == "forkserver":  # imported by the server, for all children to come
            context.set_forkserver_preload(list(preload))
        self._connection, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(
            target=_serve, args=(theirs, packed, dict(os.environ)), daemon=True
        )
        with _no_main_module():
            self._process.start()
        theirs.close()
        self.end = weakref.finalize(self, _kill, self._process, self._connection, os.getpid())
        """Kills the process. Further calls do nothing."""
        self._result(f"starting the {what}", limit)

    @property
    def alive(self) -> bool:
        """Whether the process runs. To be used between calls only."""
        return self.end.alive and not wait([self._connection, self._process.sentinel], 0)

    def ask(self, name: str, *arguments: Any, limit: Limit) -> Any:
        """Call a method and return its result.

        Raises EnvTimeoutError, EnvDiedError or EnvRaisedError where the call fails, and ResetNeeded where the process
        has ended before.
        """
        self.tell(name, *arguments, limit=limit)
        return self.told(name, limit=limit)

    def tell(self, name: str, *arguments: Any, limit: Limit) -> None:
        """Start a call without waiting for its result, which ``told`` returns. Only one call at a time.

        ``limit`` is that of taking up a large message: a process that was stopped reads none.
        """
        self._check_alive()
        message = ForkingPickler.dumps((name, arguments))
        with self._ending(), self._death_said(f"{name}()"):
            if len(message) <= _ALWAYS_FITS:
                self._connection.send_bytes(message)
            else:
                self._send_in_time(message, f"{name}()", *limit)

    def told(self, name: str, *, limit: Limit) -> Any:
        """Wait for the call that ``tell`` started, and return its result. Raises as ``ask`` does."""
        self._check_alive()
        return self._result(f"{name}()", limit)

    def leave(self, seconds: float) -> None:
        """Let the process end by itself, after it has answered. It is killed where it takes longer."""
        if self.end.alive:
            self._connection.close()
            self._process.join(seconds)
        self.end()

    def _check_alive(self) -> None:
        if not self.end.alive:
            raise ResetNeeded(f"The {self._what}'s process has ended: call reset(), which starts a fresh one.")

    def _result(self, call: str, limit: Limit) -> Any:
        with self._ending():
            succeeded, value = self._received(call, *limit)
        if not succeeded:
            raise EnvRaisedError(call, *value)
        return value

    @contextlib.contextmanager
    def _ending(self) -> Iterator[None]:
        try:
            yield
        except BaseException:  # an interrupt as well: otherwise the next call would get the answer of this one
            self.end()
            raise

    @contextlib.contextmanager
    def _death_said(self, call: str) -> Iterator[None]:
        try:
            yield
        except (EOFError, ConnectionError) as error:
            raise EnvDiedError(
                f"{call} got no answer: the {self._what}'s process {_fate(self._process)}.{self._then}"
            ) from error

    def _send_in_time(self, message: Any, call: str, setting: str, seconds: float) -> None:
        """Send a message. Where nobody takes it up in time, the process is killed, which ends the sending."""
        late = threading.Event()

        def kill() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(seconds, kill)
        timer.start()
        try:
            self._connection.send_bytes(message)
        except ConnectionError:
            if late.is_set():
                raise self._too_late(call, setting, seconds) from None
            raise
        finally:
            timer.cancel()

    def _too_late(self, call: str, setting: str, seconds: float) -> EnvTimeoutError:
        return EnvTimeoutError(
            f"{call} took longer than {setting} = {seconds:g} s: the {self._what}'s process was killed.{self._then}"
        )

    def _received(self, call: str, setting: str, seconds: float) -> Any:
        with self._death_said(call):
            if not wait([self._connection, self._process.sentinel], seconds):
                raise self._too_late(call, setting, seconds)
            if not self._connection.poll():
                raise EOFError
            answer = self._connection.recv_bytes()
        return pickle.loads(answer)


def _fate(process: BaseProcess) -> str:
    process.join(1.0)
    code = process.exitcode
    if code is None:
        return "closed its pipe"
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"


def _kill(process: BaseProcess, connection: Connection, owner: int) -> None:
    """End a process and the processes that it started. Does nothing in a fork of the parent, which has a copy."""
    if os.getpid() != owner:
        return
    connection.close()
    if hasattr(os, "killpg") and process.pid is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join(5.0)


@contextlib.contextmanager
def _no_main_module() -> Iterator[None]:
    """A context in which ``multiprocessing`` does not run the parent's script again in a new child."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _serve(connection: Connection, packed: bytes, variables: dict[str, str]) -> None:
    """The main function of the process: make the object, then answer calls until the pipe closes."""
    if hasattr(os, "setsid"):
        os.setsid()  # a process group of its own: the parent handles Ctrl-C, and a kill reaches all its children
    os.environ.clear()
    os.environ.update(variables)
    multiprocessing.current_process().daemon = False  # so that it may start processes too, as a shard does for worlds
    threading.Thread(target=_die_with_parent, daemon=True).start()
    served: list[Any] = []

    def make() -> None:
        served.append(pickle.loads(packed)())

    with contextlib.suppress(EOFError, ConnectionError):  # the parent is gone
        connection.send_bytes(answered(make))
        while True:
            name, arguments = connection.recv()
            connection.send_bytes(answered(getattr(served[0], name), *arguments))


def answered(function: Callable[..., Any], *arguments: Any) -> bytes:
    """The result of a call, pickled: (True, result), or (False, (type, message and traceback of the exception))."""
    try:
        return pickle.dumps((True, function(*arguments)))
    except (Exception, SystemExit) as error:  # whatever a third party's world raises; an answer that is not pickled
        return pickle.dumps((False, (type(error).__name__, str(error), traceback.format_exc())))


def _die_with_parent() -> None:
    """A thread that ends the process with its parent. (A world that hangs would not notice that the pipe is closed.)"""
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    if hasattr(os, "killpg"):
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(1)
