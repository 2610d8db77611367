"""An environment in a process of its own: what hangs is killed, what dies is reported, the next ``reset`` starts anew.

Everything passes through a pipe by value: actions, observations, ``info``, snapshots and short panels are pickled.
Long panels that generate their tasks stay in the process and are asked for tasks; so do experts, which may look into
the world. ``info["admissible_actions"]`` arrives as a list whatever it was; other values in ``info`` must be
picklable. How processes begin and end: ``turnwise.childprocess``.
"""

from __future__ import annotations

import contextlib
import pickle
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import count
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector.utils import CloudpickleWrapper

from turnwise.childprocess import START_METHODS, Child, EnvDiedError, EnvRaisedError, EnvTimeoutError, Limit
from turnwise.envs.interface import (
    CanBeOverruled,
    Expert,
    HasExpert,
    HasPlayers,
    HasSnapshots,
    HasTasks,
    Info,
    Panel,
    TextEnv,
    are_names,
    capability,
    fitting,
    instructions_of,
    world_name,
)
from turnwise.envs.tasks import expert_of, make_env, panel
from turnwise.errors import unknown
from turnwise.trajectory import Task

__all__ = ["EnvDiedError", "EnvRaisedError", "EnvTimeoutError", "ProcessEnv"]

Step = tuple[str, float, bool, bool, Info]
CHUNK = 256
"""Tasks fetched at once by who goes through a long panel."""


class ProcessEnv(gymnasium.Env[str, str]):
    """The environment that ``source`` makes, in a process of its own.

    ``source`` is an id ("turnwise/Sokoban-v0", or "module:ns/Id-v0" to import the module that registers it), made
    with ``kwargs``; or a function without arguments, sent by cloudpickle. Prefer ids.

    A ``step`` (also a call of an expert, a snapshot, ``close``) that takes longer than ``step_timeout_s`` seconds, a
    ``reset`` (also the start of the process, a look into a panel) longer than ``reset_timeout_s`` raises
    EnvTimeoutError; a process that ends raises EnvDiedError; an exception of the world is an EnvRaisedError, a
    RuntimeError. After any of them in ``reset`` or ``step``, the next ``reset`` starts a fresh process.

    It offers what the world offers and nothing else: ``tasks``, ``expert``, ``snapshot`` and ``restore``, ``players``
    and ``role``, ``splits`` (``turnwise.envs.interface``). One thread at a time may use it.

    ``start_method``: "forkserver" or "spawn"; by default the first where there is one (Unix).
    """

    instructions = ""

    def __init__(
        self,
        source: str | Callable[[], TextEnv],
        kwargs: Mapping[str, Any] | None = None,
        *,
        step_timeout_s: float = 60.0,
        reset_timeout_s: float = 300.0,
        start_method: str = START_METHODS[0],
    ) -> None:
        for name, seconds in (("step_timeout_s", step_timeout_s), ("reset_timeout_s", reset_timeout_s)):
            if not seconds > 0:
                raise ValueError(f"{name} must be a positive number of seconds, got {seconds!r}.")
        if start_method not in START_METHODS:
            raise unknown("start method", start_method, START_METHODS)
        if kwargs and not isinstance(source, str):
            raise ValueError("kwargs go with an environment's id; a function is called without any.")
        make = partial(make_env, source, **(kwargs or {})) if isinstance(source, str) else source
        self._packed = pickle.dumps(CloudpickleWrapper(partial(Served, make)))
        self._start_method = start_method
        self._step_limit: Limit = "step_timeout_s", step_timeout_s
        self._reset_limit: Limit = "reset_timeout_s", reset_timeout_s
        self._numbers = count()
        self._forgotten: list[int] = []
        self._child = self._new_child()
        try:
            described: Description = self._child.ask("describe", limit=self._reset_limit)
        except EnvRaisedError as error:
            self._child.end()
            if error.type_name != ValueError.__name__:
                raise
            raise ValueError(error.message) from None  # an offer that does not fit: as without a process
        for name, value in described.attributes.items():
            setattr(self, name, value)
        self.spec = EnvSpec(described.spec_id) if described.spec_id else None
        self.__class__ = _class_with(described.offers)

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[str, Info]:
        """Start an episode, in a fresh process where the last one has ended."""
        super().reset(seed=seed)
        wanted = None if options is None else dict(options)
        if self._child.alive:
            try:
                return self._reset(seed, wanted)
            except EnvDiedError:
                pass  # perhaps it had died unnoticed before: a fresh one decides
        return self._reset(seed, wanted)

    def _reset(self, seed: int | None, options: dict[str, Any] | None) -> tuple[str, Info]:
        answer: tuple[str, Info] = self._decisive(self._living(), "reset", seed, options, limit=self._reset_limit)
        return answer

    def step(self, action: str) -> Step:
        answer: Step = self._decisive(self._child, "step", action, limit=self._step_limit)
        return answer

    def close(self) -> None:
        """Close the world, and end its process. (A later ``reset`` starts another.)"""
        if self._child.alive:
            with contextlib.suppress(EnvTimeoutError, EnvDiedError, EnvRaisedError):
                self._child.ask("close", limit=self._step_limit)
        self._child.end()

    def _decisive(self, child: Child, name: str, *arguments: Any, limit: Limit) -> Any:
        """A call after whose failure the world is not used again."""
        try:
            return child.ask(name, *arguments, limit=limit)
        except EnvRaisedError:
            child.end()
            raise

    def _living(self) -> Child:
        """The process, a fresh one where it has ended: for calls that need no episode."""
        if not self._child.alive:
            self._child.end()
            self._child = self._new_child()
        return self._child

    def _new_child(self) -> Child:
        return Child(self._packed, self._start_method, self._reset_limit, preload=(__name__,))


@dataclass(frozen=True, slots=True)
class Description:
    """What a world is asked once: capabilities (names in ``_OFFERS``), its id, and values for the ``ProcessEnv``."""

    offers: frozenset[str]
    spec_id: str | None
    attributes: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Outline:
    """A panel that stays where it is."""

    env: str
    split: str
    hash: str
    length: int


class Served:
    """The world inside its process, as far as it may be called from outside."""

    def __init__(self, make: Callable[[], TextEnv]) -> None:
        self.env = make()
        self.world: Any = self.env.unwrapped
        self.experts: dict[int, Any] = {}

    def describe(self) -> Description:
        attributes = {name: getattr(self.env, name) for name in ("observation_space", "action_space", "metadata")}
        own: dict[str, Any] = {"instructions": instructions_of(self.env)}
        if are_names(splits := getattr(self.world, "splits", None)):
            own["splits"] = tuple(splits)
        if game := capability(self.env, HasPlayers):
            own |= {"players": tuple(game.players), "roles": {player: game.role(player) for player in game.players}}
        offers = frozenset(name for name, (protocol, _) in _OFFERS.items() if capability(self.env, protocol))
        return Description(offers, self.env.spec.id if self.env.spec else None, attributes | own)

    def reset(self, seed: int | None, options: dict[str, Any] | None) -> tuple[str, Info]:
        observation, info = self.env.reset(seed=seed, options=options)
        return observation, _plain(info)

    def step(self, action: str) -> Step:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, float(reward), terminated, truncated, _plain(info)

    def tasks(self, split: str) -> Sequence[Task] | Outline:
        found = panel(self.env, split)
        if isinstance(found, Panel) and type(found) is not Panel:
            return Outline(found.env, found.split, found.hash, len(found))
        return found

    def look_up(self, split: str, index: Any) -> Any:
        return self.world.tasks(split)[index]

    def may_contain(self, split: str, key: str) -> bool:
        return bool(self.world.tasks(split).may_contain(key))

    def snapshot(self) -> Any:
        return self.world.snapshot()

    def restore(self, snapshot: Any) -> None:
        self.world.restore(snapshot)

    def expert(self, number: int, kind: str, seed: int, forgotten: list[int]) -> bool:
        """Keep a new expert under a number; whether it can be overruled."""
        for old in forgotten:
            self.experts.pop(old, None)
        self.experts[number] = expert_of(self.env, kind, seed)
        return fitting(self.experts[number], CanBeOverruled, f"the expert of {world_name(self.env)}") is not None

    def ask_expert(self, number: int, method: str, *arguments: Any) -> Any:
        return getattr(self.experts[number], method)(*arguments)

    def close(self) -> None:
        self.env.close()


def _plain(info: Info) -> Info:
    choices = info.get("admissible_actions")
    return info if choices is None or type(choices) is list else {**info, "admissible_actions": list(choices)}


class WithTasks(ProcessEnv):
    def tasks(self, split: str) -> Panel:
        found: Panel | Outline = self.look("tasks", split)
        return RemotePanel(self, found) if isinstance(found, Outline) else found

    def look(self, name: str, *arguments: Any) -> Any:
        return self._living().ask(name, *arguments, limit=self._reset_limit)


class WithSnapshots(ProcessEnv):
    def snapshot(self) -> Any:
        return self._child.ask("snapshot", limit=self._step_limit)

    def restore(self, snapshot: Any) -> None:
        self._living().ask("restore", snapshot, limit=self._step_limit)


class WithExpert(ProcessEnv):
    def expert(self, kind: str = "searching", *, seed: int = 0) -> Expert:
        child, number, forgotten = self._living(), next(self._numbers), list(self._forgotten)
        overrulable = child.ask("expert", number, kind, seed, forgotten, limit=self._step_limit)
        del self._forgotten[: len(forgotten)]
        made = (OverrulableExpert if overrulable else RemoteExpert)(child, number, self._step_limit)
        # Told with the next expert, not at once: objects are collected at any time, also during another call.
        weakref.finalize(made, self._forgotten.append, number).atexit = False
        return made


class WithPlayers(ProcessEnv):
    players: tuple[str, ...]
    roles: dict[str, str]

    def role(self, player: str) -> str:
        return self.roles[player]


_OFFERS: dict[str, tuple[Any, type[ProcessEnv]]] = {
    "tasks": (HasTasks, WithTasks),
    "snapshots": (HasSnapshots, WithSnapshots),
    "expert": (HasExpert, WithExpert),
    "players": (HasPlayers, WithPlayers),
}


@cache
def _class_with(offers: frozenset[str]) -> type[ProcessEnv]:
    """A ProcessEnv with the methods of these capabilities.

    Whether an object satisfies a protocol is read off its class without running ``__getattr__``, so the methods must
    be there, and no others.
    """
    bases = tuple(extended for name, (_, extended) in _OFFERS.items() if name in offers)
    return type("ProcessEnv", bases or (ProcessEnv,), {"__doc__": ProcessEnv.__doc__, "__module__": __name__})


class RemoteExpert:
    """An expert that lives beside its world, and ends with the process."""

    def __init__(self, child: Child, number: int, limit: Limit) -> None:
        self._child, self._number, self._limit = child, number, limit

    def begin(self, observation: str, info: Info) -> None:
        self._ask("begin", observation, info)

    def act(self, observation: str, info: Info) -> str:
        return str(self._ask("act", observation, info))

    def _ask(self, method: str, *arguments: Any) -> Any:
        return self._child.ask("ask_expert", self._number, method, *arguments, limit=self._limit)


class OverrulableExpert(RemoteExpert):
    def overrule(self, action: str) -> None:
        self._ask("overrule", action)


class RemotePanel(Panel):
    """A panel that stays in the process and is asked for its tasks."""

    def __init__(self, world: WithTasks, outline: Outline) -> None:
        # Panel is a frozen dataclass: its fields are set past the freeze, as its own __post_init__ does.
        fields = {"env": outline.env, "split": outline.split, "hash": outline.hash}
        for name, value in {**fields, "world": world, "length": outline.length}.items():
            object.__setattr__(self, name, value)

    world: WithTasks
    length: int

    @property
    def entries(self) -> tuple[Task, ...]:
        """All tasks: generates and fetches every one of them."""
        return tuple(self)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Task]:
        for start in range(0, self.length, CHUNK):
            yield from self[start : start + CHUNK]

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, slice) and not -self.length <= index < self.length:
            raise IndexError(f"Panel {self.split!r} has {self.length} tasks, got index {index}.")
        return self.world.look("look_up", self.split, index)

    def may_contain(self, key: str) -> bool:
        """Whether a task of this content key may be in the panel; False is a proof that it is not."""
        return bool(self.world.look("may_contain", self.split, key))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Panel) and self.hash == other.hash

    def __hash__(self) -> int:
        return hash(self.hash)

    def __repr__(self) -> str:
        return f"RemotePanel(env={self.env!r}, split={self.split!r}, tasks={self.length}, hash={self.hash!r})"
