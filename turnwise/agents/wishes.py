"""What a request wishes of its reply (``info["sampling"]``): another temperature, fewer tokens, a form,
and texts that end it.

All of them are kept exactly. The temperature of each token's distribution is recorded with the turn, as are the tokens
that a form leaves to it (``forms.py``), so that the learner scores it under the same. A reply that is cut at a text
keeps the tokens up to the one that completes it; no token that was kept depends on those that were dropped.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from turnwise.envs.forms import Form
from turnwise.envs.interface import Info, sampling_of
from turnwise.models.drawing import Sampling
from turnwise.models.engine import Reply
from turnwise.trajectory import IntArray, Processing


@dataclass(frozen=True, slots=True)
class Wishes:
    """The wishes of one request; by default none. ``temperature`` 0 is greedy."""

    temperature: float | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    form: Form | None = None

    @classmethod
    def of(cls, info: Info, temperature: float | None = None) -> Wishes:
        """Those that the world passes on; ``temperature`` is the attempt's own, where the world wishes none."""
        given = sampling_of(info)
        return cls(
            given.get("temperature", temperature),
            given.get("max_tokens"),
            tuple(given.get("stop") or ()),
            Form.of(given),
        )

    def sampling(self, usual: Sampling) -> Sampling:
        """How the reply is sampled: ``usual`` is the run's, whose limit of tokens holds too; where it is greedy (an
        evaluation), the reply is.
        """
        fewer = usual if self.max_tokens is None else replace(usual, max_tokens=min(self.max_tokens, usual.max_tokens))
        if self.temperature is None or not usual.temperature:
            return fewer
        return replace(fewer, temperature=self.temperature)

    def recorded(self, reply: Reply, usual: Sampling) -> Reply:
        """The reply with the temperature of its tokens, where that is not the ``usual`` one.

        Where a processor gave some of them another temperature, the engine recorded all.
        """
        if not self.temperature or not usual.temperature or self.temperature == usual.temperature:
            return reply
        made, size = reply.processing, len(reply.ids)
        if made is None:
            made = Processing(np.zeros(size, np.int32), np.zeros(0, np.int32), np.zeros(size, np.bool_))
        if len(made.temperatures):
            return reply
        return replace(reply, processing=replace(made, temperatures=np.full(size, self.temperature, np.float32)))

    def cut(self, reply: Reply, decode: Callable[[IntArray], str]) -> tuple[Reply, str]:
        """The reply up to the first of the texts that end it, and its text before that."""
        text = decode(reply.ids)
        if not self.end(text):
            return reply, text
        size = self._fewest(reply.ids, decode)
        seen = decode(reply.ids[:size])  # in which no other text has begun earlier and ends later
        return shortened(reply, size), seen[: min(place for stop in self.stop if (place := seen.find(stop)) >= 0)]

    def end(self, text: str) -> bool:
        """Whether one of the texts that end a reply is in ``text``."""
        return any(stop in text for stop in self.stop)

    def _fewest(self, ids: IntArray, decode: Callable[[IntArray], str]) -> int:
        """The fewest of the tokens whose text has one of the texts that end a reply; all of them have one."""
        return 1 + bisect_left(range(1, len(ids)), True, key=lambda n: self.end(decode(ids[:n])))


def shortened(reply: Reply, size: int) -> Reply:
    """The first ``size`` tokens of a reply, as they were drawn."""
    if size >= len(reply.ids):
        return reply
    made = reply.processing
    if made is not None:
        made = Processing(
            made.counts[:size],
            made.ids[: int(made.sizes()[:size].sum())],
            made.forced[:size],
            made.temperatures[:size],
            made.like[:size],
        )
    return replace(
        reply,
        ids=reply.ids[:size],
        logprobs=reply.logprobs[:size],
        entropies=reply.entropies[:size],
        ended=False,
        processing=made,
    )
