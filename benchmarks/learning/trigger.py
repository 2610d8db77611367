"""The threshold with which ARPO and AEPO would branch at a given share of the turns, from the episodes of a run.

    python benchmarks/learning/trigger.py RUN --share 0.2

The run is one of ARPO or AEPO in the form of the paper, such as an arm of the setting ``aepo`` with num_updates=1. Set
what is printed as ``algorithm.threshold`` for all arms: a path branches where readiness, bias + weight * rise, is above
it, as long as its task has attempts left. Rises are measured as the planner measures them with ``origin=root``.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from turnwise.algorithms.branching import segment_entropy
from turnwise.algorithms.tree import TreeSettings
from turnwise.replay.store import TrajectoryReader
from turnwise.runs.directory import RunDirectory


def main(words: Sequence[str] | None = None) -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("run", type=Path)
    asked.add_argument("--share", type=float, default=0.2, help="of the turns after the first")
    given = asked.parse_args(words)
    found = list(readiness(RunDirectory.open(given.run)))
    print(f"{np.quantile(found, 1 - given.share):.4g}")


def readiness(run: RunDirectory) -> Iterator[float]:
    """bias + weight * rise of each turn at which its path is asked: after the first that the path played itself.

    Raises ValueError for a run of another algorithm.
    """
    settings = run.config().algorithm
    if not isinstance(settings, TreeSettings):
        raise ValueError(f"{run.path} is no run of arpo or aepo: its attempts do not branch")
    size = json.loads((Path(run.base_model()) / "config.json").read_text())["vocab_size"]
    unit = settings.log_vocabulary or math.log(size)
    for trajectory in TrajectoryReader(run.trajectories_path):
        found = [segment_entropy(turn.entropies, settings.entropy_tokens, unit) for turn in trajectory.turns]
        own = 1 + (trajectory.fork.turn if trajectory.fork else 0)
        yield from (settings.bias + settings.entropy_weight * (x - found[0]) for x in found[own:])


if __name__ == "__main__":
    main()
