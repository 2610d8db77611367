"""What the learner's forward pass gives the parts of a stream: one pass for all that they need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from turnwise.learning.planning import Reading, Scorer
from turnwise.learning.recipe import StreamRecipe
from turnwise.replay.batch import TokenBatch


@dataclass(frozen=True, slots=True)
class Scored:
    """A microbatch's scores of its action tokens, as of ``Scores``, and the log-probs of observed ones, if needed."""

    logprobs: Tensor
    entropies: Tensor | None
    hidden: Tensor | None
    observed: Tensor | None
    readings: Mapping[Reading, Tensor]

    @classmethod
    def of(cls, scorer: Scorer, batch: TokenBatch, recipe: StreamRecipe) -> Scored:
        asked = {"entropy": "entropy" in recipe.needs, "hidden": "hidden" in recipe.needs}
        if "observed" not in recipe.needs:
            found = scorer.score(batch, **asked, readings=recipe.reads)
            read = dict(zip(recipe.reads, found.readings, strict=True))
            return cls(found.logprobs, found.entropies, found.hidden, None, read)
        both, mask = batch.with_observed(), batch.action_mask
        found = scorer.score(both, **asked, readings=recipe.reads)
        return cls(
            found.logprobs.masked_fill(~mask, 0.0),
            None if found.entropies is None else found.entropies.masked_fill(~mask, 0.0),
            None if found.hidden is None else found.hidden[mask[both.action_mask]],
            found.logprobs.masked_fill(mask, 0.0),
            {r: each.masked_fill(~mask, 0.0) for r, each in zip(recipe.reads, found.readings, strict=True)},
        )
