"""Another model that draws single tokens of replies, in this process (entropy-adaptive decoding).

It has a context for each slot that asks, as far as there is room: what a context holds already is not computed again,
and one that was given to another slot is computed anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from turnwise.errors import AgentError
from turnwise.models.drawing import LogitsError, Sampling
from turnwise.models.engine import SlotEngine
from turnwise.models.processing import Step
from turnwise.seeds import mix
from turnwise.trajectory import IntArray


class SecondModel:
    """``name`` is what errors call it; ``engine`` runs it, and is asked for one token at a time.

    ``weights`` is the hash of its weights.
    """

    def __init__(self, name: str, engine: SlotEngine, weights: str = "") -> None:
        self.name, self.engine, self.weights = name, engine, weights
        self._slots: dict[int, int] = {}  # owner -> slot, the one that asked last at the end

    def of_reply(
        self, owner: int, context: IntArray, key: int, sampling: Sampling
    ) -> Callable[[Sequence[int], Step], tuple[int, float]]:
        """A function that draws a token of one reply after what was said of it, among what a step allows.

        ``context`` [P] comes before the reply, ``key`` seeds its draws, ``owner`` is the slot that has the reply. It
        returns the token and the entropy of its distribution, in nats.
        """

        def draw(said: Sequence[int], step: Step) -> tuple[int, float]:
            ids = np.concatenate([context, np.asarray(said, np.int32)])
            return self._draw(owner, ids, mix("second", key, len(said)), replace(sampling, max_tokens=1), step)

        return draw

    def _draw(self, owner: int, ids: IntArray, key: int, sampling: Sampling, step: Step) -> tuple[int, float]:
        slot = self._slot(owner)
        self.engine.submit(slot, ids, fresh=True, key=key, sampling=sampling, processor=_Once(step))
        try:
            while not (replies := self.engine.step()):
                pass
        except LogitsError as error:
            raise AgentError(f"{self.name} (agent.decoding.second) cannot draw a token: {error}") from None
        return int(replies[0].ids[0]), float(replies[0].entropies[0])

    def _slot(self, owner: int) -> int:
        """The owner's slot; where it has none, a free one, or that of whoever has not asked for the longest time."""
        slot = self._slots.pop(owner, None)
        if slot is None:
            slot = self.engine.open() if self.engine.num_free else self._slots.pop(next(iter(self._slots)))
        self._slots[owner] = slot
        return slot


@dataclass(frozen=True, slots=True)
class _Once:
    """The processor of a single token."""

    step: Step
    needs_logits: bool = False

    def before(self, logits: Tensor | None) -> Step:
        return self.step

    def after(self, token: int, logprob: float, entropy: float) -> None: ...
