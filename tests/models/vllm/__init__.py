"""Engines against each other: the same conversations on both, and a model that vLLM's kernels for a CPU can compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from tests.models import TINY, tokenizer
from turnwise.models.engine import Engine, Reply, Sampling
from turnwise.models.policy import Policy
from turnwise.models.scratch import new_model
from turnwise.models.settings import LoRAConfig

LORA = LoRAConfig(rank=4)
END = frozenset({7, 9, 11, 30})


def policy(lora: LoRAConfig | None = LORA, seed: int = 0) -> Policy:
    """A tiny model of random weights, whose heads are as wide as vLLM wants them."""
    model = new_model(TINY.model_copy(update={"head_dim": 32}), tokenizer(), seed=seed, max_length=2048)
    return Policy(model, tokenizer(), lora=lora)


def learn(made: Policy, seed: int) -> None:
    """Move the weights in training, as an optimizer would, and bring them to the sampler."""
    drawn = torch.Generator().manual_seed(seed)
    size = 0.02 if made.lora is None else 0.2
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(size * torch.randn(weight.shape, generator=drawn))
    made.sync(made.version + 1)


def talk(
    engine: Engine,
    seed: int,
    *,
    num: int = 8,
    turns: int = 3,
    window: bool = False,
    forks: bool = False,
    sampling: dict[str, Any] | None = None,
) -> list[Reply]:
    """The replies of ragged conversations, in an order of their own. Prompts do not depend on who answers first."""
    drawn = [np.random.default_rng([seed, n]) for n in range(num)]
    found: dict[tuple[int, int, int], Reply] = {}
    live: dict[int, tuple[int, int, int]] = {}  # slot -> conversation, branch, turn
    waiting = list(range(num))

    def ask(slot: int, place: tuple[int, int, int]) -> None:
        number, branch, turn = live[slot] = place
        draw = np.random.default_rng([seed, *place]) if branch else drawn[number]
        ids = draw.integers(5, len(tokenizer()), int(draw.integers(1, 40))).astype(np.int32)
        given = Sampling(**{"max_tokens": int(draw.integers(1, 12)), **(sampling or {})})
        engine.submit(slot, ids, fresh=window or turn == 0, key=10_000 * branch + 100 * number + turn, sampling=given)

    while waiting or live:
        room = engine.num_free if not forks else 0 if live else engine.num_slots // 2  # each may be forked
        for number in waiting[:room]:
            ask(engine.open(), (number, 0, 0))
        del waiting[:room]
        for reply in engine.step():
            number, branch, turn = place = live.pop(reply.slot)
            found[place] = reply
            if forks and not branch and turn == 0 and number % 2 == 0:
                ask(engine.fork(reply.slot), (number, 1, 1))
            if turn + 1 < turns:
                ask(reply.slot, (number, branch, turn + 1))
            else:
                engine.close(reply.slot)
    return [found[place] for place in sorted(found)]


def check_alike(first: Sequence[Reply], second: Sequence[Reply], within: float = 1e-4) -> None:
    """The same tokens, ends and records; log-probs and entropies up to rounding."""
    assert len(first) == len(second)
    for ours, theirs in zip(first, second, strict=True):
        assert ours.ids.tolist() == theirs.ids.tolist()
        assert ours.ended == theirs.ended
        np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=within)
        np.testing.assert_allclose(ours.entropies, theirs.entropies, atol=within)
        assert (ours.processing is None) == (theirs.processing is None)
        if ours.processing is not None and theirs.processing is not None:
            for name in ("counts", "ids", "forced", "temperatures"):
                np.testing.assert_array_equal(getattr(ours.processing, name), getattr(theirs.processing, name))
