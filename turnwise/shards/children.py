"""Shards in child processes of this machine."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gymnasium.error import ResetNeeded

from turnwise.childprocess import START_METHODS, Child, EnvDiedError, EnvRaisedError, EnvTimeoutError, Limit
from turnwise.shards.connection import Place, ShardLostError, reported
from turnwise.shards.shard import Served

_SETTING = "rollout.shard_timeout_s"
_LEAVING_S = 10.0


class Children:
    """Places shards in child processes. ``preload`` names modules that all of them need."""

    def __init__(self, *preload: str) -> None:
        self._preload = (__name__, *preload)

    def place(self, number: int, seconds: float) -> Place:
        """A new process. Raises ShardLostError where it cannot be started in time."""
        with _losses():
            child = Child(pickle.dumps(Served), START_METHODS[0], _limit(seconds), self._preload, "shard")
            return _ChildPlace(child, seconds)

    def shared(self, tensors: bytes) -> Any:
        return tensors

    def close(self) -> None:
        """Nothing is left to close: each process ends with its place."""


class _ChildPlace:
    """``seconds`` is how long a message may take to be sent."""

    def __init__(self, child: Child, seconds: float) -> None:
        self.child, self._seconds = child, seconds

    def tell(self, name: str, *arguments: Any) -> None:
        with _losses():
            self.child.tell("call", name, *arguments, limit=_limit(self._seconds))

    def told(self, seconds: float) -> Any:
        with _losses():
            try:
                return self.child.told("call", limit=_limit(seconds))
            except EnvRaisedError as error:
                raise reported(error.type_name, error.message, error.trace) from None

    def leave(self) -> None:
        self.child.leave(_LEAVING_S)

    def end(self) -> None:
        self.child.end()


def _limit(seconds: float) -> Limit:
    return _SETTING, seconds


@contextmanager
def _losses() -> Iterator[None]:
    """A context that raises ShardLostError where the process has ended or does not answer."""
    try:
        yield
    except ResetNeeded:
        raise ShardLostError("its process has ended") from None
    except (EnvDiedError, EnvTimeoutError) as error:
        raise ShardLostError(str(error).removesuffix(".")) from None
