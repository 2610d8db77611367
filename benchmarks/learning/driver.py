"""One cell from start to end: a run that stops after the update in which its budget of sampled tokens is spent.

An interrupted cell goes on from its last checkpoint, to the numbers of an unbroken one.
"""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

from turnwise.assembly.run import Assembly
from turnwise.config.schema import RunConfig
from turnwise.jobs import resume, train
from turnwise.runs.directory import RunDirectory
from turnwise.training.observing import Observer


def run_cell(config: RunConfig, path: Path, observer: Observer) -> None:
    """Train until ``max_sampled_tokens`` were sampled and measure; ``evaluation.json`` gets its ``after`` last of all.

    ``num_updates`` only spans the schedules: a method that samples less than expected goes on, held at their ends.
    Raises ValueError where ``path`` holds a run of another configuration.
    """
    run = RunDirectory(path)
    if not run.has_checkpoint:
        shutil.rmtree(path, ignore_errors=True)  # what a crash before the first checkpoint left
        train(config, path, observer)
        return
    with closing(Assembly(config)) as assembly:
        asked = assembly.settled()  # a run's folder keeps what the configuration leaves open, too
    if run.config() != asked:
        raise ValueError(
            f"{path} was run with other settings than the benchmark's now: remove it, or choose another --out"
        )
    resume(path, observer)
