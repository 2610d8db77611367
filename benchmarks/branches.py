"""What branching saves: the tokens and the time of trees, and of the same leaves rolled out separately.

    python benchmarks/branches.py RUN [--updates 5]

RUN was trained by aepo or arpo. Its policy plays some updates with its planner; a copy shares its parent's keys and
values. Then the engine plays what every leaf said and saw once more, from its beginning and alone. Tokens are those
that went through the model; seconds are CPU time of the engine (worlds and planner are left out of both). A branch that
draws a turn anew starts in its parent's past: its world takes the parent's actions again, so that trees save no step of
a world. How many those are and what they cost is said too.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from turnwise.assembly.policies import load_policies, open_run
from turnwise.assembly.run import Assembly
from turnwise.bench.own import UNMEASURED
from turnwise.bench.rollout import Script, run_engine
from turnwise.clock import Clock
from turnwise.config.files import parse_config
from turnwise.config.schema import RunConfig
from turnwise.envs.tasks import start, step
from turnwise.models.engine import SlotEngine
from turnwise.runs.directory import RunDirectory
from turnwise.training.trainer import Trainer
from turnwise.trajectory import Trajectory
from turnwise.view.tree import tree_planner


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("run", help="folder of a run by aepo or arpo")
    asked.add_argument("--updates", type=int, default=5)
    given = asked.parse_args()
    source = open_run(given.run)
    if source is None or source.config().algorithm.model_dump()["type"] not in ("aepo", "arpo"):
        asked.error(f"{given.run} is not a run by aepo or arpo: only these branch")
    torch.set_num_threads(1)
    config = parse_config({**source.config().model_dump(), **UNMEASURED})
    assembly = Assembly(config)
    policies = load_policies(source, assembly.side_names, source.config().keep_checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory.create(Path(folder) / "run", config, assembly.panels.hashes())
        trainer = assembly.trainer_of(Trainer, run, policies=policies)
        engine = trainer.sides[0].agent.engine
        assert isinstance(engine, SlotEngine)
        trainer.collect(0)  # warm
        before, trainer.clock = engine.counts.prefill_tokens + engine.counts.sampled_tokens, Clock(time.process_time)
        engine.clock = trainer.clock
        leaves = [
            t for update in range(1, 1 + given.updates) for group in trainer.collect(update) for t in group.trajectories
        ]
        trainer.close()
    spent = trainer.clock.take().seconds
    tree = engine.counts.prefill_tokens + engine.counts.sampled_tokens - before
    began = time.process_time()
    alone = run_engine(engine.model, [Script.of(leaf) for leaf in leaves], engine.num_slots).counts
    seconds, tokens = time.process_time() - began, alone.prefill_tokens + alone.sampled_tokens
    ours = spent.get("prefill", 0.0) + spent.get("decode", 0.0)
    copies = sum(leaf.fork is not None for leaf in leaves)
    steps, planner = sum(len(leaf.turns) for leaf in leaves), tree_planner(trainer.planner)
    retaken = sum(leaf.fork.turn for leaf in leaves if leaf.fork) if planner and planner.resamples else 0
    print(f"{len(leaves)} leaves, {copies} of them copies, {given.updates} updates of {given.run}")
    spent_s = retaken * step_s(config, leaves)
    print(f"{steps:,} turns; copies took {retaken:,} of them again in worlds of their own, {1000 * spent_s:.2f} ms\n")
    print("| | trees | leaves alone | ratio |\n| --- | ---: | ---: | ---: |")
    print(f"| tokens through the model | {tree:,} | {tokens:,} | {tokens / tree:.2f} |")
    print(f"| CPU seconds of the engine | {ours:.2f} | {seconds:.2f} | {seconds / ours:.2f} |")


def step_s(config: RunConfig, leaves: Sequence[Trajectory]) -> float:
    """Seconds of a world's step, its resets shared out among them: every leaf's actions, taken once more."""
    env, began = config.env.make(), time.perf_counter()
    for leaf in leaves:
        start(env, leaf.task, leaf.seed)
        for turn in leaf.turns:
            step(env, turn.action)
    taken = time.perf_counter() - began
    env.close()
    return taken / sum(len(leaf.turns) for leaf in leaves)


if __name__ == "__main__":
    main()
