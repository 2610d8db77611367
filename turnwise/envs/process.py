"""An environment in a process of its own.

A process that hangs is killed, and one that dies is reported. In both cases the next ``reset`` starts a new process.

Actions, observations, ``info``, snapshots and short panels are pickled and sent through a pipe. Values in ``info`` must
therefore be picklable; ``info["admissible_actions"]`` always arrives as a list. Long panels, which generate their
tasks, stay in the process and are asked for single tasks. Experts stay there too, because they may look into the
world. ``turnwise.childprocess`` starts and ends the processes.
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
    Errs,
    Expert,
    HasClient,
    HasExpert,
    HasPlayers,
    HasSnapshots,
    HasTasks,
    Info,
    Panel,
    TextEnv,
    Thinks,
    are_names,
    attribute,
    capability,
    fitting,
    gives_answers,
    instructions_of,
    speaks_in_roles,
    world_name,
)
from turnwise.envs.tasks import expert_of, make_env, panel, restored, snapshots
from turnwise.errors import unknown
from turnwise.trajectory import Task

__all__ = ["EnvDiedError", "EnvRaisedError", "EnvTimeoutError", "ProcessEnv"]

Step = tuple[str, float, bool, bool, Info]
CHUNK = 256
"""Tasks that are fetched at once when a long panel is iterated."""


class ProcessEnv(gymnasium.Env[str, str]):
    """An environment in a process of its own.

    ``source`` is the environment's id: "turnwise/Sokoban-v0", or "module:ns/Id-v0" to import first the module that
    registers it. It is made with ``kwargs``. ``source`` may also be a function without arguments, which is sent by
    cloudpickle. Ids are preferable.

    EnvTimeoutError is raised where ``reset``, the start of the process or a call of a panel takes longer than
    ``reset_timeout_s`` seconds, and where ``step`` or any other call takes longer than ``step_timeout_s``. EnvDiedError
    is raised where the process ends, and EnvRaisedError (a RuntimeError) where the world raises. After any of these in
    ``reset`` or ``step``, the next ``reset`` starts a new process.

    The object has the optional methods that the world has, and no others: ``tasks``, ``expert``, ``snapshot`` and
    ``restore``, ``players`` and ``role``, ``counted``, ``refuse`` and ``leave``, ``splits``
    (``turnwise.envs.interface``). It must not be used by several threads at the same time.

    ``start_method`` is "forkserver" or "spawn". The default is "forkserver" where the system has it (Unix).
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
            raise ValueError(
                "kwargs are for an environment's id, but source is a function, which is called without any. Bind them "
                "to the function (functools.partial)."
            )
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
            raise ValueError(error.message) from None  # a method that does not fit: the same error as without a process
        for name, value in described.attributes.items():
            setattr(self, name, value)
        self.spec = EnvSpec(described.spec_id) if described.spec_id else None
        self.__class__ = _class_with(described.offers)

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[str, Info]:
        """Start an episode, in a new process where the last one has ended."""
        super().reset(seed=seed)
        wanted = None if options is None else dict(options)
        if self._child.alive:
            try:
                return self._reset(seed, wanted)
            except EnvDiedError:
                pass  # it may have died earlier without notice, so try once more in a new process
        return self._reset(seed, wanted)

    def _reset(self, seed: int | None, options: dict[str, Any] | None) -> tuple[str, Info]:
        answer: tuple[str, Info] = self._decisive(self._living(), "reset", seed, options, limit=self._reset_limit)
        return answer

    def step(self, action: str) -> Step:
        answer: Step = self._decisive(self._child, "step", action, limit=self._step_limit)
        return answer

    def close(self) -> None:
        """Close the world and end its process. A later ``reset`` starts another one."""
        if self._child.alive:
            with contextlib.suppress(EnvTimeoutError, EnvDiedError, EnvRaisedError):
                self._child.ask("close", limit=self._step_limit)
        self._child.end()

    def _decisive(self, child: Child, name: str, *arguments: Any, limit: Limit) -> Any:
        """A call after whose failure the world must not be used again: its process is ended."""
        try:
            return child.ask(name, *arguments, limit=limit)
        except EnvRaisedError:
            child.end()
            raise

    def _living(self) -> Child:
        """The process, or a new one where it has ended. For calls that need no running episode."""
        if not self._child.alive:
            self._child.end()
            self._child = self._new_child()
        return self._child

    def _new_child(self) -> Child:
        return Child(self._packed, self._start_method, self._reset_limit, preload=(__name__,))


@dataclass(frozen=True, slots=True)
class Description:
    """What a world tells once: the protocols that it offers (keys of ``_OFFERS``), its id, and attributes to copy."""

    offers: frozenset[str]
    spec_id: str | None
    attributes: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Outline:
    """A description of a panel that stays in the process."""

    env: str
    split: str
    hash: str
    length: int


class Served:
    """The world in its process, with the methods that the ``ProcessEnv`` calls."""

    def __init__(self, make: Callable[[], TextEnv]) -> None:
        self.env = self.playing = make()
        self.experts: dict[int, Any] = {}

    def describe(self) -> Description:
        attributes = {name: getattr(self.env, name) for name in ("observation_space", "action_space", "metadata")}
        own: dict[str, Any] = {
            "instructions": instructions_of(self.env),
            "in_roles": speaks_in_roles(self.env),
            "gives_answers": gives_answers(self.env),
        }
        if are_names(splits := attribute(self.env, "splits")):
            own["splits"] = tuple(splits)
        if game := capability(self.env, HasPlayers):
            own |= {"players": tuple(game.players), "roles": {player: game.role(player) for player in game.players}}
        offers = frozenset(name for name, (protocol, _) in _OFFERS.items() if self.offered(protocol) is not None)
        return Description(offers, self.env.spec.id if self.env.spec else None, attributes | own)

    def offered(self, protocol: Any) -> Any:
        """What offers it, or None. Snapshots are not offered past a wrapper that has a state of its own."""
        return snapshots(self.env) if protocol is HasSnapshots else capability(self.env, protocol)

    def reset(self, seed: int | None, options: dict[str, Any] | None) -> tuple[str, Info]:
        self.playing = self.env
        observation, info = self.env.reset(seed=seed, options=options)
        return observation, _plain(info)

    def step(self, action: str) -> tuple[Any, ...]:
        """As the world returned it: who asks checks it."""
        observation, reward, terminated, truncated, info = self.playing.step(action)
        return observation, reward, terminated, truncated, _plain(info)

    def counted(self, prompt_tokens: int, reply_tokens: int, ended: bool) -> None:
        self.offered(HasClient).counted(prompt_tokens, reply_tokens, ended)

    def refuse(self) -> Step:
        observation, reward, terminated, truncated, info = self.offered(HasClient).refuse()
        return observation, reward, terminated, truncated, _plain(info)

    def leave(self, why: str) -> None:
        self.offered(HasClient).leave(why)

    def tasks(self, split: str) -> Sequence[Task] | Outline:
        found = panel(self.env, split)
        if isinstance(found, Panel) and type(found) is not Panel:
            return Outline(found.env, found.split, found.hash, len(found))
        return found

    def look_up(self, split: str, index: Any) -> Any:
        return self.offered(HasTasks).tasks(split)[index]

    def may_contain(self, split: str, key: str) -> bool:
        return bool(self.offered(HasTasks).tasks(split).may_contain(key))

    def snapshot(self) -> Any:
        return self.offered(HasSnapshots).snapshot()

    def restore(self, snapshot: Any) -> None:
        self.playing = restored(self.env, snapshot)

    def expert(self, number: int, kind: str, seed: int, forgotten: list[int]) -> list[str]:
        """Make an expert and keep it under ``number``. Returns which methods it has that an expert may lack."""
        for old in forgotten:
            self.experts.pop(old, None)
        self.experts[number] = expert_of(self.env, kind, seed)
        name = f"the expert of {world_name(self.env)}"
        return [each for each, (protocol, _) in _ABILITIES.items() if fitting(self.experts[number], protocol, name)]

    def ask_expert(self, number: int, method: str, *arguments: Any) -> Any:
        return getattr(self.experts[number], method)(*arguments)

    def close(self) -> None:
        self.env.close()


def _plain(info: Info) -> Info:
    names = ("admissible_actions", "listed_actions")
    odd = [name for name in names if info.get(name) is not None and type(info[name]) is not list]
    return {**info, **{name: list(info[name]) for name in odd}} if odd else info


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
        abilities = child.ask("expert", number, kind, seed, forgotten, limit=self._step_limit)
        del self._forgotten[: len(forgotten)]
        made = _expert_class(frozenset(abilities))(child, number, self._step_limit)
        # Told with the next expert, not at once: objects are collected at any time, also during another call.
        weakref.finalize(made, self._forgotten.append, number).atexit = False
        return made


class WithClient(ProcessEnv):
    def counted(self, prompt_tokens: int, reply_tokens: int, ended: bool) -> None:
        self._child.ask("counted", prompt_tokens, reply_tokens, ended, limit=self._step_limit)

    def refuse(self) -> Step:
        answer: Step = self._decisive(self._child, "refuse", limit=self._step_limit)
        return answer

    def leave(self, why: str = "") -> None:
        self._child.ask("leave", why, limit=self._step_limit)


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
    "client": (HasClient, WithClient),
}


@cache
def _class_with(offers: frozenset[str]) -> type[ProcessEnv]:
    """A ProcessEnv with the methods of these protocols, and no others.

    Whether an object satisfies a protocol is found by looking at its class, so the class must have just these methods.
    """
    bases = tuple(extended for name, (_, extended) in _OFFERS.items() if name in offers)
    return type("ProcessEnv", bases or (ProcessEnv,), {"__doc__": ProcessEnv.__doc__, "__module__": __name__})


class RemoteExpert:
    """An expert that is in the world's process and ends with it."""

    def __init__(self, child: Child, number: int, limit: Limit) -> None:
        self._child, self._number, self._limit = child, number, limit

    def begin(self, observation: str, info: Info) -> None:
        self._ask("begin", observation, info)

    def act(self, observation: str, info: Info) -> str:
        return str(self._ask("act", observation, info))

    def _ask(self, method: str, *arguments: Any) -> Any:
        return self._child.ask("ask_expert", self._number, method, *arguments, limit=self._limit)


class Overruled(RemoteExpert):
    def overrule(self, action: str) -> None:
        self._ask("overrule", action)


class Thinking(RemoteExpert):
    def thought(self) -> Any:
        return self._ask("thought")


class Erring(RemoteExpert):
    def mistake(self) -> Any:
        return self._ask("mistake")


_ABILITIES: dict[str, tuple[Any, type[RemoteExpert]]] = {
    "overrule": (CanBeOverruled, Overruled),
    "thought": (Thinks, Thinking),
    "mistake": (Errs, Erring),
}


@cache
def _expert_class(abilities: frozenset[str]) -> type[RemoteExpert]:
    """A RemoteExpert with these methods, and no others."""
    bases = tuple(extended for name, (_, extended) in _ABILITIES.items() if name in abilities)
    return type("RemoteExpert", bases or (RemoteExpert,), {"__doc__": RemoteExpert.__doc__, "__module__": __name__})


class RemotePanel(Panel):
    """A panel that stays in the process. Its tasks are fetched when they are needed."""

    def __init__(self, world: WithTasks, outline: Outline) -> None:
        # Panel is a frozen dataclass: its fields are set past the freeze, as its own __post_init__ does.
        fields = {"env": outline.env, "split": outline.split, "hash": outline.hash}
        for name, value in {**fields, "world": world, "length": outline.length}.items():
            object.__setattr__(self, name, value)

    world: WithTasks
    length: int

    @property
    def entries(self) -> tuple[Task, ...]:
        """All tasks. This generates and fetches every one of them."""
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
        """Whether a task with this content key may be in the panel. False means that it is certainly not."""
        return bool(self.world.look("may_contain", self.split, key))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Panel) and self.hash == other.hash

    def __hash__(self) -> int:
        return hash(self.hash)

    def __repr__(self) -> str:
        return f"RemotePanel(env={self.env!r}, split={self.split!r}, tasks={self.length}, hash={self.hash!r})"
