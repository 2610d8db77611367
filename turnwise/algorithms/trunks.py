"""Credit of tokens that several attempts share, because one branched off another after them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from turnwise.learning.parts import AdvantageModifier, Stream, required
from turnwise.learning.primitives import turn_starts
from turnwise.trajectory import Trajectory

SharedCredit = Literal["soft", "hard", "once"]


def turn_owners(trajectories: Sequence[Trajectory]) -> list[list[int]]:
    """A number for each turn of each trajectory, the same wherever the turn itself is the same.

    A fork's turns before ``fork.turn`` are its parent's. Of a parent that is not among the trajectories only the
    children's common part is known.
    """
    numbers: dict[tuple[str, int], int] = {}
    by_episode = {trajectory.episode: trajectory for trajectory in trajectories}

    def origin(trajectory: Trajectory, turn: int) -> tuple[str, int]:
        name, fork = trajectory.episode, trajectory.fork
        while fork is not None and turn < fork.turn:
            name = fork.parent
            fork = by_episode[name].fork if name in by_episode else None
        return name, turn

    return [
        [numbers.setdefault(origin(trajectory, turn), len(numbers)) for turn in range(len(trajectory.turns))]
        for trajectory in trajectories
    ]


class SharedTrunks(AdvantageModifier):
    """The mean advantage of its copies on every copy of a shared token; ``once``: divided by their number.

    With ``hard`` (ARPO) a token counts as often as there are attempts over it, as it does without this part
    (``soft``), which differs from it only where the clip decides by the sign of the advantage. With ``once`` its
    copies count together as one token of the numerator.
    """

    def __init__(self, credit: Literal["hard", "once"]) -> None:
        self.credit = credit

    def modify(self, stream: Stream) -> Tensor:
        advantages, batch = required(stream.batch.advantages, "advantages"), stream.batch
        trajectories, mask = stream.samples.trajectories, batch.action_mask
        if all(trajectory.fork is None for trajectory in trajectories):
            return advantages
        owners = torch.full((len(trajectories), max(len(t.turns) for t in trajectories)), -1)
        for number, owned in enumerate(turn_owners(trajectories)):
            owners[number, : len(owned)] = torch.tensor(owned, dtype=torch.int64)
        places = mask.cumsum(1)
        first = (places * turn_starts(mask, batch.turn_index)).cummax(1).values
        owner = owners[batch.trajectory.unsqueeze(1), batch.turn_index.clamp(min=0)]
        tokens = (owner * (mask.shape[1] + 1) + places - first)[mask]
        _, same, copies = torch.unique(tokens, return_inverse=True, return_counts=True)
        self.occurred.count("shared_share", copies[same] > 1, mask)
        sums = torch.zeros(len(copies), dtype=torch.float64).index_add(0, same, advantages[mask].double())
        shared = sums / (copies if self.credit == "hard" else copies.square())
        return advantages.masked_scatter(mask, shared[same].to(advantages.dtype))
