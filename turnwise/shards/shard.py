"""A shard: a collector with its engine and slots, somewhere, that answers messages (messages.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from safetensors.torch import load

from turnwise.agents.collector import Collector
from turnwise.agents.playing import Event, seed_globals
from turnwise.agents.rollouts import Rollouts
from turnwise.agents.seating import ModelAgent
from turnwise.clock import Clock
from turnwise.models.loading import without_bars
from turnwise.models.policy import Policy
from turnwise.shards.messages import Batch, Command, Described, ForkFrom, Link, Session, Start
from turnwise.training.noise import Limits, limits_of
from turnwise.training.proof import broken_link, is_elsewhere, probed


@dataclass(frozen=True, slots=True)
class Player:
    """A side as a shard has it: a policy that gets its weights by ``hold``, and the agent that plays with them."""

    policy: Policy
    agent: ModelAgent


class Shard:
    """``collectors`` by use: who plays against whom. ``players`` by side. ``number`` is the shard's among all."""

    def __init__(
        self,
        number: int,
        collectors: Mapping[str, Collector],
        players: Mapping[str, Player],
        described: Described,
    ) -> None:
        self.number, self.collectors, self.players, self.described = number, collectors, players, described
        self.clock = Clock()
        for collector in collectors.values():
            collector.clock = self.clock
        for player in players.values():
            player.agent.engine.clock = self.clock
        self._use = next(iter(collectors))
        self._rollouts: Rollouts | None = None
        self._limits: dict[str, Limits] = {}  # of engines that hold weights of their own
        self._failures = 0
        self._stream: Iterator[Event] = iter(())

    def hold(self, side: str, version: int, tensors: bytes) -> str:
        """Play with these weights, after ``version`` updates. Returns their hash, computed from what was loaded.

        ``tensors`` are the policy's trainable tensors as a safetensors file.
        """
        self._leave()
        policy, agent = self.players[side].policy, self.players[side].agent
        policy.load_trainable_state(load(tensors))
        policy.sync(version)
        agent.engine.hold(policy)
        agent.version, agent.adapter_hash = policy.version, policy.adapter_hash
        return policy.adapter_hash

    def begin(self, session: Session) -> dict[str, Link]:
        """Forget the session before, and begin another."""
        self._leave()
        collector = self.collectors[session.use]
        seed_globals(collector.seed, session.key, *([self.number] if self.number else []))
        self._use, self._failures = session.use, collector.failures
        self._rollouts = Rollouts(collector, session.sampling, session.key)
        self._stream = iter(())
        return {side: Link(player.agent.adapter_hash, self._broken(side)) for side, player in self.players.items()}

    def go(self, commands: Sequence[Command], alone: bool) -> Batch:
        """Carry out commands and play on: until there are as many events as episodes that play at once, or no more.

        Every engine ends its step first, so that a batch never parts an episode's last turn from its end. With
        ``alone`` it is the next event only: what is answered to it decides what is played next, as in a single process.
        """
        rollouts = self._rollouts
        assert rollouts is not None
        for command in commands:
            self._obey(rollouts, command)
        events, busy = self._next(rollouts) if alone else self._some(rollouts)
        collector = self.collectors[self._use]
        failures = collector.failures
        work, before, self._failures = self.clock.take(), self._failures, failures
        return Batch(events, busy, failures - before, collector.numbers(), work.seconds, work.tokens)

    def close(self) -> None:
        """Close the worlds."""
        for collector in self.collectors.values():
            collector.close()

    def _leave(self) -> None:
        """Leave the session before, which may have been broken off with replies in progress."""
        if self._rollouts is not None:
            self._rollouts.abandon()
            self._rollouts = None

    def _broken(self, side: str) -> str | None:
        """What is wrong between a side's weights and its engine, which is probed where it holds weights of its own."""
        policy, agent = self.players[side].policy, self.players[side].agent
        if (found := broken_link(policy, agent)) is not None or not is_elsewhere(policy, agent):
            return found
        if side not in self._limits:
            self._limits[side] = limits_of(policy, agent)
        return probed(policy, agent, self._limits[side])

    @staticmethod
    def _obey(rollouts: Rollouts, command: Command) -> None:
        if isinstance(command, Start):
            rollouts.add(command.job, command.number)
        elif isinstance(command, ForkFrom):
            try:
                rollouts.fork(command.parent, command.turn, command.tokens, command.number)
            except ValueError:
                if not rollouts.has_lost(command.parent):
                    raise
                rollouts.add(command.instead, command.number)
        else:
            rollouts.stop(command.number)

    def _next(self, rollouts: Rollouts) -> tuple[tuple[Event, ...], bool]:
        for stream in (self._stream, rollouts.events()):  # the second where the first had ended before
            self._stream = stream
            if (event := next(stream, None)) is not None:
                return (event,), True
        return (), False

    @staticmethod
    def _some(rollouts: Rollouts) -> tuple[tuple[Event, ...], bool]:
        events: list[Event] = []
        least = max(1, rollouts.num_at_once)
        while rollouts.busy and len(events) < least:
            events += rollouts.advance()
        return tuple(events), rollouts.busy


class Served:
    """What a process or an actor holds: a shard, once it is built there."""

    def __init__(self) -> None:
        self._shard: Shard | None = None

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a method of the shard; ``build`` makes it, from a function without arguments."""
        if name == "build":
            without_bars()  # they would be written into the display of the main process
            make: Callable[[], Shard] = arguments[0]
            self._shard = make()
            return self._shard.described
        return getattr(self._shard, name)(*arguments)
