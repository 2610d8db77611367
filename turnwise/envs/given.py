"""An environment that a caller holds as an object, under an id of its own, so that everything can make it by name."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec

from turnwise.envs.interface import TextEnv

NAMESPACE = "given"
"""Ids of such environments begin with it. Another process does not know them."""


def is_given(env_id: str) -> bool:
    """Whether an id stands for an object of this process."""
    return env_id.startswith(f"{NAMESPACE}/")


def named(env: str | TextEnv | Callable[..., TextEnv]) -> tuple[str, dict[str, Any]]:
    """(gymnasium id, arguments) of an environment, or of a function or class that makes one.

    A name is taken as it is. An environment that ``gymnasium.make`` made has both; a function or class is registered
    as ``given/NAME-v0``, and so is an environment without an id, of which every maker gets a copy. Raises ValueError
    for anything else.
    """
    if isinstance(env, str):
        return env, {}
    if isinstance(env, gymnasium.Env):
        spec = env.spec
        if spec is not None and _is_as_registered(spec):
            return spec.id, dict(spec.kwargs)
        if spec is not None:  # with a time limit or wrappers of its own
            return _registered(type(env.unwrapped).__name__, partial(gymnasium.make, spec)), {}
        return _registered(type(env.unwrapped).__name__, lambda: copy.deepcopy(env)), {}
    if callable(env):
        return _registered(getattr(env, "__name__", type(env).__name__), env), {}
    raise ValueError(f"expected a gymnasium id, an environment, or a function that makes one; got {type(env).__name__}")


def _registered(name: str, make: Callable[..., TextEnv]) -> str:
    """Under its name, in the place of what had it before."""
    word = "".join(c if c.isalnum() else "_" for c in name).strip("_") or "World"
    env_id = f"{NAMESPACE}/{word}-v0"
    gymnasium.registry.pop(env_id, None)
    gymnasium.register(env_id, entry_point=make, disable_env_checker=True)  # any text is an observation
    return env_id


def _is_as_registered(spec: EnvSpec) -> bool:
    """Whether ``gymnasium.make`` of its id and arguments gives the same: no other time limit, no wrapper around it."""
    known = gymnasium.registry.get(spec.id)
    same = known is not None and (known.max_episode_steps, known.entry_point) == (
        spec.max_episode_steps,
        spec.entry_point,
    )
    return same and not spec.additional_wrappers and _is_plain(spec.kwargs)


def _is_plain(kwargs: Mapping[str, Any]) -> bool:
    """Whether a configuration file can hold them."""
    try:
        return bool(json.loads(json.dumps(kwargs)) == kwargs)
    except (TypeError, ValueError):
        return False
