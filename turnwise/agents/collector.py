"""Playing episodes with engines: many at once, each at its own pace, recorded token by token.

``Collector`` owns the worlds; ``Rollouts`` is one act of collecting, whose events a planner can react to. What an
episode does depends on seed, task, sample and key alone: not on its neighbours, the number of slots or time (beyond
the rounding of batched arithmetic).
"""

from __future__ import annotations

import contextlib
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from turnwise.agents.actions import parse_action
from turnwise.agents.episode import CutShortError, Episode, Job, ModelAgent, Point, Seat, Seating, SuccessRule, TextEnv
from turnwise.agents.worldwork import Failure, WorldThreads, WorldWork
from turnwise.clock import Clock
from turnwise.envs.interface import HasPlayers, capability
from turnwise.envs.tasks import close
from turnwise.errors import AgentError
from turnwise.models.drawing import LogitsError
from turnwise.models.engine import Engine, Reply, Sampling
from turnwise.seeds import mix
from turnwise.trajectory import End, Fork, RolloutFinished, Task, Trajectory, TurnFinished

OnEpisode = Callable[[Trajectory], None]


class Collector:
    """Environments (made on demand, one for each episode in play, reused), and who plays in them.

    ``seed`` is the run's: with task, sample, key and turn it decides every draw. ``failures`` counts the faults of
    environments, those that a retry made good included. ``threads`` are where environments (and scripted players) do
    their work, by default this one.
    """

    def __init__(
        self,
        make_env: Callable[[], TextEnv],
        players: ModelAgent | Seating,
        *,
        seed: int = 0,
        success: SuccessRule | None = None,
        threads: WorldThreads | None = None,
    ) -> None:
        self.make_env = make_env
        self.threads = threads or WorldThreads()
        self.seating = players if isinstance(players, Seating) else Seating({"": players})
        self.seed, self.success = seed, success or SuccessRule()
        self.engines: list[Engine] = list({id(m.engine): m.engine for m in self.seating.models}.values())
        self.failures = 0
        self.clock = Clock()
        self._idle: list[TextEnv] = []
        self._num_players = 0

    def collect(self, jobs: Sequence[Job], sampling: Sampling, on_episode: OnEpisode | None = None) -> list[Trajectory]:
        """Play every job; trajectories in the order of ``jobs`` (and of the seats of a game).

        ``on_episode`` hears each as it ends.
        """
        rollouts = Rollouts(self, sampling, on_episode=on_episode)
        order = [rollouts.add(job) for job in jobs]
        finished: dict[int, list[Trajectory]] = defaultdict(list)
        for event in rollouts.events():
            if isinstance(event, RolloutFinished):
                finished[event.rollout].append(event.trajectory)
        return [trajectory for rollout in order for trajectory in finished[rollout]]

    def take(self) -> TextEnv:
        """An environment nobody plays in."""
        return self._idle.pop() if self._idle else self.make_env()

    def give_back(self, env: TextEnv) -> None:
        self._idle.append(env)

    def discard(self, env: TextEnv | None) -> None:
        """A world that raised is not used again."""
        self.failures += 1
        if env is None:
            return
        with contextlib.suppress(Exception, SystemExit):
            env.close()

    def close(self) -> None:
        """Close the threads and the idle environments, all of them: one that cannot be closed is logged."""
        self.threads.close()
        while self._idle:
            close(self._idle.pop())

    def has_room(self) -> bool:
        """Whether every engine has a slot for each player. Raises ValueError where it never can."""
        if not self._num_players:
            self._idle.append(self.make_env())
            game = capability(self._idle[-1], HasPlayers)
            self._num_players = len(game.players) if game else 1
        if any(engine.num_slots < self._num_players for engine in self.engines):
            raise ValueError(f"a game of {self._num_players} players needs as many slots: raise rollout.num_slots")
        return all(engine.num_free >= self._num_players for engine in self.engines)


@dataclass(slots=True)
class _Rollout:
    """An episode and where it stands; a fork leaves its ``parent`` at a point."""

    job: Job
    number: int
    parent: _Rollout | None = None
    point: Point | None = None
    fork: Fork | None = None
    attempts: int = 0
    env: TextEnv | None = None
    seats: Sequence[Seat] = ()
    episode: Episode | None = None


@dataclass(frozen=True, slots=True)
class _Move:
    """What a rollout's world was asked for: its beginning, or an answer to the ``reply`` of a ``seat``."""

    rollout: _Rollout
    reply: Reply | None = None
    seat: Seat | None = None


class Rollouts:
    """Running episodes, steered by a planner (turnwise.learning.planning.Rollouts).

    An environment that raises is replaced and its episode retried once with the same seed; a second failure is
    recorded as a trajectory that ended in ``error``, never as a reward of 0. ``on_episode`` hears each that ends. A
    game of several players ends with an event for each recorded seat.
    """

    def __init__(
        self, collector: Collector, sampling: Sampling, key: int = 0, on_episode: OnEpisode | None = None
    ) -> None:
        self._c, self._sampling, self._key, self._on_episode = collector, sampling, key, on_episode
        self._all: list[_Rollout] = []
        self._waiting: deque[_Rollout] = deque()
        self._open: dict[int, _Rollout] = {}
        self._playing: dict[tuple[int, int], _Rollout] = {}  # (engine, slot) that a reply is awaited from
        self._work: WorldWork[_Move] = WorldWork(collector.threads, collector.clock)
        self._stopped: set[int] = set()

    def start(self, task: Task, sample: int) -> int:
        """Queue attempt number ``sample`` at a task."""
        return self.add(Job(task, sample, self._key, task.index))

    def add(self, job: Job) -> int:
        return self._queue(_Rollout(job, len(self._all)))

    def fork(self, rollout: int, turn: int) -> int:
        """Queue a copy of a rollout as it stood after ``turn`` turns; its sample number is its own number.

        The copy goes on in an environment restored from a snapshot where the world offers them and this is the
        rollout's present turn. Elsewhere it takes the same actions again and compares every observation, which works
        in any world that repeats itself; a difference fails the copy as an error of the environment would. Cached
        keys and values are shared as long as the parent runs. Raises ValueError for a turn that was not played, after
        the end, and in games of several players.
        """
        parent = self._all[rollout]
        self._work.wait_for(lambda move: move.rollout is parent)
        if parent.episode is None:
            raise ValueError(f"rollout {rollout} is not running yet: it cannot be forked")
        point = parent.episode.point(turn)
        job = replace(parent.job, sample=len(self._all))
        fork = Fork(parent.job.episode, turn)
        return self._queue(_Rollout(job, len(self._all), parent, point, fork))

    def stop(self, rollout: int) -> None:
        """Abandon a rollout; it gives no trajectory."""
        self._stopped.add(rollout)

    def _queue(self, rollout: _Rollout) -> int:
        self._all.append(rollout)
        self._waiting.append(rollout)
        return rollout.number

    def events(self) -> Iterator[TurnFinished | RolloutFinished]:
        """Run until nothing is queued or running; what is started meanwhile joins."""
        try:
            while self._waiting or self._playing or len(self._work):
                while self._waiting and self._c.has_room():
                    self._admit(self._waiting.popleft())
                    yield from self._settled()
                yield from self._settled()
                for number in range(len(self._c.engines)):
                    for reply in self._replies(number):
                        self._advance(self._playing.pop((number, reply.slot)), reply)
                        yield from self._settled()
        finally:  # also where the planner walks away or fails
            self._work.finish()
            for rollout in list(self._open.values()):
                self._release(rollout)
            self._playing.clear()

    def _replies(self, number: int) -> list[Reply]:
        """What an engine finishes in a step. Raises AgentError that names model, episode and turn of unsound logits."""
        try:
            return self._c.engines[number].step()
        except LogitsError as error:
            rollout = self._playing[number, error.slot]
            assert rollout.episode is not None
            seat = rollout.episode.to_move
            assert seat.model is not None
            who = f"{seat.model.name or 'the policy'} (update {seat.model.version})"
            where = f"episode {rollout.job.episode}, turn {len(seat.turns) + 1}"
            raise AgentError(f"{who} cannot go on in {where}: {error}") from None

    def _settled(self) -> Iterator[TurnFinished | RolloutFinished]:
        """Go on with the rollouts whose worlds have answered."""
        for move, error in self._work.admitted(lambda: len(self._playing)):
            yield from self._heard(self._answered(move, error))

    def _heard(self, events: Iterator[TurnFinished | RolloutFinished]) -> Iterator[TurnFinished | RolloutFinished]:
        for event in events:
            if self._on_episode is not None and isinstance(event, RolloutFinished):
                self._on_episode(event.trajectory)
            yield event

    def _admit(self, rollout: _Rollout) -> None:
        """Give every model a slot, and have a world reset and played to the first reply that is needed."""
        if rollout.number in self._stopped:
            return
        env = None
        try:
            env = self._c.take()
            seats = self._c.seating.seats(env, rollout.job, self._c.seed)
        except AgentError:
            if env is not None:
                self._c.give_back(env)
            raise
        except (Exception, SystemExit) as error:  # whatever a third party's world raises, also where it would leave
            self._c.discard(env)
            self._work.begin(_Move(rollout), partial(_raise, error))
            return
        for seat in seats:
            if seat.model is not None:
                seat.slot = self._slot(rollout, seat.model.engine)
        self._open[rollout.number] = rollout
        rollout.env, rollout.seats = env, seats

        def begin() -> None:
            if rollout.point is None:
                rollout.episode = Episode(env, rollout.job, self._c.seed, seats)
            else:
                rollout.episode = Episode.at(rollout.point, env, rollout.job, self._c.seed, seats[0])
            rollout.episode.act_while_scripted()

        self._work.begin(_Move(rollout), begin)

    def _slot(self, rollout: _Rollout, engine: Engine) -> int:
        """A fresh slot; a fork's starts as a copy of its parent's, where that is still open."""
        parent = rollout.parent
        if parent is None or parent.number not in self._open or parent.episode is None:
            return engine.open()
        return engine.fork(parent.episode.to_move.slot)

    def _answered(self, move: _Move, error: Failure | None) -> Iterator[TurnFinished | RolloutFinished]:
        """A world has answered: report the turn, then ask a model for the next, or end the episode."""
        rollout, seat = move.rollout, move.seat
        if isinstance(error, AgentError):
            raise error
        if error is not None and not isinstance(error, CutShortError):
            yield from self._broken(rollout, error)
            return
        episode = rollout.episode
        assert episode is not None
        self._c.clock.add("environment", 0.0 if self._c.threads.beside else episode.taken_s(), int(seat is not None))
        if seat is not None and move.reply is not None:
            yield TurnFinished(rollout.number, len(seat.turns) - 1, move.reply.entropies)
            if rollout.number in self._stopped:
                self._release(rollout)
                return
        if isinstance(error, CutShortError):
            yield from self._finish(rollout, "truncated", error.reason)
        elif episode.end is not None:
            yield from self._finish(rollout, episode.end, "turns" if episode.end == "truncated" else "")
        else:
            yield from self._ask(rollout, episode.to_move, episode)

    def _ask(self, rollout: _Rollout, seat: Seat, episode: Episode) -> Iterator[RolloutFinished]:
        """Submit the prompt, or end the episode where the context is full or the turns are used up."""
        assert seat.model is not None
        assert seat.context is not None
        engine, config, job = seat.model.engine, seat.model.config, rollout.job
        if len(seat.turns) >= config.max_turns:
            yield from self._finish(rollout, "truncated", "max_turns")
            return
        limit = min(config.max_context_tokens, engine.max_length) - self._sampling.max_tokens
        fresh, ids = not seat.continues, seat.prompt
        if seat.continues and rollout.point is not None and len(seat.turns) == len(rollout.point.turns):
            fresh, ids = True, seat.context_ids()  # a fork's first reply: its slot holds what it shares at most
        if len(ids) + (0 if fresh else engine.length(seat.slot)) > limit and config.on_overflow == "restart":
            seat.prompt = ids = seat.context.restart()
            seat.continues, fresh = False, True
        if len(ids) + (0 if fresh else engine.length(seat.slot)) > limit:
            yield from self._finish(rollout, "truncated", "context")
            return
        place = (job.task.key, job.key, job.sample, len(seat.turns), *([seat.player] if seat.player else []))
        key = mix("reply", self._c.seed, *place)
        engine.submit(seat.slot, ids, fresh=fresh, key=key, sampling=self._sampling)
        self._playing[self._c.engines.index(engine), seat.slot] = rollout

    def _advance(self, rollout: _Rollout, reply: Reply) -> None:
        """Have a world act on a reply."""
        if rollout.number in self._stopped:
            self._release(rollout)
            return
        episode = rollout.episode
        assert episode is not None
        seat = episode.to_move
        assert seat.model is not None
        text = seat.model.chat.decode(reply.ids)
        parsed = parse_action(text, seat.model.config.action_format)

        def act() -> None:
            episode.step(parsed.text, reply, text, parsed.valid)
            episode.act_while_scripted()

        self._work.begin(_Move(rollout, reply, seat), act)

    def _broken(self, rollout: _Rollout, error: Failure) -> Iterator[RolloutFinished]:
        """An environment failed, at the beginning or in the middle of an episode."""
        if rollout.number in self._open:
            self._close(rollout)
            self._c.discard(rollout.env)
        yield from self._failed(rollout, error)

    def _failed(self, rollout: _Rollout, error: Failure) -> Iterator[RolloutFinished]:
        """Retry once, in a fresh environment; then record the failure."""
        rollout.attempts += 1
        if rollout.attempts == 1:
            self._waiting.appendleft(rollout)
            return
        reason = f"{type(error).__name__}: {error}"[:200]
        if rollout.episode is not None:
            yield from self._record(rollout, "error", reason)
            return
        job = rollout.job  # it never began: there is no seat to tell of
        nothing = Trajectory(
            job.episode, job.task, job.env_seed(self._c.seed), job.sample, (), "error", None, None, reason
        )
        yield RolloutFinished(rollout.number, replace(nothing, fork=rollout.fork))

    def _finish(self, rollout: _Rollout, end: End, reason: str) -> Iterator[RolloutFinished]:
        self._release(rollout)
        yield from self._record(rollout, end, reason)

    def _record(self, rollout: _Rollout, end: End, reason: str) -> Iterator[RolloutFinished]:
        assert rollout.episode is not None
        for trajectory in rollout.episode.trajectories(end, reason, self._c.success, rollout.fork):
            yield RolloutFinished(rollout.number, trajectory)

    def _close(self, rollout: _Rollout) -> None:
        del self._open[rollout.number]
        for seat in rollout.seats:
            if seat.model is not None:
                seat.model.engine.close(seat.slot)

    def _release(self, rollout: _Rollout) -> None:
        self._close(rollout)
        assert rollout.env is not None
        self._c.give_back(rollout.env)


def _raise(error: Failure) -> None:
    raise error
