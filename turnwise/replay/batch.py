"""TokenBatch: trajectories laid out as right-padded rows of tokens, the one shape that a learner sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from turnwise.prefixes import prefix_order
from turnwise.trajectory import Group, Trajectory, Turn

MAX_GATHERED = 4  # tokens of rows for each token of the budget


@dataclass(frozen=True, slots=True)
class TokenSets:
    """S distinct sets of tokens: set s is ``ids[offsets[s] : offsets[s + 1]]``, or where ``but[s]`` all others."""

    offsets: Tensor  # [S + 1] int64
    ids: Tensor  # [offsets[S]] int64, ascending in each set
    but: Tensor  # [S] bool

    def to(self, device: torch.device | str) -> TokenSets:
        return TokenSets(self.offsets.to(device), self.ids.to(device), self.but.to(device))


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Rows of tokens, [B, T], with the origin of each.

    Column t holds what belongs to token t itself, so ``behaviour_logprobs[b, t]`` is the log-probability
    (nats) of ``tokens[b, t]`` given the tokens before it. Float columns are 0 outside ``action_mask``. A
    column that nobody asked for is None, never zeros.
    """

    tokens: Tensor  # [B, T] int64, 0 in the padding
    action_mask: Tensor  # [B, T] bool, True on sampled tokens (of several that were possible)
    turn_index: Tensor  # [B, T] int64, the turn's number in its trajectory on action tokens, else -1
    lengths: Tensor  # [B] int64, tokens of the row without padding
    trajectory: Tensor  # [B] int64, place in the flattened list of the groups' trajectories
    group: Tensor  # [B] int64, place in the list of groups
    first_turn: Tensor  # [B] int64, number of the row's first turn
    num_turns: Tensor  # [B] int64, turns in the row
    behaviour_logprobs: Tensor  # [B, T] float32, nats
    behaviour_entropies: Tensor  # [B, T] float32, nats
    staleness: Tensor  # [B] int64, updates between sampling and use
    weight: Tensor  # [B] float32, factor on the row's policy loss
    stream: str = "fresh"
    proximal_logprobs: Tensor | None = None  # [B, T] nats, of the policy at the start of the update
    reference_logprobs: Tensor | None = None  # [B, T] nats, of the frozen policy
    teacher_logprobs: Tensor | None = None  # [B, T] nats, of a second scorer
    values: Tensor | None = None  # [B, T] reward units
    rewards: Tensor | None = None  # [B, T], each turn's reward on its last action token
    advantages: Tensor | None = None  # [B, T], 0 outside the mask
    returns: Tensor | None = None  # [B, T] reward units, what the values are trained towards
    allowed: Tensor | None = None  # [B, T] int64, which of the sets the token was drawn from; -1: all tokens
    sets: TokenSets | None = None
    temperatures: Tensor | None = None  # [B, T] float32, of the token's distribution; 0: the run's
    observed: Tensor | None = None  # [B, T] bool, tokens that came from outside after the row's first reply
    thought: Tensor | None = None  # [B, T] bool, action tokens of a reply before its action
    opening: Mapping[Any, Tensor] = field(default_factory=dict)  # [B, T] each, read before the update by what it reads

    def __len__(self) -> int:
        return self.tokens.shape[0]

    @property
    def num_action_tokens(self) -> int:
        return int(self.action_mask.sum())

    def select(self, rows: Tensor) -> TokenBatch:
        """The given rows in the given order, trimmed to the longest of them."""
        width = int(self.lengths[rows].max()) if len(rows) else 0
        return self._map(lambda column: column[rows, :width] if column.ndim == 2 else column[rows])

    def with_observed(self) -> TokenBatch:
        """A copy whose action mask is True on the observed tokens, too: to be scored, not to be given credit."""
        return self if self.observed is None else replace(self, action_mask=self.action_mask | self.observed)

    def to(self, device: torch.device | str) -> TokenBatch:
        sets = None if self.sets is None else self.sets.to(device)
        return replace(self._map(lambda column: column.to(device)), sets=sets)

    def with_columns(self, **columns: Any) -> TokenBatch:
        """A copy with optional columns set, such as ``reference_logprobs``."""
        changes: dict[str, Any] = {**columns}
        return replace(self, **changes)

    def _map(self, change: Callable[[Tensor], Tensor]) -> TokenBatch:
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        changed: dict[str, Any] = {n: change(c) for n, c in columns.items() if isinstance(c, Tensor)}
        return replace(self, **changed, opening={reading: change(c) for reading, c in self.opening.items()})


@dataclass(frozen=True, slots=True)
class _Row:
    trajectory: int
    group: int
    first_turn: int
    turns: tuple[Turn, ...]
    staleness: int
    rewards: tuple[float, ...] | None

    @property
    def length(self) -> int:
        return sum(len(turn.prompt_ids) + len(turn.action_ids) for turn in self.turns)


def layout(
    groups: Sequence[Group],
    *,
    rewards: Sequence[Sequence[float]] | None = None,
    version: int | None = None,
    stream: str = "fresh",
    weights: Sequence[float] | None = None,
) -> TokenBatch:
    """Lay the trajectories of ``groups`` out as rows.

    A row starts at a turn with ``continues=False`` and extends over the following turns with
    ``continues=True``; a trajectory without turns has no row. ``rewards[i][n]`` is the reward of turn n of
    the i-th trajectory (groups flattened) and fills the ``rewards`` column, on the turn's last action token (of a
    turn without any: on the one before, if its row has one); ``weights[i]`` is its sample weight (1).
    ``version`` counts the updates behind the learner's policy; staleness is its distance from the trajectory's
    ``policy_version`` (0 without it).
    Raises ValueError for a first turn that continues nothing, for ids and log-probs of different lengths, for an
    action token without a token before it, and for one that was not allowed.
    """
    rows: list[_Row] = []
    number = 0
    for place, group in enumerate(groups):
        for trajectory in group.trajectories:
            age = 0 if version is None else version - trajectory.policy_version
            table = None if rewards is None else tuple(rewards[number])
            if table is not None and len(table) != len(trajectory.turns):
                raise ValueError(
                    f"Episode {trajectory.episode!r}: {len(trajectory.turns)} turns, but {len(table)} rewards"
                )
            for start, turns in _contexts(trajectory):
                part = None if table is None else table[start : start + len(turns)]
                rows.append(_Row(number, place, start, turns, age, part))
            number += 1
    return _fill(rows, stream, weights, rewarded=rewards is not None)


def _contexts(trajectory: Trajectory) -> Iterator[tuple[int, tuple[Turn, ...]]]:
    """(number of the first turn, turns) of each unbroken context of the trajectory."""
    starts = [n for n, turn in enumerate(trajectory.turns) if not turn.continues]
    if trajectory.turns and starts[:1] != [0]:
        raise ValueError(f"Episode {trajectory.episode!r}: the first turn continues a context that is not there")
    for start, end in pairwise([*starts, len(trajectory.turns)]):
        turns = trajectory.turns[start:end]
        if len(turns[0].prompt_ids) == 0:
            raise ValueError(
                f"Episode {trajectory.episode!r}, turn {start}: a context must open with a prompt token, "
                "else its first action token has no log-probability"
            )
        yield start, turns


def _fill(rows: Sequence[_Row], stream: str, weights: Sequence[float] | None, *, rewarded: bool) -> TokenBatch:
    shape = (len(rows), max((row.length for row in rows), default=0))
    tokens, turn_index = np.zeros(shape, np.int64), np.full(shape, -1, np.int64)
    logprobs, entropies, table = (np.zeros(shape, np.float32) for _ in range(3))
    restrictions, (observed, thought) = _Restrictions(shape), (np.zeros(shape, np.bool_) for _ in range(2))
    for b, row in enumerate(rows):
        end, last = 0, -1
        for offset, turn in enumerate(row.turns):
            sampled = len(turn.action_ids)
            if len(turn.logprobs) != sampled or len(turn.entropies) != sampled:
                raise ValueError(
                    f"Turn {row.first_turn + offset}: {sampled} action tokens need as many log-probs "
                    f"and entropies; got {len(turn.logprobs)} and {len(turn.entropies)}"
                )
            start = end + len(turn.prompt_ids)
            tokens[b, end:start] = turn.prompt_ids
            observed[b, end:start] = offset > 0
            end = start + sampled
            tokens[b, start:end] = turn.action_ids
            places = start + np.flatnonzero(turn.action_mask)
            turn_index[b, places] = row.first_turn + offset
            logprobs[b, places] = turn.logprobs[places - start]
            entropies[b, places] = turn.entropies[places - start]
            thought[b, places] = places - start < turn.thought_tokens
            restrictions.add(b, places, turn, start)
            last = int(places[-1]) if sampled else last
            if row.rewards is not None and last >= 0:
                table[b, last] += row.rewards[offset]

    def column(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64)

    trajectory = column([row.trajectory for row in rows])
    return TokenBatch(
        tokens=torch.from_numpy(tokens),
        action_mask=torch.from_numpy(turn_index >= 0),
        turn_index=torch.from_numpy(turn_index),
        lengths=column([row.length for row in rows]),
        trajectory=trajectory,
        group=column([row.group for row in rows]),
        first_turn=column([row.first_turn for row in rows]),
        num_turns=column([len(row.turns) for row in rows]),
        behaviour_logprobs=torch.from_numpy(logprobs),
        behaviour_entropies=torch.from_numpy(entropies),
        staleness=column([row.staleness for row in rows]),
        weight=torch.ones(len(rows)) if weights is None else torch.tensor(weights)[trajectory].float(),
        stream=stream,
        rewards=torch.from_numpy(table) if rewarded else None,
        observed=torch.from_numpy(observed),
        thought=torch.from_numpy(thought),
        **restrictions.columns(),
    )


class _Restrictions:
    """The columns that say what the action tokens of rows were drawn from."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self._allowed, self._temperatures = np.full(shape, -1, np.int64), np.zeros(shape, np.float32)
        self._sets: dict[tuple[bool, bytes], int] = {}

    def add(self, row: int, places: NDArray[np.int64], turn: Turn, start: int) -> None:
        """The action tokens of a turn, at these ``places`` of the row. Its reply begins at ``start``."""
        if turn.processing is None:
            return
        sets, temperatures = turn.processing.sets(), turn.processing.temperatures
        for place in places.tolist():
            ids, token, but = (
                sets[place - start],
                turn.action_ids[place - start],
                turn.processing.counts[place - start] < 0,
            )
            if len(ids) and (token in ids) == but:
                kind = "excluded" if but else "allowed"
                raise ValueError(
                    f"action token {token} contradicts the {len(ids)} tokens that were {kind} in its place"
                )
            if len(ids):
                key = bool(but), ids.astype("<i4").tobytes()
                self._allowed[row, place] = self._sets.setdefault(key, len(self._sets))
        if len(temperatures):
            self._temperatures[row, places] = temperatures[places - start]

    def columns(self) -> dict[str, Any]:
        """Those of ``TokenBatch``; a column that says nothing is left out."""
        found: dict[str, Any] = {}
        if self._sets:
            sets = [np.frombuffer(packed, "<i4").astype(np.int64) for _, packed in self._sets]
            offsets, but = np.cumsum([0, *map(len, sets)]), torch.tensor([but for but, _ in self._sets])
            found["allowed"] = torch.from_numpy(self._allowed)
            found["sets"] = TokenSets(torch.from_numpy(offsets), torch.from_numpy(np.concatenate(sets)), but)
        if self._temperatures.any():
            found["temperatures"] = torch.from_numpy(self._temperatures)
        return found


def minibatches(units: Sequence[int], num: int, generator: np.random.Generator) -> list[Tensor]:
    """Shuffle row numbers into at most ``num`` parts; never an empty one.

    ``units`` [B] says which unit a row belongs to: rows of one unit stay together, and parts differ by at most one
    unit. (Rows of their own each: ``range(B)``.)
    """
    table = np.asarray(units, np.int64)
    distinct = np.unique(table)
    parts = np.array_split(generator.permutation(len(distinct)), max(num, 1))
    return [torch.from_numpy(np.flatnonzero(np.isin(table, distinct[part]))) for part in parts if len(part)]


class PaddedRows(Protocol):
    """Right-padded rows of tokens [B, T], with their lengths [B]."""

    @property
    def tokens(self) -> Tensor: ...
    @property
    def lengths(self) -> Tensor: ...


def microbatches(batch: PaddedRows, max_tokens: int) -> list[Tensor]:
    """Split into row numbers, each part with at most ``max_tokens`` tokens, equal beginnings of its rows counted once.

    Rows that begin alike stay together as far as they fit. A row longer than the budget is alone. Every row comes
    exactly once; the order depends on the tokens only. What rows do not share grows with them too (keys and values are
    gathered for each), so a part's rows together have at most four times as many tokens.
    """
    rows = [row[:length] for row, length in zip(batch.tokens.cpu().numpy(), batch.lengths.tolist(), strict=True)]
    order, shared = prefix_order(rows)
    parts: list[list[int]] = []
    distinct = total = 0
    for row, kept in zip(order.tolist(), shared.tolist(), strict=True):
        length = len(rows[row])
        distinct, total = distinct + length - kept, total + length
        if parts and distinct <= max_tokens and total <= MAX_GATHERED * max_tokens:
            parts[-1].append(row)
        else:
            parts.append([row])
            distinct = total = length
    return [torch.tensor(part, dtype=torch.int64) for part in parts]
