"""Where a tree of attempts branches: the decisions of ARPO and AEPO, apart from any model or world.

An *expander* is told of each finished turn and answers with the branches to start. Say a task may have 4 attempts. Two
start from the root, that is, from the task's first observation. Path 0 finishes turn 3 with a high entropy, so the
expander answers ``Branch(path=2, task=0, parent=0, turn=3)``: path 2 starts as a copy of path 0 after 3 turns. One
attempt is then left. It becomes another branch, or starts from the root when all paths have ended.

A *path* is one attempt, from the root or from the turn at which it left its parent. What an expander decides depends
on the turns' entropies and on uniform draws in [0, 1), and on nothing else.

There are two ways to branch at an uncertain turn (``Shape.resamples``):

- The paper's: the copy starts before that turn and draws it anew, so that the two paths differ in it. A path does not
  branch at its own first turn: from the root that would be another attempt from the root, and a copy draws a turn at
  which its parent has just branched. A turn that ended the episode can be drawn anew.
- The released code's: the copy starts after that turn, so that the two paths share it and the world's answer to it.
  A turn that ended the episode has nothing after it.

``PathWise`` decides for each path as its turns finish. ``LockStep`` is the released code's scheme: all paths of all
tasks play a turn, then the branches of all are decided, in the order of the paths' numbers.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from turnwise.trajectory import FloatArray

Rule = Callable[[float, int, float], bool]
"""(rise of the entropy, consecutive branchings before, uniform draw in [0, 1)) -> whether to branch."""


def segment_entropy(entropies: FloatArray, max_tokens: int, log_vocabulary: float) -> float:
    """Sum of the first ``max_tokens`` entropies [A] (nats), divided by ``log_vocabulary`` (nats).

    The released code takes this sum, not a mean.
    """
    return float(entropies[:max_tokens].sum(dtype="float64")) / log_vocabulary


def initial_attempts(budget: int, difference: float, beta: float) -> int:
    """Attempts from the root, m = floor(n sigmoid(beta (H_root - H_tool))) + 1, within [1, n] (AEPO).

    ``budget`` is n; ``difference`` is H_root - H_tool.
    """
    share = 0.5 * (1.0 + math.tanh(0.5 * beta * difference))
    return min(max(math.floor(budget * share) + 1, 1), budget)


@dataclass(frozen=True, slots=True)
class Branch:
    """A path to start: from the root of task number ``task``, or as a copy of path ``parent`` after ``turn`` turns."""

    path: int
    task: int
    parent: int | None = None
    turn: int = 0


@dataclass(frozen=True, slots=True)
class Shape:
    """How far a tree may grow and where it branches.

    A task has at most ``budget`` paths, and one branching adds at most ``branches`` of them. The rise of entropy is
    measured from the first turn that the path played itself (``own``), or from the first turn of the root attempt that
    it descends from (``root``). With ``resamples`` a copy starts before the turn that made its parent branch, else
    after it.
    """

    budget: int
    branches: int
    rule: Rule
    origin: Literal["own", "root"]
    resamples: bool = False


@dataclass(slots=True)
class Path:
    """The state of a path.

    ``turns`` counts its turns so far, those shared with its parent included; ``start`` is the number of its own first
    turn; ``streak`` counts the consecutive turns before this one at which it branched; ``first`` is the segment
    entropy that rises are measured from, None until it is known; ``active``: it has not ended.
    """

    task: int
    turns: int = 0
    start: int = 0
    streak: int = 0
    first: float | None = None
    active: bool = True


@dataclass(frozen=True, slots=True)
class Segment:
    """A finished turn and its segment entropy. With entropy None the path ended without playing that turn."""

    turn: int
    entropy: float | None
    goes_on: bool


@dataclass
class Expander(ABC):
    """What ``PathWise`` and ``LockStep`` share: the paths by number, and how many each task has had.

    ``stale`` maps numbers of paths to first entropies of an earlier batch. These are used in place of this batch's
    (``forget=false``, the released code).
    """

    shape: Shape
    draw: Callable[[], float]
    stale: Mapping[int, float] = field(default_factory=dict)
    paths: list[Path] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    def start(self, attempts: Sequence[int], used: int = 0) -> list[Branch]:
        """The attempts from the root, ``attempts[i]`` of task i. Called once, before ``expand``.

        ``used`` attempts of each task's budget have been spent already.
        """
        self.counts = [used] * len(attempts)
        return [self._root(task) for task, number in enumerate(attempts) for _ in range(number)]

    @abstractmethod
    def expand(self, path: int, segment: Segment) -> list[Branch]:
        """The branches to start, now that a path has finished a turn or ended. Turns of a path come in order."""

    def _root(self, task: int) -> Branch:
        return self._new(Path(task, first=self.stale.get(len(self.paths))))

    def _new(self, path: Path, parent: int | None = None) -> Branch:
        self.paths.append(path)
        self.counts[path.task] += 1
        return Branch(len(self.paths) - 1, path.task, parent, path.start)

    def _advance(self, path: Path, segment: Segment) -> None:
        path.active = segment.goes_on
        if segment.entropy is not None:
            path.turns = segment.turn + 1
            path.first = segment.entropy if path.first is None else path.first

    def _may_branch(self, path: Path, segment: Segment) -> bool:
        """Whether a path may branch at a turn at all; the rule decides whether it does."""
        if segment.entropy is None:
            return False
        return segment.turn > path.start if self.shape.resamples else segment.goes_on

    def _branch(self, number: int, segment: Segment, streak: int) -> list[Branch]:
        """Copies of a path: the rule is asked, with a draw of its own, for each copy that there is room for."""
        path, branches = self.paths[number], list[Branch]()
        assert path.first is not None
        assert segment.entropy is not None
        start = segment.turn if self.shape.resamples else segment.turn + 1
        for _ in range(min(self.shape.branches, self.shape.budget - self.counts[path.task])):
            if self.shape.rule(segment.entropy - path.first, streak, self.draw()):
                first = path.first if self.shape.origin == "root" else self.stale.get(len(self.paths))
                branches.append(self._new(Path(path.task, start, start, first=first), number))
        return branches

    def _is_idle(self, task: int) -> bool:
        """Whether all paths of a task have ended and some of its budget is left."""
        active = any(path.active and path.task == task for path in self.paths)
        return not active and self.counts[task] < self.shape.budget


class PathWise(Expander):
    """Each path by itself, as its turns finish. A copy inherits its parent's count of consecutive branchings.

    When the last path of a task has ended, all that is left of its budget starts from the root.
    """

    def expand(self, path: int, segment: Segment) -> list[Branch]:
        own, branches = self.paths[path], list[Branch]()
        self._advance(own, segment)
        if self._may_branch(own, segment):
            branches = self._branch(path, segment, own.streak)
            own.streak = own.streak + 1 if branches else 0
            for branch in branches:
                self.paths[branch.path].streak = own.streak
        if self._is_idle(own.task):
            branches += [self._root(own.task) for _ in range(self.shape.budget - self.counts[own.task])]
        return branches


@dataclass
class LockStep(Expander):
    """All paths of all tasks in rounds of one turn each: nothing is decided until every active path has finished it.

    Consecutive branchings are counted by task, in rounds. When all paths of a task have ended, one attempt starts from
    the root in each round until the budget is used; this counts as a branching too.
    """

    waiting: dict[int, deque[Segment]] = field(default_factory=dict)
    streaks: dict[int, int] = field(default_factory=dict)

    def expand(self, path: int, segment: Segment) -> list[Branch]:
        self.waiting.setdefault(path, deque()).append(segment)
        branches: list[Branch] = []
        while (active := self._active()) and all(self.waiting.get(number) for number in active):
            branches += self._round({number: self.waiting[number].popleft() for number in active})
        return branches

    def _active(self) -> list[int]:
        return [number for number, path in enumerate(self.paths) if path.active]

    def _round(self, segments: Mapping[int, Segment]) -> list[Branch]:
        for number, segment in segments.items():
            self._advance(self.paths[number], segment)
        asked = [number for number, segment in segments.items() if self._may_branch(self.paths[number], segment)]
        order = dict.fromkeys(self.paths[number].task for number in asked)
        branches: list[Branch] = []
        for task in order:
            for number in (n for n in asked if self.paths[n].task == task):
                branches += self._branch(number, segments[number], self.streaks.get(task, 0))
        branches += [self._root(task) for task in range(len(self.counts)) if self._is_idle(task)]
        if branches:
            tasks = {branch.task for branch in branches}
            for task in range(len(self.counts)):
                self.streaks[task] = self.streaks.get(task, 0) + 1 if task in tasks else 0
        return branches
