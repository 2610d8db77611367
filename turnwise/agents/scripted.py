"""Agents without a model: random, expert, and a person at the terminal. They play through the same trajectories."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import gymnasium
import numpy as np

from turnwise.agents.collector import SuccessRule, mix
from turnwise.envs.interface import Expert, HasExpert, Info, capability
from turnwise.envs.tasks import start
from turnwise.trajectory import Task, Trajectory, Turn

TextEnv = gymnasium.Env[str, str]

_NO_IDS = np.zeros(0, np.int32)
_NO_FLOATS = np.zeros(0, np.float32)


class Agent(Protocol):
    """Chooses an action for each observation of one episode."""

    def begin(self, observation: str, info: Info) -> None: ...
    def act(self, observation: str, info: Info) -> str: ...


class RandomAgent:
    """Uniform over the admissible actions. Raises ValueError where a world does not list them."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def begin(self, observation: str, info: Info) -> None:
        pass

    def act(self, observation: str, info: Info) -> str:
        actions = info.get("admissible_actions")
        if not actions:
            raise ValueError("a random agent needs info['admissible_actions'], which this environment lacks")
        return str(actions[int(self._rng.integers(len(actions)))])


class HumanAgent:
    """Asks a person; ``ask`` shows the observation and returns what was typed."""

    def __init__(self, ask: Callable[[str, Info], str]) -> None:
        self._ask = ask

    def begin(self, observation: str, info: Info) -> None:
        pass

    def act(self, observation: str, info: Info) -> str:
        return self._ask(observation, info)


def expert_of(env: TextEnv, kind: str, seed: int) -> Expert:
    """The world's own expert. Raises ValueError, saying what is missing, where it has none."""
    world = capability(env, HasExpert)
    if world is None:
        name = env.spec.id if env.spec else type(env.unwrapped).__name__
        raise ValueError(
            f"{name} has no expert: demonstrations need an `expert(kind, seed=)` method on the environment "
            "(turnwise.envs.interface.HasExpert)"
        )
    return world.expert(kind, seed=seed)


def play_episode(
    env: TextEnv,
    agent: Agent,
    task: Task,
    *,
    sample: int = 0,
    key: int = 0,
    success: SuccessRule | None = None,
    limit: int = 10_000,
    on_observation: Callable[[str], None] | None = None,
) -> Trajectory:
    """One episode of a scripted agent: a trajectory whose turns hold text and no tokens.

    ``on_observation`` hears what follows each action, the last one's too. After ``limit`` turns the episode is cut.
    """
    seed = mix("env", 0, task.key, key) >> 33
    observation, info = start(env, task, seed)
    agent.begin(observation, info)
    turns: list[Turn] = []
    terminated = truncated = False
    while not (terminated or truncated) and len(turns) < limit:
        action = agent.act(observation, info)
        following, reward, terminated, truncated, info = env.step(action)
        valid = bool(info.get("valid", True))
        turns.append(
            Turn(
                observation,
                _NO_IDS,
                True,
                _NO_IDS,
                _NO_FLOATS,
                _NO_FLOATS,
                action,
                action,
                valid,
                float(reward),
            )
        )
        observation = following
        if on_observation is not None:
            on_observation(following)
    total = sum(turn.reward for turn in turns)
    return Trajectory(
        episode=f"{task.split}-{task.index}-{key}-{sample}",
        task=task,
        seed=seed,
        sample=sample,
        turns=tuple(turns),
        end="terminated" if terminated else "truncated",
        success=(success or SuccessRule()).judge(info, total),
        score=float(info["score"]) if "score" in info else None,
        end_reason="" if terminated else "turns",
    )
