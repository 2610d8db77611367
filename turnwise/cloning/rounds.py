"""Rounds of takeovers: the learner plays, the expert takes over, and what the expert did is learned.

The episodes of a round, the learner's own and those that were taken over, are kept in a trajectory file, under the
number of the round. A warm start that was interrupted in a round reads them there.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from turnwise.agents.collector import Collector
from turnwise.agents.episode import SuccessRule
from turnwise.agents.jobs import Job
from turnwise.agents.seating import ModelAgent, Seating, TextEnv
from turnwise.cloning.losses import CloningRow
from turnwise.cloning.rows import Rows, repeated
from turnwise.cloning.settings import TakeoversConfig, WarmstartConfig
from turnwise.cloning.takeovers import Taker, is_won
from turnwise.envs.interface import world_name
from turnwise.envs.tasks import demonstrated
from turnwise.models.engine import Sampling
from turnwise.replay.store import TrajectoryReader, TrajectoryWriter, truncate_after
from turnwise.seeds import mix
from turnwise.trajectory import Trajectory, successes

Learner = Callable[[Any, Any], ModelAgent]

_ATTEMPTS = 4
"""Takeovers of one episode, at most: the rest of its turns would show the same again and again."""

_ENOUGH = 30
"""Takeovers without a win that are no chance: an expert that wins one of ten loses so many in a row in 4 % of cases."""

_KEY = 1 << 43
"""Keys that the learner's replies are drawn with count from here, apart from those of updates and measurements."""


@dataclass(frozen=True, slots=True)
class Ground:
    """A world whose expert is cloned, with what makes more environments of it.

    ``share`` of the demonstrations are of it, and of the episodes of a round.
    """

    world: TextEnv
    make_env: Callable[[], TextEnv]
    share: float = 1.0


def shared_out(num: int, grounds: Sequence[Ground]) -> list[int]:
    """How many of ``num`` episodes are of each ground. The first has what the others leave.

    Raises ValueError for a ground without any.
    """
    others = [round(ground.share * num) for ground in grounds[1:]]
    shares = [num - sum(others), *others]
    for ground, found in zip(grounds, shares, strict=True):
        if not found:
            raise ValueError(
                f"a share of {ground.share:g} of {num} episodes is none of {world_name(ground.world)}: raise "
                "warmstart.takeovers.episodes or warmstart.tokenizer_episodes, or choose another warmstart.own_share"
            )
    return shares


@dataclass(frozen=True, slots=True)
class RoundScore:
    """How the plays of a round went. ``number`` counts from 1 to ``of``.

    Of two worlds it is the run's own. ``success`` is the share of its ``episodes`` that the learner won; None where its
    world does not say what that is.
    ``won`` is the share of the takeovers that the expert won.
    """

    number: int
    of: int
    episodes: int
    success: float | None
    mean_return: float
    won: float


@dataclass(frozen=True, slots=True)
class Round:
    """How the plays of a round went, and the rows that are learned in it, without end."""

    score: RoundScore
    rows: Rows


class Rounds:
    """The rounds of one warm start, on one ground or several, the run's own last, whose shares add up to 1.

    ``learner`` makes the agent that plays of a model and its tokenizer, ``rows_of`` rows of a takeover in a world.
    ``seed`` is the run's, and ``path`` is the file of the episodes.
    """

    def __init__(
        self,
        grounds: Sequence[Ground],
        learner: Learner,
        config: WarmstartConfig,
        seed: int,
        rule: SuccessRule,
        rows_of: Callable[[Trajectory, TextEnv], list[CloningRow]],
        path: Path,
    ) -> None:
        assert config.takeovers is not None
        self.settings: TakeoversConfig = config.takeovers
        self.path = path
        self._grounds, self._learner, self._config, self._rows_of = grounds, learner, config, rows_of
        self._seed, self._rule = seed, rule
        self._nums = shared_out(self.settings.episodes, grounds)
        self._tasks = [demonstrated(ground.world, config.split) for ground in grounds]

    def keep(self, number: int) -> bool:
        """Keep the episodes of the rounds up to ``number`` and drop later ones. Returns whether all of them are there.

        Damage to the file counts as their absence.
        """
        if not number or not self.path.exists():
            self.path.unlink(missing_ok=True)
            return not number
        try:
            truncate_after(self.path, number)
            return [flush.update for flush in TrajectoryReader(self.path).flushes()] == list(range(1, number + 1))
        except (OSError, ValueError):
            return False

    def play(self, number: int, model: Any, tokenizer: Any) -> None:
        """Play a round with the model as it is now, have the expert take over, and keep the episodes.

        Raises ValueError where an expert cannot take over in this world, or never wins from where the learner gets.
        """
        agent = self._learner(model, tokenizer)
        played, taken = list[Trajectory](), list[Trajectory]()
        for place, ground in enumerate(self._grounds):
            found = self._play(number, agent, place, ground)
            played += found[0]
            taken += found[1]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        TrajectoryWriter(self.path).append(number, [*played, *taken])

    def _play(
        self, number: int, agent: ModelAgent, place: int, ground: Ground
    ) -> tuple[list[Trajectory], list[Trajectory]]:
        """The episodes of a round that are played on one ground, and what the expert made of them."""
        jobs = self._jobs(number, place)
        sampling = Sampling(temperature=1.0, max_tokens=agent.config.max_reply_tokens)
        collector = Collector(ground.make_env, Seating({"": agent}), seed=self._seed, success=self._rule)
        with closing(collector):
            played = collector.collect(jobs, sampling)
        taker = Taker(ground.world, agent, self._config, self._seed, self._rule)
        taken: list[Trajectory] = []
        for at, job, plays, attempt in self._to_take_over(jobs, played):
            again = (attempt,) if attempt > 1 else ()
            drawn = np.random.default_rng(mix("cut", self._seed, number, at, *again, *self._mark(place)))
            taken += taker.take_over(job, plays, drawn, attempt)
        self._check_won(number, place, taken)
        return played, taken

    def _check_won(self, number: int, place: int, taken: Sequence[Trajectory]) -> None:
        """Warn where the expert won none of what it took over on a ground in this round.

        Raises ValueError where there was nothing to take over, and where so many of all rounds so far were lost, and
        none won, that it is no chance.
        """
        if any(map(is_won, taken)):
            return
        world, expert = world_name(self._grounds[place].world), f"the {self._config.expert} expert"
        if not taken:
            raise ValueError(
                f"{expert} of {world} could take over no episode of round {number}: each of the {self._nums[place]} "
                f"failed in its world, or has no turn. `turnwise check-env {world}` may show why"
            )
        before = self._taken_before(number, place) if number > 1 else []
        tried = len(before) + len(taken)
        if tried >= _ENOUGH and not any(map(is_won, before)):
            raise ValueError(
                f"{expert} of {world} won none of the {tried} episodes that it took over up to round {number}: it "
                "cannot go on from where a learner gets. Leave takeovers out: warmstart.takeovers=null"
            )
        warnings.warn(
            f"{expert} of {world} won none of the {len(taken)} episodes that it took over in round {number}, which is "
            "learned without them: with few episodes this can be chance (warmstart.takeovers.episodes)",
            stacklevel=2,
        )

    def _taken_before(self, number: int, place: int) -> list[Trajectory]:
        """What the expert took over on a ground in the rounds before."""
        flushes = TrajectoryReader(self.path).flushes(range(1, number))
        every = (episode for flush in flushes for episode in flush.trajectories if episode.fork is not None)
        return [episode for episode in every if self._place_of(episode) == place]

    def _mark(self, place: int) -> tuple[str, ...]:
        """What keeps the draws on a second ground apart from those on the first."""
        return (f"ground {place}",) if place else ()

    def _to_take_over(
        self, jobs: Sequence[Job], played: Sequence[Trajectory]
    ) -> Iterator[tuple[int, Job, list[Trajectory], int]]:
        """(place, job, plays, attempt): every episode that has a turn once, and lost ones again for ``lost_share``."""
        found = [
            (place, job, plays)
            for place, (job, plays) in enumerate(zip(jobs, _by_episode(played), strict=True))
            if plays[0].end != "error" and any(play.turns for play in plays)
        ]
        lost = [each for each in found if not any(map(is_won, each[2]))]
        share = self.settings.lost_share
        wanted = math.ceil((share * len(found) - len(lost)) / (1 - share) - 1e-9)
        more = min(wanted, (_ATTEMPTS - 1) * len(lost))
        yield from ((*each, 1) for each in found)
        yield from ((*lost[n % len(lost)], 2 + n // len(lost)) for n in range(more))

    def round(self, number: int, demonstrations: Rows) -> Round:
        """A round that was played; ``demonstrations`` are those that its takeovers are mixed with.

        They are all that is learned where no takeover was won. Raises ValueError where none that was won fits into the
        context.
        """
        flush = next(TrajectoryReader(self.path).flushes(range(number, number + 1)))
        taken = [episode for episode in flush.trajectories if episode.fork is not None]
        played = [
            episode
            for episode in flush.trajectories
            if episode.fork is None and episode.end != "error" and self._place_of(episode) == len(self._grounds) - 1
        ]
        won = [episode for episode in taken if is_won(episode)]
        own = [is_won(episode) for episode in taken if self._place_of(episode) == len(self._grounds) - 1]
        rows = [made for place in range(len(self._grounds)) for made in self._rows(number, place, won)]
        known = [float(told) for told in successes(played) if told is not None]
        score = RoundScore(
            number=number,
            of=self.settings.rounds,
            episodes=len(played),
            success=float(np.mean(known)) if known else None,
            mean_return=float(np.mean([episode.total_reward for episode in played])),
            won=float(np.mean(own)),
        )
        return Round(score, self._mixed(number, rows, demonstrations) if rows else demonstrations)

    def _rows(self, number: int, place: int, won: Sequence[Trajectory]) -> list[list[CloningRow]]:
        """The rows of a ground's takeovers that were won."""
        world = self._grounds[place].world
        found = [episode for episode in won if self._place_of(episode) == place]
        rows = [made for episode in found if (made := self._rows_of(episode, world))]
        if found and not rows:
            raise ValueError(
                f"none of the {len(found)} episodes of {world_name(world)} that the expert took over and won in round "
                f"{number} fits into the context: raise agent.max_context_tokens"
            )
        if len(rows) < len(found):
            warnings.warn(
                f"{len(found) - len(rows)} of the {len(found)} episodes of {world_name(world)} that the expert took "
                f"over and won in round {number} do not fit into the context, and are left out "
                "(agent.max_context_tokens)",
                stacklevel=2,
            )
        return rows

    def _mixed(self, number: int, taken: Sequence[list[CloningRow]], demonstrations: Rows) -> Rows:
        rng = np.random.default_rng(mix("mixed", self._seed, number))
        again = repeated(taken, mix("takeovers", self._seed, number))
        while True:
            yield next(demonstrations if rng.random() < self.settings.demonstration_share else again)

    def _jobs(self, number: int, place: int) -> list[Job]:
        """A ground's episodes of a round. All rounds go through its split's tasks, pass after pass, each in order."""
        tasks, num = self._tasks[place], self._nums[place]
        orders: dict[int, np.ndarray] = {}
        jobs = []
        for passes, at in (divmod(n, len(tasks)) for n in range((number - 1) * num, number * num)):
            if passes not in orders:
                drawn = np.random.default_rng(mix("plays", self._seed, passes, *self._mark(place)))
                orders[passes] = drawn.permutation(len(tasks))
            jobs.append(Job(tasks[int(orders[passes][at])], key=_KEY + passes))
        return jobs

    def _place_of(self, episode: Trajectory) -> int:
        """On which ground an episode was played, by the name that its task gives its world."""
        names = [tasks[0].env for tasks in self._tasks]
        return names.index(episode.task.env) if episode.task.env in names else 0


def _by_episode(trajectories: Sequence[Trajectory]) -> Iterator[list[Trajectory]]:
    """The trajectories of each episode: one for each player."""
    named = groupby(trajectories, lambda each: each.episode.removesuffix(f"-{each.player}" if each.player else ""))
    return (list(found) for _, found in named)
