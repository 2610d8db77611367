"""Grading an episode: what functions and a judge give is paid on its last turn, beside the world's own rewards."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from turnwise.agents.worldwork import Order, WorldThreads
from turnwise.errors import AgentError, with_place
from turnwise.grading.functions import EventLoop, RewardFunction
from turnwise.grading.judge import Judge
from turnwise.grading.settings import GradingConfig
from turnwise.grading.spending import Spending
from turnwise.grading.verdicts import Verdicts
from turnwise.trajectory import Grade, Grading, Trajectory


class Grader:
    """Functions and a judge, and the ``threads`` in which they work. Close it.

    ``verdicts`` is the file of the judge's verdicts. Raises ValueError for a function that cannot be used, and for a
    key that cannot be sent.
    """

    def __init__(self, config: GradingConfig, verdicts: Path | None = None, order: Order = "fixed") -> None:
        self.config = config
        self.functions = [(RewardFunction(name, config.timeout_s), weight) for name, weight in config.functions.items()]
        self.judge = None if config.judge is None else Judge(config.judge, Verdicts(verdicts))
        self.threads = WorldThreads(config.threads, order, daemon=True)
        self._lock = threading.Lock()
        self._loop: EventLoop | None = None
        self.spending = None if self.judge is None else Spending(self.judge.verdicts, self.judge.client)

    def check(self, told: Callable[[], Mapping[str, Any]]) -> None:
        """Raise ValueError where a task lacks what the rubric names; ``told`` gives one, where that is needed."""
        if self.judge is not None and self.judge.config.rubric.fields:
            self.judge.config.rubric.check(told())

    def grade(self, episode: Trajectory) -> Trajectory:
        """The episode with what it is paid. One that failed or was only looked at stays as it is.

        Of one without a turn the world's part is weighed as of the others.
        Where a function raises, or the judge gives no verdict, the episode ends as an error. Raises AgentError where no
        episode can be graded.
        """
        if episode.end == "error" or episode.only_looked_at:
            return episode
        if not episode.turns:
            return episode.weighed(self.config.world)
        try:
            return self._paid(episode, episode.told())
        except AgentError:
            raise
        except Exception as error:  # whatever a function of the user's raises
            reason = f"{type(error).__name__}: {error}"
            return replace(episode, end="error", end_reason=reason[:300], success=None, score=None)

    def _paid(self, episode: Trajectory, task: Mapping[str, Any]) -> Trajectory:
        grades, judge, verdict = [], "", None
        for function, weight in self.functions:
            try:
                grades.append(Grade(function.name, function(episode, task, self._event_loop), weight))
            except AgentError:
                raise
            except (Exception, SystemExit) as error:  # whatever a function of the user's raises, also where it leaves
                raise RuntimeError(f"{function.name} raised {with_place(error)}") from error
        if self.judge is not None:
            judge = self.judge.name
            judged, verdict = self.judge.grades(episode, task)
            grades += judged
        world = tuple(turn.reward for turn in episode.turns)
        earned = [self.config.world * reward for reward in world]
        earned[-1] += math.fsum(grade.weight * grade.value for grade in grades)
        success, threshold = episode.success, self.config.success_threshold
        if success is None and threshold is not None:
            success = math.fsum(earned) >= threshold
        return replace(
            episode,
            turns=tuple(replace(turn, reward=r) for turn, r in zip(episode.turns, earned, strict=True)),
            success=success,
            grading=Grading(world, episode.success, tuple(grades), judge, verdict),
        )

    def _event_loop(self) -> EventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = EventLoop()
            return self._loop

    def take_spent(self) -> dict[str, float]:
        """What the judge was asked since the last call: verdicts that were given and found, requests, tokens, cost.

        The cost is in the currency of the prices, and left out without prices. {} without a judge.
        """
        return {} if self.spending is None else self.spending.take()

    def close(self) -> None:
        """End the judge's requests and the threads; one that waits for an answer is left to itself."""
        if self.judge is not None:
            self.judge.client.close()
        self.threads.close()
        if self._loop is not None:
            self._loop.close()


def grader_of(config: GradingConfig, verdicts: Path | None = None, order: Order = "fixed") -> Grader | None:
    """The grader that a configuration asks for; None where the world alone pays. Raises as ``Grader`` does."""
    return Grader(config, verdicts, order) if config.grades else None
