"""Attention of new observations over histories of unequal length, in half precision on a CPU.

    python benchmarks/prefill.py --out benchmarks/results/prefill.json      (some ten CPU seconds)

32 contexts of 200 to 1000 tokens get 23 to 98 new ones each (as turns of ALFWorld do), in 30 layers of the shape of
SmolLM2-135M, one thread. "together" pads contexts with similar numbers of new tokens to one another; "alone" computes
each context by itself (models/block_attention.py), from 16 new tokens on. In turns, ``--rounds`` times; CPU seconds,
the least of each side, and the largest difference of an output.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from turnwise.models import cache
from turnwise.models.block_attention import BLOCK, LEAST
from turnwise.models.cache import SlotCache, StepPlan
from turnwise.runs.directory import provenance

CONTEXTS, LAYERS, HEADS, KV_HEADS, DIM = 32, 30, 9, 3, 64
SIZES, SHARES = (23, 24, 33, 54, 98), (0.25, 0.25, 0.25, 0.15, 0.1)
SIDES = {"together": BLOCK, "alone": LEAST}  # new tokens from which a context is computed by itself


@torch.no_grad()
def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--rounds", type=int, default=3)
    asked.add_argument("--out", type=Path, help="JSON file for the figures")
    given = asked.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    held, new = rng.integers(200, 1000, CONTEXTS), rng.choice(SIZES, CONTEXTS, p=SHARES)
    made = SlotCache(CONTEXTS, LAYERS, KV_HEADS, DIM, dtype=torch.bfloat16, device=torch.device("cpu"))
    made.widen(CONTEXTS)
    made.reserve(int((held + new).max()))
    for buffer in (*made.keys, *made.values):
        buffer.normal_()
    made.lengths[:] = held
    query, key, value = (torch.randn(int(new.sum()), num, DIM).bfloat16() for num in (HEADS, KV_HEADS, KV_HEADS))
    seconds, found = dict.fromkeys(SIDES, math.inf), dict[str, torch.Tensor]()
    for _ in range(given.rounds):
        for side, least in SIDES.items():
            with patch.object(cache, "LEAST", least):
                began = time.process_time()
                plan = StepPlan(made, list(range(CONTEXTS)), new.tolist(), HEADS // KV_HEADS)
                for layer in range(LAYERS):
                    found[side] = plan.attend(layer, query, key, value, DIM**-0.5)
                seconds[side] = min(seconds[side], time.process_time() - began)
    about = provenance()
    result = {name: about[name] for name in ("versions", "python", "commit")}
    result["cpu_seconds"] = seconds
    result["largest_difference"] = float((found["together"] - found["alone"]).abs().max())
    print(json.dumps(result, indent=1))
    if given.out is not None:
        given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
