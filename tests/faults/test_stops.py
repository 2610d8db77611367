"""What ends a run ends it in one sentence, with nothing lost: going on gives what an unbroken run gives."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.faults.runs import assert_same, config, timeless
from turnwise.errors import AgentError
from turnwise.evaluation.evaluate import evaluate
from turnwise.jobs import export, resume, train
from turnwise.learning import learner as update
from turnwise.learning import ranks
from turnwise.models.drawing import DRAW
from turnwise.models.policy import Policy
from turnwise.runs.directory import RunDirectory
from turnwise.training.faults import (
    DivergedError,
    InterruptedRunError,
    StorageError,
    UpdateMemoryError,
    is_out_of_memory,
    storage,
)
from turnwise.training.observing import Callback


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """An unbroken run of four updates."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    train(config(model), path)
    return RunDirectory.open(path)


class After(Callback):
    """Does something once an update is logged."""

    def __init__(self, update: int, action: Callable[[], object]) -> None:
        self.number, self.action = update, action

    def update(self, record: dict[str, Any]) -> None:
        if record["update"] + 1 == self.number:
            self.action()


# --- the disk


@contextmanager
def full_disk(stop: int) -> Iterator[list[str]]:
    """The disk takes half of what the ``stop``-th flush of a file brings, and nothing any more."""
    flushed: list[str] = []
    safe: dict[str, int] = {}  # bytes of a file that are on the disk
    flush = os.fsync

    def fsync(handle: int) -> None:
        name = os.readlink(f"/proc/self/fd/{handle}")
        flushed.append(name)
        if len(flushed) >= stop:
            if os.path.isfile(name):
                os.truncate(name, (safe.get(name, 0) + os.path.getsize(name)) // 2)
            raise OSError(28, "No space left on device")
        flush(handle)
        safe[name] = os.path.getsize(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield flushed


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_nothing_is_lost(model: Path, tmp_path: Path) -> None:
    """At every flush from the second update on: trajectories, metrics, each file and folder of a checkpoint."""
    made = config(model, "eval.every=1", "eval.tasks=2", "rollout.num_tasks=1")
    with full_disk(10_000) as flushed:
        train(made, tmp_path / "counted")
    updates = [n for n, name in enumerate(flushed, start=1) if name.endswith("trajectories.jsonl.gz")]
    hit = set()
    for stop in range(updates[1], updates[2]):
        path = tmp_path / str(stop)
        with full_disk(stop) as flushed, pytest.raises(StorageError, match=r"No space left.*train --resume .* goes on"):
            train(made, path)
        hit.add(Path(flushed[stop - 1]).name)
        resume(path)
        assert_same(RunDirectory.open(path), RunDirectory.open(tmp_path / "counted"))
        assert not list(path.rglob("*.tmp"))
    assert hit >= {"trajectories.jsonl.gz", "metrics.jsonl", "state.json", "tensors.safetensors", "manifest.json"}


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[Callable[[str], object]]:
    """A real disk of its own, and how to mount it with other options."""
    path.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {made.stderr.strip()}")
    try:
        yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", path], check=True)
    finally:
        subprocess.run(["umount", "-l", path], check=True)


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounting needs root on Linux")
@pytest.mark.parametrize(
    "size", ["96k", *(pytest.param(size, marks=pytest.mark.slow) for size in ("120k", "144k", "168k"))]
)
def test_a_really_full_disk(model: Path, whole: RunDirectory, tmp_path: Path, size: str) -> None:
    with small_disk(tmp_path / "disk", size) as remount:
        with pytest.raises(StorageError, match="No space left on device"):
            train(config(model), tmp_path / "disk" / "run")
        remount("size=10m")
        resume(tmp_path / "disk" / "run")
        assert_same(RunDirectory.open(tmp_path / "disk" / "run"), whole)


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounting needs root on Linux")
def test_a_read_only_disk(model: Path, whole: RunDirectory, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "10m") as remount:
        path = tmp_path / "disk" / "run"
        with pytest.raises(InterruptedRunError):
            train(config(model), path, After(2, lambda: os.kill(os.getpid(), signal.SIGTERM)))
        remount("ro")
        with pytest.raises(StorageError, match="Read-only file system"):
            resume(path)
        with pytest.raises(ValueError, match=r"no run can be made at .*Read-only file system.*another --out"):
            train(config(model), tmp_path / "disk" / "other")
        remount("rw")
        resume(path)
        assert_same(RunDirectory.open(path), whole)


def test_a_run_folder_that_vanishes(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(StorageError, match=r"run cannot be written any more \(No such file or directory\)"):
        train(config(model), path, After(2, lambda: shutil.rmtree(path)))
    assert not path.exists(), "half a run in its place would hide the loss"


def test_other_faults_of_the_system_are_not_the_disk_s(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError), storage(tmp_path):
        raise ConnectionError("the retrieval server is gone")
    with pytest.raises(FileNotFoundError), storage(tmp_path):
        (tmp_path.parent / "elsewhere").read_text()


def test_lines_that_a_crash_left_are_repeated_and_damaged_ones_named(
    model: Path, whole: RunDirectory, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    shutil.copytree(whole.path, path)
    run = RunDirectory.open(path)
    shutil.rmtree(run.checkpoints.folder(4))
    lines = run.metrics_path.read_bytes()
    run.metrics_path.write_bytes(lines[:-20])
    run.trajectories_path.write_bytes(run.trajectories_path.read_bytes()[:-20])
    assert len(run.metrics()) == 3
    resume(path)
    assert_same(run, whole)
    run.metrics_path.write_bytes(lines[:10] + b"\0\0" + lines[12:])
    with pytest.raises(ValueError, match=r"metrics\.jsonl is damaged: line 1 is not JSON"):
        resume(path)


# --- memory and numbers


def test_an_update_that_does_not_fit_is_done_again_with_half(model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """The second optimizer step of the third update fails: the first was done already, and is undone."""
    score, split, budgets = Policy.score, ranks.microbatches, list[int]()

    def noted(batch: Any, budget: int) -> Any:
        budgets.append(budget)
        return split(batch, budget)

    def limited(self: Policy, batch: Any, **wanted: Any) -> Any:
        if len(budgets) == 6:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return score(self, batch, **wanted)

    made = config(model, "optimizer.microbatch_tokens=1000", "algorithm={type: grpo, kl_coef: 0}")
    train(made, tmp_path / "whole")
    monkeypatch.setattr(ranks, "microbatches", noted)
    monkeypatch.setattr(Policy, "score", limited)
    with pytest.warns(UserWarning, match=r"update 3 does not fit into memory \(CUDA.*half of optimizer\.microbatch"):
        train(made, tmp_path / "run")
    assert budgets == [1000] * 6 + [500] * 4
    ours, theirs = (RunDirectory.open(tmp_path / name) for name in ("run", "whole"))
    assert ours.load("last").state["halved"]
    a, b = ours.load("last").tensors, theirs.load("last").tensors
    assert all(torch.allclose(a[name], b[name], rtol=1e-3, atol=1e-6) for name in a), "only rounding may differ"
    assert [line["optimizer_steps"] for line in ours.metrics()] == [2, 2, 2, 2]


def test_an_update_that_is_done_again_is_counted_once(model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """What decoding and the mechanisms did in the first half of an update that did not fit is of no record."""
    heat = "agent.decoding.heat={strength: 0.3, pivot: 1.7, above: 0.2, below: 0.5}"
    made = config(model, heat, "algorithm={type: cispo, clip_high: 0.0001}", "num_updates=2")
    train(made, tmp_path / "whole")
    step, calls = update.step, list[int]()

    def limited(*given: Any) -> float:
        calls.append(0)
        if len(calls) == 3:
            raise MemoryError
        return step(*given)

    monkeypatch.setattr(update, "step", limited)
    with pytest.warns(UserWarning, match="update 2 does not fit"):
        train(made, tmp_path / "run")
    names = ("decoding/tokens", "mechanisms/BoundedWeight/bounded_share")
    ours, theirs = (
        [[line[name] for name in names] for line in RunDirectory.open(tmp_path / name).metrics()]
        for name in ("run", "whole")
    )
    assert ours == theirs
    assert 0 < theirs[1][1] < 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried ..."),
    ],
)
def test_an_update_that_never_fits_stops_with_a_checkpoint(
    model: Path, whole: RunDirectory, tmp_path: Path, monkeypatch: Any, error: Exception
) -> None:
    calls = []

    def full(self: Policy, batch: Any, **wanted: Any) -> Any:
        calls.append(batch)
        if len(calls) > 4:
            raise error
        return score(self, batch, **wanted)

    score = Policy.score
    assert is_out_of_memory(error)
    monkeypatch.setattr(Policy, "score", full)
    expected = r"lower optimizer\.microbatch_tokens.*The checkpoint of update 2 is in"
    with pytest.warns(UserWarning, match="does not fit"), pytest.raises(UpdateMemoryError, match=expected):
        train(config(model), tmp_path / "run")
    monkeypatch.undo()
    resume(tmp_path / "run")
    assert_same(RunDirectory.open(tmp_path / "run"), whole)


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Factors of the losses to come, one for each microbatch; none: they are as they are."""
    loss, factors = update.stream_loss, list[float]()
    monkeypatch.setattr(update, "stream_loss", lambda *given: loss(*given) * (factors.pop() if factors else 1.0))
    return factors


@pytest.mark.parametrize("factor", [math.nan, *(pytest.param(s * math.inf, marks=pytest.mark.slow) for s in (1, -1))])
def test_a_loss_that_is_not_finite_is_skipped_and_counted(
    model: Path, tmp_path: Path, poison: list[float], factor: float
) -> None:
    poison.append(factor)
    train(config(model), tmp_path / "run")
    run = RunDirectory.open(tmp_path / "run")
    first, *others = run.metrics()
    assert (first["optimizer_steps"], first["skipped_steps"]) == (1, 1)
    assert first["loss"] is None, "JSON has no such number"
    assert not any(line["skipped_steps"] for line in others)
    assert all(tensor.isfinite().all() for tensor in run.load("last").tensors.values())


def test_many_in_a_row_stop_the_run_with_the_last_good_weights(
    model: Path, tmp_path: Path, poison: list[float]
) -> None:
    made = config(model, "num_updates=9", "max_skipped_updates=2")
    with pytest.raises(DivergedError, match=r"not finite in 2 updates in a row, up to update 4, .* update 3 is"):
        train(made, tmp_path / "run", After(2, lambda: poison.extend([math.nan] * 100)))
    run = RunDirectory.open(tmp_path / "run")
    assert len({line["adapter_hash"] for line in run.metrics()[1:]}) == 1, "nothing was learned from them"
    assert all(tensor.isfinite().all() for tensor in run.load("last").tensors.values())
    assert len(run.metrics()) == 4


def test_weights_that_are_not_finite_never_reach_a_checkpoint(model: Path, tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"update 1 made weights that are not finite: lower optimizer\.lr"):
        train(config(model, "optimizer.lr=3e37", "lora.alpha=4000"), tmp_path / "run")
    run = RunDirectory.open(tmp_path / "run")
    assert run.checkpoints.updates() == [0]
    assert all(tensor.isfinite().all() for tensor in run.load("last").tensors.values())


# --- signals, locks, clocks


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_after_its_update(
    model: Path, whole: RunDirectory, tmp_path: Path, number: int, code: int
) -> None:
    path = tmp_path / "run"
    before = signal.getsignal(number)
    with pytest.raises(InterruptedRunError, match=r"after update 2 of 4, which is saved.*--resume") as raised:
        train(config(model, "checkpoint_every=100"), path, After(2, lambda: os.kill(os.getpid(), number)))
    assert raised.value.exit_code == code
    assert signal.getsignal(number) == before
    run = RunDirectory.open(path)
    assert run.load("last").update == len(run.metrics()) == 2
    resume(path)
    assert timeless(run.metrics()) == timeless(whole.metrics())


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A shell's background job ignores Ctrl-C from the start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_second_one_ends_it_at_once_and_does_no_harm(model: Path, whole: RunDirectory, tmp_path: Path) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(config(model), tmp_path / "run", After(2, twice))
    assert RunDirectory.open(tmp_path / "run").load("last").update == 1
    resume(tmp_path / "run")
    assert_same(RunDirectory.open(tmp_path / "run"), whole)


HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "r+")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


def test_one_process_at_a_time(model: Path, whole: RunDirectory, tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(whole.path, path)
    with subprocess.Popen([sys.executable, "-c", HOLD, path / "run.json"], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(ValueError, match="another process is training in"):
            resume(path)
        other.kill()
    resume(path)
    assert_same(RunDirectory.open(path), whole)


def test_nothing_depends_on_the_clock(model: Path, whole: RunDirectory, tmp_path: Path, monkeypatch: Any) -> None:
    times = iter(range(10**9, 0, -3600))
    for name in ("time", "perf_counter", "monotonic", "process_time"):
        monkeypatch.setattr(time, name, lambda: float(next(times)))
    train(config(model), tmp_path / "run")
    assert_same(RunDirectory.open(tmp_path / "run"), whole)


# --- before training, and data that changes


def test_a_run_without_a_checkpoint_begins_again(model: Path, whole: RunDirectory, tmp_path: Path) -> None:
    path = tmp_path / "run"
    RunDirectory.create(path, config(model), {})
    (path / "evaluation.json").write_text("{}")
    resume(path)
    assert_same(RunDirectory.open(path), whole)
    shutil.rmtree(path / "checkpoints")
    with pytest.raises(ValueError, match="has trained and holds no checkpoint"):
        resume(path)


def test_other_tasks_than_at_the_start_are_refused_and_other_versions_told(
    model: Path, whole: RunDirectory, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    shutil.copytree(whole.path, path)
    told = (path / "run.json").read_text()
    (path / "run.json").write_text(told.replace('"torch": "2', '"torch": "1'))
    with pytest.warns(UserWarning, match=r"goes on with other versions \(torch 1.* → 2"):
        resume(path)
    (path / "run.json").write_text(told.replace('"train": "', '"train": "0'))
    with pytest.raises(ValueError, match=r"cannot go on: the tasks of train are not those"):
        resume(path)
    (path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json cannot be read"):
        resume(path)


@pytest.mark.parametrize("begun", [True, False])
def test_a_run_that_drew_its_tokens_otherwise_is_refused_by_name_and_still_of_use(
    model: Path, whole: RunDirectory, tmp_path: Path, begun: bool
) -> None:
    path = tmp_path / "run"
    shutil.copytree(whole.path, path)
    if not begun:
        shutil.rmtree(path / "checkpoints")
    made = json.loads((path / "run.json").read_text())
    assert made.pop("draw") == DRAW
    (path / "run.json").write_text(json.dumps(made))  # as runs were before versions of the draw were written down
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with pytest.raises(
        ValueError, match=r"drawn by the inverse of the cumulative sum, .* hashed Gumbel noise"
    ) as raised:
        resume(path)
    assert f"turnwise export {path} --to MODEL" in str(raised.value)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
    if begun:
        assert evaluate(path, tasks=2).num_tasks == 2
        exported = export(path, tmp_path / "model")
        train(config(exported, "num_updates=1"), tmp_path / "anew")


def test_a_model_whose_logits_are_not_finite_neither_trains_nor_is_measured(model: Path, tmp_path: Path) -> None:
    """With a collector here and in shards: an error that says who, where and what to check, and no success of 0 %."""
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"].fill_(3e38)  # finite, and more than products with it can be
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    for shards in (1, 2):
        with pytest.raises(AgentError, match=r"broken \(update 0\) .* episode test-\d.*, turn 1: .* nan or infinite"):
            evaluate(broken, env="turnwise/FrozenLake-v0", tasks=2, shards=shards)
    with pytest.raises(
        AgentError, match=r"the policy \(update 0\) cannot continue in episode .*, turn 1: .* nan or infinite"
    ):
        train(config(broken), tmp_path / "run")
