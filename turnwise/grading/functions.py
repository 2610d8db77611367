"""Reward functions: ``def exact(episode, task) -> float`` in a module of the user's, plain or ``async``.

``episode`` is the stored record (``turnwise.trajectory.Trajectory``); ``task`` is what the world tells of the task
(``info["task"]`` of the reset), {} where it tells nothing. An exception of the function fails the episode. What shows
that the function itself is wrong, such as None or nan, ends everything by FunctionError.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import importlib
import inspect
import math
import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import numpy as np

from turnwise.errors import AgentError, with_place
from turnwise.trajectory import Trajectory

_EXPECTED = "expected a function of episode and task that returns a finite number"


class FunctionError(AgentError):
    """A reward function cannot be used."""


class EventLoop:
    """One event loop, in a thread of its own, for all async functions: clients that keep a connection stay in it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="async rewards", daemon=True)
        self._thread.start()

    def run(self, awaited: Awaitable[Any], timeout_s: float) -> Any:
        """The result. Raises TimeoutError after ``timeout_s``."""

        async def result() -> Any:
            return await asyncio.wait_for(awaited, timeout_s)

        return asyncio.run_coroutine_threadsafe(result(), self._loop).result()

    def close(self) -> None:
        """Stop the loop. What still runs in it is dropped."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=1.0)


class RewardFunction:
    """The function that ``module:name`` names. Raises ValueError where there is none, or it takes other arguments."""

    def __init__(self, name: str, timeout_s: float) -> None:
        self.name, self._timeout_s = name, timeout_s
        self._function = _imported(name)
        self.is_async = inspect.iscoroutinefunction(self._function)

    def __call__(self, episode: Trajectory, task: Mapping[str, Any], loop: Callable[[], EventLoop]) -> float:
        """What it pays. Raises FunctionError for anything but a finite number, and whatever the function raises."""
        found = self._function(episode, task)
        if inspect.isawaitable(found):
            try:
                found = loop().run(found, self._timeout_s)
            except (TimeoutError, concurrent.futures.TimeoutError):
                raise TimeoutError(f"it took more than rewards.timeout_s={self._timeout_s:g}") from None
        if not isinstance(found, int | float | np.number | np.bool_) or not math.isfinite(found):
            raise FunctionError(
                f"rewards.functions: {self.name} returned {found!r}"[:200] + f" for {episode.episode}; {_EXPECTED}"
            )
        return float(found)


def _imported(name: str) -> Callable[[Trajectory, Mapping[str, Any]], Any]:
    module_name, _, attribute = name.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # a module of the user's: it may fail in any way
        told = str(error) if isinstance(error, ImportError | AttributeError) else with_place(error)
        raise ValueError(f"rewards.functions: {name!r} cannot be imported as module:name ({told})") from error
    if not callable(found):
        raise ValueError(f"rewards.functions: {name} is a {type(found).__name__}; {_EXPECTED}")
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):  # of a function in C that does not say
        return found  # type: ignore[no-any-return]
    try:
        signature.bind(None, None)
    except TypeError:
        raise ValueError(f"rewards.functions: {name} takes {signature}; {_EXPECTED}") from None
    return found  # type: ignore[no-any-return]
