"""The advantages of tokens that several attempts share, because one attempt branched off another after them.

An example: an attempt with advantage 1 is forked after its turn 2, and the fork gets advantage 0. Turns 0 and 1 are
their *trunk*: they were sampled once, and the training batch holds them twice, once for each attempt. There are three
choices for the trunk's tokens:

    soft    each copy has the advantage of its own attempt: 1 and 0          (nothing changes: no part is needed)
    hard    each copy has the mean of the copies' advantages: 0.5 and 0.5    (ARPO)
    once    each copy has that mean divided by their number: 0.25 and 0.25   (the copies count as one token together)
"""

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
    """[trajectory][turn]: a number for each turn, equal for copies of one turn.

    The turns of a fork before ``fork.turn`` are copies of its parent's. If the parent is not among the trajectories,
    nothing is known of what it shares with others; its forks still share the turns that they took over from it.
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
    """Gives every copy of a shared token the mean of the copies' advantages; with ``once``, divided by their number.

    A token that three attempts share thus counts three times in the loss with ``hard``, as it does without this part
    (``soft``). Where all tokens weigh the same, ``hard`` and ``soft`` have the same gradient, unless the clip treats
    the copies differently because their advantages differ in sign. With ``once`` the three copies together count as
    one token of the loss's numerator.
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
