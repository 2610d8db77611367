"""Making environments, listing their tasks, and starting and stepping episodes.

The same functions serve worlds with fixed panels and worlds that only take a seed. For these, each split is a range of
reset seeds, and a task is one seed.
"""

from __future__ import annotations

import difflib
import importlib
import logging
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import gymnasium
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker

from turnwise.envs.given import is_given
from turnwise.envs.interface import (
    Expert,
    HasClient,
    HasExpert,
    HasPlayers,
    HasSnapshots,
    HasTasks,
    Info,
    Panel,
    TextEnv,
    are_names,
    attribute,
    capability,
    fitting,
    world_name,
)
from turnwise.envs.returned import check_key, check_parts, check_seen, check_step, check_tasks, check_turn, unfitting
from turnwise.errors import place, with_place
from turnwise.trajectory import Task

SERVED = "turnwise/Served-v0"
"""The world of recorded conversations (``turnwise serve --record``). It cannot be made: its tasks come from outside."""

__all__ = [
    "TextEnv",
    "WorldExitError",
    "close",
    "closed_after",
    "demonstrated",
    "expert_of",
    "fitting_expert",
    "make_env",
    "maker",
    "no_exit",
    "panel",
    "players_of",
    "refuse",
    "restored",
    "snapshots",
    "start",
    "step",
    "told_of",
]

_log = logging.getLogger(__name__)

DEMONSTRATIONS = "demonstrations"
"""The split that worlds keep for their experts, so that the tasks of RL are new to a clone."""

_STATELESS = (OrderEnforcing, PassiveEnvChecker)

# Worlds without panels: (first seed, number of seeds) of each split. No seed belongs to two splits.
_SEED_RANGES = {"train": (0, 1_000_000), "validation": (2_000_000, 256), "test": (3_000_000, 512)}


class WorldExitError(RuntimeError):
    """A world, or a library that it uses, called ``sys.exit``. The run treats it as a failure of the world."""


@contextmanager
def no_exit(world: str, call: str) -> Iterator[None]:
    """A context that turns SystemExit into a WorldExitError, which names the ``world`` and the ``call``."""
    try:
        yield
    except SystemExit as error:
        raise WorldExitError(f"{world} called sys.exit({error.code!r}) in {call}: SystemExit") from error


def make_env(env_id: str, **kwargs: Any) -> TextEnv:
    """``gymnasium.make`` with clear errors: for an unknown id it names the nearest known one.

    With ``module:ns/Id-v0`` the module, which registers the environment, is imported first. Raises ValueError where it
    cannot be imported, for an unknown id, and for settings that the environment does not take. ValueError, OSError and
    RuntimeError of the environment are passed on.
    """
    import turnwise.envs  # noqa: F401  (registers turnwise/...)

    module, _, name = env_id.rpartition(":")
    if module:
        try:
            with no_exit(f"module {module}", "its import"):
                importlib.import_module(module)
        except WorldExitError:
            raise
        except Exception as error:  # a module of the user's: it may fail in any way
            told = str(error) if isinstance(error, ImportError) else with_place(error)
            raise ValueError(f"environment {env_id!r}: cannot import module {module!r} ({told})") from error
    if name not in gymnasium.registry:
        if is_given(name):
            raise ValueError(
                f"unknown environment {name!r}: it was given as an object, which this process does not have. Give it "
                "again from Python: turnwise.resume(run, env=...), turnwise.evaluate(run, env=...)"
            )
        if name == SERVED:
            raise ValueError(
                f"{name} stands for conversations that `turnwise serve --record` kept, whose world was whoever asked: "
                "it cannot be made, and nothing of it can be played again or measured"
            )
        near = difflib.get_close_matches(name, gymnasium.registry, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"unknown environment {name!r}.{hint} `turnwise envs` lists what is there; "
            "your own: --env your_module:Your/Env-v0"
        )
    try:
        with no_exit(name, "gymnasium.make"):
            return gymnasium.make(name, **kwargs)
    except TypeError as error:
        reason = str(error).partition(" was raised from")[0]
        missing = re.search(r"missing \d+ required .*arguments?: (.*)", reason)
        if missing:
            raise ValueError(f"environment {name!r} needs {missing[1]}: env.kwargs.NAME=VALUE") from error
        if "argument" in reason:
            raise ValueError(f"environment {name!r} does not take these settings {kwargs}: {reason}") from error
        where = place(error.__context__ or error)  # gymnasium words the error anew
        raise ValueError(f"environment {name!r} could not be made: TypeError{where}: {reason}") from error
    except (ValueError, OSError, RuntimeError):  # as the world words it
        raise
    except Exception as error:  # whatever else a third party's world raises
        raise ValueError(f"environment {name!r} could not be made: {with_place(error)}") from error


def maker(env_id: str, **kwargs: Any) -> Callable[[], TextEnv]:
    """A function that makes an environment with these settings each time it is called."""
    return lambda: make_env(env_id, **kwargs)


def close(env: TextEnv) -> None:
    """Close a world. Where that fails it is logged and not raised, so that no result is lost by it."""
    try:
        env.close()
    except (Exception, SystemExit) as error:  # whatever a third party's world raises
        _log.warning("closing %s raised %s: %s", world_name(env), type(error).__name__, error)


@contextmanager
def closed_after(env: TextEnv) -> Iterator[TextEnv]:
    """A context that closes ``env`` at its end."""
    try:
        yield env
    finally:
        close(env)


def panel(env: TextEnv, split: str) -> Sequence[Task]:
    """The tasks of a split: the world's own panel, or else a range of reset seeds.

    Raises ValueError for an unknown split, for one without tasks, and where the world's ``tasks`` returns no tasks.
    """
    world = capability(env, HasTasks)
    if world is not None:
        found: Sequence[Task] = _tasks(env, world, split)
        check_tasks(env, split, found)
        return found
    if split not in _SEED_RANGES:
        raise ValueError(f"unknown split {split!r}: this environment has no panels, only {sorted(_SEED_RANGES)}")
    first, count = _SEED_RANGES[split]
    name = world_name(env)
    entries = tuple(Task(name, split, seed, f"{name}:{seed}") for seed in range(first, first + min(count, 10_000)))
    return Panel(name, split, entries)


def demonstrated(env: TextEnv, split: str) -> Sequence[Task]:
    """The tasks of a split whose expert is watched. In a world without a split "demonstrations" it stands for "train".

    Raises ValueError as ``panel`` does.
    """
    return panel(env, "train" if split == DEMONSTRATIONS and not _has_demonstrations(env) else split)


def _has_demonstrations(env: TextEnv) -> bool:
    world = capability(env, HasTasks)
    if world is None:
        return DEMONSTRATIONS in _SEED_RANGES
    try:
        _tasks(env, world, DEMONSTRATIONS)
    except ValueError:
        return False
    return True


def _tasks(env: TextEnv, world: HasTasks, split: str) -> Any:
    """What the world's ``tasks`` returns. Raises ValueError for an unknown split, also where a lookup of it failed."""
    name = world_name(env)
    try:
        with no_exit(name, f"tasks({split!r})"):
            return world.tasks(split)
    except KeyError as error:
        if error.args != (split,):
            raise
        raise ValueError(f"unknown split {split!r}: tasks() of {name} raised {with_place(error)}") from error


def snapshots(env: TextEnv) -> HasSnapshots | None:
    """The world, if it offers snapshots; None where it does not, or where a wrapper may have a state of its own.

    A wrapper of yours that offers them answers for what it holds.
    """
    layer: Any = env
    while isinstance(layer, _STATELESS):
        layer = layer.env
    return fitting(layer, HasSnapshots, world_name(env))


def restored(env: TextEnv, snapshot: Any) -> TextEnv:
    """Continue the episode of a snapshot in ``env``, which offers them. Returns what to step: the world itself.

    A wrapper around it may refuse a step before its own first reset.
    """
    world = snapshots(env)
    assert world is not None
    world.restore(snapshot)
    return cast(TextEnv, world)


def players_of(env: TextEnv) -> tuple[str, ...]:
    """The names of a game's players, in their order; () for a world of one player."""
    game = capability(env, HasPlayers)
    return tuple(game.players) if game is not None else ()


def expert_of(env: TextEnv, kind: str, seed: int) -> Expert:
    """The world's own expert of this ``kind`` ("knowing" or "searching").

    Raises ValueError where the world has none, and where it returns an object without the methods of an ``Expert``.
    """
    world, name = capability(env, HasExpert), world_name(env)
    if world is None:
        raise ValueError(
            f"{name} has no expert: demonstrations need an `expert(kind, seed=)` method on the environment "
            "(turnwise.envs.interface.HasExpert). Without one start from a model that can read: "
            "warmstart=null model.path=FOLDER_OR_NAME"
        )
    with no_exit(name, f"expert({kind!r})"):
        made = world.expert(kind, seed=seed)
    return fitting_expert(made, kind, name)


def fitting_expert(made: object, kind: str, name: str) -> Expert:
    """What ``expert(kind)`` of the world ``name`` returned. Raises ValueError where it is no ``Expert``."""
    found = fitting(made, Expert, f"the expert of {name}")
    if found is None:
        raise ValueError(
            f"{name} returned {made!r} for expert({kind!r})"[:150] + "; expected an object with begin(observation, "
            "info) and act(observation, info) -> str (turnwise.envs.interface.Expert)"
        )
    return found


def start(env: TextEnv, task: Task, seed: int) -> tuple[str, Info]:
    """Reset ``env`` to ``task``. Returns the first observation and its ``info``.

    ``seed`` is for the randomness of a world with panels. In a world without panels the task itself is a seed. Raises
    ValueError where ``reset`` returns anything but a string and a dictionary that fits (``returned.py``), and
    WorldExitError where it calls ``sys.exit``.
    """
    name, players = world_name(env), players_of(env)
    given: dict[str, Any] = {"seed": task.index}
    if capability(env, HasTasks) is not None:
        given = {"seed": seed, "options": {"split": task.split, "task": task.index}}
    try:
        with no_exit(name, "reset"):
            returned: Any = env.reset(**given)
    except TypeError as error:
        if "argument" not in str(error) or place(error):  # raised within it
            raise
        expected = "def reset(self, *, seed=None, options=None)"
        raise ValueError(f"{name} cannot be reset with {', '.join(given)} ({error}); expected {expected}") from error
    observation, info = check_parts(env, "reset", returned)
    check_seen(env, observation, info, players)
    check_key(env, info)
    check_turn(env, info, players)
    mover, names = info.get("player"), attribute(env, "players")
    if not players and are_names(names) and mover in names:
        raise ValueError(
            f"{name} says whose turn it is (info['player'] {mover!r}, one of its players), as a game does, but has no "
            "method role(player), by which turnwise knows a game (turnwise.envs.interface.HasPlayers): add it, or give "
            "the key another name"
        )
    return observation, info


def told_of(env: TextEnv, task: Task, seed: int) -> dict[str, Any]:
    """What the world tells of a task that the agent does not see (``info["task"]``); {} for nothing. Resets ``env``."""
    told = start(env, task, seed)[1].get("task")
    return dict(told) if isinstance(told, dict) else {}


def step(env: TextEnv, action: str, players: Collection[str] = ()) -> tuple[str, float, bool, bool, Info]:
    """Take an action. Returns observation, reward, terminated, truncated and ``info``, as ``env.step`` does.

    ``players`` are the names of a game's players. Raises ValueError where ``step`` returns something that does not fit
    (``returned.py``), such as a reward that is no finite number, and WorldExitError where it calls ``sys.exit``.
    """
    try:
        returned: Any = env.step(action)
    except SystemExit as error:  # not no_exit: this is the inner loop
        raise WorldExitError(f"{world_name(env)} called sys.exit({error.code!r}) in step: SystemExit") from error
    except (TypeError, ValueError) as error:
        if "unpack" in str(error) and not place(error):  # by a wrapper of gymnasium, which sees it first
            raise unfitting(env, "step", str(error)) from error
        raise
    return _taken(env, returned, players)


def refuse(env: TextEnv, client: HasClient) -> tuple[str, float, bool, bool, Info]:
    """Tell the world's client that its request does not fit. Returns and raises as ``step`` does."""
    with no_exit(world_name(env), "refuse"):
        returned: Any = client.refuse()
    return _taken(env, returned, ())


def _taken(env: TextEnv, returned: Any, players: Collection[str]) -> tuple[str, float, bool, bool, Info]:
    observation, reward, terminated, truncated, info = check_parts(env, "step", returned)
    check_seen(env, observation, info, players)
    check_step(env, reward, terminated, truncated, info, players)
    if not (terminated or truncated):
        check_turn(env, info, players)
    return observation, float(reward), bool(terminated), bool(truncated), info
