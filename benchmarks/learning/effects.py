"""What the mechanisms of EPO, EMPG, SPEAR and AEPO do, as numbers of a run: the measures of the settings of one paper.

A course of training is told by its thirds: means over the first, the second and the last third of the updates.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby, pairwise

import numpy as np
from claims import Claim, Measured, courses_per_leaf, largest_setback
from households import HABIT, arrives

from turnwise.replay.store import TrajectoryReader
from turnwise.runs.directory import RunDirectory
from turnwise.trajectory import Group, group_by_task
from turnwise.view.credit import Name, Recipes, name_of

END = 30
"""Updates at the end of a run over which it is asked how even its success is."""
SMOOTH = 5
"""Updates over which success in training is averaged before it is compared with a level."""


def thirds(values: Sequence[float]) -> tuple[float, ...]:
    """Means over the thirds of a sequence: the course of training."""
    return tuple(mean(part.tolist()) for part in np.array_split(np.array(values, dtype=float), 3))


def mean(values: Iterable[float]) -> float:
    """nan of nothing."""
    known = [value for value in values if math.isfinite(value)]
    return math.fsum(known) / len(known) if known else math.nan


def successes(of: Measured) -> list[float]:
    """Success in training, update by update."""
    return [line["success"] for line in of.run.metrics]


def flushes(of: Measured) -> Iterator[list[Group]]:
    """The groups of each update, in order, without episodes that failed or were only looked at."""
    for _, found in groupby(
        TrajectoryReader(RunDirectory(of.run.path).trajectories_path).flushes(), lambda f: f.update
    ):
        played = [t for flush in found for t in flush.trajectories]
        yield group_by_task(t for t in played if t.end != "error" and not t.only_looked_at)


def of_updates(of: Measured, measure: Callable[[Sequence[Group]], float]) -> tuple[float, ...]:
    """The course of a number of an update's groups."""
    return thirds([measure(groups) for groups in flushes(of)])


def entropies(of: Measured) -> tuple[float, ...]:
    return thirds([math.nan if line.get("entropy") is None else line["entropy"] for line in of.run.metrics])


# EPO


def entropy_by_turn(of: Measured) -> tuple[float, ...]:
    """Mean entropy of a turn, nats, in each quarter of the longest episode's turns, in the last updates."""
    last = of.run.metrics[-END:][0]["update"]
    turns = [
        (n, float(np.mean(turn.entropies)))
        for flush in TrajectoryReader(RunDirectory(of.run.path).trajectories_path).flushes()
        if flush.update >= last
        for t in flush.trajectories
        for n, turn in enumerate(t.turns)
    ]
    span = max(n for n, _ in turns) + 1
    return tuple(mean(h for n, h in turns if 4 * n // span == quarter) for quarter in range(4))


def lost_groups(of: Measured) -> tuple[float, ...]:
    """Share of the groups that lost all of their attempts."""
    return of_updates(of, lambda groups: mean(not any(t.success for t in group.trajectories) for group in groups))


def updates_to(of: Measured) -> tuple[float, ...]:
    """Updates until success in training, averaged over the last few, is 25 and 50 %; one more than there are: never."""
    return tuple(first_at_most([-y for y in successes(of)], -level) for level in (0.25, 0.5))


def first_at_most(values: Sequence[float], level: float) -> float:
    """How many values there are until the mean of the last few is ``level`` or less; one more than there are: never."""
    for n in range(SMOOTH, len(values) + 1):
        if mean(values[n - SMOOTH : n]) <= level:
            return float(n)
    return len(values) + 1.0


def spread_at_the_end(of: Measured) -> float:
    """Standard deviation of success in training over the last updates, in points."""
    return 100 * float(np.std(successes(of)[-END:]))


EPO = (
    Claim(
        *("entropy by quarter of the turns", "EPO", "even", entropy_by_turn),
        f"mean entropy of a turn, in nats, in each quarter of the longest episode, in the last {END} updates",
    ),
    Claim(*("lost groups", "EPO", "lower", lost_groups), "share of the groups that lost all attempts, by thirds"),
    Claim(
        *("updates to 25 and 50 %", "EPO", "lower", updates_to),
        f"until success in training is so high over {SMOOTH} updates; one more than there are: never",
    ),
    Claim(
        *("spread at the end, points", "EPO", "lower", spread_at_the_end),
        f"standard deviation of success in training over the last {END} updates",
    ),
    Claim(
        *("largest setback, points", "EPO", "lower", largest_setback),
        "how far the learning curve ever fell below what it had reached",
    ),
)


# EMPG


def habit_of(groups: Sequence[Group]) -> float:
    """Share of arrivals after which the habit of ``households.Mistaken`` is followed."""
    played = [t.turns for group in groups for t in group.trajectories]
    return mean(now.action == HABIT for turns in played for was, now in pairwise(turns) if arrives(was.action))


def habit(of: Measured) -> tuple[float, ...]:
    return of_updates(of, habit_of)


def half_life(of: Measured) -> float:
    """Updates until the habit, averaged over the last few, is half of what it was in the first few; as above: never."""
    found = [habit_of(groups) for groups in flushes(of)]
    return first_at_most(found, mean(found[:SMOOTH]) / 2)


def credit_by_entropy(of: Measured) -> tuple[float, ...]:
    """Mean size of the advantage in each tenth of the turns by their entropy, the surest first; the mean of all is 1.

    Over the turns that were trained on. nan where advantages cannot be made again, as in ``credit_of_the_sure``.
    """
    run = RunDirectory(of.run.path)
    recipes, logged = Recipes(run), {int(line["update"]): line for line in of.run.metrics}
    turns: list[tuple[float, float]] = []  # entropy, size of the advantage
    for flush in TrajectoryReader(run.trajectories_path).flushes():
        credited = recipes.credit(flush.update, flush.trajectories, logged.get(flush.update, {}))
        if credited.why_not or credited.agrees is False:
            return (math.nan,) * 10
        for trajectory in flush.trajectories:
            trained = credited.trained.get(name_of(trajectory))
            pairs = zip(trajectory.turns, (trained and trained.advantages) or (), strict=False)
            turns += [(float(np.mean(t.entropies)), mean(map(abs, own))) for t, own in pairs if own]
    sizes = np.array([size for _, size in sorted(turns)])
    return tuple(float(np.mean(part) / np.mean(sizes)) for part in np.array_split(sizes, 10))


EMPG = (
    Claim(
        *("half-life of the habit", "EMPG", "lower", half_life),
        f"updates until the mistake that was cloned is half as frequent, over {SMOOTH} updates; one more than there "
        "are: never",
    ),
    Claim(*("habit", "EMPG", "lower", habit), "share of arrivals at which the mistake is made, by thirds"),
    Claim(
        *("credit by entropy", "EMPG", "falling", credit_by_entropy),
        "mean size of the advantage in each tenth of the turns by their entropy, the surest first; the mean is 1",
    ),
    Claim(*("entropy", "EMPG", "", entropies), "of the sampling policy, in nats, by thirds"),
)


# SPEAR


def passes(groups: Sequence[Group]) -> float:
    """Share of the tasks that some attempt wins, less the share of attempts that win: pass@G - pass@1."""
    won = [[bool(t.success) for t in group.trajectories] for group in groups]
    return mean(any(own) - mean(own) for own in won)


def pass_gap(of: Measured) -> tuple[float, ...]:
    return of_updates(of, passes)


def replayed(of: Measured) -> tuple[float, float, float]:
    """Age of the replayed episodes in updates, mean and largest; replayed tokens for each fresh one.

    nan without a replay, or where it cannot be made again from the stored episodes.
    """
    run = RunDirectory(of.run.path)
    recipes, logged = Recipes(run), {int(line["update"]): line for line in of.run.metrics}
    tokens, ages, shares = dict[Name, int](), list[int](), list[float]()
    for flush in TrajectoryReader(run.trajectories_path).flushes():
        tokens |= {name_of(t): t.num_action_tokens for t in flush.trajectories}
        credited = recipes.credit(flush.update, flush.trajectories, logged.get(flush.update, {}))
        if credited.why_not or credited.agrees is False:
            return math.nan, math.nan, math.nan
        ages += [old.staleness for old in credited.replayed]
        fresh = sum(tokens[name] for name in credited.trained)
        shares.append(sum(tokens[old.name] for old in credited.replayed) / fresh if fresh else math.nan)
    return mean(ages), float(max(ages, default=math.nan)), mean(shares) if ages else math.nan


def ratios(of: Measured) -> tuple[float, ...]:
    """Largest ratio of the trained policy to the one that sampled, over fresh and replayed tokens."""
    return thirds([line.get("ratio_max", math.nan) for line in of.run.metrics])


def gap_to_test(of: Measured) -> float:
    """Success in training over the last updates, less success on unseen tasks after training, in points."""
    after = of.run.after["sampled"].success
    return math.nan if after is None else 100 * (mean(successes(of)[-END:]) - after.value)


SPEAR = (
    Claim(*("entropy", "SPEAR", "falling slowly", entropies), "of the sampling policy, in nats, by thirds"),
    Claim(
        *("pass@8 - pass@1", "SPEAR", "higher", pass_gap),
        "share of an update's tasks that some attempt wins, less the share of attempts that win, by thirds",
    ),
    Claim(
        *("replayed: age, oldest, tokens for a fresh one", "SPEAR", "", replayed),
        "mean and largest age of what is replayed, in updates, and replayed tokens for each fresh token",
    ),
    Claim(
        *("largest ratio", "SPEAR", "lower", ratios),
        "of the trained policy to the one that sampled, over fresh and replayed tokens, by thirds",
    ),
    Claim(
        *("training - test, points", "SPEAR", "lower", gap_to_test),
        f"success in training over the last {END} updates, less success on unseen tasks after it",
    ),
)


# AEPO


def trunks(groups: Sequence[Group]) -> float:
    """Largest share of a task's leaves that come from one attempt from the root, mean over tasks."""
    return mean(max(Counter(roots(group)).values()) / len(group.trajectories) for group in groups)


def roots(group: Group) -> list[str]:
    """The attempt from the root that each of a group's attempts descends from: its episode."""
    parents = {t.episode: t.fork.parent for t in group.trajectories if t.fork is not None}
    found = []
    for trajectory in group.trajectories:
        root = trajectory.episode
        while root in parents:
            root = parents[root]
        found.append(root)
    return found


def trunk_share(of: Measured) -> tuple[float, ...]:
    return of_updates(of, trunks)


def budget_variance(of: Measured) -> float:
    """Variance over all tasks of m, the number of attempts from the root."""
    return float(np.var([len(set(roots(group))) for groups in flushes(of) for group in groups]))


def branching_turns(of: Measured) -> float:
    """Share of the turns that were played at which some copy left."""
    played = [t for groups in flushes(of) for group in groups for t in group.trajectories]
    own = sum(len(t.turns) - (0 if t.fork is None else t.fork.turn) for t in played)
    return sum(t.fork is not None for t in played) / own


AEPO = (
    Claim(
        *("largest trunk", "AEPO", "lower", trunk_share),
        "largest share of a task's attempts that descend from one attempt from the root, by thirds",
    ),
    Claim(
        *("courses per leaf", "AEPO", "higher", courses_per_leaf),
        "different courses of action among the attempts at a task in an update, for each attempt",
    ),
    Claim(
        *("variance of m", "AEPO", "higher", budget_variance),
        "variance over tasks of the number of attempts from the root",
    ),
    Claim(*("branches per turn", "AEPO", "", branching_turns), "copies for each turn that was played"),
)

EFFECTS: Mapping[str, tuple[Claim, ...]] = {"epo": EPO, "empg": EMPG, "spear": SPEAR, "aepo": AEPO}
"""The measures of a setting; those that are not here have the claims of all methods."""
