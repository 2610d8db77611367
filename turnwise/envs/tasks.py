"""Starting tasks: one way for worlds with fixed panels and for worlds that only know seeds."""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker

from turnwise.envs.interface import HasSnapshots, HasTasks, Info, Panel, capability
from turnwise.envs.returned import check_seen, check_step
from turnwise.trajectory import Task

TextEnv = gymnasium.Env[str, str]

_STATELESS = (OrderEnforcing, PassiveEnvChecker)

# Worlds without panels: each split owns a range of reset seeds, so that no seed serves two splits.
_SEED_RANGES = {"train": (0, 1_000_000), "validation": (2_000_000, 256), "test": (3_000_000, 512)}


def make_env(env_id: str, **kwargs: Any) -> TextEnv:
    """``gymnasium.make`` with errors for a reader: unknown ids name the nearest right one.

    ``module:ns/Id-v0`` imports the module first, which registers the environment.
    """
    import turnwise.envs  # noqa: F401  (registers turnwise/...)

    module, _, name = env_id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ValueError(f"environment {env_id!r}: cannot import module {module!r} ({error})") from error
    if name not in gymnasium.registry:
        near = difflib.get_close_matches(name, gymnasium.registry, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"unknown environment {name!r}.{hint} `turnwise envs` lists what is there; "
            "your own: --env your_module:Your/Env-v0"
        )
    try:
        return gymnasium.make(name, **kwargs)
    except TypeError as error:
        reason = str(error).partition(" was raised from")[0]
        missing = re.search(r"missing \d+ required .*arguments?: (.*)", reason)
        if missing:
            raise ValueError(f"environment {name!r} needs {missing[1]}: env.kwargs.NAME=VALUE") from error
        raise ValueError(f"environment {name!r} does not take these settings {kwargs}: {reason}") from error


def maker(env_id: str, **kwargs: Any) -> Callable[[], TextEnv]:
    """A factory of fresh, equal environments."""
    return lambda: make_env(env_id, **kwargs)


def panel(env: TextEnv, split: str) -> Sequence[Task]:
    """The tasks of a split: the world's own panel, else a range of reset seeds."""
    world = capability(env, HasTasks)
    if world is not None:
        return world.tasks(split)
    if split not in _SEED_RANGES:
        hint = "; demonstrate on train: warmstart.split=train" if split == "demonstrations" else ""
        raise ValueError(f"unknown split {split!r}: this environment has no panels, only {sorted(_SEED_RANGES)}{hint}")
    first, count = _SEED_RANGES[split]
    name = env.spec.id if env.spec else type(env.unwrapped).__name__
    entries = tuple(Task(name, split, seed, f"{name}:{seed}") for seed in range(first, first + min(count, 10_000)))
    return Panel(name, split, entries)


def snapshots(env: TextEnv) -> HasSnapshots | None:
    """The world's snapshots, where nothing around it has a state of its own that they would miss."""
    layer: Any = env
    while isinstance(layer, _STATELESS):
        layer = layer.env
    return capability(env, HasSnapshots) if layer is env.unwrapped else None


def start(env: TextEnv, task: Task, seed: int) -> tuple[str, Info]:
    """Reset ``env`` to ``task``. ``seed`` feeds the world's own randomness where the task does not fix it.

    Raises ValueError where it returns something else than a text and an ``info`` (``returned.py``).
    """
    if capability(env, HasTasks) is not None:
        observation, info = env.reset(seed=seed, options={"split": task.split, "task": task.index})
    else:
        observation, info = env.reset(seed=task.index)
    check_seen(observation, info)
    return observation, info


def step(env: TextEnv, action: str) -> tuple[str, float, bool, bool, Info]:
    """``env.step``; ValueError likewise, also for a reward that is no finite number."""
    observation, reward, terminated, truncated, info = env.step(action)
    check_seen(observation, info)
    check_step(reward, terminated, truncated)
    return observation, float(reward), bool(terminated), bool(truncated), info
