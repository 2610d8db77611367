"""Episodes that are played by language models, many at once, and recorded token by token.

``Rollouts`` runs episodes and reports events, to which a planner can react by starting, forking or stopping others.
The life of one episode (a rollout) of one player, for example:

1. ``Rollouts.start`` queues it. It is *queued* until every engine has a free slot.
2. It gets a slot and an environment, and the environment is reset. It is *stepping* as long as the environment works.
3. Its prompt is submitted to the engine. It is *generating* until the engine has finished the reply.
4. The action is read from the reply and the environment takes it: the rollout is stepping again. Then ``TurnFinished``
   is reported. Steps 3 and 4 repeat.
5. The environment ends the episode, the context is full, or the turns are used up: the rollout is *finished*. Slot and
   environment become free, and ``RolloutFinished`` is reported with the trajectory.

    state        kept in         waits for                          what happens then
    queued       _queued         a free slot for every player       _begin
    stepping     _stepping       its environment's reset or step    _after_environment
    generating   _generating     its reply                          _act
    grading      _grading        functions and the judge            _graded
    finished     nowhere         nothing

Where a run grades its episodes, a rollout that has ended is *grading* first, without slot and environment. Then
``RolloutEnded`` is reported at once, and ``RolloutFinished`` with the graded trajectory.

A rollout that is stepping or generating is also in ``_running``: it has slots and an environment. When an environment
raises, its rollout is queued once more, with a fresh environment. After a second failure it is finished with the end
"error". A rollout that the planner has stopped leaves at its next change of state, without a trajectory.

What an episode does depends on seed, task, sample and key alone. Other episodes, the number of slots and the time that
anything takes change nothing (beyond the rounding of batched arithmetic).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from turnwise.agents.asking import answer_of, ask, not_followed, prompt_of, usual
from turnwise.agents.episode import Episode, ForkPoint
from turnwise.agents.jobs import Job, Past
from turnwise.agents.playing import Event, OnEpisode
from turnwise.agents.seating import NO_IDS, CutShortError, Seat, TextEnv
from turnwise.agents.worldwork import Failure, WorldWork
from turnwise.errors import AgentError, with_place
from turnwise.models.drawing import LogitsError, Sampling
from turnwise.models.engine import Engine, Reply
from turnwise.trajectory import End, Fork, RolloutEnded, RolloutFinished, Task, Trajectory, TurnFinished

if TYPE_CHECKING:
    from turnwise.agents.collector import Collector


@dataclass(slots=True)
class _Rollout:
    """An episode that is to be played. A fork continues from ``point``, a moment of its ``parent``.

    One that starts in a stored state has a ``point`` without a parent.
    """

    job: Job
    number: int
    parent: _Rollout | None = None
    point: ForkPoint | None = None
    fork: Fork | None = None
    attempts: int = 0
    env: TextEnv | None = None
    seats: Sequence[Seat] = ()
    episode: Episode | None = None


@dataclass(frozen=True, slots=True)
class _EnvCall:
    """What a rollout's environment is doing: a reset, or a step with the action in the ``reply`` of ``seat``."""

    rollout: _Rollout
    reply: Reply | None = None
    seat: Seat | None = None


class Rollouts:
    """Episodes that run, and that a planner steers (turnwise.learning.planning.Rollouts).

    An environment that raises is replaced, and its episode is retried once with the same seed. A second failure gives
    a trajectory whose end is "error", never a reward of 0. ``on_episode`` is called with each trajectory as its episode
    ends. A game of several players ends with one event for each recorded seat.
    """

    def __init__(
        self, collector: Collector, sampling: Sampling, key: int = 0, on_episode: OnEpisode | None = None
    ) -> None:
        self._collector, self._sampling, self._key, self._on_episode = collector, sampling, key, on_episode
        self._all: dict[int, _Rollout] = {}  # by number
        self._count = 0  # of those that were queued, also where they are forgotten
        self._queued: deque[_Rollout] = deque()
        self._running: dict[int, _Rollout] = {}
        self._generating: dict[tuple[int, int], _Rollout] = {}  # by (number of the engine, slot)
        self._stepping: WorldWork[_EnvCall] = WorldWork(collector.threads, collector.clock)
        self._grader = collector.grader
        grading_threads = self._grader.threads if self._grader is not None else collector.threads
        self._grading: WorldWork[tuple[int, list[Trajectory]]] = WorldWork(grading_threads, collector.clock, "grade")
        self._stopped: set[int] = set()

    def start(self, task: Task, sample: int, temperature: float | None = None) -> int:
        """Queue attempt number ``sample`` at a task, at its own ``temperature`` or the run's."""
        return self.add(Job(task, sample, self._key, task.index, temperature=temperature))

    def add(self, job: Job, number: int | None = None) -> int:
        """Queue a job under a new ``number``, by default the count of those before it. Returns the number."""
        rollout = _Rollout(job, self._number(number))
        if job.past is not None:
            rollout.point, rollout.fork = ForkPoint.of(job.past, job.task), job.past.fork
        return self._queue(rollout)

    def resume(self, stored: Trajectory, turn: int, beyond: int = 0) -> int:
        """Queue an attempt that starts as a stored episode stood after ``turn`` turns.

        Its sample number is its own number and ``beyond`` more.
        The environment takes the stored actions again, and every observation is compared: one that differs counts as a
        failure of the environment. Raises ValueError for a game of several players, and for a turn that was not played.
        """
        past, sample = Past.of(stored, turn), self._count + beyond
        return self.add(Job(stored.task, sample, self._key, stored.task.index, past=past))

    def fork(self, rollout: int, turn: int, tokens: int = 0, number: int | None = None) -> int:
        """Queue a copy of a rollout as it was after ``turn`` turns. Its sample number is its own rollout number.

        The copy's next reply begins with the first ``tokens`` of the parent's. They are forced in it.

        Where the environment offers snapshots and ``turn`` is the rollout's present turn, the copy continues from a
        snapshot. Elsewhere it takes the same actions again and compares every observation. An observation that differs
        counts as a failure of the environment. While the parent runs, the copy's slot starts with the parent's cached
        keys and values. Raises ValueError for a turn that was not played, after the end of the parent, where its reply
        has no token after ``tokens``, and in a game of several players.
        """
        parent = self._all.get(rollout)
        if parent is None:
            raise ValueError(f"rollout {rollout} cannot be forked: there is none, or it was forgotten")
        self._stepping.wait_for(lambda call: call.rollout is parent)
        if parent.episode is None:
            raise ValueError(f"rollout {rollout} cannot be forked yet: its environment has not been reset")
        point = parent.episode.fork_point(turn, tokens)
        number = self._number(number)
        fork = Fork(parent.job.episode, turn, tokens=tokens)
        return self._queue(_Rollout(replace(parent.job, sample=number), number, parent, point, fork))

    def stop(self, rollout: int) -> None:
        """Abandon a rollout. It gives no trajectory."""
        self._stopped.add(rollout)

    def has_lost(self, rollout: int) -> bool:
        """Whether turns of a rollout may be gone: its world has failed, or it holds no episode (yet, or any more)."""
        found = self._all[rollout]
        return found.attempts > 0 or found.episode is None

    def forget(self, rollout: int) -> None:
        """Let go of what a finished rollout holds. It cannot be forked any more."""
        self._all.pop(rollout, None)

    def _number(self, given: int | None) -> int:
        return self._count if given is None else given

    def _queue(self, rollout: _Rollout) -> int:
        self._all[rollout.number] = rollout
        self._count += 1
        self._queued.append(rollout)
        return rollout.number

    @property
    def busy(self) -> bool:
        """Whether a rollout is queued or running."""
        return bool(self._queued or self._generating or len(self._stepping) or len(self._grading))

    @property
    def num_at_once(self) -> int:
        """How many of the rollouts that have not ended there are slots for."""
        slots = min((engine.num_slots for engine in self._collector.engines), default=0)
        return min(len(self._queued) + len(self._running), slots)

    def events(self) -> Iterator[Event]:
        """Run until every rollout is finished, and yield the events. Rollouts may be added meanwhile."""
        try:
            while self.busy:
                yield from self.advance()
        finally:  # also where the planner stops asking for events, or raises
            self.abandon()

    def advance(self) -> Iterator[Event]:
        """Begin what there are slots for, do one step of every engine, and yield the events."""
        while self._queued and self._collector.has_free_slots():
            self._begin(self._queued.popleft())
            yield from self._environment_results()
        yield from self._environment_results()
        for number in range(len(self._collector.engines)):
            for reply in self._replies(number):
                self._act(self._generating.pop((number, reply.slot)), reply)
                yield from self._environment_results()

    def abandon(self) -> None:
        """Release whatever runs. It gives no trajectory."""
        self._stepping.finish()
        self._grading.drop()
        for rollout in list(self._running.values()):
            self._release(rollout)
        self._generating.clear()

    def _replies(self, number: int) -> list[Reply]:
        """One step of an engine: the replies that it finished.

        Raises AgentError, which names model, episode and turn, where logits are nan or infinite.
        """
        try:
            return self._collector.engines[number].step()
        except LogitsError as error:
            rollout = self._generating[number, error.slot]
            assert rollout.episode is not None
            seat = rollout.episode.to_move
            assert seat.model is not None
            who = f"{seat.model.name or 'the policy'} (update {seat.model.version})"
            where = f"episode {rollout.job.episode}, turn {len(seat.turns) + 1}"
            raise AgentError(f"{who} cannot continue in {where}: {error}") from None

    def _environment_results(self) -> Iterator[Event]:
        """Continue the rollouts whose environments have finished a reset or a step, and report what happened."""
        for call, error in self._stepping.admitted(self._num_ahead):
            yield from self._reported(self._after_environment(call, error))
        yield from self._reported(self._graded())

    def _reported(self, events: Iterator[Event]) -> Iterator[Event]:
        """The events, after ``on_episode`` was called with each finished trajectory."""
        for event in events:
            if self._on_episode is not None and isinstance(event, RolloutFinished):
                self._on_episode(event.trajectory)
            yield event

    def _begin(self, rollout: _Rollout) -> None:
        """From queued to stepping: give every model a slot, and start the environment's reset."""
        if rollout.number in self._stopped:
            return
        env = None
        try:
            env = self._collector.take_env()
            seats = self._collector.seating.seats(env, rollout.job, self._collector.seed)
        except AgentError:
            if env is not None:
                self._collector.return_env(env)
            raise
        except (Exception, SystemExit) as error:  # whatever a third party's world raises, also where it would leave
            self._collector.discard_env(env)
            self._stepping.begin(_EnvCall(rollout), partial(_raise, error))
            return
        for seat in seats:
            if seat.model is not None:
                seat.slot = self._slot(rollout, seat.model.engine)
        self._running[rollout.number] = rollout
        rollout.env, rollout.seats = env, seats

        def reset() -> None:
            if rollout.point is None:
                rollout.episode = Episode(env, rollout.job, self._collector.seed, seats)
            else:
                rollout.episode = Episode.from_fork_point(
                    rollout.point, env, rollout.job, self._collector.seed, seats[0]
                )
            rollout.episode.act_while_scripted()

        self._stepping.begin(_EnvCall(rollout), reset)

    def _slot(self, rollout: _Rollout, engine: Engine) -> int:
        """A new slot. That of a fork starts as a copy of its parent's, where the parent still runs."""
        parent = rollout.parent
        if parent is None or parent.number not in self._running or parent.episode is None:
            return engine.open()
        return engine.fork(parent.episode.to_move.slot)

    def _after_environment(self, call: _EnvCall, error: Failure | None) -> Iterator[Event]:
        """From stepping to generating or finished: report the turn, then ask for the next reply, or end the episode."""
        rollout, seat = call.rollout, call.seat
        if isinstance(error, AgentError):
            raise error
        if error is not None and not isinstance(error, CutShortError):
            yield from self._environment_failed(rollout, error)
            return
        episode = rollout.episode
        assert episode is not None
        # With threads only the time that the engines wait counts, and ``WorldWork`` measures that.
        env_s = 0.0 if self._collector.threads.concurrent else episode.take_env_s()
        self._collector.clock.add("environment", env_s, int(seat is not None))
        if seat is not None and call.reply is not None:
            yield TurnFinished(rollout.number, len(seat.turns) - 1, call.reply.entropies)
            if rollout.number in self._stopped:
                self._release(rollout)
                return
        if isinstance(error, CutShortError):
            yield from self._finish(rollout, "truncated", error.reason)
        elif episode.end is not None:
            yield from self._finish(rollout, episode.end, "turns" if episode.end == "truncated" else "")
        else:
            yield from self._request_reply(rollout, episode.to_move, episode)

    def _request_reply(self, rollout: _Rollout, seat: Seat, episode: Episode) -> Iterator[Event]:
        """Submit the prompt to the engine, or end the episode where the context is full or the turns are used up."""
        assert seat.model is not None
        if len(seat.turns) >= seat.model.config.max_turns:
            yield from self._finish(rollout, "truncated", "max_turns")
            return
        point = rollout.point
        begun = point.begun if point is not None and len(seat.turns) == len(point.turns) else None
        room = usual(seat, self._sampling).max_tokens
        prompt = prompt_of(seat, room, whole=begun is not None)  # a fork's slot may hold less
        if not prompt.fits:
            if episode.client is None:
                yield from self._finish(rollout, "truncated", "context")
            else:
                self._stepping.begin(_EnvCall(rollout), episode.refuse)
            return
        self._collector.count_ignored(not_followed(seat, episode.info))
        begun = NO_IDS if begun is None else begun
        ask(seat, prompt, episode.info, rollout.job, self._sampling, self._collector.seed, begun)
        self._generating[self._collector.engines.index(seat.model.engine), seat.slot] = rollout

    def _act(self, rollout: _Rollout, reply: Reply) -> None:
        """From generating to stepping: start the environment's step with the action in the reply."""
        if rollout.number in self._stopped:
            self._release(rollout)
            return
        episode = rollout.episode
        assert episode is not None
        seat = episode.to_move
        if seat.fault:  # of the request: nothing is learned from the episode
            self._stepping.begin(_EnvCall(rollout), partial(_refuse, episode, seat.fault))
            return
        answer = answer_of(seat, episode.info, rollout.job, self._sampling, reply)

        def act() -> None:
            action = answer.action
            episode.step(action.text, answer.reply, answer.text, action.valid, answer.thought_tokens)
            episode.act_while_scripted()

        self._stepping.begin(_EnvCall(rollout, answer.reply, seat), act)

    def _environment_failed(self, rollout: _Rollout, error: Failure) -> Iterator[Event]:
        """An environment raised, in a reset or a step: close it, then retry the episode or record the failure."""
        if rollout.number in self._running:
            self._free_slots(rollout)
            self._collector.discard_env(rollout.env)
        yield from self._retry_or_record(rollout, error)

    def _retry_or_record(self, rollout: _Rollout, error: Failure) -> Iterator[Event]:
        """After the first failure queue the rollout again, before all others. After the second one finish it."""
        rollout.attempts += 1
        if rollout.attempts == 1:
            self._queued.appendleft(rollout)
            return
        reason = with_place(error)[:400]
        if rollout.episode is not None:
            yield from self._finished(rollout, "error", reason)
            return
        job = rollout.job  # the environment was never reset: there is no episode to take a trajectory from
        nothing = Trajectory(
            job.episode, job.task, job.env_seed(self._collector.seed), job.sample, (), "error", None, None, reason
        )
        yield RolloutFinished(rollout.number, replace(nothing, fork=rollout.fork))

    def _finish(self, rollout: _Rollout, end: End, reason: str) -> Iterator[Event]:
        """Release slots and environment of a rollout, and report its trajectories."""
        self._release(rollout)
        yield from self._finished(rollout, end, reason)

    def _finished(self, rollout: _Rollout, end: End, reason: str) -> Iterator[Event]:
        """Report the trajectories of a rollout that holds nothing any more, or have them graded first."""
        assert rollout.episode is not None
        found = rollout.episode.trajectories(end, reason, self._collector.success, rollout.fork)
        grader = self._grader
        if grader is None or all(t.end == "error" or t.only_looked_at for t in found):
            yield from (RolloutFinished(rollout.number, trajectory) for trajectory in found)
            return

        def grade() -> None:
            found[:] = map(grader.grade, found)

        self._grading.begin((rollout.number, found), grade)
        yield RolloutEnded(rollout.number)

    def _graded(self) -> Iterator[Event]:
        """From grading to finished. Raises what says that no episode can be graded."""
        for (number, trajectories), error in self._grading.admitted(self._num_playing):
            if error is not None:
                raise error
            if number not in self._stopped:
                yield from (RolloutFinished(number, trajectory) for trajectory in trajectories)

    def _num_ahead(self) -> int:
        """How many rollouts wait for a reply. In a free order one that could begin at once counts too: nobody may wait
        for a world meanwhile, which itself may wait for that one.
        """
        could_begin = self._collector.threads.order == "free" and self._queued and self._collector.has_free_slots()
        return len(self._generating) + bool(could_begin)

    def _num_playing(self) -> int:
        """How many rollouts play, or will in a moment: a slot is free for them."""
        room = min(engine.num_free for engine in self._collector.engines)
        return len(self._generating) + len(self._stepping) + min(len(self._queued), room)

    def _free_slots(self, rollout: _Rollout) -> None:
        del self._running[rollout.number]
        for seat in rollout.seats:
            if seat.model is not None:
                seat.model.engine.close(seat.slot)

    def _release(self, rollout: _Rollout) -> None:
        self._free_slots(rollout)
        if rollout.episode is not None:
            rollout.episode.leave()
        assert rollout.env is not None
        self._collector.return_env(rollout.env)


def _raise(error: Failure) -> None:
    raise error


def _refuse(episode: Episode, why: str) -> None:
    episode.leave(why)
    raise ValueError(why)
