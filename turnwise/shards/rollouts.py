"""Episodes in shards: the controller, which steers them as a collector's (turnwise.learning.planning.Rollouts).

What is played depends on the number of shards and on nothing else about them: not on where they are, on how long
anything takes, or on how often one is lost.

- The controller numbers the rollouts. A task belongs to a shard by its place among the tasks of the session, modulo the
  number of shards, with all its attempts (which share a beginning) and all their forks.
- Every shard plays on by itself until it has as many events as episodes that play at once (``Shard.go``). Its batch
  is taken when its turn comes, in the order of the shards, and the planner reacts to it before the next one is taken.
  So counts decide what the planner knows when it decides, and time does not.
- A single shard is asked for one event at a time: it plays to the bit what a collector in this process plays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

from safetensors.torch import save

from turnwise.agents.jobs import Job, Past
from turnwise.agents.playing import Event, Grader, OnEpisode, play_all
from turnwise.agents.worldwork import WorldThreads, WorldWork
from turnwise.clock import Clock
from turnwise.models.drawing import Sampling
from turnwise.models.past import Weights
from turnwise.models.policy import Policy
from turnwise.shards.connection import Connection, Host, Make, Patience, ShardError
from turnwise.shards.messages import Batch, Command, Described, ForkFrom, Link, Session, Start, Stop
from turnwise.training.proof import DisagreementError
from turnwise.trajectory import RolloutEnded, RolloutFinished, Task, Trajectory, TurnFinished


class Shards:
    """The shards of a run, and the policies in training, by side, whose weights they play with.

    ``makes`` has for each shard how it is made, and how it is made with worlds in processes of their own.
    ``num_slots`` episodes play at once, in all shards together. Raises ShardError where one cannot be made, or is not
    what is ``expected``: of another version, with other weights, or against other opponents.
    """

    def __init__(
        self,
        host: Host,
        makes: Sequence[tuple[Make, Make]],
        expected: Described,
        policies: Mapping[str, Policy],
        patience: Patience,
        num_slots: int,
    ) -> None:
        self._host, self._policies, self.num_slots = host, policies, num_slots
        self._held: Mapping[str, tuple[int, str]] = {}
        self.connections = [
            Connection(number, host, make, apart, patience) for number, (make, apart) in enumerate(makes)
        ]
        try:
            for connection in self.connections:
                connection.build()
            for connection in self.connections:
                _check_described(connection.number, found := connection.told(), expected)
                if expected.opponents is None:  # all shards have those of the first
                    expected = replace(expected, opponents=found.opponents)
        except BaseException:
            self.close()
            raise

    def begin(self, session: Session, clock: Clock, weights: Mapping[str, Weights] | None = None) -> None:
        """Begin a session in every shard, with these weights by side; None: with the policies' present ones.

        Raises DisagreementError where a shard does not play with them.
        """
        weights = self._present() if weights is None else weights
        for connection in self.connections:
            connection.clock = clock
        began, recovered = clock.now(), self._recovery_s()
        self._hold(weights)
        clock.add("hold", clock.now() - began - (self._recovery_s() - recovered), 0)
        for connection in self.connections:
            connection.tell("begin", session)
        for connection in self.connections:
            self._check_links(connection.number, connection.told(), weights)

    def _recovery_s(self) -> float:
        return sum(connection.recovery_s for connection in self.connections)

    def _present(self) -> dict[str, Weights]:
        """The policies' weights of now; of those that the shards hold already, the names alone."""
        found = {}
        for side, policy in self._policies.items():
            name = policy.version, policy.adapter_hash
            found[side] = Weights(*name, {} if self._held.get(side) == name else policy.trainable_state())
        return found

    def _hold(self, weights: Mapping[str, Weights]) -> None:
        wanted = {side: (held.version, held.hash) for side, held in weights.items()}
        for side, held in weights.items():
            if self._held.get(side) == wanted[side]:
                continue
            tensors = self._host.shared(save({name: tensor.contiguous() for name, tensor in held.tensors.items()}))
            for connection in self.connections:
                connection.hold(side, held.version, tensors)
            for connection in self.connections:
                connection.told()  # its hash is compared when the session begins
        self._held = wanted

    def _check_links(self, number: int, links: Mapping[str, Link], weights: Mapping[str, Weights]) -> None:
        for side, wanted in weights.items():
            link, name = links[side], f"{side} in shard {number}" if side else f"shard {number}"
            if link.hash != wanted.hash:
                raise DisagreementError(f"{name} plays with weights {link.hash}, the learner holds {wanted.hash}")
            if link.broken is not None:
                raise DisagreementError(f"{name} does not hold one policy: {link.broken}")

    def numbers(self) -> dict[str, int]:
        """How many shards were lost so far, and how many messages were said again."""
        return {
            "shards/lost": sum(connection.lost for connection in self.connections),
            "shards/messages_repeated": sum(connection.repeated for connection in self.connections),
        }

    def close(self) -> None:
        """Close every shard's worlds and end it, also where one cannot be closed. Further calls do nothing."""
        with ExitStack() as closing:
            closing.callback(self._host.close)
            for connection in reversed(self.connections):
                closing.callback(connection.close)


def _check_described(number: int, found: Described, expected: Described) -> None:
    if found.turnwise != expected.turnwise:
        raise ShardError(
            f"shard {number} runs turnwise {found.turnwise}, and this process {expected.turnwise}: install the same "
            "version on every machine"
        )
    for side, known in expected.weights.items():
        if found.weights[side] != known:
            raise ShardError(
                f"shard {number} has loaded another model (weights {found.weights[side]}, here {known}): put the same "
                "model folder on every machine"
            )
    if found.seconds != expected.seconds:
        raise ShardError(
            f"shard {number} has loaded another second model (agent.decoding.second; weights by side "
            f"{dict(found.seconds)}, here {dict(expected.seconds)}): put the same one on every machine"
        )
    if expected.opponents not in (None, found.opponents):
        raise ShardError(
            f"shard {number} has loaded other opponents (weights by use and role {found.opponents}, elsewhere "
            f"{expected.opponents}): put the same folders on every machine"
        )


class ShardedCollector:
    """Plays episodes in shards (turnwise.agents.playing.Playing), by the collectors of one ``use``.

    ``grader`` pays them beside their world, in this process: there is one file of verdicts, and one limit of requests.
    """

    def __init__(self, shards: Shards, use: str, grader: Grader | None = None) -> None:
        self.shards, self.use, self.grader = shards, use, grader
        self.failures, self.clock = 0, Clock()
        self.counted: Counter[str] = Counter()  # what the shards' collectors have told since ``numbers`` was asked

    def collect(self, jobs: Sequence[Job], sampling: Sampling, on_episode: OnEpisode | None = None) -> list[Trajectory]:
        return play_all(jobs, self.rollouts(sampling, jobs[0].key if jobs else 0, on_episode))

    def rollouts(
        self,
        sampling: Sampling,
        key: int,
        on_episode: OnEpisode | None = None,
        weights: Mapping[str, Weights] | None = None,
    ) -> ShardedRollouts:
        """Begin a session, with these weights by side; None: with the present ones. The one before is over."""
        self.shards.begin(Session(self.use, key, sampling), self.clock, weights)
        return ShardedRollouts(self, key, on_episode)

    def numbers(self) -> dict[str, float]:
        told, self.counted = dict(self.counted), Counter()
        return {**told, **self.shards.numbers()}

    def end(self) -> None:
        """End every shard at once and for good, also where another thread waits for its answer."""
        for connection in self.shards.connections:
            connection.give_up()

    def close(self) -> None:
        if self.grader is not None:
            self.grader.close()
        self.shards.close()


class ShardedRollouts:
    """The episodes of one session. ``on_episode`` is called with each trajectory as its episode ends."""

    def __init__(self, collector: ShardedCollector, key: int, on_episode: OnEpisode | None) -> None:
        self._collector, self._key, self._on_episode = collector, key, on_episode
        self._connections = collector.shards.connections
        self._shards: dict[str, int] = {}  # by the task's key
        self._jobs: list[Job] = []  # by rollout
        self._turns: dict[int, int] = {}  # by rollout: how many it has played, as far as is known here
        self._finished: set[int] = set()
        self._commands: list[list[Command]] = [[] for _ in self._connections]  # not sent yet
        self._busy = [False for _ in self._connections]
        self._grader = collector.grader
        threads = self._grader.threads if self._grader is not None else WorldThreads()
        self._grading: WorldWork[list[RolloutFinished]] = WorldWork(threads, collector.clock, "grade")
        self._stopped: set[int] = set()

    def start(self, task: Task, sample: int, temperature: float | None = None) -> int:
        """Queue attempt number ``sample`` at a task, at its own ``temperature`` or the run's.

        Returns the rollout's number, counted from 0.
        """
        return self.add(Job(task, sample, self._key, task.index, temperature=temperature))

    def add(self, job: Job) -> int:
        """Queue a job. Returns the rollout's number."""
        number = self._new(job)
        self._command(number, Start(number, job))
        return number

    def resume(self, stored: Trajectory, turn: int, beyond: int = 0) -> int:
        """As the collector's ``resume``, in the shard of the episode's task."""
        past, sample = Past.of(stored, turn), len(self._jobs) + beyond
        return self.add(Job(stored.task, sample, self._key, stored.task.index, past=past))

    def fork(self, rollout: int, turn: int, tokens: int = 0) -> int:
        """As the collector's ``fork``, to whose shard it goes. Raises ValueError for a turn that was not played yet,
        and for the end of the parent.

        Where the parent's world fails before the copy is made, the copy is played from the start of the task.
        """
        played = self._turns.get(rollout, 0)
        if not 0 <= turn <= played or (turn == played and rollout in self._finished):
            last = played - (rollout in self._finished)
            raise ValueError(f"rollout {rollout} cannot be forked after {turn} turns: expected 0 to {last}")
        number = self._new(replace(self._jobs[rollout], sample=len(self._jobs)))
        self._command(number, ForkFrom(number, rollout, turn, self._jobs[number], tokens))
        return number

    def stop(self, rollout: int) -> None:
        """Abandon a rollout. It gives no trajectory."""
        self._stopped.add(rollout)
        self._command(rollout, Stop(rollout))

    def events(self) -> Iterator[Event]:
        """Run until every rollout is finished, and yield the events. Rollouts may be added meanwhile."""
        waiting = [False for _ in self._connections]
        try:
            while any(waiting) or any(self._commands) or len(self._grading):
                for number, connection in enumerate(self._connections):
                    if waiting[number]:
                        waiting[number] = False
                        yield from self._taken(number, self._told(connection))
                    yield from self._graded()  # before the shard plays on, so that the planner's answer is with it
                    waiting[number] = self._go(number, connection)
        finally:  # also where the planner stops asking for events, or raises
            self._grading.drop()
            for number, connection in enumerate(self._connections):
                if waiting[number]:
                    connection.abandon()

    def _go(self, number: int, connection: Connection) -> bool:
        """Have a shard carry out its commands and play on, where there is anything to do."""
        commands, self._commands[number] = self._commands[number], []
        if not commands and not self._busy[number]:
            return False
        connection.tell("go", tuple(commands), len(self._connections) == 1)
        return True

    def _told(self, connection: Connection) -> Batch:
        """The batch of a shard. The time that it was waited for is divided by the shard's own times."""
        clock = self._collector.clock
        began, recovered = clock.now(), connection.recovery_s
        batch: Batch = connection.told()
        waited = clock.now() - began - (connection.recovery_s - recovered)
        share = waited / max(sum(batch.seconds.values()), 1e-9)
        for stage, seconds in batch.seconds.items():
            clock.add(stage, seconds * share, batch.tokens.get(stage, 0))
        return batch

    def _taken(self, number: int, batch: Batch) -> Iterator[Event]:
        self._busy[number] = batch.busy
        self._collector.failures += batch.failures
        self._collector.counted.update(batch.numbers)
        for event in batch.events:
            if event.rollout in self._stopped:  # by what the planner has heard of since the shard played on
                continue
            if isinstance(event, TurnFinished):
                self._turns[event.rollout] = event.turn + 1
                yield event
            elif isinstance(event, RolloutFinished):  # no shard has a grader, so that none tells of an end before
                yield from self._ended(event)

    def _ended(self, event: RolloutFinished) -> Iterator[Event]:
        """Report an episode that has ended, or have it graded first."""
        self._finished.add(event.rollout)
        grader = self._grader
        if grader is None or event.trajectory.end == "error" or event.trajectory.only_looked_at:
            yield self._reported(event)
            return
        found = [event]

        def grade() -> None:
            found[0] = replace(event, trajectory=grader.grade(event.trajectory))

        self._grading.begin(found, grade)
        yield RolloutEnded(event.rollout)

    def _graded(self) -> Iterator[Event]:
        """Report the episodes that are graded. Raises what says that no episode can be graded."""
        for (event,), error in self._grading.admitted(self._num_playing):
            if error is not None:
                raise error
            if event.rollout not in self._stopped:
                yield self._reported(event)

    def _num_playing(self) -> int:
        """How many rollouts play: those that have not ended, as far as there are slots for them."""
        return min(len(self._jobs) - len(self._finished | self._stopped), self._collector.shards.num_slots)

    def _reported(self, event: RolloutFinished) -> RolloutFinished:
        if self._on_episode is not None:
            self._on_episode(event.trajectory)
        return event

    def _new(self, job: Job) -> int:
        self._jobs.append(job)
        return len(self._jobs) - 1

    def _shard(self, rollout: int) -> int:
        key = self._jobs[rollout].task.key
        return self._shards.setdefault(key, len(self._shards) % len(self._connections))

    def _command(self, rollout: int, command: Command) -> None:
        self._commands[self._shard(rollout)].append(command)
