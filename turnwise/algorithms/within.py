"""Copies of attempts that begin within a reply: where they begin, who plays them, and what is learned from.

An example: an attempt was least certain at token 5 of its reply in turn 3. A copy of it starts before turn 3, begins
its reply with the same 5 tokens, and draws the rest of it and all that follows. Nobody learns from what it shares with
its parent a second time: turns 0 to 2 are a part of its first prompt, and the 5 tokens are forced. It is compared with
the attempts from the task all the same, by the return of the whole attempt.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np

from turnwise.algorithms.composing import ComposerAround
from turnwise.algorithms.starts import Place, play_copies
from turnwise.learning.metrics import Occurrences
from turnwise.learning.parts import Samples, Streams
from turnwise.learning.planning import Rollouts
from turnwise.learning.recipe import Recipe, layers
from turnwise.replay.buffer import TrajectoryBuffer
from turnwise.trajectory import Fork, Group, Task, Trajectory, Turn

By = Literal["entropy", "random"]
Among = Literal["episode", "turn"]


@dataclass(frozen=True, slots=True)
class Choice:
    """Which places of an attempt copies may begin at: the ``top`` of highest entropy, or any of them (by=random).

    A place is a token that was a choice; the first one of an episode is none, since a copy would be another attempt
    from the task. ``among`` a turn: of the one with the highest mean entropy. With ``text``, a token's text, places are
    those of words: of tokens with more than one character, white space aside.
    """

    top: int
    by: By = "entropy"
    among: Among = "episode"
    text: Callable[[int], str] | None = None

    def __call__(self, trajectory: Trajectory) -> list[Place]:
        """The places, those of highest entropy first."""
        turns = self._turns(trajectory)
        if self.among == "turn" and turns:
            turns = [max(turns, key=lambda found: float(np.mean([entropy for entropy, _ in found])))]
        every = sorted((each for found in turns for each in found), key=lambda each: -each[0])
        return [place for _, place in (every[: self.top] if self.by == "entropy" else every)]

    def _turns(self, trajectory: Trajectory) -> list[list[tuple[float, Place]]]:
        """The entropies (nats) and places of each turn that has places."""
        found = []
        for number, turn in enumerate(trajectory.turns):
            places = [n for n in chosen(number, turn) if self._is_word(int(turn.action_ids[n]))]
            found.append([(float(turn.entropies[n]), (number, n)) for n in places])
        return [places for places in found if places]

    def _is_word(self, token: int) -> bool:
        return self.text is None or len(self.text(token).strip()) > 1


def chosen(number: int, turn: Turn) -> list[int]:
    """The tokens of an episode's turn ``number`` that were a choice. The first of the episode is none of them, since a
    copy from there would be another attempt from the task.
    """
    made = turn.processing
    free = range(len(turn.action_ids)) if made is None else np.flatnonzero(made.counts != 1).tolist()
    return [n for n in free if (number, n) != (0, 0)]


@dataclass(frozen=True, slots=True)
class WithinReplies:
    """Plays ``roots`` attempts from each task, and of each as many copies as ``group_size`` leaves it.

    They begin at ``forks`` places, drawn by ``seed`` among those of ``choice``, ``copies`` at each. An attempt from the
    task takes the place of a copy that cannot be made: where there is no place, and where the world has failed.
    ``remembers``: the choice depends on the update before.
    """

    group_size: int
    roots: int
    forks: int
    copies: int
    choice: Callable[[Trajectory], list[Place]]
    seed: int
    occurred: Occurrences = field(default_factory=Occurrences, compare=False)
    remembers: bool = False
    within_replies: ClassVar[bool] = True

    def plan(self, tasks: Sequence[Task], rollouts: Rollouts, spare: Iterable[Task] = ()) -> list[Trajectory]:
        found = play_copies(tasks, rollouts, self.roots, self.places)
        self._count(len(tasks), found)
        return found

    def places(self, trajectory: Trajectory, number: int) -> list[Place | None]:
        """Where the copies of attempt ``number`` begin."""
        room = len(range(number, self.group_size - self.roots, self.roots))
        found = [] if trajectory.end == "error" else self.choice(trajectory)
        if len(found) > self.forks:
            draws = np.random.default_rng([self.seed, zlib.crc32(trajectory.episode.encode())])
            found = [found[n] for n in draws.permutation(len(found))[: self.forks]]
        places = [place for place in found for _ in range(self.copies)][:room]
        return [*places, *[None] * (room - len(places))]

    def _count(self, num_tasks: int, found: Sequence[Trajectory]) -> None:
        by_episode = {trajectory.episode: trajectory for trajectory in found}
        copies = [(t, t.fork) for t in found if t.fork is not None]
        whole = sum(copy.num_action_tokens for copy, _ in copies)
        other = [drawn_at(copy, fork) != drawn_at(by_episode[fork.parent], fork) for copy, fork in copies]
        self.occurred.count("copies_per_task", len(copies), num_tasks)
        self.occurred.count("first_turn_share", sum(fork.turn == 0 for _, fork in copies), len(copies))
        self.occurred.count("shared_token_share", whole - sum(t.num_sampled_tokens for t, _ in copies), whole)
        self.occurred.count("other_token_share", sum(other), len(copies))

    def acted(self) -> Mapping[str, float]:
        return self.occurred.take()


def drawn_at(trajectory: Trajectory, fork: Fork) -> int | None:
    """The token that an attempt has where a copy begins; None where it came to none."""
    reply = [turn.action_ids for turn in trajectory.turns[fork.turn : fork.turn + 1]]
    return int(reply[0][fork.tokens]) if reply and len(reply[0]) > fork.tokens else None


def roots_of(group_size: int, copies: int) -> int:
    """Attempts from the task in a group where each has at most ``copies`` copies."""
    return math.ceil(group_size / (1 + copies))


class OwnParts(ComposerAround):
    """Gives ``inner`` of each copy what it drew itself, in the group of its task, with the return of the whole attempt.

    What a copy was paid before it began is added to its return, and is no turn's doing.
    """

    def compose(self, update: int, samples: Samples, buffer: TrajectoryBuffer) -> Streams:
        groups = tuple(
            replace(group, trajectories=tuple(map(own_part, group.trajectories))) for group in samples.groups
        )
        whole, table = samples.trajectories, samples.rewards
        begun = [_first_turn(trajectory) for trajectory in whole]
        before = [math.fsum((*table.earned[n][:turn], *table.own[n][:turn])) for n, turn in enumerate(begun)]
        every = sum(trajectory.num_action_tokens for trajectory in whole)
        self.occurred.count("left_out_share", every - sum(t.num_sampled_tokens for t in whole), every)
        return self.inner.compose(update, Samples(groups, table.after(begun).with_extra(before)), buffer)


def own_part(trajectory: Trajectory) -> Trajectory:
    """What a copy drew itself. Its raw return is that of the whole attempt."""
    turn = _first_turn(trajectory)
    if not turn:
        return trajectory
    rest, before = trajectory.rest(turn), sum(trajectory.rewards[:turn])
    paid = [replace(first, reward=first.reward + before) for first in rest.turns[:1]]
    return replace(rest, turns=(*paid, *rest.turns[1:]))


def _first_turn(trajectory: Trajectory) -> int:
    """The first turn that was not played by another attempt of the same update."""
    fork = trajectory.fork
    return 0 if fork is None or fork.stored else fork.turn


def around(base: Recipe, planner: WithinReplies) -> Recipe:
    """The base with this planner, where nobody learns from what copies share."""
    return whole_replies(replace(base.with_planner(planner), composer=OwnParts(base.composer)))


def with_beginnings(groups: Sequence[Group]) -> tuple[Group, ...]:
    """Groups whose copies have the entropies of their parents in the beginning that they share of a reply.

    They forced those tokens, and have 0 there. A parent that was lost leaves it so. A copy whose world failed before
    its own turn has no such beginning.
    """
    parents = {t.episode: t for group in groups for t in group.trajectories}
    return tuple(replace(group, trajectories=tuple(_begun(t, parents) for t in group.trajectories)) for group in groups)


def _begun(trajectory: Trajectory, parents: Mapping[str, Trajectory]) -> Trajectory:
    fork = trajectory.fork
    if fork is None or fork.stored or not fork.tokens or fork.parent not in parents:
        return trajectory
    turns, first_turns = list(trajectory.turns), parents[fork.parent].turns
    if min(len(turns), len(first_turns)) <= fork.turn:
        return trajectory
    own, first = turns[fork.turn], first_turns[fork.turn]
    entropies = np.concatenate([first.entropies[: fork.tokens], own.entropies[fork.tokens :]])
    turns[fork.turn] = replace(own, entropies=entropies)
    return replace(trajectory, turns=tuple(turns))


def whole_replies(made: Recipe) -> Recipe:
    """The recipe itself. Raises ValueError where copies begin within replies and a part reads entropies of whole ones:
    those of the tokens that a copy shares are not known to it. A composer around ``OwnParts`` may complete them.
    """
    if not any(getattr(layer, "within_replies", False) for layer in layers(made.planner)):
        return made
    composers = list(layers(made.composer))
    cut = next((place for place, layer in enumerate(composers) if isinstance(layer, OwnParts)), len(composers))
    outside = [layer for layer in composers[:cut] if not getattr(layer, "completes_beginnings", False)]
    parts = (*outside, *composers[cut:], *made.shapers)
    reading = next((type(part).__name__ for part in parts if getattr(part, "reads_entropies", False)), "")
    if reading:
        raise ValueError(
            f"{made.name}: {reading} reads the entropies of whole replies, and copies that begin within a reply have "
            "none for its beginning: use cure and etmr without pear, and with ares on top of them"
        )
    return made
