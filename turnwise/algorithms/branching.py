"""Where a tree of attempts branches: pure controllers, fed with finished turns, that say what is to grow.

A path is one attempt at a prompt, from the root or from the turn at which it left another path. Of every turn of a
path they hear its entropy and whether the path goes on; they answer with new paths, up to a budget for each prompt.
What they decide is a function of these turns and of uniform draws in [0, 1), and of nothing else.

A branching *resamples* the uncertain turn (the paper's: the copy stands before it, and the two paths differ in it), or
it starts after that turn (released: they share it, and the world's answer). Resampling, a path is never asked about its
own first turn: a root's would be another attempt from the root, and a copy's was decided on when its parent played it.
What ended an episode can be resampled; released, nothing starts after an end.

``PathWise`` decides for each path by itself, as its turns finish. ``LockStep`` is the released scheme: all paths of
all prompts take a turn, then the branchings of all are decided, in the order of the paths' numbers.
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
"""(rise of entropy, consecutive branchings before, uniform draw) -> whether to branch."""


def segment_entropy(entropies: FloatArray, max_tokens: int, log_vocabulary: float) -> float:
    """Sum of the first tokens' entropies (nats) over ln(vocabulary): released so, and not their mean."""
    return float(entropies[:max_tokens].sum(dtype="float64")) / log_vocabulary


def initial_attempts(budget: int, difference: float, beta: float) -> int:
    """Attempts from the root, m = floor(n sigmoid(beta (H_root - H_tool))) + 1, within [1, n] (AEPO)."""
    share = 0.5 * (1.0 + math.tanh(0.5 * beta * difference))
    return min(max(math.floor(budget * share) + 1, 1), budget)


@dataclass(frozen=True, slots=True)
class Shoot:
    """A path to be started: from the root, or (``parent``, ``turn``) as a copy of a path after so many turns."""

    path: int
    prompt: int
    parent: int | None = None
    turn: int = 0


@dataclass(frozen=True, slots=True)
class Shape:
    """``budget`` paths a prompt; a branching makes at most ``branches`` copies. Rises are measured from a path's
    ``own`` first turn, or from that of the ``root`` attempt that it comes from. ``resamples``: copies stand before the
    turn that made them branch, and not after it.
    """

    budget: int
    branches: int
    rule: Rule
    origin: Literal["own", "root"]
    resamples: bool = False


@dataclass(slots=True)
class Path:
    """A path: its turns so far, its own first turn, consecutive branchings before, its first turn's entropy."""

    prompt: int
    turns: int = 0
    start: int = 0
    streak: int = 0
    first: float | None = None
    active: bool = True


@dataclass(frozen=True, slots=True)
class Segment:
    """A finished turn, or with entropy None an end without one."""

    turn: int
    entropy: float | None
    goes_on: bool


@dataclass
class Grower(ABC):
    """What both controllers share: paths by number, and how many each prompt has had.

    ``stale`` holds first entropies of an earlier batch by the paths' numbers, which then count for this one's.
    """

    shape: Shape
    draw: Callable[[], float]
    stale: Mapping[int, float] = field(default_factory=dict)
    paths: list[Path] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    def plant(self, attempts: Sequence[int], used: int = 0) -> list[Shoot]:
        """The first attempts of each prompt; ``used`` of its budget are spent already. Called once."""
        self.counts = [used] * len(attempts)
        return [self._root(prompt) for prompt, number in enumerate(attempts) for _ in range(number)]

    @abstractmethod
    def hear(self, path: int, segment: Segment) -> list[Shoot]:
        """What grows, now that a path has finished a turn or ended. Turns of a path come in order."""

    def _root(self, prompt: int) -> Shoot:
        return self._new(Path(prompt, first=self.stale.get(len(self.paths))))

    def _new(self, path: Path, parent: int | None = None) -> Shoot:
        self.paths.append(path)
        self.counts[path.prompt] += 1
        return Shoot(len(self.paths) - 1, path.prompt, parent, path.start)

    def _advance(self, path: Path, segment: Segment) -> None:
        path.active = segment.goes_on
        if segment.entropy is not None:
            path.turns = segment.turn + 1
            path.first = segment.entropy if path.first is None else path.first

    def _is_asked(self, path: Path, segment: Segment) -> bool:
        """Whether a path may branch at a turn."""
        if segment.entropy is None:
            return False
        return segment.turn > path.start if self.shape.resamples else segment.goes_on

    def _branch(self, number: int, segment: Segment, streak: int) -> list[Shoot]:
        """Copies of a path; one draw for each that there is room for beforehand."""
        path, grown = self.paths[number], list[Shoot]()
        assert path.first is not None
        assert segment.entropy is not None
        start = segment.turn if self.shape.resamples else segment.turn + 1
        for _ in range(min(self.shape.branches, self.shape.budget - self.counts[path.prompt])):
            if self.shape.rule(segment.entropy - path.first, streak, self.draw()):
                first = path.first if self.shape.origin == "root" else self.stale.get(len(self.paths))
                grown.append(self._new(Path(path.prompt, start, start, first=first), number))
        return grown

    def _is_bare(self, prompt: int) -> bool:
        """Whether nothing of a prompt is active, though there is budget left."""
        active = any(path.active and path.prompt == prompt for path in self.paths)
        return not active and self.counts[prompt] < self.shape.budget


class PathWise(Grower):
    """Every path for itself. A copy inherits the consecutive branchings of its path.

    When a prompt's last path has ended, all that is left of its budget starts from the root.
    """

    def hear(self, path: int, segment: Segment) -> list[Shoot]:
        own, grown = self.paths[path], list[Shoot]()
        self._advance(own, segment)
        if self._is_asked(own, segment):
            grown = self._branch(path, segment, own.streak)
            own.streak = own.streak + 1 if grown else 0
            for shoot in grown:
                self.paths[shoot.path].streak = own.streak
        if self._is_bare(own.prompt):
            grown += [self._root(own.prompt) for _ in range(self.shape.budget - self.counts[own.prompt])]
        return grown


@dataclass
class LockStep(Grower):
    """All paths of all prompts turn by turn; faster ones are waited for. Consecutive branchings count by prompt.

    A prompt with nothing active starts one attempt a round until its budget is used; that counts as branching too.
    """

    waiting: dict[int, deque[Segment]] = field(default_factory=dict)
    streaks: dict[int, int] = field(default_factory=dict)

    def hear(self, path: int, segment: Segment) -> list[Shoot]:
        self.waiting.setdefault(path, deque()).append(segment)
        grown: list[Shoot] = []
        while (active := self._active()) and all(self.waiting.get(number) for number in active):
            grown += self._round({number: self.waiting[number].popleft() for number in active})
        return grown

    def _active(self) -> list[int]:
        return [number for number, path in enumerate(self.paths) if path.active]

    def _round(self, segments: Mapping[int, Segment]) -> list[Shoot]:
        for number, segment in segments.items():
            self._advance(self.paths[number], segment)
        asked = [number for number, segment in segments.items() if self._is_asked(self.paths[number], segment)]
        order = dict.fromkeys(self.paths[number].prompt for number in asked)
        grown: list[Shoot] = []
        for prompt in order:
            for number in (n for n in asked if self.paths[n].prompt == prompt):
                grown += self._branch(number, segments[number], self.streaks.get(prompt, 0))
        grown += [self._root(prompt) for prompt in range(len(self.counts)) if self._is_bare(prompt)]
        if grown:
            prompts = {shoot.prompt for shoot in grown}
            for prompt in range(len(self.counts)):
                self.streaks[prompt] = self.streaks.get(prompt, 0) + 1 if prompt in prompts else 0
        return grown
