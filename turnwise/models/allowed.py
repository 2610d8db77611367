"""Log-probabilities and entropies of tokens, each under the distribution that it was drawn from.

A token that was drawn from a set S of allowed ids has the logits of S alone (``models/processing.py``):

    l = (hidden W[S]^T + bias[S]) / temperature       logprob = l[target] - logsumexp(l)       entropy = -sum p log p

Only the columns of the head that some set holds are multiplied. Tokens without a set take the whole head. So do those
whose set is every token but some: those of one set together, with biases far below all others; where there are many
such sets, as in texts under a grammar, some tokens at once with a mask of logits for each.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from turnwise.models.attention import Ints
from turnwise.models.head import exactly, logits_logprob_entropy, logprob_entropy, spans

NEVER = -1e9  # a bias; the probability is 0, and 0 * log p is 0, which of -inf it is not

MAX_ROWS = 4096
"""Tokens whose logits are held at once. The backward pass computes those of longer batches again, part by part."""

FEW_SETS = 4
"""Sets of all tokens but some that take the head one after the other."""

MAX_LOGITS = 2**24
"""Logits that are held at once where sets are large: of the whole vocabulary, or of the ids that some set holds. The
backward pass computes them again."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """What M tokens were drawn from.

    ``which`` [M] is the number of each token's set, which must hold the token; -1: every id was allowed. Set s holds
    ``ids[offsets[s] : offsets[s + 1]]``, or where ``but[s]`` all other ids. ``temperatures`` [M] float32; 0: the run's.
    """

    which: Tensor
    offsets: Tensor
    ids: Tensor
    but: Tensor
    temperatures: Tensor

    @classmethod
    def of(cls, batch: Any) -> Drawn | None:
        """Those of a TokenBatch's action tokens, in order; None where no processor changed anything."""
        if batch.allowed is None and batch.temperatures is None:
            return None
        mask = batch.action_mask
        sets = batch.sets
        none = torch.zeros(1, dtype=torch.int64, device=mask.device)
        return cls(
            torch.full((int(mask.sum()),), -1, device=mask.device) if batch.allowed is None else batch.allowed[mask],
            none if sets is None else sets.offsets,
            none if sets is None else sets.ids,
            none.bool() if sets is None else sets.but,
            torch.zeros(int(mask.sum()), device=mask.device)
            if batch.temperatures is None
            else batch.temperatures[mask],
        )

    def kinds(self) -> Ints:
        """Numbers [M] that are equal where tokens were drawn alike."""
        _, heat = torch.unique(self.temperatures, return_inverse=True)
        found: Ints = ((self.which + 1) * (int(heat.max()) + 1 if len(heat) else 1) + heat).cpu().numpy()
        return found

    def at(self, tokens: Tensor) -> Drawn:
        """Those of some of the tokens [D], on their device."""
        which, offsets, ids, but, heat = (
            each.to(tokens.device) for each in (self.which, self.offsets, self.ids, self.but, self.temperatures)
        )
        return Drawn(which[tokens], offsets, ids, but, heat[tokens])


def scored(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    drawn: Drawn | None,
    *,
    temperature: float,
    entropy: bool,
) -> tuple[Tensor, Tensor | None]:
    """hidden [M, h], weight [V, h], bias [V], targets [M] int64 -> log-probs and entropies [M] in nats. Differentiable.

    ``drawn`` says what each target was drawn from; None: all tokens, at ``temperature``.
    """
    if drawn is None:
        return logprob_entropy(hidden, weight, bias, targets, temperature=temperature, entropy=entropy)
    drawn = replace(drawn, temperatures=drawn.temperatures.masked_fill(drawn.temperatures == 0, temperature))
    but = (drawn.which >= 0) & drawn.but[drawn.which.clamp(min=0)]
    order, parts = [], []
    sets = torch.unique(drawn.which[but]).tolist()
    many = but.nonzero()[:, 0] if len(sets) > FEW_SETS else but.nonzero()[:0, 0]
    for span in spans(len(many), max(1, MAX_LOGITS // len(weight))):
        rows = many[span]
        given = (hidden[rows], weight, bias, targets[rows], drawn.at(rows))
        parts.append(checkpoint(_all_but, *given, use_reentrant=False) if torch.is_grad_enabled() else _all_but(*given))
        order.append(rows)
    for number in [-1, *([] if len(many) else sets)]:
        rows = (drawn.which == number).nonzero()[:, 0]
        own = bias if number < 0 else _without(drawn, number, weight, bias)
        heat = drawn.temperatures[rows]
        parts.append(logprob_entropy(hidden[rows], weight, own, targets[rows], temperature=heat, entropy=entropy))
        order.append(rows)
    bound = ((drawn.which >= 0) & ~but).nonzero()[:, 0]
    most = min(MAX_ROWS, max(1, MAX_LOGITS // _num_columns(drawn, bound)))
    again = len(bound) > most and torch.is_grad_enabled()
    for span in spans(len(bound), most):
        rows = bound[span]
        given = (hidden[rows], weight, bias, targets[rows], drawn.at(rows))
        parts.append(checkpoint(_among, *given, use_reentrant=False) if again else _among(*given))
        order.append(rows)
    back = torch.cat(order).argsort()
    logprobs = torch.cat([found for found, _ in parts])[back]
    return logprobs, torch.cat([found for _, found in parts if found is not None])[back] if entropy else None


def scored_logits(
    logits: Tensor, targets: Tensor, drawn: Drawn | None, *, temperature: float, entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """As ``scored``, of logits [M, V] that are in memory as a whole."""
    if drawn is None:
        return logits_logprob_entropy(logits, targets, temperature, entropy)
    inside = _inside(drawn, logits.shape)
    logp = torch.log_softmax((exactly(logits) / heat_of(drawn, temperature)).masked_fill(~inside, -torch.inf), dim=-1)
    logp = logp.masked_fill(~inside, 0.0)  # as in _among
    probabilities = logp.exp().masked_fill(~inside, 0.0)
    chosen = logp.gather(1, targets[:, None])[:, 0]
    return chosen, -(probabilities * logp).sum(1) if entropy else None


def restricted(logits: Tensor, drawn: Drawn | None, temperature: float) -> Tensor:
    """Logits [M, V] of what each token was drawn from: over its temperature, and ``NEVER`` outside its allowed ids."""
    hot = exactly(logits) / heat_of(drawn, temperature)
    return hot if drawn is None else hot.masked_fill(~_inside(drawn, logits.shape), NEVER)


def heat_of(drawn: Drawn | None, temperature: float) -> Tensor | float:
    """Each token's temperature, [M, 1]; one number where all have the run's."""
    if drawn is None:
        return temperature
    return drawn.temperatures.masked_fill(drawn.temperatures == 0, temperature)[:, None]


def _inside(drawn: Drawn, shape: torch.Size) -> Tensor:
    """Which ids each token was drawn from, [M, V] bool."""
    inside = torch.ones(shape, dtype=torch.bool, device=drawn.which.device)
    bound = drawn.which >= 0
    if bound.any():
        used, which = torch.unique(drawn.which[bound], return_inverse=True)
        ids, _ = _padded(drawn.offsets, drawn.ids, used)
        held = torch.zeros(len(used), shape[1], dtype=torch.bool, device=ids.device).scatter_(1, ids, True)
        inside[bound] = (held ^ drawn.but[used, None])[which]
    return inside


def _num_columns(drawn: Drawn, rows: Tensor) -> int:
    """How many ids the sets of some tokens hold together; 1 at least. No set of theirs is larger."""
    used = torch.zeros(len(drawn.offsets) - 1, dtype=torch.bool, device=rows.device)
    used[drawn.which[rows]] = True
    ids = drawn.ids[: int(drawn.offsets[-1])][used.repeat_interleave(drawn.offsets.diff())]
    return max(1, int(torch.bincount(ids).count_nonzero()))


def _among(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, drawn: Drawn) -> tuple[Tensor, Tensor]:
    """The same for targets whose sets are all of allowed ids."""
    used, which = torch.unique(drawn.which, return_inverse=True)
    ids, inside = _padded(drawn.offsets, drawn.ids, used)
    columns, places = torch.unique(ids, return_inverse=True)
    logits = exactly(linear(hidden, weight[columns], None if bias is None else bias[columns]))
    logits = logits / drawn.temperatures[:, None]
    outside = ~inside[which]
    logp = torch.log_softmax(logits.gather(1, places[which]).masked_fill(outside, -torch.inf), dim=-1)
    target = ((ids[which] == targets[:, None]) & ~outside).int().argmax(1, keepdim=True)
    logp = logp.masked_fill(outside, 0.0)  # in place of -inf, of which the probability is 0, too
    probabilities = logp.exp().masked_fill(outside, 0.0)
    return logp.gather(1, target)[:, 0], -(probabilities * logp).sum(1)


def _all_but(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, drawn: Drawn
) -> tuple[Tensor, Tensor]:
    """The same for targets whose sets are all of excluded ids."""
    logits = exactly(linear(hidden, weight, bias)) / drawn.temperatures[:, None]
    ids, _ = _padded(drawn.offsets, drawn.ids, drawn.which)
    outside = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device).scatter_(1, ids, True)
    logp = torch.log_softmax(logits.masked_fill(outside, -torch.inf), dim=-1).masked_fill(outside, 0.0)
    probabilities = logp.exp().masked_fill(outside, 0.0)
    return logp.gather(1, targets[:, None])[:, 0], -(probabilities * logp).sum(1)


def _without(drawn: Drawn, number: int, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A bias [V] under which the ids of set ``number`` have probability 0."""
    own = weight.new_zeros(len(weight)) if bias is None else bias
    return own.index_fill(0, drawn.ids[drawn.offsets[number] : drawn.offsets[number + 1]], NEVER)


def _padded(offsets: Tensor, ids: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
    """The ids of some sets [S, n], padded with one of their own, and True where they are not padding."""
    sizes = offsets[used + 1] - offsets[used]
    grid = torch.arange(int(sizes.max()), device=ids.device)
    inside = grid < sizes[:, None]
    return ids[offsets[used, None] + torch.where(inside, grid, 0)], inside
