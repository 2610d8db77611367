"""What the episodes of a run are played with: the environments, the agents and their engines, in this process.

``Collector`` holds them, and counts. What runs on them is ``Rollouts`` (rollouts.py).
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Sequence

from turnwise.agents.episode import SuccessRule
from turnwise.agents.jobs import Job
from turnwise.agents.playing import Grader, OnEpisode, play_all
from turnwise.agents.rollouts import Rollouts
from turnwise.agents.seating import ModelAgent, Seating, TextEnv
from turnwise.agents.worldwork import WorldThreads
from turnwise.clock import Clock
from turnwise.envs.interface import HasPlayers, capability
from turnwise.envs.tasks import close
from turnwise.models.engine import Engine, Sampling
from turnwise.trajectory import Trajectory


class Collector:
    """Plays jobs with the agents that ``agents`` names: one model, or a ``Seating``.

    Environments are made by ``make_env`` when they are needed, one for each episode that runs, and used again. ``seed``
    is the run's; with task, sample, key and turn it decides every draw. ``failures`` counts the failures of
    environments, including those after which a retry succeeded. ``threads`` run the environments (and the agents
    without a model); by default that is the calling thread. ``grader`` pays episodes beside their world.
    """

    def __init__(
        self,
        make_env: Callable[[], TextEnv],
        agents: ModelAgent | Seating,
        *,
        seed: int = 0,
        success: SuccessRule | None = None,
        threads: WorldThreads | None = None,
        grader: Grader | None = None,
    ) -> None:
        self.make_env, self.grader = make_env, grader
        self.threads = threads or WorldThreads()
        self.seating = agents if isinstance(agents, Seating) else Seating({"": agents})
        self.seed, self.success = seed, success or SuccessRule()
        self.engines: list[Engine] = list({id(m.engine): m.engine for m in self.seating.models}.values())
        self.failures = 0
        self._ignored = 0
        self.clock = Clock()
        self._idle: list[TextEnv] = []
        self._num_players = 0

    def collect(self, jobs: Sequence[Job], sampling: Sampling, on_episode: OnEpisode | None = None) -> list[Trajectory]:
        """As ``Playing.collect``."""
        return play_all(jobs, self.rollouts(sampling, 0, on_episode))

    def rollouts(self, sampling: Sampling, key: int, on_episode: OnEpisode | None = None) -> Rollouts:
        """As ``Playing.rollouts``."""
        return Rollouts(self, sampling, key, on_episode)

    def numbers(self) -> dict[str, float]:
        """As ``Playing.numbers``: the wishes of requests that were not followed, and what decoding did for learners."""
        taken, self._ignored = self._ignored, 0
        found = Counter[str]({"gateway/ignored_sampling": taken} if taken else {})
        for agent in self.seating.learners.values():
            if isinstance(agent, ModelAgent):
                found.update({f"decoding/{name}": count for name, count in agent.guides.acted.take().items()})
        return dict(found)

    def count_ignored(self, wishes: Sequence[str]) -> None:
        """Wishes of a request (``info["ignored"]``) that are not followed."""
        self._ignored += len(wishes)

    def take_env(self) -> TextEnv:
        """An environment in which no episode runs, made where there is none."""
        return self._idle.pop() if self._idle else self.make_env()

    def return_env(self, env: TextEnv) -> None:
        """Keep an environment for the next episode."""
        self._idle.append(env)

    def discard_env(self, env: TextEnv | None) -> None:
        """Count a failure, and close the environment that raised (None: it could not even be made)."""
        self.failures += 1
        if env is None:
            return
        with contextlib.suppress(Exception, SystemExit):
            env.close()

    def close(self) -> None:
        """Close the threads, the grader and all idle environments. One that cannot be closed is logged."""
        if self.grader is not None:
            self.grader.close()
        self.threads.close()
        while self._idle:
            close(self._idle.pop())

    def has_free_slots(self) -> bool:
        """Whether every engine has a free slot for each player.

        Raises ValueError where an engine has fewer slots than the game has players.
        """
        if not self._num_players:
            self._idle.append(self.make_env())
            game = capability(self._idle[-1], HasPlayers)
            self._num_players = len(game.players) if game else 1
        if any(engine.num_slots < self._num_players for engine in self.engines):
            slots = min(engine.num_slots for engine in self.engines)
            raise ValueError(
                f"a game of {self._num_players} players needs as many slots, and an engine has {slots}: set "
                f"rollout.num_slots={self._num_players} or more"
            )
        return all(engine.num_free >= self._num_players for engine in self.engines)
