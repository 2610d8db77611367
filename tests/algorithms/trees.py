"""Scripted rollouts that can be forked: every turn's entropy is given, and so is who moves when."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from tests.algorithms.fakes import NUM_ACTIONS
from turnwise.trajectory import Fork, RolloutFinished, Task, Trajectory, Turn, TurnFinished

Entropy = Callable[[str, int, int], float]
"""(task key, attempt, turn) -> the entropy of the turn's only token; of the attempt that sampled it."""


def task(index: int = 0) -> Task:
    return Task("scripted", "train", index, key=f"task-{index}")


def noise(key: str, attempt: int, turn: int) -> float:
    """Entropies between 0 and 8 nats that look random and are not."""
    return float(np.random.default_rng([len(key), int(key[-1]), attempt + 1, turn]).random() * 8)


@dataclass
class Played:
    task: Task
    sample: int
    length: int
    turns: list[Turn] = field(default_factory=list)
    fork: Fork | None = None


@dataclass
class ScriptedRollouts:
    """``lengths`` are the turns of the attempts, by number modulo their count; ``pick`` chooses among those running.

    An attempt is (task, sample), so that a fork's own turns are its own. As in the collector a fork after the end is
    a ValueError, and a rollout ends with the event after its last turn's. ``room`` play at once.
    """

    entropy: Entropy = noise
    lengths: tuple[int, ...] = (4,)
    pick: Callable[[list[int]], int] = min
    room: int = 100
    player: str = ""
    unforkable: frozenset[int] = frozenset()  # their worlds have failed and begin again
    played: list[Played] = field(default_factory=list)
    running: list[int] = field(default_factory=list)
    refused: list[tuple[int, int]] = field(default_factory=list)
    sampled: int = 0

    def start(self, task: Task, sample: int, temperature: float | None = None) -> int:
        return self._add(Played(task, sample, self._length()))

    def _length(self) -> int:
        return self.lengths[len(self.played) % len(self.lengths)]

    def _add(self, made: Played) -> int:
        self.played.append(made)
        self.running.append(len(self.played) - 1)
        return len(self.played) - 1

    def fork(self, rollout: int, turn: int, tokens: int = 0) -> int:
        assert not tokens, "a turn has one token here"
        parent = self.played[rollout]
        over = rollout not in self.running and turn >= len(parent.turns)
        if over or turn > len(parent.turns) or rollout in self.unforkable:
            self.refused.append((rollout, turn))
            raise ValueError(f"rollout {rollout} cannot be forked after {turn} turns")
        number = len(self.played)
        length = max(self._length(), turn + 1)
        fork = Fork(f"{parent.task.key}-{parent.sample}", turn)
        return self._add(Played(parent.task, number, length, parent.turns[:turn], fork))

    def resume(self, stored: Trajectory, turn: int, beyond: int = 0) -> int:
        sample, fork = len(self.played) + beyond, Fork(stored.episode, turn, stored=True)
        turns = list(stored.turns[:turn])
        return self._add(Played(stored.task, sample, max(self._length(), turn + 1), turns, fork))

    def stop(self, rollout: int) -> None:
        raise NotImplementedError

    def events(self) -> Iterator[TurnFinished | RolloutFinished]:
        while self.running:
            number = self.pick(self.running[: self.room])
            made = self.played[number]
            turn = len(made.turns)
            entropies = np.array([self.entropy(made.task.key, made.sample, turn)], np.float32)
            made.turns.append(scripted_turn(made.sample, turn, entropies, last=turn + 1 == made.length))
            self.sampled += 1
            if turn + 1 == made.length:
                self.running.remove(number)
            yield TurnFinished(number, turn, entropies)
            if turn + 1 == made.length:
                yield RolloutFinished(number, self._trajectory(made))

    def _trajectory(self, made: Played) -> Trajectory:
        return Trajectory(
            episode=f"{made.task.key}-{made.sample}",
            task=made.task,
            seed=0,
            sample=made.sample,
            turns=tuple(made.turns),
            end="terminated",
            success=None,
            score=None,
            player=self.player,
            fork=made.fork,
        )


def scripted_turn(attempt: int, turn: int, entropies: np.ndarray, last: bool) -> Turn:
    ids = np.array([(attempt + turn) % NUM_ACTIONS], np.int32)
    made = Turn(
        f"see {turn}",
        np.array([8], np.int32),
        turn > 0,
        ids,
        np.full(1, -1.0, np.float32),
        entropies,
        "",
        "",
        True,
        0.0,
    )
    return replace(made, reward=float(ids[0] == 0)) if last else made
