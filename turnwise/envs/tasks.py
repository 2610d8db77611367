"""Starting tasks: one way for worlds with fixed panels and for worlds that only know seeds."""

from __future__ import annotations

import difflib
import importlib
import logging
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gymnasium
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker

from turnwise.envs.interface import (
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
    world_name,
)
from turnwise.envs.returned import check_parts, check_seen, check_step, check_tasks, check_turn
from turnwise.trajectory import Task

__all__ = [
    "TextEnv",
    "WorldExitError",
    "close",
    "closed_after",
    "expert_of",
    "make_env",
    "maker",
    "no_exit",
    "panel",
    "players_of",
    "snapshots",
    "start",
    "step",
]

_log = logging.getLogger(__name__)

_STATELESS = (OrderEnforcing, PassiveEnvChecker)

# Worlds without panels: each split owns a range of reset seeds, so that no seed serves two splits.
_SEED_RANGES = {"train": (0, 1_000_000), "validation": (2_000_000, 256), "test": (3_000_000, 512)}


class WorldExitError(RuntimeError):
    """A world, or a library below it, called ``sys.exit``: a failure of the world, not the end of a run."""


@contextmanager
def no_exit(world: str, call: str) -> Iterator[None]:
    """``SystemExit`` as a WorldExitError that says who left, and where."""
    try:
        yield
    except SystemExit as error:
        raise WorldExitError(f"{world} called sys.exit({error.code!r}) in {call}: SystemExit") from error


def make_env(env_id: str, **kwargs: Any) -> TextEnv:
    """``gymnasium.make`` with errors for a reader: unknown ids name the nearest right one.

    ``module:ns/Id-v0`` imports the module first, which registers the environment.
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
            told = str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
            raise ValueError(f"environment {env_id!r}: cannot import module {module!r} ({told})") from error
    if name not in gymnasium.registry:
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
        raise ValueError(f"environment {name!r} does not take these settings {kwargs}: {reason}") from error
    except (ValueError, OSError, RuntimeError):  # as the world words it
        raise
    except Exception as error:  # whatever else a third party's world raises
        raise ValueError(f"environment {name!r} could not be made: {type(error).__name__}: {error}") from error


def maker(env_id: str, **kwargs: Any) -> Callable[[], TextEnv]:
    """A factory of fresh, equal environments."""
    return lambda: make_env(env_id, **kwargs)


def close(env: TextEnv) -> None:
    """Close the world. One that cannot be closed is logged: what it did before counts."""
    try:
        env.close()
    except (Exception, SystemExit) as error:  # whatever a third party's world raises
        _log.warning("closing %s raised %s: %s", world_name(env), type(error).__name__, error)


@contextmanager
def closed_after(env: TextEnv) -> Iterator[TextEnv]:
    """``env``, closed at the end by ``close``."""
    try:
        yield env
    finally:
        close(env)


def panel(env: TextEnv, split: str) -> Sequence[Task]:
    """The tasks of a split: the world's own panel, else a range of reset seeds.

    Raises ValueError for an unknown split, one without tasks, and where ``tasks`` returns something else.
    """
    world = capability(env, HasTasks)
    if world is not None:
        with no_exit(world_name(env), f"tasks({split!r})"):
            found = world.tasks(split)
        check_tasks(env, split, found)
        return found
    if split not in _SEED_RANGES:
        hint = "; demonstrate on train: warmstart.split=train" if split == "demonstrations" else ""
        raise ValueError(f"unknown split {split!r}: this environment has no panels, only {sorted(_SEED_RANGES)}{hint}")
    first, count = _SEED_RANGES[split]
    name = world_name(env)
    entries = tuple(Task(name, split, seed, f"{name}:{seed}") for seed in range(first, first + min(count, 10_000)))
    return Panel(name, split, entries)


def snapshots(env: TextEnv) -> HasSnapshots | None:
    """The world's snapshots, where nothing around it has a state of its own that they would miss."""
    layer: Any = env
    while isinstance(layer, _STATELESS):
        layer = layer.env
    return capability(env, HasSnapshots) if layer is env.unwrapped else None


def players_of(env: TextEnv) -> tuple[str, ...]:
    """The players of a game, in the order of their seats; none of a world of one player."""
    game = capability(env, HasPlayers)
    return tuple(game.players) if game is not None else ()


def expert_of(env: TextEnv, kind: str, seed: int) -> Expert:
    """The world's own expert. Raises ValueError where it has none, or none of this kind; what it is must fit, too."""
    world, name = capability(env, HasExpert), world_name(env)
    if world is None:
        raise ValueError(
            f"{name} has no expert: demonstrations need an `expert(kind, seed=)` method on the environment "
            "(turnwise.envs.interface.HasExpert). Without one start from a model that can read: "
            "warmstart=null model.path=FOLDER_OR_NAME"
        )
    with no_exit(name, f"expert({kind!r})"):
        made = world.expert(kind, seed=seed)
    found = fitting(made, Expert, f"the expert of {name}")
    if found is None:
        raise ValueError(
            f"{name} returned {made!r} for expert({kind!r})"[:150] + "; expected an object with begin(observation, "
            "info) and act(observation, info) -> str (turnwise.envs.interface.Expert)"
        )
    return found


def start(env: TextEnv, task: Task, seed: int) -> tuple[str, Info]:
    """Reset ``env`` to ``task``. ``seed`` feeds the world's own randomness where the task does not fix it.

    Raises ValueError where it returns something else than a text and an ``info`` (``returned.py``), WorldExitError
    where it calls ``sys.exit``.
    """
    name, players = world_name(env), players_of(env)
    with no_exit(name, "reset"):
        if capability(env, HasTasks) is not None:
            returned: Any = env.reset(seed=seed, options={"split": task.split, "task": task.index})
        else:
            returned = env.reset(seed=task.index)
    observation, info = check_parts(env, "reset", returned)
    check_seen(env, observation, info, players)
    check_turn(env, info, players)
    mover, names = info.get("player"), getattr(env.unwrapped, "players", None)
    if not players and are_names(names) and mover in names:
        raise ValueError(
            f"{name} says whose turn it is (info['player'] {mover!r}, one of its players), as a game does, but has no "
            "method role(player), by which turnwise knows a game (turnwise.envs.interface.HasPlayers): add it, or give "
            "the key another name"
        )
    return observation, info


def step(env: TextEnv, action: str, players: Collection[str] = ()) -> tuple[str, float, bool, bool, Info]:
    """``env.step``; ValueError likewise, also for a reward that is no finite number; WorldExitError likewise.

    ``players`` are those of a game.
    """
    try:
        returned: Any = env.step(action)
    except SystemExit as error:  # not no_exit: this is the inner loop
        raise WorldExitError(f"{world_name(env)} called sys.exit({error.code!r}) in step: SystemExit") from error
    observation, reward, terminated, truncated, info = check_parts(env, "step", returned)
    check_seen(env, observation, info, players)
    check_step(env, reward, terminated, truncated, info, players)
    if not (terminated or truncated):
        check_turn(env, info, players)
    return observation, float(reward), bool(terminated), bool(truncated), info
