"""Stored episodes in the place of fresh ones: runs that learn from a file and play nothing but their measurements."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from pydantic import Field, field_validator, model_validator

from turnwise.algorithms.common import FreshGroups
from turnwise.errors import UnusedSettingError
from turnwise.learning.parts import Composer, Samples, Stream, Streams
from turnwise.learning.planning import NoRollouts, Planner, Scorer
from turnwise.learning.recipe import Recipe, layers
from turnwise.learning.rewards import raw_rewards, shapers_of
from turnwise.learning.settings import RunInfo, Settings
from turnwise.replay.batch import layout
from turnwise.replay.buffer import TrajectoryBuffer
from turnwise.replay.stored import StoredEpisodes, whole_path
from turnwise.trajectory import Trajectory, group_by_task


class OfflineSettings(Settings):
    """Which episodes are learned from."""

    episodes: str | None = Field(
        default=None,
        description="A run's folder or file of episodes, which alone are learned from. Null: the run's own attempts.",
    )
    batch: int = Field(default=128, ge=1, description="Stored episodes of an update, as far as there are so many.")

    @field_validator("episodes")
    @classmethod
    def _from_anywhere(cls, given: str | None) -> str | None:
        """A run's configuration names the same file whatever folder it is read in."""
        return None if given is None else whole_path(given)

    @model_validator(mode="after")
    def _source_is_consistent(self) -> OfflineSettings:
        if self.episodes is None and self.changed("batch"):
            raise UnusedSettingError("batch", "batch counts stored episodes; without `episodes` there are none")
        return self

    def source(self, run: RunInfo) -> tuple[Composer, Planner | None]:
        """Who makes the stream ``fresh``, and who plays."""
        if self.episodes is None:
            return FreshGroups(), None
        return StoredGroups(StoredEpisodes(self.episodes, run.vocabulary), self.batch, run), NoRollouts()


def playing(base: Recipe, name: str) -> Recipe:
    """The base itself. Raises ValueError where it plays nothing: what ``name`` pays for attempts is not paid there."""
    if any(isinstance(layer, NoRollouts) for layer in layers(base.planner)):
        raise ValueError(
            f"{name} changes what fresh attempts are paid, and {base.name} learns from stored episodes alone: leave "
            f"algorithm.base.episodes out, or train without {name}"
        )
    return base


class StoredGroups(Composer):
    """The stream ``fresh`` from a file: in each update the next ``batch`` of its episodes, in an order of the seed.

    Every episode comes once before any comes again. Their rows count as old: nobody expects the present policy to have
    sampled them.
    """

    def __init__(self, stored: StoredEpisodes, batch: int, run: RunInfo) -> None:
        self.stored, self.batch, self.run = stored, batch, run

    def check_sources(self) -> None:
        self.stored.check()

    def state_dict(self) -> dict[str, Any]:
        return self.stored.state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.stored.load(state)

    def chosen(self, update: int) -> list[Trajectory]:
        """The episodes of an update."""
        found = self.stored.episodes
        size = min(self.batch, len(found))
        places = [divmod(n, len(found)) for n in range(update * size, (update + 1) * size)]
        orders = {
            number: np.random.default_rng([self.run.seed, number]).permutation(len(found)) for number, _ in places
        }
        return [found[int(orders[number][place])] for number, place in places]

    def compose(self, update: int, samples: Samples, buffer: TrajectoryBuffer) -> Streams:
        groups = tuple(group_by_task(self.chosen(update)))
        members = [t for group in groups for t in group.trajectories]
        rewards = raw_rewards(members)
        for shaper in shapers_of(self.run.rewards):
            rewards = shaper.shape(members, rewards, cast(Scorer, None))  # neither scale nor penalty asks it
        rows = layout(groups, rewards=[rewards.turns(n) for n in range(len(members))])
        self.occurred.count("episodes", len(members))
        rows = rows.with_columns(staleness=torch.ones_like(rows.staleness))
        return Streams((Stream(Samples(groups, rewards), rows),))
