"""How the cost of a sampled token grows: with the episode's length, the episodes at once, the size of the model.

    python benchmarks/growth.py                     some minutes of CPU time; writes docs/images/growth-*.svg
    python benchmarks/growth.py --sweeps turns      one of turns, at-once, parameters
    python benchmarks/growth.py --json              ends with one JSON line

Scripted episodes (a prompt of 120 tokens, then about 40 + 15 a turn) through the engine, random weights; CPU time of
the process, one thread. Each point comes with its floor on this machine (turnwise/bench/floor.py), measured in the
same run.

What is linear, and what not: every sampled token reads the keys of its context, so its cost is a constant plus a part
that grows with the episode's length (``r2`` tells how well a line fits); more episodes at once share the reading of the
weights and the fixed cost of a step, until products are as wide as the machine likes them; beyond that the cost
follows the number of parameters.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch

from turnwise.bench.floor import Load, Machine, Stopwatch
from turnwise.bench.rollout import BENCH_MODEL, floor_s, run_engine, scripts
from turnwise.models.scratch import new_model, train_tokenizer
from turnwise.models.settings import ScratchModelConfig
from turnwise.svg import Line, Panel, small_multiples

TURNS = (10, 20, 40, 70, 100)
AT_ONCE = (1, 2, 4, 8, 16, 32, 64, 128, 256)
WIDTHS = (64, 128, 256, 512)  # of the model, with one layer for each 64, at most 6
SWEEPS = {"turns": "turns of an episode", "at-once": "episodes at once", "parameters": "parameters"}


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement; costs in microseconds of CPU time per sampled token."""

    x: float
    tokens: int
    cost_us: float
    floor_us: float


def main(words: Sequence[str] | None = None) -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--sweeps", default=",".join(SWEEPS), help="with commas")
    asked.add_argument("--out", type=Path, default=Path("docs/images"), help="folder of the plots")
    asked.add_argument("--most", type=float, default=1.0, help="share of each sweep's points, from the small ones up")
    asked.add_argument("--json", action="store_true")
    given = asked.parse_args(words)
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name in given.sweeps.split(","):
        if name not in SWEEPS:
            asked.error(f"unknown sweep {name!r}: expected {', '.join(SWEEPS)}")
        points = sweep(name, given.most)
        found[name] = {"points": [asdict(point) for point in points], "r2": linearity(points)}
        print(f"{SWEEPS[name]:>20}  us/token  floor  (line through the costs: r2 {found[name]['r2']:.3f})")
        for point in points:
            print(f"{point.x:>20,.0f}  {point.cost_us:>8.1f}  {point.floor_us:>5.1f}", flush=True)
        (given.out / f"growth-{name}.svg").write_text(plot(name, points))
    if given.json:
        print(json.dumps(found))


def sweep(name: str, most: float) -> list[Point]:
    """The points of one sweep; what is not swept stays at 16 episodes at once, 10 turns, 5 M parameters."""
    if name == "turns":
        return [measure(x, BENCH_MODEL, turns=x, at_once=16, episodes=16) for x in _first(TURNS, most)]
    if name == "at-once":
        # At least 16 episodes, so that a point is more than a few steps.
        return [measure(x, BENCH_MODEL, turns=10, at_once=x, episodes=max(x, 16)) for x in _first(AT_ONCE, most)]
    return [measure(None, sized(x), turns=10, at_once=16, episodes=16) for x in _first(WIDTHS, most)]


def _first(values: Sequence[int], share: float) -> Iterable[int]:
    return values[: max(2, round(len(values) * share))]


def sized(width: int) -> ScratchModelConfig:
    return ScratchModelConfig(
        hidden_size=width,
        num_layers=min(width // 64 + 1, 6),
        num_heads=width // 32,
        num_kv_heads=max(width // 64, 1),
        head_dim=32,
        ffn_size=4 * width,
        vocab_size=1024,
    )


def measure(x: float | None, config: ScratchModelConfig, *, turns: int, at_once: int, episodes: int) -> Point:
    """CPU time of playing scripts; ``x`` None: the number of parameters."""
    words = (f"word{i} thing{i * 7} place{i * 13}" for i in range(2000))
    tokenizer = train_tokenizer(words, config.vocab_size)
    model = new_model(config, tokenizer, seed=0, max_length=8192)
    played = scripts(episodes, (turns, turns), len(tokenizer), seed=0)
    watch = Stopwatch(model.device)
    run_engine(model, [script.cut(1) for script in played], at_once)  # warm-up
    began = watch()
    done = run_engine(model, played, at_once)
    seconds, tokens = watch() - began, done.counts.sampled_tokens
    floor = floor_s(Load.of(model), Machine.measure(model), done.counts, done.contexts())
    size = sum(p.numel() for p in model.parameters())
    return Point(size if x is None else x, tokens, 1e6 * seconds / tokens, 1e6 * floor / tokens)


def linearity(points: Sequence[Point]) -> float:
    """r2 of a line through the costs; 1 where they lie on one."""
    return float(np.corrcoef([p.x for p in points], [p.cost_us for p in points])[0, 1] ** 2)


def plot(name: str, points: Sequence[Point]) -> str:
    """Costs in blue, floors in grey."""
    x, cost, floor = ([getattr(p, key) for p in points] for key in ("x", "cost_us", "floor_us"))
    lines = [Line(x, floor, floor, floor, muted=True), Line(x, cost, cost, cost)]
    labels = [f"across: {SWEEPS[name]}; up: microseconds of CPU time per sampled token, one thread", "grey: the floor"]
    return small_multiples([Panel(f"cost of a token, by {name}", lines)], labels=labels, y_range=(0, 1.1 * max(cost)))


if __name__ == "__main__":
    main()
