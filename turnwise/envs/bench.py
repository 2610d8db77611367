"""How fast an environment is: random actions through ``gymnasium.make``."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Any

import gymnasium

from turnwise.envs.interface import HasTasks


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
    world = env.unwrapped
    if not isinstance(world, HasTasks):
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
