"""What a request wishes of its reply (``info["sampling"]``): another temperature, fewer tokens, texts that end it.

All of them are kept exactly. A temperature is that of each token's distribution, recorded with the turn, so that the
learner scores the tokens under it. A reply that is cut at a text keeps the tokens up to the one that completes it; no
token that was kept depends on those that were dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from turnwise.envs.interface import Info
from turnwise.models.drawing import Sampling
from turnwise.models.engine import Reply
from turnwise.models.processing import FREE, Processor, Step
from turnwise.trajectory import IntArray, Processing


@dataclass(frozen=True, slots=True)
class Wishes:
    """The wishes of one request; by default none. ``temperature`` 0 is greedy."""

    temperature: float | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()

    @classmethod
    def of(cls, info: Info) -> Wishes:
        """Those that the world passes on."""
        given: Mapping[str, Any] = info.get("sampling") or {}
        return cls(given.get("temperature"), given.get("max_tokens"), tuple(given.get("stop", ())))

    def sampling(self, usual: Sampling) -> Sampling:
        """How the reply is sampled: ``usual`` is the run's, whose limit of tokens holds too."""
        fewer = usual if self.max_tokens is None else replace(usual, max_tokens=min(self.max_tokens, usual.max_tokens))
        return replace(fewer, temperature=0.0) if self.temperature == 0 else fewer

    def processor(self, inner: Processor | None, usual: Sampling) -> Processor | None:
        """The reply's processor, where its temperature is not the ``usual`` one."""
        if not self.temperature or self.temperature == usual.temperature:
            return inner
        return AtTemperature(self.temperature, inner)

    def cut(self, reply: Reply, decode: Callable[[IntArray], str]) -> tuple[Reply, str]:
        """The reply up to the first of the texts that end it, and its text before that."""
        text = decode(reply.ids)
        found = [place for stop in self.stop if (place := text.find(stop)) >= 0]
        if not found:
            return reply, text
        size = next(n for n in range(1, len(reply.ids) + 1) if any(s in decode(reply.ids[:n]) for s in self.stop))
        return shortened(reply, size), text[: min(found)]


class AtTemperature:
    """Draws at a temperature of its own what an ``inner`` processor, if there is one, leaves to be drawn."""

    def __init__(self, temperature: float, inner: Processor | None = None) -> None:
        self._temperature, self._inner = temperature, inner

    @property
    def needs_logits(self) -> bool:
        return self._inner is not None and self._inner.needs_logits

    def before(self, logits: Tensor | None) -> Step:
        step = FREE if self._inner is None else self._inner.before(logits)
        return step if step.temperature is not None else replace(step, temperature=self._temperature)

    def after(self, token: int, logprob: float, entropy: float) -> None:
        if self._inner is not None:
            self._inner.after(token, logprob, entropy)


def shortened(reply: Reply, size: int) -> Reply:
    """The first ``size`` tokens of a reply, as they were drawn."""
    if size >= len(reply.ids):
        return reply
    made = reply.processing
    if made is not None:
        ids = int(np.abs(made.counts[:size]).sum())
        made = Processing(made.counts[:size], made.ids[:ids], made.forced[:size], made.temperatures[:size])
    return replace(
        reply,
        ids=reply.ids[:size],
        logprobs=reply.logprobs[:size],
        entropies=reply.entropies[:size],
        ended=False,
        processing=made,
    )
