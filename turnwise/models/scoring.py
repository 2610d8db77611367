"""What the learner makes of rows of tokens: log-probabilities of those that were sampled, entropies, and what is read.

The rows of a batch are packed into one sequence (``packing.py``), and the head computes the places of action tokens
alone (``head.py``). A token is scored under the distribution that it was drawn from (``allowed.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from turnwise.models.allowed import Drawn, scored, scored_logits
from turnwise.models.head import is_best
from turnwise.models.layers import adapter, added, beside, is_half, switched_on
from turnwise.models.packing import Sharing, pack
from turnwise.models.paths import Forward
from turnwise.models.reading import Reading, by_head, read


@dataclass(frozen=True, slots=True)
class Scores:
    """Log-probabilities and entropies [B, T] in nats, 0 outside the action tokens. Column t belongs to token t.

    ``hidden`` [M, h] float32 are the states that predict the M action tokens, row by row. ``best`` [B, T] is True on
    action tokens that no other token is more probable than. ``readings`` [B, T] are what was asked to be read of the
    vocabulary (``reading.py``), 0 outside the action tokens.
    """

    logprobs: Tensor
    entropies: Tensor | None
    hidden: Tensor | None = None
    best: Tensor | None = None
    readings: tuple[Tensor, ...] = ()


def scores_of(
    batch: Any,
    model: Any,
    forward: Forward,
    *,
    temperature: float,
    sharing: Sharing = "auto",
    entropy: bool = False,
    hidden: bool = False,
    best: bool = False,
    readings: Sequence[Reading] = (),
) -> Scores:
    """The scores of a TokenBatch by a model and its forward pass, with the adapters that are on in it.

    Logits are divided by ``temperature``, or by the batch's own. ``Policy.score`` says what the others are.
    """
    device = next(model.parameters()).device
    mask: Tensor = batch.action_mask.to(device)
    drawn = Drawn.of(batch)
    kinds = None if drawn is None else drawn.kinds()
    packed = pack(batch.tokens, batch.lengths.tolist(), batch.action_mask, device, sharing, kinds)
    own = None if drawn is None else drawn.at(packed.origin)
    states = forward.states(packed.ids, packed.plan).index_select(0, packed.before)
    wanted: dict[str, Any] = {"temperature": temperature, "entropy": entropy}
    if forward.linear_head:
        head = _head(model, states)
        values, entropies = scored(*head, packed.targets, own, **wanted)
        highest = is_best(*head, packed.targets) if best else None
        logits_of = by_head(*head)
    else:
        logits = forward.logits(states)
        values, entropies = scored_logits(logits, packed.targets, own, **wanted)
        highest = logits.detach().argmax(-1) == packed.targets if best else None
        logits_of = logits.__getitem__
    size = {"vocabulary": model.config.get_text_config().vocab_size, "temperature": temperature}
    seen = read(states, packed.targets, own, logits_of, readings, **size) if readings else ()
    empty = values.new_zeros(mask.shape)
    return Scores(
        empty.masked_scatter(mask, packed.to_rows(values)),
        None if entropies is None else empty.masked_scatter(mask, packed.to_rows(entropies)),
        packed.to_rows(states).float() if hidden else None,
        None if highest is None else torch.zeros_like(mask).masked_scatter(mask, packed.to_rows(highest)),
        tuple(empty.masked_scatter(mask, packed.to_rows(each)) for each in seen),
    )


def _head(model: Any, states: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """States, weight and bias whose product are the logits. An adapter of the head is included where it is on."""
    head = model.get_output_embeddings()
    base = getattr(head, "base_layer", head)
    if base is head or not switched_on(head):
        return states, base.weight, base.bias
    if is_half(base.weight.dtype):
        low, high = adapter(head, base.weight.dtype)
        return beside(states, low), torch.cat((base.weight, high), 1), base.bias
    return states, base.weight + added(head), base.bias
