"""Places for shards in tests: in this process, and places whose shards are killed at chosen moments."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Callable
from typing import Any, Literal

from turnwise.childprocess import answered
from turnwise.shards.connection import Host, Place, ShardLostError, reported
from turnwise.shards.shard import Served


class Here:
    """Shards in this process, one after another. What is said is pickled, as on the way to another one."""

    def place(self, number: int, seconds: float) -> Place:
        return HerePlace()

    def shared(self, tensors: bytes) -> Any:
        return tensors

    def close(self) -> None:
        pass


class HerePlace:
    def __init__(self) -> None:
        self.served: Served | None = Served()
        self._answer = b""

    def tell(self, name: str, *arguments: Any) -> None:
        if self.served is None:
            raise ShardLostError("it was killed")
        self._answer = answered(self.served.call, name, *pickle.loads(pickle.dumps(arguments)))

    def told(self, seconds: float) -> Any:
        if self.served is None:
            raise ShardLostError("it was killed")
        succeeded, value = pickle.loads(self._answer)
        if not succeeded:
            raise reported(*value)
        return value

    def leave(self) -> None:
        self.end()

    def end(self) -> None:
        self.served = None


Moment = Literal["before", "during"]
When = Callable[[int, str, int], Moment | None]
"""(number of the shard, name of the message, its place among all messages to this shard) -> whether it is killed."""


class Mortal:
    """Kills shards of a host just before a message, or while they carry it out (before the answer is read)."""

    def __init__(self, host: Host, when: When) -> None:
        self.host, self.when, self.killed = host, when, list[tuple[int, str, int]]()
        self.said: dict[int, int] = {}

    def place(self, number: int, seconds: float) -> Place:
        return _MortalPlace(self, number, self.host.place(number, seconds))

    def shared(self, tensors: bytes) -> Any:
        return self.host.shared(tensors)

    def close(self) -> None:
        self.host.close()


class _MortalPlace:
    def __init__(self, host: Mortal, number: int, place: Place) -> None:
        self.host, self.number, self.place = host, number, place

    def tell(self, name: str, *arguments: Any) -> None:
        at = self.host.said.get(self.number, 0)
        self.host.said[self.number] = at + 1
        moment = self.host.when(self.number, name, at)
        if moment == "before":
            self._kill(name, at)
        self.place.tell(name, *arguments)
        if moment == "during":
            self._kill(name, at)

    def told(self, seconds: float) -> Any:
        return self.place.told(seconds)

    def leave(self) -> None:
        self.place.leave()

    def end(self) -> None:
        self.place.end()

    def _kill(self, name: str, at: int) -> None:
        self.host.killed.append((self.number, name, at))
        place: Any = self.place
        if isinstance(place, HerePlace):
            place.served = None
        else:
            os.kill(place.child._process.pid, signal.SIGKILL)
