"""What turnwise asks of an environment, and the optional things it can offer.

Required: a ``gymnasium.Env`` whose observations and actions are strings. Everything else is a small protocol
that an environment may satisfy structurally; nobody has to import this module to be trained on.

A world may use the same names for things of its own. What is of another sort than the protocol's (``tasks`` a list,
``players`` a number) is the world's and left alone; what is of the same sort (a method, names) is taken, and has to
fit: ValueError says what is there and what was expected.

``info`` keys that are understood where present: ``admissible_actions`` (list of strings), ``success`` (bool),
``score`` (float in [0, 1]), ``valid`` (bool: the last action was understood), ``task_type`` (str: names the task's
type in tables, where the panel does not). Those of ``HasPlayers`` are read in games alone.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, TypeGuard, TypeVar, cast, runtime_checkable

import gymnasium
import numpy as np
from gymnasium.spaces import Text

from turnwise.trajectory import Task

Info = dict[str, Any]
TextEnv = gymnasium.Env[str, str]


class AnyText(Text):
    """Every string. (``gymnasium.spaces.Text`` admits only the characters of its charset: no spaces.)"""

    def __init__(self, seed: int | np.random.Generator | None = None) -> None:
        super().__init__(max_length=1_000_000, min_length=0, charset="abcdefghijklmnopqrstuvwxyz ", seed=seed)

    def contains(self, x: object) -> bool:
        return isinstance(x, str)

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """A short random string: letters and spaces, 1 to 20 of them."""
        length = int(self.np_random.integers(1, 21))
        return "".join(self.np_random.choice(list(self.characters), size=length))

    def __repr__(self) -> str:
        return "AnyText()"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AnyText)

    def __hash__(self) -> int:
        return hash(AnyText)


@dataclass(frozen=True)
class Panel(Sequence[Task]):
    """A fixed, ordered list of tasks; ``hash`` (16 hex digits) identifies its content and order."""

    env: str
    split: str
    entries: tuple[Task, ...]
    hash: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256("\n".join(task.key for task in self.entries).encode()).hexdigest()
        object.__setattr__(self, "hash", digest[:16])

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Task]:
        return iter(self.entries)

    def __getitem__(self, index: Any) -> Any:
        return self.entries[index]

    def may_contain(self, key: str) -> bool:
        """Whether a task of this content key may be in the panel; False is a proof that it is not."""
        return key in self._keys

    @cached_property
    def _keys(self) -> frozenset[str]:
        return frozenset(task.key for task in self)


@runtime_checkable
class HasTasks(Protocol):
    """``reset(options={"split": task.split, "task": task.index})`` starts a task of the panel."""

    def tasks(self, split: str) -> Panel: ...


@runtime_checkable
class HasSnapshots(Protocol):
    """Exact and cheap copies of the whole state, the step counter included."""

    def snapshot(self) -> Any: ...
    def restore(self, snapshot: Any) -> None: ...


@runtime_checkable
class HasPlayers(Protocol):
    """A game of several players as one stream of turns.

    Each observation is for ``info["player"]``, whose action the next ``step`` takes; ``info["rewards"]`` is what
    every player earned in the last step. When the game has terminated ``info["successes"]`` and ``info["scores"]``
    (in [0, 1]) hold each player's. ``players`` are all there may be, in the order of their seats; ``role(player)`` is
    what a policy may be kept for: players of one role are alike.
    """

    players: tuple[str, ...]

    def role(self, player: str) -> str: ...


class Expert(Protocol):
    """Plays one episode: ``begin`` with the first observation, then ``act`` on each observation in turn."""

    def begin(self, observation: str, info: Info) -> None: ...
    def act(self, observation: str, info: Info) -> str: ...


@runtime_checkable
class CanBeOverruled(Protocol):
    """An expert that wants to know when another action than its own was played."""

    def overrule(self, action: str) -> None: ...


@runtime_checkable
class HasExpert(Protocol):
    """``kind`` "knowing" sees the state, "searching" sees what a player sees."""

    def expert(self, kind: str = "searching", *, seed: int = 0) -> Expert: ...


Capability = TypeVar("Capability")


def capability(env: TextEnv, protocol: Callable[..., Capability]) -> Capability | None:
    """The innermost environment as ``protocol``, or None where it does not offer it.

    Raises ValueError for a method of a protocol's name that cannot be called as turnwise calls it.
    """
    # Typed as a callable because mypy admits no protocol class as ``type[...]``.
    return fitting(env.unwrapped, protocol, world_name(env))


def fitting(found: object, protocol: Callable[..., Capability], name: str) -> Capability | None:
    """``found`` as ``protocol``, or None where a part is missing or of another sort; ``name`` it in errors.

    Raises ValueError for a method that does not take the protocol's arguments, and for a player named twice.
    """
    declared = {part: there for part, there in vars(protocol).items() if inspect.isfunction(there) and part[0] != "_"}
    if not all(callable(_value(found, part)) for part in declared):
        return None
    if "players" in getattr(protocol, "__annotations__", {}):
        if not are_names(players := _value(found, "players")):
            return None
        if len(set(players)) < len(players):
            raise ValueError(f"{name} has the players {players!r}: each needs a name of its own")
    for part, expected in declared.items():
        _check_call(getattr(found, part), expected, f"{name} has a method {part}", cast(type, protocol))
    return cast(Capability, found)


def are_names(found: object) -> TypeGuard[Sequence[str]]:
    """Whether this is a list or tuple of strings, and not an empty one."""
    return isinstance(found, list | tuple) and bool(found) and all(isinstance(name, str) for name in found)


def instructions_of(env: TextEnv) -> str:
    """How actions are written, for the prompt; ``""`` where the world does not say. ValueError for what is no text."""
    found = getattr(env.unwrapped, "instructions", None)
    if found is None or isinstance(found, str):
        return found or ""
    raise ValueError(
        f"{world_name(env)} has instructions that are a {type(found).__name__}; turnwise expects a text there, which "
        "the prompt begins with: make it a string, or give it another name"
    )


def world_name(env: TextEnv) -> str:
    """What to call a world in errors: its id, else its class."""
    spec = getattr(env, "spec", None)
    return str(spec.id) if spec is not None else type(env.unwrapped).__name__


def _value(found: object, part: str) -> Any:
    """The attribute, or None; ``__getattr__`` is not asked (some wrappers of simulators answer to every name)."""
    if inspect.getattr_static(found, part, None) is None:
        return None
    try:
        return getattr(found, part)
    except Exception:  # a property of the world's own that cannot be read now, such as before a reset
        return None


def _check_call(method: Callable[..., Any], declared: Callable[..., Any], having: str, protocol: type) -> None:
    """Raises ValueError unless ``method`` takes the arguments of ``declared``, given as turnwise gives them."""
    expected = inspect.signature(declared)
    parameters = list(expected.parameters.values())[1:]  # without self
    by_name = {each.name: None for each in parameters if each.kind is each.KEYWORD_ONLY}
    try:
        signature = inspect.signature(method)
    except (TypeError, ValueError):  # of a function in C that does not say
        return
    try:
        signature.bind(*[None] * (len(parameters) - len(by_name)), **by_name)
    except TypeError:
        there, called = (str(s).replace("'", "") for s in (signature, expected.replace(parameters=parameters)))
        raise ValueError(
            f"{having}{there}; turnwise expects {declared.__name__}{called} there ({protocol.__module__}."
            f"{protocol.__name__}): let it take these arguments, or give it another name"
        ) from None
