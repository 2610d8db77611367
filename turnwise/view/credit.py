"""Recomputing advantages, which a run does not store: its own recipe computes them from the stored trajectories.

The recipe's composer gets every update in order, with a replay buffer of its own, as in training. So it also finds what
SPEAR replayed, and how old that was. A recipe that needs the model in training, or its metrics, cannot be recomputed,
since a run does not store them. ``agrees`` compares the mean and std of the advantages with those that the run logged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch

from turnwise.algorithms.registry import build
from turnwise.learning.learner import shaped_rewards
from turnwise.learning.metrics import Metrics
from turnwise.learning.parts import Samples, Stream, Streams
from turnwise.learning.planning import Scorer
from turnwise.learning.recipe import Recipe, StreamRecipe
from turnwise.replay.buffer import TrajectoryBuffer
from turnwise.runs.directory import RunDirectory
from turnwise.trajectory import Trajectory, Turn, group_by_task

Name = tuple[str, str]
"""What identifies a trajectory within its run: episode and player."""

_TOLERANCE = 1e-4  # between logged and recomputed, in advantage units: other machines round differently


class NotStoredError(Exception):
    """A recipe needs something that a run does not store."""


class _NotStored:
    """Stands for the model and its metrics; using it raises NotStoredError."""

    def __getattr__(self, name: str) -> Any:
        raise NotStoredError(f"{name} of the model in training")


@dataclass(frozen=True, slots=True)
class Trained:
    """How a trajectory was trained on in the update that collected it.

    ``advantages`` are [A] numbers for the action tokens of each turn, or None in a stream without an estimator.
    """

    stream: str
    shaped_return: float
    advantages: tuple[tuple[float, ...], ...] | None


@dataclass(frozen=True, slots=True)
class Replayed:
    """An older trajectory that an update trained on again. ``staleness`` is its age in updates."""

    name: Name
    stream: str
    update: int
    staleness: int
    advantage: float  # mean over its action tokens


@dataclass
class Credited:
    """What one update trained on.

    ``why_not`` says why that cannot be recomputed. ``agrees`` is None where the run logged nothing to compare with.
    """

    trained: dict[Name, Trained] = field(default_factory=dict)
    replayed: list[Replayed] = field(default_factory=list)
    agrees: bool | None = None
    why_not: str = ""


def name_of(trajectory: Trajectory) -> Name:
    return trajectory.episode, trajectory.player


class Recipes:
    """A run's recipes, one for each side; they get one update after another."""

    def __init__(self, run: RunDirectory) -> None:
        self.config = run.config()
        self.info = self.config.run_info
        self.sides: dict[str, tuple[Recipe, TrajectoryBuffer]] = {}
        self.why_not = ""

    def credit(self, update: int, trajectories: Sequence[Trajectory], logged: Mapping[str, Any]) -> Credited:
        """What an update trained on. ``logged`` is its record.

        Updates must come in order and without a gap, since composers have state.
        """
        found = Credited(why_not=self.why_not)
        sides: dict[str, list[Trajectory]] = {}
        for trajectory in trajectories:
            sides.setdefault(self._side(trajectory), []).append(trajectory)
        try:
            for side, own in sides.items():
                if self.why_not:
                    break
                streams = self._streams(side, update, own)
                _collect(found, update, own, streams)
                agrees = _agrees(streams, logged, f"{side}/" if f"{side}/advantage_mean" in logged else "")
                found.agrees = agrees if found.agrees is None or not agrees else found.agrees
        except NotStoredError as error:
            self.why_not = found.why_not = f"{self._algorithm} needs {error}, which a run does not store"
        return found

    @property
    def _algorithm(self) -> str:
        return str(getattr(self.config.algorithm, "type", "the algorithm"))

    def _side(self, trajectory: Trajectory) -> str:
        """Name of the side that the trajectory belongs to, as ``turnwise.assembly.players`` names sides."""
        kind = self.config.game.policies if self.config.game else "shared"
        return {"shared": "", "per_role": trajectory.role, "per_player": trajectory.player}[kind]

    def _streams(self, side: str, update: int, trajectories: Sequence[Trajectory]) -> Streams:
        """The composer's streams with their advantages: the steps of ``Learner.update`` that need no model."""
        if side not in self.sides:
            recipe = build(self.config.algorithm, self.info)
            self.sides[side] = recipe, TrajectoryBuffer(recipe.keep_updates)
        recipe, buffer = self.sides[side]
        buffer.add(group_by_task(trajectories), update)
        groups = buffer.fresh(update)
        trajectories = tuple(t for group in groups for t in group.trajectories)
        rewards = shaped_rewards(recipe, self.info, trajectories, cast(Scorer, _NotStored()), update)
        composed = recipe.composer.compose(update, Samples(groups, rewards), buffer)
        streams = replace(composed, streams=tuple(_with_advantages(recipe[s.name], s) for s in composed))
        recipe.composer.after_update(update, streams, cast(Metrics, _NotStored()))
        buffer.prune(update + 1)
        return streams


def _with_advantages(plan: StreamRecipe, stream: Stream) -> Stream:
    if plan.estimator is None:
        return stream
    for part in (plan.estimator, *plan.modifiers):
        if part.needs:
            raise NotStoredError(f"{' and '.join(sorted(part.needs))} of the model in training")
    stream = stream.with_columns(advantages=plan.estimator.estimate(stream))
    for modifier in plan.modifiers:
        stream = stream.with_columns(advantages=modifier.modify(stream))
    return stream


def _collect(found: Credited, update: int, own: Sequence[Trajectory], streams: Streams) -> None:
    """Divide the rows of all streams into those of this update and those replayed.

    An episode may count from a later turn on, and whole besides: its advantages there add up.
    """
    fresh = {name_of(trajectory): trajectory for trajectory in own}
    for stream in streams:
        members = stream.samples.trajectories
        for place, rows in _rows(stream):
            trajectory, name = members[place], name_of(members[place])
            if name in fresh:
                total = stream.samples.rewards.total(place)
                before = fresh[name].turns[: len(fresh[name].turns) - len(trajectory.turns)]
                made = Trained(stream.name, total, _by_turn(stream, trajectory, rows, before))
                known = found.trained.get(name)
                found.trained[name] = made if known is None else _together(known, made)
            else:
                age = update - trajectory.policy_version
                values = _advantages(stream, rows)
                mean = math.fsum(values) / len(values) if values else 0.0
                found.replayed.append(Replayed(name_of(trajectory), stream.name, update, age, mean))


def _rows(stream: Stream) -> Iterator[tuple[int, list[int]]]:
    """(index of a trajectory in the stream, its rows), in order."""
    rows: dict[int, list[int]] = {place: [] for place in range(len(stream.samples.trajectories))}
    for row, place in enumerate(stream.batch.trajectory.tolist()):
        rows[place].append(row)
    return iter(rows.items())


def _advantages(stream: Stream, rows: list[int]) -> list[float]:
    """Advantages of all action tokens of some rows, in order; empty where the stream has no estimator."""
    batch = stream.batch
    if batch.advantages is None:
        return []
    values: list[float] = batch.advantages[rows][batch.action_mask[rows]].tolist()
    return values


def _by_turn(
    stream: Stream, trajectory: Trajectory, rows: list[int], before: Sequence[Turn] = ()
) -> tuple[tuple[float, ...], ...] | None:
    """The advantages of each turn's tokens; 0 for the turns ``before`` those that the stream has."""
    if stream.batch.advantages is None:
        return None
    values = iter(_advantages(stream, rows))
    return (
        *((0.0,) * len(turn.action_ids) for turn in before),
        *(tuple(next(values) if chosen else 0.0 for chosen in turn.action_mask.tolist()) for turn in trajectory.turns),
    )


def _together(one: Trained, other: Trained) -> Trained:
    """What an episode is trained by that counts twice; the return is that of the longer part, which comes first."""
    if one.advantages is None or other.advantages is None:
        return one
    pairs = zip(one.advantages, other.advantages, strict=True)
    return replace(one, advantages=tuple(tuple(a + b for a, b in zip(x, y, strict=True)) for x, y in pairs))


def _agrees(streams: Streams, logged: Mapping[str, Any], prefix: str) -> bool | None:
    """Whether the number of rows and the advantages' mean and std over all action tokens are as logged."""
    names = ("advantage_mean", "advantage_std", "num_rows")
    if any(logged.get(prefix + name) is None for name in names):
        return None
    known = [s.batch.advantages[s.batch.action_mask] for s in streams if s.batch.advantages is not None]
    values = torch.cat(known).double() if known else torch.zeros(0, dtype=torch.double)
    ours = (values.mean(), values.std(correction=0)) if values.numel() else (0.0, 0.0)
    rows = sum(len(stream.batch) for stream in streams)
    near = (
        math.isclose(mine, logged[prefix + name], rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
        for mine, name in zip(map(float, ours), names, strict=False)
    )
    return all(near) and rows == logged[prefix + "num_rows"]
