"""Why attempts branched: the numbers of AEPO's and ARPO's planner, recomputed from the stored entropies.

    rise = e_t - e_first                                          e: segment entropy of a reply (branching.py)
    P_t  = (bias + entropy_weight * rise) * max(0, 1 - penalty * streak);   branches where P_t > threshold

A path's streak is the number of branchings in a row before the turn; the stored forks give it. The turn in question is
the one that the child sampled anew, or with ``form=released`` the last one that it shares with its parent. A number
that depends on more than the group is None: ``form=released`` draws at random, ``pace=lockstep`` counts over all tasks,
and ``forget=false`` uses an earlier batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from turnwise.algorithms.tree import TreePlanner, TreeSettings
from turnwise.learning.planning import Planner, PlannerAround
from turnwise.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class Branching:
    """The planner's numbers after turn ``turn`` of a path, which made it branch.

    Entropies and their rise are in the planner's unit; ``readiness`` is P_t. ``agrees`` says whether the planner's rule
    branches on the recomputed numbers.
    """

    turn: int
    first: float | None
    entropy: float
    rise: float | None
    streak: int | None
    readiness: float | None
    agrees: bool | None


def tree_planner(planner: Planner | None) -> TreePlanner | None:
    """The planner of a recipe that branches attempts, also inside planners that wrap it; None where there is none."""
    while isinstance(planner, PlannerAround) and not isinstance(planner, TreePlanner):
        planner = planner.inner
    return planner if isinstance(planner, TreePlanner) else None


def readiness(settings: TreeSettings, rise: float, streak: int) -> float | None:
    """P_t; None for ``form=released``, which draws at random. A test compares it with the rules in aepo.py, arpo.py."""
    if settings.form == "released":
        return None
    penalty = getattr(settings, "penalty", 0.0)  # AEPO's
    return (settings.bias + settings.entropy_weight * rise) * max(0.0, 1.0 - float(penalty) * streak)


class Tree:
    """A group's attempts as paths of a tree. Each starts at the root, or at the turn where it left its parent."""

    def __init__(self, planner: TreePlanner, trajectories: Sequence[Trajectory]) -> None:
        self.planner = planner
        self.back = 0 if planner.resamples else 1  # turns from the fork back to the turn that made the path branch
        self.paths = {t.episode: t for t in trajectories}
        self.branched = {(t.fork.parent, t.fork.turn - self.back) for t in trajectories if t.fork is not None}

    def branching(self, child: Trajectory) -> Branching | None:
        """The numbers of the branching that made ``child``; None for one from the root, or whose parent is lost."""
        fork = child.fork
        parent = self.paths.get(fork.parent) if fork is not None else None
        if fork is None or parent is None or fork.turn < 1:
            return None
        turn = fork.turn - self.back
        entropy, first, streak = self._entropy(parent, turn), self._first(parent), self._streak(parent, turn)
        rise = None if first is None else entropy - first
        if rise is None or streak is None:
            return Branching(turn, first, entropy, rise, streak, None, None)
        ready = readiness(self.planner.settings, rise, streak)
        agrees = None if ready is None else self.planner.rule(rise, streak, 0.0)  # these rules ignore the draw
        return Branching(turn, first, entropy, rise, streak, ready, agrees)

    def _entropy(self, trajectory: Trajectory, turn: int) -> float:
        return self.planner.entropy(trajectory.turns[turn].entropies)

    def _first(self, path: Trajectory) -> float | None:
        """Entropy of the reply that rises are measured from."""
        if self.planner.first.remembered:
            return None
        start = path.fork.turn if path.fork is not None and self.planner.settings.origin == "own" else 0
        return self._entropy(path, start) if start < len(path.turns) else None

    def _streak(self, path: Trajectory, turn: int) -> int | None:
        """Branchings in a row just before a turn; the count of a path continues that of its parent."""
        if self.planner.settings.pace == "lockstep":
            return None
        made_by = path.fork.turn - self.back if path.fork is not None else -1  # its parent's turn
        before = turn
        while before > made_by + 1 and (path.episode, before - 1) in self.branched:
            before -= 1
        streak, parent = turn - before, self.paths.get(path.fork.parent) if path.fork is not None else None
        if before > made_by + 1 or path.fork is None:
            return streak
        inherited = self._streak(parent, made_by) if parent is not None else None
        return None if inherited is None else streak + inherited + 1
