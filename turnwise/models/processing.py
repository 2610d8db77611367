"""The extension point of sampling: a processor decides what each token of a reply is drawn from.

A processor is made for one reply. Before each token it gives a ``Step``: a set of allowed tokens, a temperature, or a
token that is forced. The engine draws from the renormalised distribution, tells the processor the token, and records
the steps with the reply. The learner scores the tokens under the same distributions (``models/allowed.py``).

    class Digits:                                       # a reply of digits, the hotter the less certain the model is
        needs_logits = True

        def before(self, logits: Tensor | None) -> Step:
            return Step(allowed=DIGITS, temperature=1.0 if spread(logits) < 1 else 1.2)

        def after(self, token: int, logprob: float, entropy: float) -> None: ...

A token that is the only one allowed is appended without asking the model. The model then computes it together with the
next token that is a choice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from turnwise.models.drawing import Sampling
from turnwise.trajectory import IntArray, Processing


@dataclass(frozen=True, slots=True)
class Step:
    """What the next token is drawn from.

    ``allowed`` [n]: ids, ascending, n >= 1; None: every token. ``excluded`` [n]: ids, ascending, in its place; every
    other token is allowed. ``forced``: the one token that comes; it is left out of
    training. ``temperature`` > 0 replaces the reply's, but for greedy replies, which stay greedy.
    """

    allowed: IntArray | None = None
    forced: int | None = None
    temperature: float | None = None
    excluded: IntArray | None = None

    @classmethod
    def of(cls, allowed: Tensor, temperature: float | None = None) -> Step:
        """A step that allows some of all ids, [V] bool; it holds the smaller one of allowed and excluded ids."""
        kept = allowed.nonzero()[:, 0].cpu().numpy().astype(np.int32)
        if 2 * len(kept) <= len(allowed):
            return cls(kept, temperature=temperature)
        return cls(excluded=(~allowed).nonzero()[:, 0].cpu().numpy().astype(np.int32), temperature=temperature)

    @property
    def only(self) -> int | None:
        """The token, where there is no choice."""
        if self.forced is not None:
            return self.forced
        return int(self.allowed[0]) if self.allowed is not None and len(self.allowed) == 1 else None

    @property
    def ids(self) -> IntArray:
        """The ids that are allowed, or those that are excluded; [0] where there are neither."""
        if self.forced is not None:
            return np.array([self.forced], np.int32)
        found = self.excluded if self.allowed is None else self.allowed
        return np.zeros(0, np.int32) if found is None else found

    @property
    def count(self) -> int:
        """The number of allowed ids, or minus that of excluded ones; 0: every token is allowed."""
        excludes = self.forced is None and self.allowed is None
        return -len(self.ids) if excludes else len(self.ids)


MANY = 4096
"""Ids of a reply's sets. Where there are more, those of equal sets are kept once."""

FREE = Step()
"""Every token is allowed."""


class Processor(Protocol):
    """Decides about the tokens of one reply.

    ``before`` is called once before each token, ``after`` once after it, with its log-probability and the entropy of
    its distribution (nats; both 0 where there was no choice). With ``needs_logits`` the former gets the token's logits
    [V], float32, before temperature; else None.
    """

    @property
    def needs_logits(self) -> bool: ...
    def before(self, logits: Tensor | None) -> Step: ...
    def after(self, token: int, logprob: float, entropy: float) -> None: ...


class Continuing:
    """Forces the first tokens of a reply, ``ids`` [n], and leaves the rest to ``inner`` (None: every token is allowed).

    ``inner`` is told of the forced tokens, so that it goes on as after the same tokens of another reply.
    """

    def __init__(self, ids: IntArray, inner: Processor | None = None) -> None:
        self._left, self._inner = deque(ids.tolist()), inner

    @property
    def needs_logits(self) -> bool:
        return self._inner is not None and self._inner.needs_logits

    def before(self, logits: Tensor | None) -> Step:
        step = FREE if self._inner is None else self._inner.before(logits)
        return Step(forced=self._left[0]) if self._left else step

    def after(self, token: int, logprob: float, entropy: float) -> None:
        if self._left:
            self._left.popleft()
        if self._inner is not None:
            self._inner.after(token, logprob, entropy)


@dataclass(slots=True)
class Course:
    """A processor at work on one reply: the step that is due, and those that were taken."""

    processor: Processor
    due: Step | None = None
    taken: list[Step] = field(default_factory=list)

    def step(self, logits: Tensor | None = None) -> Step:
        """The step that is due. The processor is asked once, however often this is called."""
        if self.due is None:
            self.due = self.processor.before(logits)
            _check(self.due)
        return self.due

    def only(self) -> int | None:
        """The next token where it is no choice, and is known to be none without logits."""
        return None if self.processor.needs_logits and self.due is None else self.step().only

    def take(self, token: int, logprob: float, entropy: float) -> None:
        """The token that followed from the step that was due."""
        self.taken.append(self.step())
        self.due = None
        self.processor.after(token, logprob, entropy)

    def record(self, temperature: float) -> Processing | None:
        """The steps taken, for the learner; None where they left everything as it was."""
        return recorded(self.taken, temperature)


def recorded(steps: Sequence[Step], temperature: float) -> Processing | None:
    """Steps as arrays. ``temperature`` is that of tokens whose step gave none; at 0 the steps' own did not count."""
    own = [None if temperature == 0 else step.temperature for step in steps]
    hot = any(found is not None for found in own)
    if not hot and not any(step.count for step in steps):
        return None
    counts, kept = np.array([step.count for step in steps], np.int32), list(steps)
    like = np.zeros(0, np.int32)
    if np.abs(counts).sum() > MANY:
        first: dict[tuple[int, bytes], int] = {}
        found = [first.setdefault((step.count, step.ids.tobytes()), place) for place, step in enumerate(steps)]
        like, kept = np.array(found, np.int32), [steps[place] for place in sorted(first.values())]
    return Processing(
        counts=counts,
        ids=np.concatenate([step.ids for step in kept]).astype(np.int32),
        forced=np.array([step.forced is not None for step in steps], np.bool_),
        temperatures=np.array([t or temperature for t in own] if hot else [], np.float32),
        like=like,
    )


def processed(
    logits: Tensor, settings: Sequence[Sampling], courses: Sequence[Course | None]
) -> tuple[Tensor, list[Sampling]]:
    """Logits [R, V] with -inf outside the allowed tokens, and the settings with the steps' temperatures.

    ``settings`` and ``courses`` have one entry for each row. The logits are overwritten.
    """
    changed = list(settings)
    for row, course in enumerate(courses):
        if course is None:
            continue
        step = course.step(logits[row] if course.processor.needs_logits else None)
        if step.temperature is not None and changed[row].temperature:
            changed[row] = replace(changed[row], temperature=step.temperature)
        logits[row] = inside(logits[row], step)
    return logits, changed


def inside(logits: Tensor, step: Step) -> Tensor:
    """Logits [V] with -inf outside the tokens that a step allows."""
    if not step.count:
        return logits
    ids = torch.from_numpy(step.ids.astype(np.int64)).to(logits.device)
    if step.count < 0:
        return logits.index_fill(0, ids, -torch.inf)
    return torch.full_like(logits, -torch.inf).index_copy(0, ids, logits[ids])


def _check(step: Step) -> None:
    if step.allowed is not None and len(step.allowed) == 0:
        raise ValueError("a processor allowed no token at all: expected None (every one), or one at least")
    if step.allowed is not None and step.excluded is not None:
        raise ValueError("a processor gave allowed and excluded tokens at once: expected one of the two")
    if step.temperature is not None and step.temperature <= 0:
        raise ValueError(f"a processor gave the temperature {step.temperature}: expected one above 0")
