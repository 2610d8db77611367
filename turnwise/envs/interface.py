"""What turnwise needs of an environment, and what an environment may offer.

An environment (also called a world) must be a ``gymnasium.Env`` whose observations and actions are strings. That is
all. A world may offer optional methods. ``tasks(split)`` gives fixed lists of evaluation tasks, which we call panels.
``snapshot()`` and ``restore()`` make copying an episode cheap; ARPO and AEPO use this to branch. ``expert()``
demonstrates the tasks, so that a small model can be cloned before RL begins. ``players`` and ``role()`` make the world
a game of several players. The protocols below describe these methods. A world need not import this module; it is enough
that it has methods of these names.

A world may use the same names for something else. An attribute of another kind (``tasks`` is a list, ``players`` is a
number) is ignored. An attribute of the same kind (a method, a list of names) is used, and must have the arguments that
the protocol declares. Otherwise a ValueError says what was found and what was expected.

These keys of ``info`` are read where they are present:

    admissible_actions   list of strings: the actions that are possible now
    listed_actions       list of strings: those of them that a model is shown, where some can only be wrong
    success              bool: whether the task is solved
    score                float in [0, 1]
    valid                bool: whether the last action was understood
    anchor               str: GiGPO and its like compare a task's turns with equal ones; absent: the observation's text
    state_key            str, or a tuple of whole numbers and such tuples, which is hashed where it is recorded: differs
                         between any two states of a task, even where their texts are equal: a key and an action decide
                         the next key; GraphGPO looks for ways through states
    task_type            str: the task's type, for tables, where the panel does not give it
    answer               str: what the episode answered, in the form in which answers are compared, "" before that; of a
                         world that says so beforehand, with the attribute ``gives_answers`` (True)
    task                 dict, of a reset: what reward functions and judges may know of the task and the agent does not
                         see. "answer" (a text, a number, or a list of these) is what is right, for algorithms that ask
                         how probable it is (IGPO), "answering" the action that gives it, with {} in its place ("{}")

A world may speak in a chat with roles. Its ``observation`` then stays readable text, an action is what ``said.py``
writes, and these keys of ``reset`` and ``step`` say what is asked of the agent:

    messages             list of messages: those that are new since turn ``after``
    after                int: the number of the turn (from 0) that this request goes on from. Absent: it begins afresh,
                         and ``messages`` hold the whole conversation
    tools                list of function schemas in OpenAI's form, {"type": "function", "function": {"name",
                         "description", "parameters"}}; given with a request that begins afresh
    sampling             what is wished of the reply: "temperature" (0, greedy, or at least 0.001), "max_tokens" (the
                         agent's own limit holds too), "stop" (list of texts, the first of which ends it), "form"
                         (JSON by a schema, or calls of tools: ``forms.py``)
    ignored              list of strings: what else was wished of the reply, and is not followed; it is counted

Such a world may say so beforehand, with the attribute ``in_roles`` (True): a model from elsewhere then plays it with
``agent.context=roles`` unless told otherwise.

A message is a dictionary with "role" (system, user, assistant or tool) and "content" (str). An assistant's may have
"tool_calls", [{"id": str, "name": str, "arguments": dict}], and "reasoning" (str), its thought. A tool's has
"tool_call_id" (str) and "name" (str).

Games have further keys (``HasPlayers``).
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, TypeGuard, TypeVar, cast, runtime_checkable

import gymnasium
import numpy as np
from gymnasium.spaces import Text

from turnwise.trajectory import Task

_64_BITS = (1 << 64) - 1

Info = dict[str, Any]
TextEnv = gymnasium.Env[str, str]


class AnyText(Text):
    """The space of all strings. (``gymnasium.spaces.Text`` allows only the characters of a given set.)"""

    def __init__(self, seed: int | np.random.Generator | None = None) -> None:
        super().__init__(max_length=1_000_000, min_length=0, charset="abcdefghijklmnopqrstuvwxyz ", seed=seed)

    def contains(self, x: object) -> bool:
        return isinstance(x, str)

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """A random string of 1 to 20 letters and spaces."""
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
    """A fixed, ordered list of tasks. ``hash`` (16 hexadecimal digits) identifies the tasks and their order."""

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
        """Whether a task with this content key may be in the panel. False means that it is certainly not."""
        return key in self._keys

    @cached_property
    def _keys(self) -> frozenset[str]:
        return frozenset(task.key for task in self)


@runtime_checkable
class HasTasks(Protocol):
    """A world with fixed panels of tasks.

    ``reset(options={"split": task.split, "task": task.index})`` starts a task of a panel.
    """

    def tasks(self, split: str) -> Panel: ...


@runtime_checkable
class HasSnapshots(Protocol):
    """A world whose episodes can be copied. A snapshot holds the whole state, including the number of steps."""

    def snapshot(self) -> Any: ...
    def restore(self, snapshot: Any) -> None: ...


@runtime_checkable
class HasPlayers(Protocol):
    """A game of several players, as one stream of turns.

    Each observation is for the player ``info["player"]``, and the next ``step`` takes that player's action. After a
    step ``info["rewards"]`` holds the reward of every player, by name. When the game has terminated,
    ``info["successes"]`` (bool) and ``info["scores"]`` (in [0, 1]) hold the result of every player. ``players`` are the
    names of all players, in a fixed order. ``role(player)`` names the kind of player; players of one role may share a
    policy.
    """

    players: tuple[str, ...]

    def role(self, player: str) -> str: ...


@runtime_checkable
class HasClient(Protocol):
    """A world whose requests are made by somebody else, such as a program (``turnwise.envs.programs``).

    ``counted`` tells how many tokens the context and the reply of the next ``step`` have, and whether the reply ended
    by itself. ``refuse`` is called in the place of ``step`` where a request does not fit into the context; it returns
    what ``step`` returns, such as a shorter request. ``leave`` is called where the episode ends without the world's
    doing; ``why`` says what was wrong with the request that is due ("": nothing).
    """

    def counted(self, prompt_tokens: int, reply_tokens: int, ended: bool) -> None: ...
    def refuse(self) -> tuple[str, float, bool, bool, Info]: ...
    def leave(self, why: str = "") -> None: ...


class Expert(Protocol):
    """Plays one episode. ``begin`` gets the first observation; then ``act`` gets each one and returns the action."""

    def begin(self, observation: str, info: Info) -> None: ...
    def act(self, observation: str, info: Info) -> str: ...


@runtime_checkable
class CanBeOverruled(Protocol):
    """An expert that must be told when another action than its own was taken."""

    def overrule(self, action: str) -> None: ...


@runtime_checkable
class Thinks(Protocol):
    """An expert that tells what it thought before its last action; "" where it was nothing.

    A demonstration has the thought before the action, between ``<think>`` and ``</think>``. The world gets the action
    alone.
    """

    def thought(self) -> str: ...


@runtime_checkable
class Errs(Protocol):
    """An expert that knows mistakes worth showing: what to play in the place of its last action; "" for nothing.

    A demonstration plays the mistake, which is not learned, and shows how the expert goes on.
    """

    def mistake(self) -> str: ...


@runtime_checkable
class HasExpert(Protocol):
    """A world that demonstrates its tasks.

    An expert of ``kind`` "knowing" sees the hidden state. One of kind "searching" sees what a player sees.
    """

    def expert(self, kind: str = "searching", *, seed: int = 0) -> Expert: ...


Capability = TypeVar("Capability")


def capability(env: TextEnv, protocol: Callable[..., Capability]) -> Capability | None:
    """The environment, or a wrapper around it, that offers ``protocol``: the outermost one. None where none does.

    Raises ValueError where a method has the right name but does not take the protocol's arguments.
    """
    # Typed as a callable because mypy admits no protocol class as ``type[...]``.
    name = world_name(env)
    return next((found for layer in layers(env) if (found := fitting(layer, protocol, name)) is not None), None)


def layers(env: TextEnv) -> Iterator[Any]:
    """The environment as it is given, and what is inside each wrapper."""
    layer: Any = env
    while isinstance(layer, gymnasium.Wrapper):
        yield layer
        layer = layer.env
    yield layer


def attribute(env: TextEnv, name: str) -> Any:
    """An attribute of the environment, or of a wrapper around it: of the outermost one that has it. None for none."""
    return next((found for layer in layers(env) if (found := getattr(layer, name, None)) is not None), None)


def fitting(found: object, protocol: Callable[..., Capability], name: str) -> Capability | None:
    """``found`` if it satisfies ``protocol``; None where an attribute is missing or of another kind.

    Raises ValueError for a method that does not take the protocol's arguments, and where two players have the same
    name. Errors call the object ``name``.
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
    """Whether this is a non-empty list or tuple of strings."""
    return isinstance(found, list | tuple) and bool(found) and all(isinstance(name, str) for name in found)


def instructions_of(env: TextEnv) -> str:
    """The world's ``instructions``: how actions are written. They go into the prompt; "" where the world has none.

    Raises ValueError where they are not a string.
    """
    found = attribute(env, "instructions")
    if found is None or isinstance(found, str):
        return found or ""
    raise ValueError(
        f"{world_name(env)} has instructions that are a {type(found).__name__}; turnwise expects a text there, which "
        "the prompt begins with: make it a string, or give it another name"
    )


def gives_answers(env: TextEnv) -> bool:
    """Whether the world's episodes end in answers that can be compared (``info["answer"]``)."""
    return attribute(env, "gives_answers") is True


def speaks_in_roles(env: TextEnv) -> bool:
    """Whether the world says beforehand that it speaks in a chat with roles."""
    return attribute(env, "in_roles") is True


def listed_actions(info: Info) -> list[str] | None:
    """The actions that a model is shown: ``listed_actions``, or else ``admissible_actions``; None where both lack."""
    listed: list[str] | None = info.get("listed_actions")
    return info.get("admissible_actions") if listed is None else listed


def is_valid(info: Info) -> bool:
    """Whether the last action was understood: unless the world says that it was not."""
    return info.get("valid") is None or bool(info["valid"])


def anchor_of(info: Info) -> str:
    """The anchor that the world gives; "" where it gives none."""
    return info.get("anchor") or ""


def state_key_of(info: Info) -> str:
    """The key that the world gives of a state, a tuple as the 16 hexadecimal digits of its hash; "" for none."""
    found = info.get("state_key")
    return f"{hash(found) & _64_BITS:016x}" if isinstance(found, tuple) else found or ""


def sampling_of(info: Info) -> Mapping[str, Any]:
    """What is wished of the reply; {} for nothing, or where the world has something else under that name."""
    found = info.get("sampling")
    return found if isinstance(found, Mapping) else {}


def ignored_of(info: Info) -> Sequence[str]:
    """What was wished of the reply and is not followed; () for nothing, or something else under that name."""
    found = info.get("ignored")
    return found if are_names(found) else ()


def given_of(info: Info) -> str:
    """What a reset tells of the task, as JSON; "" where it tells nothing, or something else under that name.

    Raises ValueError where JSON has no form for it. (A value that JSON does not have becomes text.)
    """
    told = info.get("task")
    if not isinstance(told, dict) or not told:
        return ""
    try:
        return json.dumps(told, ensure_ascii=False, default=str)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"info['task'] cannot be stored with the episode ({error}): its keys must be texts, and it must not hold "
            "itself"
        ) from None


def shown_info(info: Info) -> Info:
    """The part of ``info`` that an agent may be shown: the listed actions, and what is asked in roles."""
    listed = listed_actions(info)
    kept = _asked(info)
    return kept if listed is None else {"listed_actions": listed, **kept}


def _asked(info: Info) -> Info:
    """What is asked in roles; {} in a world that speaks in observations, whose "tools" may be anything."""
    if info.get("messages") is None:
        return {}
    return {name: info[name] for name in ("messages", "after", "tools") if info.get(name) is not None}


def request_of(info: Info) -> str:
    """What is asked in roles, as JSON: "messages", "after", "tools", and the form in "sampling" where there is one.

    "" where the world speaks in observations.
    """
    asked = _asked(info)
    if not asked:
        return ""
    if form := sampling_of(info).get("form"):
        asked["sampling"] = {"form": form}
    return json.dumps(asked, ensure_ascii=False, default=str)


def with_system(messages: Sequence[Mapping[str, Any]], system: str) -> Sequence[Mapping[str, Any]]:
    """The messages behind a system message. One that they begin with is joined to it, unless it holds it already."""
    if not system:
        return messages
    has_one = bool(messages) and messages[0]["role"] == "system"
    if has_one and f"{messages[0]['content']}\n\n".startswith(f"{system}\n\n"):
        return messages
    text = f"{system}\n\n{messages[0]['content']}" if has_one else system
    return [{"role": "system", "content": text}, *messages[has_one:]]


def world_name(env: TextEnv) -> str:
    """The world's name in error messages: its id, or else its class."""
    spec = getattr(env, "spec", None)
    return str(spec.id) if spec is not None else type(env.unwrapped).__name__


def _value(found: object, part: str) -> Any:
    """The attribute, or None. ``__getattr__`` is not used, since some wrappers of simulators answer to every name."""
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
