"""Runs whose learner has two ranks: real processes, lost and stopped ones, resumes, and what else a run may ask for."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.faults.runs import assert_same, config
from turnwise.assembly import learners
from turnwise.assembly.learners import ChildRank
from turnwise.assembly.rank_actors import ActorRank
from turnwise.config.files import load_config
from turnwise.jobs import resume, train
from turnwise.runs.directory import RunDirectory
from turnwise.training.leading import Leader, LostRankError, _packed, _unpacked, plain_groups
from turnwise.training.observing import Callback

TWO = ("learner.ranks=2", "optimizer.microbatch_tokens=24")
CALLS = ("where", "follow")


class Signals(Callback):
    """Sends a signal to the second rank once some updates are logged."""

    def __init__(self, started: list[ChildRank], updates: int, number: signal.Signals) -> None:
        self.started, self.updates, self.number = started, updates, number

    def update(self, record: dict[str, Any]) -> None:
        if record["update"] + 1 == self.updates:
            os.kill(self.started[-1].process.pid, self.number)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[ChildRank]:
    """The processes that runs of this test start."""
    found, start = list[ChildRank](), learners._start

    def noted(*given: int) -> ChildRank:
        found.append(start(*given))
        return found[-1]

    monkeypatch.setattr(learners, "_start", noted)
    return found


@pytest.mark.slow
def test_a_killed_rank_ends_the_run_which_goes_on_to_the_same_numbers(
    model: Path, tmp_path: Path, started: list[ChildRank]
) -> None:
    train(config(model, *TWO), tmp_path / "whole")
    with pytest.raises(LostRankError, match=r"rank 1 was killed by SIGKILL.*turnwise train --resume .*broken"):
        train(config(model, *TWO), tmp_path / "broken", Signals(started, 2, signal.SIGKILL))
    broken, whole = (RunDirectory.open(tmp_path / name) for name in ("broken", "whole"))
    assert broken.load("last").update == 2
    resume(broken.path)
    assert_same(broken, whole)
    assert [rank.process.poll() for rank in started] == [0, -signal.SIGKILL, 0]
    resume(broken.path, settings=["learner.ranks=1", "num_updates=6"])
    resume(whole.path, settings=["num_updates=6"])
    assert len(started) == 4, "a checkpoint of two ranks was taken up by one"
    assert_close(broken, whole, 1e-5)


@pytest.mark.slow
def test_a_rank_that_does_not_answer_ends_the_run(model: Path, tmp_path: Path, started: list[ChildRank]) -> None:
    settings = (*TWO, "learner.timeout_s=3", "learner.parallel=fsdp2")
    with pytest.raises(LostRankError, match=r"did not answer within learner.timeout_s.*--resume"):
        train(config(model, *settings), tmp_path / "run", Signals(started, 1, signal.SIGSTOP))
    assert started[0].process.poll() == -signal.SIGKILL


@pytest.mark.slow
def test_a_rank_that_cannot_begin_says_why(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNWISE_CACHE", str(tmp_path))
    run = RunDirectory.create(tmp_path / "run", config(model, *TWO), {})
    (tmp_path / "run" / "config.yaml").write_text("seed: much\n")
    leader = learners.lead(config(model, *TWO).learner, "cpu", run, [""])
    with pytest.raises(LostRankError, match=r"rank 1 ended with code 1: .*seed"):
        leader.wait_for("ready", 2)
    leader.close()


KINDS: dict[str, tuple[str, ...]] = {
    "fsdp2": ("learner.parallel=fsdp2", "model.gradient_checkpointing=true"),
    "all weights": ("lora=null", "algorithm.base.kl_coef=0.1", "optimizer.lr=1e-4"),
    "critic": ("algorithm={type: ppo}",),
    "replay": ("algorithm={type: spear, base: {type: grpo}}",),
    "bfloat16": ("learner.parallel=fsdp2", "model.dtype=bfloat16"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_have_the_losses_of_one(kind: str, model: Path, tmp_path: Path) -> None:
    """Over two updates, the second of which has seen what the first one learned and kept."""
    settings = [s for s in KINDS[kind] if not s.startswith("learner")]
    train(config(model, "num_updates=2", "optimizer.microbatch_tokens=24", *settings), tmp_path / "one")
    train(config(model, "num_updates=2", *TWO, *KINDS[kind]), tmp_path / "two")
    one, two = (RunDirectory.open(tmp_path / name) for name in ("one", "two"))
    assert_close(one, two, 1e-2 if kind == "bfloat16" else 1e-5)


def assert_close(one: RunDirectory, two: RunDirectory, close: float) -> None:
    """Losses and weights of two runs are equal but for rounding."""
    for single, double in zip(one.metrics(), two.metrics(), strict=True):
        for name in ("loss", "grad_norm", "entropy", "return_mean", "agreement/num_tokens", "ratio_max"):
            assert double[name] == pytest.approx(single[name], rel=1e-3, abs=1e-6), name
    (a, b) = (run.load("last").tensors for run in (one, two))
    assert a.keys() == b.keys()
    assert all(torch.dist(a[name].double(), b[name].double()) <= close * (1 + a[name].double().norm()) for name in a)


@pytest.mark.slow
def test_the_other_ranks_end_with_the_first(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    made = RunDirectory.create(path, config(model, *TWO, "num_updates=1000"), {})
    command = [sys.executable, "-m", "turnwise.cli", "train", "--resume", str(path)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as first:
        for _ in range(600):
            time.sleep(0.1)
            if made.metrics_path.exists() and made.metrics():
                break
        other = next(int(pid) for pid in children(first.pid))
        first.kill()
    for _ in range(300):
        if not Path(f"/proc/{other}").exists() or Path(f"/proc/{other}/stat").read_text().split()[2] == "Z":
            return
        time.sleep(0.1)
    os.kill(other, signal.SIGKILL)
    pytest.fail("the second rank went on for half a minute")


def children(pid: int) -> list[str]:
    """Processes that another one started."""
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ddp", "fsdp2"])
def test_both_sides_of_a_game_are_trained_by_two_ranks(way: str, model: Path, tmp_path: Path) -> None:
    settings = [
        f"learner.parallel={way}",
        *("env.id=turnwise/TicTacToe-v0", "env.success_threshold=null", "game.policies=per_player"),
        *("eval.test_split=null", "num_updates=2", "agent.max_turns=4"),
    ]
    train(config(model, *TWO, *settings), tmp_path / "run")
    hashes = [line["adapter_hash"].split(",") for line in RunDirectory.open(tmp_path / "run").metrics()]
    assert all(len(set(found)) == 2 for found in hashes[1:])


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "code"), [(2, 0), (1, 1)])
def test_the_same_command_works_under_torchrun(model: Path, tmp_path: Path, ranks: int, code: int) -> None:
    """With another number of processes than learner.ranks it is refused."""
    made = config(model, *TWO)
    train(made, tmp_path / "own")
    again = [f"learner.ranks={ranks}", "--resume", str(tmp_path / "own"), "num_updates=5"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "turnwise.cli", "train"]
    done = subprocess.run([*command, *again], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, done.stderr
    assert len(RunDirectory.open(tmp_path / "own").metrics()) == (5 if code == 0 else 4)
    assert ("2 processes were started for this run, and learner.ranks=1" in " ".join(done.stderr.split())) == (code > 0)


def test_a_message_comes_as_it_was_sent() -> None:
    from tests.algorithms.fakes import BigramPolicy, groups

    made = groups(BigramPolicy())
    message = {"do": "learn", "update": 3, "groups": plain_groups(made)}
    found, tensors = _unpacked(_packed(message, {"a.b": torch.eye(2)[:, 0]}))
    assert found == message
    assert tensors["a.b"].tolist() == [1.0, 0.0]
    from turnwise.training.leading import _groups

    assert plain_groups(_groups(found["groups"])) == message["groups"]
    assert _unpacked(_packed({"do": "end"}, {})) == ({"do": "end"}, {})


def test_weights_that_differ_end_the_run() -> None:
    class Other:
        rank, world, lockstep = 0, 2, False

        def add_up(self, values: torch.Tensor) -> None: ...

        def gather(self, own: str) -> list[str]:
            return [own, "else"]

    leader = Leader(Other())
    with pytest.raises(
        LostRankError, match=r"different weights after update 3: rank 0 own, rank 1 else.*start it again"
    ):
        leader.agree("own", "after update 3")
    assert leader.broken
    Leader().agree("own", "ever")


class FakeRay:
    """Ray's calls on references, which here are functions, or None for what is not over."""

    class exceptions:  # noqa: N801
        class RayError(Exception):
            pass

        class RayTaskError(RayError):
            cause = ValueError("no such model")

    def wait(self, references: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        done = [each for each in references if each is not None]
        return done, [each for each in references if each is None]

    def get(self, reference: Any) -> Any:
        return reference()


def raising(error: Exception) -> Callable[[], Any]:
    def get() -> None:
        raise error

    return get


@pytest.mark.parametrize(
    ("end", "told"),
    [
        (None, None),
        (lambda: None, "rank 3 ended"),
        (raising(FakeRay.exceptions.RayTaskError()), "rank 3 ended: ValueError: no such model"),
        (raising(FakeRay.exceptions.RayError("The actor\n died")), "rank 3 was lost: The actor died"),
    ],
)
def test_what_became_of_an_actor_is_said(end: Callable[[], Any] | None, told: str | None) -> None:
    actor = type("Actor", (), {name: type("Call", (), {"remote": lambda self, *given: end})() for name in CALLS})
    assert ActorRank(FakeRay(), actor, 3, lambda: None, "ray.cpus_per_rank=1").fate() == told


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["learner.parallel=fsdp2"], "learner.parallel: for several ranks"),
        (["learner.timeout_s=3"], "learner.timeout_s: for several ranks"),
        (["learner.ranks=2", "learner.parallel=fsdp2", "lora=null"], "set learner.parallel=ddp, or keep LoRA"),
        (["learner.ranks=2", "device=cuda:1"], "set device=cuda, of which each rank takes its own"),
        (["learner.ranks=0"], "learner.ranks"),
        (["ray={cpus_per_rank: 2}"], "ray.cpus_per_rank: for several ranks, and learner.ranks is 1"),
    ],
)
def test_what_cannot_work_is_refused(settings: list[str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        load_config("smoke", settings)


@pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is an address of Linux's loopback")
def test_ranks_of_this_machine_meet_where_no_other_machine_reaches_them() -> None:
    """A port that listens on every interface is reached at 127.0.0.2 as well."""
    meeting = learners._store_of_this_machine(2)
    other = learners._own_store(2, meeting.port)
    other.set("name", "value")
    assert meeting.get("name") == b"value"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", meeting.port), 5)
