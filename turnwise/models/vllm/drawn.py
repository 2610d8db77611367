"""Our own draws inside vLLM, told in its logits.

vLLM knows log-probs of tokens, but neither our draws nor entropies of the whole vocabulary. So a logits processor
(processor.py) draws each token by the rule of ``models/drawing.py`` and leaves three logits of a row:

    the drawn token      CHOSEN, far above all others: greedy sampling takes it
    the next id          the entropy of its distribution, nats, >= 0
    the one after it     its log-probability, nats, <= 0
    every other one      -inf

vLLM samples greedily and reports the three highest logits of each row as they are (``logprobs_mode=processed_logits``,
``logprobs=3``). That is public output, the same in any layout of processes and over HTTP. Ids, log-probs and entropies
are so those of ``SlotEngine`` for the same logits, to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from turnwise.models.drawing import Sampling, position_seeds, sample
from turnwise.models.processing import Course, processed

CHOSEN = 2.0**100
"""The logit of the drawn token."""
BROKEN = 2.0**99
"""In the place of the entropy, where the model's logits are nan or infinite."""

NUM_TOLD = 3
"""Logits of a row that vLLM has to report."""
ARGUMENT = "turnwise"
"""The name of a request's extra argument that says how its tokens are drawn."""

_WORD = 2**64


@dataclass(slots=True)
class Drawing:
    """How the tokens of one reply are drawn. ``course`` is its processor at work; only an engine here can have one."""

    key: int
    sampling: Sampling
    course: Course | None = None
    _seeds: list[int] = field(default_factory=list)

    def seed(self, position: int) -> int:
        """The seed of a token's draw; 0 where the reply is greedy."""
        if not self.sampling.temperature:
            return 0
        if not self._seeds:
            self._seeds = position_seeds(self.key, self.sampling.max_tokens)
        return self._seeds[position]

    def plain(self) -> list[int | float]:
        """As JSON values, for another process."""
        given = self.sampling
        return [self.key % _WORD, given.temperature, given.top_p, given.top_k, given.max_tokens]

    @classmethod
    def of(cls, value: Any) -> Drawing:
        """From a request's extra argument: a Drawing, or one in JSON. Raises ValueError for anything else."""
        if isinstance(value, Drawing):
            return value
        try:
            key, temperature, top_p, top_k, max_tokens = value
            return cls(int(key), Sampling(float(temperature), float(top_p), int(top_k), int(max_tokens)))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{ARGUMENT}={value!r}: expected [key, temperature, top_p, top_k, max_tokens] ({error})"
            ) from None


def tell(logits: Tensor, rows: Sequence[int], drawings: Sequence[Drawing], positions: Sequence[int]) -> None:
    """Draw a token for some rows of logits [R, V] float32, and write into each row what was drawn.

    ``positions`` are the tokens' places in their replies. Raises RuntimeError where a processor has seen another number
    of tokens than its reply has.
    """
    courses = [drawing.course for drawing in drawings]
    for course, position in zip(courses, positions, strict=True):
        if course is not None and len(course.taken) != position:
            raise RuntimeError(
                f"a processor has seen {len(course.taken)} tokens of a reply that has {position}: vLLM asked for a "
                "token more than once"
            )
    settings, given = [drawing.sampling for drawing in drawings], logits[rows]
    if any(courses):
        given, settings = processed(given, settings, courses)
    seeds = [drawing.seed(position) for drawing, position in zip(drawings, positions, strict=True)]
    ids, logprobs, entropies = sample(given, settings, seeds)
    broken = entropies.isnan()
    for course, token, logprob, entropy in zip(
        courses, ids.tolist(), logprobs.tolist(), entropies.tolist(), strict=True
    ):
        if course is not None:
            course.take(token, logprob, entropy)
    told = torch.full_like(given, -torch.inf)
    told.scatter_(1, ids[:, None], CHOSEN)
    told.scatter_(1, (ids[:, None] + 1) % told.shape[1], torch.where(broken, BROKEN, entropies)[:, None])
    told.scatter_(1, (ids[:, None] + 2) % told.shape[1], torch.where(broken, -1.0, logprobs)[:, None])
    logits[rows] = told


def heard(token: int, values: Mapping[int, float]) -> tuple[float, float] | None:
    """A token's log-probability and entropy, from the reported logits of its row by id; None: they are broken."""
    entropy, logprob = sorted((value for other, value in values.items() if other != token), reverse=True)[:2]
    return None if entropy >= BROKEN else (logprob, entropy)
