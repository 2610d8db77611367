"""What drawing a token costs beside making its logits: log-prob, entropy over the whole vocabulary, and the draw.

    python benchmarks/sampling.py

The engine decodes 32 contexts at once with models from nothing, float32, one thread, CPU time; "drawing" is all that
happens to the logits, as a share of the forward passes that made them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch

from turnwise.agents.engine import Sampling, SlotEngine
from turnwise.agents.scratch import ScratchModelConfig, new_model
from turnwise.training.plan import Vocabulary

SHAPES = {
    "0.6 M": ScratchModelConfig(vocab_size=1024),
    "22 M": ScratchModelConfig(
        vocab_size=32_000, hidden_size=384, num_layers=6, num_heads=6, num_kv_heads=2, head_dim=64, ffn_size=1024
    ),
    "226 M": ScratchModelConfig(
        vocab_size=151_936, hidden_size=896, num_layers=6, num_heads=14, num_kv_heads=2, head_dim=64, ffn_size=4864
    ),
}
SLOTS, PROMPT, REPLY = 32, 64, 16


class Timed:
    """A function, and the CPU seconds spent in it."""

    def __init__(self, work: Callable[..., Any]) -> None:
        self.work, self.seconds = work, 0.0

    def __call__(self, *given: Any) -> Any:
        began = time.process_time()
        found = self.work(*given)
        self.seconds += time.process_time() - began
        return found


def main() -> None:
    torch.set_num_threads(1)
    print("| parameters | vocabulary | forward, ms a step | drawing, ms a step | share |\n| --- |" + " ---: |" * 4)
    for name, shape in SHAPES.items():
        model = new_model(shape, Vocabulary(shape.vocab_size), seed=0)
        engine = SlotEngine(model, num_slots=SLOTS, max_length=PROMPT + 2 * REPLY, end_ids=frozenset(), threads=1)
        forward, drawing = Timed(engine._decoder.logits), Timed(engine._sample)
        engine._decoder.logits, engine._sample = forward, drawing  # type: ignore[method-assign]
        rng = np.random.default_rng(0)
        for key in range(SLOTS):
            prompt = rng.integers(5, shape.vocab_size, PROMPT).astype(np.int32)
            engine.submit(engine.open(), prompt, fresh=True, key=key, sampling=Sampling(max_tokens=REPLY))
        engine.step()  # the prompts, and whatever happens once
        forward.seconds = drawing.seconds = 0.0
        for _ in range(REPLY - 1):
            engine.step()
        costs = [1000 * timed.seconds / (REPLY - 1) for timed in (forward, drawing)]
        share = costs[1] / costs[0]
        print(f"| {name} | {shape.vocab_size:,} | {costs[0]:.2f} | {costs[1]:.2f} | {share:.1%} |", flush=True)


if __name__ == "__main__":
    main()
