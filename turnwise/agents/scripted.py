"""Agents without a model: random, expert, and a person at the terminal. Their trajectories have the same form."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from turnwise.agents.episode import Episode, SuccessRule
from turnwise.agents.jobs import Job
from turnwise.agents.seating import CutShortError, Scripted, Seating, TextEnv
from turnwise.envs.interface import Info
from turnwise.envs.tasks import expert_of
from turnwise.trajectory import End, Trajectory


class RandomAgent:
    """Chooses uniformly among the admissible actions. ``act`` raises ValueError where the environment lists none."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def begin(self, observation: str, info: Info) -> None:
        pass

    def act(self, observation: str, info: Info) -> str:
        actions = info.get("admissible_actions")
        if not actions:
            raise ValueError(
                "a random agent needs info['admissible_actions'], a list of strings, which this environment lacks"
            )
        return str(actions[int(self._rng.integers(len(actions)))])


class HumanAgent:
    """A person. ``ask`` shows the observation and returns what was typed."""

    def __init__(self, ask: Callable[[str, Info], str]) -> None:
        self._ask = ask

    def begin(self, observation: str, info: Info) -> None:
        pass

    def act(self, observation: str, info: Info) -> str:
        return self._ask(observation, info)


def scripted(name: str) -> Scripted | None:
    """The agent that ``random``, ``expert`` or ``expert:KIND`` names; None for any other name."""
    if name == "random":
        return Scripted(name, lambda env, seed: RandomAgent(seed))
    kind, _, which = name.partition(":")
    if kind != "expert":
        return None
    return Scripted(name, lambda env, seed: expert_of(env, which or "searching", seed))


def play_episode(
    env: TextEnv,
    seating: Seating,
    job: Job,
    *,
    agent_seed: int = 0,
    success: SuccessRule | None = None,
    limit: int = 10_000,
    on_observation: Callable[[str], None] | None = None,
) -> list[Trajectory]:
    """Play one episode of agents without a model. Returns a trajectory for each recorded seat.

    Their turns hold text and no tokens. ``on_observation`` is called with the observation after each action, including
    the last one. After ``limit`` steps the episode is truncated.
    """
    episode = Episode(env, job, 0, seating.seats(env, job, agent_seed))
    end, reason = play_out(episode, limit=limit, on_observation=on_observation)
    return episode.trajectories(end, reason, success)


def play_out(
    episode: Episode, *, limit: int = 10_000, on_observation: Callable[[str], None] | None = None
) -> tuple[End, str]:
    """Play an episode to its end, or for ``limit`` steps. Returns how it ended, and what truncated it ("": nothing)."""
    try:
        for _ in range(limit):
            if episode.end is not None:
                break
            episode.act()
            if on_observation is not None:
                on_observation(episode.observation)
    except CutShortError as cut:
        return "truncated", cut.reason
    end = episode.end or "truncated"
    return end, "turns" if end == "truncated" else ""
