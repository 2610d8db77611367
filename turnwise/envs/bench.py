"""How fast an environment is: random actions through ``gymnasium.make``; and the same beside the official engine."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import gymnasium

from turnwise.envs.interface import HasTasks, capability
from turnwise.envs.tasks import make_env
from turnwise.errors import unknown


@dataclass(frozen=True, slots=True)
class Speed:
    """What ``bench`` measured. Times are CPU time of this process: other load hardly counts."""

    env: str
    num_games: int
    num_steps: int
    steps_per_s: float  # through the whole stack of wrappers, restarts of finished episodes not counted
    load_ms: float  # mean of the first reset of each game: reading, preparing and starting it
    load_max_ms: float
    reset_ms: float  # mean of starting a game again


def bench(
    num_games: int = 100,
    seconds: float = 5.0,
    env_id: str = "turnwise/ALFWorld-v0",
    split: str = "train",
    seed: int = 0,
    **env_kwargs: Any,
) -> Speed:
    """Play ``num_games`` games of ``split`` with random admissible actions for about ``seconds`` CPU seconds.

    Worlds without ``tasks`` are started from seeds 0 to ``num_games - 1``, worlds that do not tell what is
    admissible are played with ``action_space.sample()``.
    """
    import turnwise.envs  # noqa: F401  (registers the environments)

    env: gymnasium.Env[str, str] = gymnasium.make(env_id, **env_kwargs)
    starts = _starts(env, num_games, split)
    rng = random.Random(seed)
    loads, resets, stepping, num_steps = [], [], 0.0, 0
    for start in starts:
        loads.append(_timed_reset(env, start))
        spent, game_steps = 0.0, 0
        while spent < seconds / len(starts):
            resets.append(_timed_reset(env, start))
            episode_s, episode_steps = _play(env, rng)
            spent += episode_s
            game_steps += episode_steps
        stepping += spent
        num_steps += game_steps
    env.close()
    return Speed(
        env=env_id,
        num_games=len(starts),
        num_steps=num_steps,
        steps_per_s=num_steps / stepping,
        load_ms=1e3 * sum(loads) / len(loads),
        load_max_ms=1e3 * max(loads),
        reset_ms=1e3 * sum(resets) / len(resets),
    )


def _starts(env: gymnasium.Env[str, str], num_games: int, split: str) -> list[dict[str, Any]]:
    """Arguments of ``reset``, one for each game: spread evenly over the panel."""
    world = capability(env, HasTasks)
    if world is None:
        return [{"seed": number} for number in range(num_games)]
    size = len(world.tasks(split))
    num_games = min(num_games, size)
    return [{"options": {"split": split, "task": n * size // num_games}} for n in range(num_games)]


def _timed_reset(env: gymnasium.Env[str, str], start: dict[str, Any]) -> float:
    began = time.process_time()
    env.reset(**start)
    return time.process_time() - began


def _play(env: gymnasium.Env[str, str], rng: random.Random) -> tuple[float, int]:
    """(CPU seconds, steps) of one episode from a fresh reset; the first action is drawn blindly."""
    action, num_steps, over = env.action_space.sample(), 0, False
    began = time.process_time()
    while not over:
        _, _, terminated, truncated, info = env.step(action)
        num_steps += 1
        over = terminated or truncated
        choices = info.get("admissible_actions")
        action = choices[int(rng.random() * len(choices))] if choices else env.action_space.sample()
    return time.process_time() - began, num_steps


OFFICIAL = {
    "turnwise/ALFWorld-v0": "",
    "turnwise/Household-v0": "",
    "turnwise/ScienceWorld-v0": "it runs the official simulator: there is nothing to compare it with",
    "turnwise/TextWorld-v0": "it runs the official engine: there is nothing to compare it with",
    "turnwise/WebShop-v0": "the official one is in no package registry, and its data are not in the package",
}
"""Worlds with an official engine, and why some cannot be raced against it."""


@dataclass(frozen=True, slots=True)
class Race:
    """The same actions in the same games, here and in the official engine, in one run; CPU time of this process.

    Both build the admissible list at every step. ``same`` tells whether all observations, admissible lists and
    outcomes were equal; a ratio of engines that differ would say little.
    """

    env: str
    official: str  # package and version
    num_games: int
    num_steps: int
    steps_per_s: float
    official_steps_per_s: float
    ratio: float
    load_ms: float  # mean of the first reset of each game
    official_load_ms: float
    same: bool


def bench_against_official(
    env_id: str = "turnwise/Household-v0", num_games: int = 10, split: str = "train", seed: int = 0, **env_kwargs: Any
) -> Race:
    """Race ``env_id`` against its official engine with random admissible actions. Raises ValueError where that cannot
    be: there is none, it cannot be installed, or it is not.
    """
    if env_id not in OFFICIAL:
        raise unknown("environment with an official engine", env_id, OFFICIAL)
    if OFFICIAL[env_id]:
        raise ValueError(f"{env_id} has no race against the official engine: {OFFICIAL[env_id]}.")
    if find_spec("alfworld") is None:
        raise ValueError('The official engine is not installed: pip install -e ".[official]"')
    env, scout = make_env(env_id, **env_kwargs), make_env(env_id, **env_kwargs)
    starts, loads, steps, same, num_steps = _starts(env, num_games, split), [0.0, 0.0], [0.0, 0.0], True, 0
    for number, start in enumerate(starts):
        loads[0] += _timed_reset(env, start)
        # Another instance finds the actions: a world may remember what it has computed.
        actions = _random_actions(scout, start, random.Random(seed + number))
        step_s, ours = _timed_steps(env.step, actions)
        world: Any = env.unwrapped
        official_load_s, official_step_s, theirs = _official(
            world.source.game(split, start["options"]["task"]), actions
        )
        same = same and [(text, info["admissible_actions"], info["success"]) for text, _, _, _, info in ours] == theirs
        loads[1] += official_load_s
        steps[0] += step_s
        steps[1] += official_step_s
        num_steps += len(actions)
    env.close()
    scout.close()
    return Race(
        env=env_id,
        official=f"alfworld {version('alfworld')}",
        num_games=len(starts),
        num_steps=num_steps,
        steps_per_s=num_steps / steps[0],
        official_steps_per_s=num_steps / steps[1],
        ratio=steps[1] / steps[0],
        load_ms=1e3 * loads[0] / len(starts),
        official_load_ms=1e3 * loads[1] / len(starts),
        same=same,
    )


def _random_actions(env: gymnasium.Env[str, str], start: dict[str, Any], rng: random.Random) -> list[str]:
    """Of one episode, admissible when they are played."""
    _, info = env.reset(**start)
    actions, over = [], False
    while not over:
        actions.append(rng.choice(info["admissible_actions"]))
        _, _, terminated, truncated, info = env.step(actions[-1])
        over = terminated or truncated
    return actions


def _timed_steps(step: Callable[[str], Any], actions: list[str]) -> tuple[float, list[Any]]:
    began = time.process_time()
    seen = [step(action) for action in actions]
    return time.process_time() - began, seen


def _official(game: Any, actions: list[str]) -> tuple[float, float, list[tuple[str, list[str], bool]]]:
    """CPU seconds of loading and of stepping in ALFWorld's own engine, and (text, admissible, won) of each step."""
    import textworld
    import textworld.gym
    from alfworld.agents.environment.alfred_tw_env import AlfredDemangler

    from turnwise.envs.household.export import export_game

    wanted = textworld.EnvInfos(won=True, admissible_commands=True)
    with tempfile.TemporaryDirectory() as folder:
        path = export_game(game, folder)
        began = time.process_time()
        name = textworld.gym.register_games([str(path)], wanted, wrappers=[AlfredDemangler()])
        engine = textworld.gym.make(name)
        engine.reset()
        load_s = time.process_time() - began
        step_s, seen = _timed_steps(engine.step, actions)
        engine.close()
    return load_s, step_s, [(text, sorted(set(i["admissible_commands"])), i["won"]) for text, _, _, i in seen]
