"""Turns that answered the same state: their groups, what followed them, and credit given turn by turn.

GiGPO, HGPO, G2PO and GraphGPO compare turns of a task by the states that they met. An anchor identifies such a state:
it is what the environment says in ``info["anchor"]``, else the observation's text.

Different states may have one text: "Nothing happens." follows whatever failed, wherever the player is. Turns there are
compared although their states differ. But a *way* through such a text may not exist: it leads into the text in one
state and out of it in another. So what looks for ways asks for the world's ``info["state_key"]``, where there is one.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable, Sequence
from difflib import SequenceMatcher
from itertools import accumulate

import torch
from torch import Tensor

from turnwise.learning.credit import discounted_returns
from turnwise.learning.parts import Stream
from turnwise.trajectory import Trajectory, Turn

State = tuple[int, Hashable]
"""The number of a task, and what tells its states apart; None: its goal."""


def states_of(stream: Stream, *, by_key: bool = False) -> list[tuple[int, str]]:
    """(task, anchor) of every turn of the stream's trajectories, [N] in their order.

    With ``by_key`` the key of its state is in the anchor's place, where there is one.
    """
    return [(place, _name(turn, by_key)) for place, t in _members(stream) for turn in t.turns]


def _name(turn: Turn, by_key: bool) -> str:
    return (turn.state_key if by_key else "") or turn.anchor or turn.observation


def following_states(stream: Stream, won: Sequence[bool], *, by_key: bool = False) -> list[State]:
    """(task, anchor) of the state that every turn led to, [N]; None is the goal, where each of the ``won`` ends.

    An episode that was recorded without its last anchor ends in a state of its own. ``by_key`` as of ``states_of``.
    """
    found = list[State]()
    for number, ((place, trajectory), reached) in enumerate(zip(_members(stream), won, strict=True)):
        found += [(place, _name(turn, by_key)) for turn in trajectory.turns[1:]]
        if trajectory.turns:
            last = (trajectory.last_state_key if by_key else "") or trajectory.last_anchor or ("end", number)
            found.append((place, None if reached else last))
    return found


def contradicted(states: Sequence[State], actions: Sequence[str], following: Sequence[State]) -> list[bool]:
    """Whether another turn took the same action in the same state and was led to another one, [N].

    In a world that repeats itself no state is left so: what is taken for one are several.
    """
    led = defaultdict[tuple[State, str], set[State]](set)
    for state, action, reached in zip(states, actions, following, strict=True):
        led[state, action].add(reached)
    return [len(led[turn]) > 1 for turn in zip(states, actions, strict=True)]


def goal_distances(states: Sequence[State], following: Sequence[State]) -> dict[State, int]:
    """The distance to its task's goal, (task, None), of each state that is left or reached, in turns."""
    sources = defaultdict[State, list[State]](list)
    for state, reached in zip(states, following, strict=True):
        sources[reached].append(state)
    distances: dict[State, int] = {(task, None): 0 for task, _ in states}
    border = deque(distances)
    while border:
        reached = border.popleft()
        for state in sources[reached]:
            if state not in distances:
                distances[state] = distances[reached] + 1
                border.append(state)
    largest = defaultdict[int, int](int)
    for (task, _), distance in distances.items():
        largest[task] = max(largest[task], distance)
    return {state: distances.get(state, largest[state[0]] + 1) for state in (*distances, *states, *following)}


def step_returns(stream: Stream, gamma: float) -> Tensor:
    """Each turn's discounted return, with what the turn alone answers for undiscounted, [N] float64."""
    table = stream.samples.rewards
    found = [
        value + own
        for earned, row in zip(table.earned, table.own, strict=True)
        for value, own in zip(discounted_returns(earned, gamma), row, strict=True)
    ]
    return torch.tensor(found, dtype=torch.float64)


def on_tokens(stream: Stream, per_turn: Tensor) -> Tensor:
    """Values of turns, [N], on the action tokens of each turn, [B, T]; 0 elsewhere."""
    batch = stream.batch
    if not len(per_turn):
        return torch.zeros(batch.tokens.shape, dtype=per_turn.dtype)
    first = torch.tensor([0, *accumulate(len(t.turns) for _, t in _members(stream))])[batch.trajectory]
    return per_turn[(first.unsqueeze(1) + batch.turn_index).clamp(min=0)] * batch.action_mask


def same_histories(stream: Stream, length: int) -> Tensor:
    """Numbers of the groups of turns of a task whose last ``length`` states are the same, [N].

    A turn with fewer states up to its own is alone.
    """
    keys = list[tuple[object, ...]]()
    for place, trajectory in _members(stream):
        seen = [turn.anchor or turn.observation for turn in trajectory.turns]
        alone = [("alone", len(keys) + n) for n in range(min(length - 1, len(seen)))]
        keys += [*alone, *((place, *seen[n - length : n]) for n in range(length, len(seen) + 1))]
    order = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return torch.tensor([order[key] for key in keys], dtype=torch.int64)


def _members(stream: Stream) -> list[tuple[int, Trajectory]]:
    return [(place, t) for place, group in enumerate(stream.samples.groups) for t in group.trajectories]


def anchor_groups(states: Sequence[tuple[int, str]], similarity: float | None = None) -> list[int]:
    """Numbers of the groups of (task, anchor) pairs, [N], in order of first appearance.

    With ``similarity`` an anchor joins the first group of its task whose *first member* is at least so alike;
    which one that is depends on the order.
    """
    numbers: dict[tuple[int, str], int] = {}
    firsts: dict[int, list[tuple[str, int]]] = {}
    size = 0
    for task, anchor in states:
        if (task, anchor) in numbers:
            continue
        known = firsts.setdefault(task, [])
        near = (n for text, n in known if similarity is not None and alike(anchor, text, similarity))
        number = next(near, size)
        if number == size:
            known.append((anchor, size))
            size += 1
        numbers[task, anchor] = number
    return [numbers[state] for state in states]


def alike(new: str, representative: str, least: float) -> bool:
    """Whether difflib's ratio reaches ``least``; its cheap upper bounds are tried before.

    The ratio is not symmetric: the new text comes first, its group's first member second, as in the official code.
    """
    matcher = SequenceMatcher(None, new, representative)
    return matcher.real_quick_ratio() >= least and matcher.quick_ratio() >= least and matcher.ratio() >= least
