"""Why attempts branched: the numbers of AEPO's and ARPO's planner, made again from the stored entropies.

    rise = e_t - e_first                                          e: segment entropy of a reply (branching.py)
    P_t  = (bias + entropy_weight * rise) * max(0, 1 - penalty * streak);   branches where P_t > threshold

A path's streak, the branchings in a row before, follows from the forks. The turn in question is the one that the child
drew anew, or with ``form=released`` the last one that it shares with its parent. A number that hung on more than the
group is None: ``form=released`` draws, ``pace=lockstep`` counts over all tasks, ``forget=false`` remembers an earlier
batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from turnwise.algorithms.tree import TreePlanner, TreeSettings
from turnwise.learning.planning import Planner, PlannerAround
from turnwise.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class Branching:
    """What a path looked like after turn ``turn``, which made it branch.

    Entropies and their rise as the planner has them; ``readiness`` is P_t. ``agrees``: the planner's rule, asked again,
    says that it branches.
    """

    turn: int
    first: float | None
    entropy: float
    rise: float | None
    streak: int | None
    readiness: float | None
    agrees: bool | None


def tree_planner(planner: Planner | None) -> TreePlanner | None:
    """The planner that grows trees, where a recipe has one, inside of those that wrap it."""
    while isinstance(planner, PlannerAround) and not isinstance(planner, TreePlanner):
        planner = planner.inner
    return planner if isinstance(planner, TreePlanner) else None


def readiness(settings: TreeSettings, rise: float, streak: int) -> float | None:
    """P_t; None of the released form, which draws. A test holds it against the rules of aepo.py and arpo.py."""
    if settings.form == "released":
        return None
    penalty = getattr(settings, "penalty", 0.0)  # AEPO's
    return (settings.bias + settings.entropy_weight * rise) * max(0.0, 1.0 - float(penalty) * streak)


class Tree:
    """A group's attempts as paths, each from the root or from the turn at which it left its parent."""

    def __init__(self, planner: TreePlanner, trajectories: Sequence[Trajectory]) -> None:
        self.planner = planner
        self.back = 0 if planner.resamples else 1  # from where paths part to the turn that made them
        self.paths = {t.episode: t for t in trajectories}
        self.branched = {(t.fork.parent, t.fork.turn - self.back) for t in trajectories if t.fork is not None}

    def branching(self, child: Trajectory) -> Branching | None:
        """The numbers of the branching that made ``child``; None of an attempt from the root, or of a lost parent."""
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
        agrees = None if ready is None else self.planner.rule(rise, streak, 0.0)  # such a rule does not look at draws
        return Branching(turn, first, entropy, rise, streak, ready, agrees)

    def _entropy(self, trajectory: Trajectory, turn: int) -> float:
        return self.planner.entropy(trajectory.turns[turn].entropies)

    def _first(self, path: Trajectory) -> float | None:
        """Segment entropy of the reply that rises are measured from."""
        if self.planner.first.remembered:
            return None
        start = path.fork.turn if path.fork is not None and self.planner.settings.origin == "own" else 0
        return self._entropy(path, start) if start < len(path.turns) else None

    def _streak(self, path: Trajectory, turn: int) -> int | None:
        """Branchings in a row of the turns just before; a path that branched off counts on from its parent."""
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
