"""How probable a policy finds the right answer before each turn of an episode: its belief.

The world tells the answer, and the agent does not see it. ``References`` spell it as the agent would. These tokens are
scored behind the context of each turn, in the place of the reply that was given there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from turnwise.replay.batch import TokenBatch, layout
from turnwise.trajectory import Group, IntArray, Trajectory, Turn


class Target(NamedTuple):
    """The beginning of a reply that gives an answer: its tokens [L]. The answer's own are those from ``start`` on."""

    ids: IntArray
    start: int


class References(Protocol):
    """The right answers of tasks."""

    def targets(self, episode: Trajectory) -> Sequence[Target]:
        """A target for each form of the task's answer, at least one. Raises ValueError where the world told none."""
        ...


def beliefs(groups: Sequence[Group], references: References, logprobs: Callable[[TokenBatch], Tensor]) -> Tensor:
    """The mean log-prob of the answer's tokens before each turn, [N] float64 nats; of several forms the likeliest's.

    ``logprobs`` gives those of a batch's action tokens, [B, T] nats. It is asked group by group, so that the rows of
    a few episodes are in memory at once.
    """
    return torch.cat([torch.zeros(0, dtype=torch.float64), *(_of(group, references, logprobs) for group in groups)])


def _of(group: Group, references: References, logprobs: Callable[[TokenBatch], Tensor]) -> Tensor:
    played = [trajectory for trajectory in group.trajectories if trajectory.turns]
    targets = [references.targets(trajectory) for trajectory in played]
    asked = [_asked(trajectory, forms) for trajectory, forms in zip(played, targets, strict=True)]
    if not asked:
        return torch.zeros(0, dtype=torch.float64)
    batch = layout([replace(group, trajectories=tuple(asked))])
    rows = (logprobs(batch).double() * batch.action_mask).sum(1) / batch.action_mask.sum(1)
    own = torch.split(rows, [len(trajectory.turns) for trajectory in asked])
    return torch.cat([row.view(-1, len(forms)).amax(1) for row, forms in zip(own, targets, strict=True)])


def _asked(episode: Trajectory, targets: Sequence[Target]) -> Trajectory:
    """The episode with, for each of its turns, one in a context of its own for each target."""
    contexts = [episode.context(turn) for turn in range(len(episode.turns))]
    return replace(episode, turns=tuple(_answer(context, target) for context in contexts for target in targets))


def _answer(context: IntArray, target: Target) -> Turn:
    own = target.ids[target.start :]
    unknown = np.zeros(len(own), np.float32)
    prompt = np.concatenate([context, target.ids[: target.start]])
    return Turn("", prompt, False, own, unknown, unknown, reply="", action="", valid=True, reward=0.0)
