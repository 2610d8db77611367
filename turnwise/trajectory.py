"""The nouns of turnwise: task, turn, trajectory, group.

A leaf: standard library and numpy only. Everything here is frozen; a later stage of the pipeline makes a new
object rather than adding fields to an old one. Raw environment rewards and sampled token ids stay as they
were drawn, for ever.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int32]
FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]

End = Literal["terminated", "truncated", "error"]


@dataclass(frozen=True, slots=True)
class Task:
    """One start state of an environment.

    ``key`` is a hash of the content (the problem itself, not its index): two tasks with equal keys are the
    same task, whatever they are called. ``type`` groups tasks in tables; ``""`` where a world has no types, or tells
    them when an episode begins: it is no part of a task's identity.
    """

    env: str
    split: str
    index: int
    key: str
    type: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Processing:
    """What a processor made of the distributions that a reply's A tokens were drawn from.

    ``counts`` [A]: how many ids were allowed; 0: every one; -n: every one but n. ``ids`` [sum of |counts|]: those that
    were allowed, or those that were not, token by token, ascending. ``forced`` [A]: True on tokens that nobody chose
    and that nobody should learn, such as the end of a thought that was too long. ``temperatures`` [A]: that of each
    token's distribution; [0] where it was the rollout's. ``like`` [A]: the first token with the same set, whose ids
    alone are kept; [0] where each token's are. Log-probs and entropies of a turn are those of the restricted,
    renormalised distributions.
    """

    counts: IntArray
    ids: IntArray
    forced: BoolArray
    temperatures: FloatArray = field(default_factory=lambda: np.zeros(0, np.float32))
    like: IntArray = field(default_factory=lambda: np.zeros(0, np.int32))

    def sizes(self) -> IntArray:
        """How many of the ``ids`` are kept for each token, [A]."""
        sizes = np.abs(self.counts)
        return sizes if not len(self.like) else np.where(self.like == np.arange(len(sizes)), sizes, 0)

    def sets(self) -> list[IntArray]:
        """The ids of each token, [|counts[a]|] each."""
        kept = np.split(self.ids, np.cumsum(self.sizes())[:-1])
        return [kept[first] for first in self.like] if len(self.like) else kept


@dataclass(frozen=True, slots=True)
class Turn:
    """One observation and one reply.

    ``prompt_ids`` [P] are the tokens *added* to the context before the reply; with ``continues`` they follow
    the tokens of the turn before, without it they open a fresh context. ``action_ids`` [A] are exactly the
    sampled tokens, ``logprobs`` [A] their behaviour log-probabilities (nats, after temperature and
    truncation), ``entropies`` [A] the entropy of the full next-token distribution (nats, after temperature,
    before truncation). ``reward`` is what is learned from: the world's, and where a run grades its episodes what
    ``Trajectory.grading`` says. ``processing`` says where that distribution was restricted; None: nowhere.
    ``thought_tokens`` is the number of tokens up to the end of the reply's thought: its action begins there.
    ``request`` says what was asked in roles, as JSON of the keys "messages", "after" and "tools" that the world gave;
    "": it spoke in observations alone. ``state_key`` tells the state that was answered apart from the task's
    others; "": the world does not say.
    """

    observation: str
    prompt_ids: IntArray
    continues: bool
    action_ids: IntArray
    logprobs: FloatArray
    entropies: FloatArray
    reply: str
    action: str
    valid: bool
    reward: float
    anchor: str = ""
    env_s: float = 0.0
    processing: Processing | None = None
    thought_tokens: int = 0
    request: str = ""
    state_key: str = ""

    @property
    def action_mask(self) -> BoolArray:
        """True on the tokens to train on, [A]: those that were chosen among several.

        Where a reply left no choice, its last token stands for it, so that every reply has a token to give credit to.
        """
        if self.processing is None:
            return np.ones(len(self.action_ids), np.bool_)
        mask: BoolArray = self.processing.counts != 1
        mask[-1:] |= not mask.any()
        return mask


@dataclass(frozen=True, slots=True)
class Fork:
    """Where a trajectory left another one: the parent's episode id, and the turn at which they part.

    ``stored``: the parent is an episode of an earlier time, and its state is where this one starts. Nobody learns from
    the turns before, and it is compared with others that start there. ``tokens``: the reply of that turn begins with so
    many of the parent's. They are forced in it (``Processing.forced``), so that nobody learns from them here.
    """

    parent: str
    turn: int
    stored: bool = False
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Grade:
    """What a reward function, or one criterion of a judge, gave an episode. It pays ``weight * value``."""

    name: str
    value: float
    weight: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Grading:
    """Where an episode's rewards come from, where they are not the world's alone.

    ``world`` [N] is the world's own reward of each turn, ``turnless`` that of an episode without turns, and ``success``
    what the world alone says. ``judge`` names its model and rubric, and ``verdict`` in [0, 1] is the mean of its
    criteria by weight; "" and None without one.
    """

    world: tuple[float, ...]
    success: bool | None
    grades: tuple[Grade, ...]
    judge: str = ""
    verdict: float | None = None
    turnless: float = 0.0

    @property
    def world_return(self) -> float:
        """Undiscounted sum of the world's own rewards."""
        return math.fsum((*self.world, self.turnless))


@dataclass(frozen=True, slots=True)
class Trajectory:
    """A whole episode. ``sample`` numbers the attempts at one task, a negative one says that it was only looked at;
    ``end_reason`` says what truncated it.

    ``policy_version`` counts the updates behind the sampling policy and ``adapter_hash`` identifies its
    weights. A forked trajectory is complete without its parent. ``last_anchor`` is the anchor after the last action, or
    the observation's text; "" where nobody acted, where several players take turns, and in old records.
    ``last_state_key`` is the state's key there, "" also where the world tells none. ``given`` is
    what the world told of the task and the agent did not see (``info["task"]`` of the reset), as JSON; "" for nothing.
    ``grading`` says what functions and a judge paid; None where the rewards are the world's. ``num_refused`` counts the
    requests of its client that did not fit into the context: they are no turns. ``answer`` is what the episode
    answered, in the form in which its world compares answers; "" for none. ``turnless_reward`` is what an episode
    without turns was paid, such as a player's whose opponent lost before it could move; with turns it is 0.
    """

    episode: str
    task: Task
    seed: int
    sample: int
    turns: tuple[Turn, ...]
    end: End
    success: bool | None
    score: float | None
    end_reason: str = ""
    policy_version: int = 0
    adapter_hash: str = ""
    player: str = ""
    role: str = ""
    policy: str = ""
    fork: Fork | None = None
    last_anchor: str = ""
    given: str = ""
    grading: Grading | None = None
    num_refused: int = 0
    answer: str = ""
    last_state_key: str = ""
    turnless_reward: float = 0.0

    def told(self) -> dict[str, Any]:
        """What the world told of the task, read from ``given``; {} for nothing."""
        found: dict[str, Any] = json.loads(self.given) if self.given else {}
        return found

    @property
    def rewards(self) -> list[float]:
        """Raw reward of each turn, [N]: the environment's, and what graders paid."""
        return [turn.reward for turn in self.turns]

    @property
    def total_reward(self) -> float:
        """Undiscounted sum of the raw rewards, rounded once: ten times 0.1 is 1, and the order is no matter."""
        return math.fsum((*self.rewards, self.turnless_reward))

    @property
    def world_reward(self) -> float:
        """Undiscounted sum of the world's own rewards."""
        return self.total_reward if self.grading is None else self.grading.world_return

    def ungraded(self) -> Trajectory:
        """The trajectory as its world alone rewarded it."""
        if self.grading is None:
            return self
        turns = (replace(turn, reward=own) for turn, own in zip(self.turns, self.grading.world, strict=True))
        told, turnless = self.grading.success, self.grading.turnless
        return replace(self, turns=tuple(turns), success=told, turnless_reward=turnless, grading=None)

    def weighed(self, factor: float) -> Trajectory:
        """An episode without turns, which nobody can grade, with ``factor`` times what its world paid."""
        if self.turns or not self.turnless_reward or factor == 1:
            return self
        grading = Grading((), self.success, (), turnless=self.turnless_reward)
        return replace(self, turnless_reward=factor * self.turnless_reward, grading=grading)

    @property
    def only_looked_at(self) -> bool:
        """Whether it was played to decide what else to play: its tokens were spent, and nobody trains on it."""
        return self.sample < 0

    @property
    def stored_start(self) -> tuple[str, int] | None:
        """The stored episode, and its turn, that this one started from; None for one from the start of its task."""
        return (self.fork.parent, self.fork.turn) if self.fork is not None and self.fork.stored else None

    def context(self, turn: int) -> IntArray:
        """The tokens [P] that number ``turn`` answers: its prompt, after all that its context held before."""
        begun = max(n for n in range(turn + 1) if not self.turns[n].continues)
        before = [ids for each in self.turns[begun:turn] for ids in (each.prompt_ids, each.action_ids)]
        return np.concatenate([*before, self.turns[turn].prompt_ids])

    def own_part(self) -> Trajectory:
        """The episode from the stored state on that it started from: what others played before is its first prompt."""
        start = self.stored_start
        return self if start is None else self.rest(start[1])

    def rest(self, turn: int) -> Trajectory:
        """What was played from number ``turn`` on, as an episode of its own that begins in that state.

        The tokens of the context so far are part of its first prompt, so that nobody learns from them. Its ``fork``
        names the episode whose state it was.
        """
        kept, world = self.turns[turn:], self.grading
        if kept and kept[0].continues:
            kept = (replace(kept[0], prompt_ids=self.context(turn), continues=False), *kept[1:])
        graded = None if world is None else replace(world, world=world.world[turn:])
        left = self.fork or Fork(self.episode, 0)
        tokens = left.tokens if turn == left.turn else 0
        return replace(self, turns=kept, fork=Fork(left.parent, 0, stored=True, tokens=tokens), grading=graded)

    @property
    def num_action_tokens(self) -> int:
        return sum(len(turn.action_ids) for turn in self.turns)

    @property
    def num_sampled_tokens(self) -> int:
        """Action tokens that were drawn for this trajectory: those that a fork shares belong to its parent."""
        fork = self.fork or Fork("", 0)
        own = self.turns[fork.turn :]
        return max(sum(len(turn.action_ids) for turn in own) - fork.tokens, 0)

    @property
    def num_played_turns(self) -> int:
        """Turns that were played for this trajectory: those that a fork shares belong to its parent."""
        return len(self.turns[0 if self.fork is None else self.fork.turn :])

    @property
    def num_tokens(self) -> int:
        return sum(len(turn.prompt_ids) + len(turn.action_ids) for turn in self.turns)


@dataclass(frozen=True, slots=True)
class TurnFinished:
    """A rollout has sampled turn ``turn`` and received the observation after it; entropies in nats."""

    rollout: int
    turn: int
    entropies: FloatArray  # [A]


@dataclass(frozen=True, slots=True)
class RolloutEnded:
    """A rollout has played its last turn. ``RolloutFinished`` follows once its episode is graded."""

    rollout: int


@dataclass(frozen=True, slots=True)
class RolloutFinished:
    """A rollout has ended by itself (not by ``stop``), and its rewards are known."""

    rollout: int
    trajectory: Trajectory


@dataclass(frozen=True, slots=True)
class Group:
    """Trajectories that share a start, of the task or stored (and, in a game, the seat: a start may favour one)."""

    task: Task
    trajectories: tuple[Trajectory, ...]


def counted(trajectories: Sequence[Trajectory]) -> list[int]:
    """Places of the episodes that the means of an update are over.

    An episode that failed, or was only looked at, is in no mean. One that starts in a stored state is in them only
    where there are no others: its beginning was played before.
    """
    sound = [n for n, t in enumerate(trajectories) if t.end != "error" and not t.only_looked_at]
    return [n for n in sound if trajectories[n].stored_start is None] or sound


def successes(trajectories: Sequence[Trajectory]) -> list[bool | None]:
    """Whether each of some episodes without an error succeeded, [N]; None where its world does not say.

    A world may say it only where an episode ends by itself. There one that was cut short did not succeed: left out, it
    would make the success rate one of the finished episodes alone. Where the world says it of none, nothing is known.
    """
    says = any(t.success is not None for t in trajectories)
    return [False if says and t.success is None and t.end == "truncated" else t.success for t in trajectories]


def group_by_task(trajectories: Iterable[Trajectory]) -> list[Group]:
    """Group trajectories by task key, player and stored start, in order of first appearance."""
    members = defaultdict[tuple[str, str, tuple[str, int] | None], list[Trajectory]](list)
    for trajectory in trajectories:
        members[trajectory.task.key, trajectory.player, trajectory.stored_start].append(trajectory)
    return [Group(found[0].task, tuple(found)) for found in members.values()]
