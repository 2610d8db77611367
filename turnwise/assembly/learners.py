"""Learners, and the processes that learn together: started here on this machine, by Ray, or by torchrun.

    torchrun --nproc-per-node 2 -m turnwise.cli train household learner.ranks=2
    turnwise train household learner.ranks=2                                        the same, on one machine
    turnwise train household learner.ranks=2 ray.address=auto                       the same, on a Ray cluster

The first rank is the run (``training/leading.py``). The others are this module as a program, actors of a Ray cluster
(``rank_actors.py``), or under torchrun the same command, which leaves the run to the first rank (``follow_if_told``).
They read the model and the configuration from the run's folder, which several nodes must share.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache, partial
from typing import IO, Any

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from turnwise.agents.chat import ChatFormat
from turnwise.agents.prompts import AgentConfig
from turnwise.algorithms.registry import build
from turnwise.assembly.policies import load_policies
from turnwise.assembly.rank_actors import RankActors
from turnwise.assembly.steering import steer
from turnwise.assembly.teachers import teacher_of
from turnwise.config.sections import LearnerConfig, RayConfig
from turnwise.learning.learner import Learner
from turnwise.learning.ranks import Ranks
from turnwise.learning.settings import OptimizerConfig, RunInfo, Settings
from turnwise.models.policy import Policy
from turnwise.replay.buffer import TrajectoryBuffer
from turnwise.runs.directory import RunDirectory
from turnwise.training.answers import ReferenceAnswers
from turnwise.training.leading import MEETING, FollowingSide, Leader, follow, stage_of
from turnwise.training.ranks import ProcessRanks

_HOST, _WANTED = "127.0.0.1", "turnwise/wanted"


def learner_of(
    algorithm: Settings,
    optimizer: OptimizerConfig,
    run: RunInfo,
    policy: Policy,
    agent: AgentConfig,
    ranks: Ranks | None = None,
) -> Learner:
    """The learner of a policy that plays as ``agent``, its parts fresh. Raises ValueError as ``teacher_of`` does."""
    info = replace(run, vocabulary=policy.model.config.vocab_size, token_text=text_of(policy.tokenizer))
    recipe = build(algorithm, info)
    if recipe.needs_reference:
        policy.keep_reference()
    references = ReferenceAnswers(ChatFormat.of(policy.tokenizer, agent), agent) if recipe.needs_answers else None
    return Learner(recipe, policy, optimizer, info, ranks, teacher_of(recipe, policy), references)


def text_of(tokenizer: Any) -> Callable[[int], str]:
    """The text of a single token; "" for a special one."""
    special = frozenset(tokenizer.all_special_ids)
    return cache(lambda token: "" if token in special else str(tokenizer.decode([token])))


def lead(
    settings: LearnerConfig, device: str, run: RunDirectory, sides: Sequence[str], ray: RayConfig | None = None
) -> Leader:
    """The other ranks of a run's learner, with policies for ``sides``; close it. Without others: one that leads nobody.

    With ``ray`` they are actors of that cluster, unless torchrun has started them. Raises ValueError where torchrun
    started another number of processes, there are not enough devices or no cluster is there, and LostRankError where
    one does not start.
    """
    torchrun = launched()
    if torchrun is not None and torchrun[1] != settings.ranks:
        raise ValueError(
            f"{torchrun[1]} processes were started for this run, and learner.ranks={settings.ranks}: make them equal"
        )
    if settings.ranks == 1:
        return Leader()
    wanted: dict[str, Any] = {
        "device": device,
        "lockstep": settings.parallel == "fsdp2",
        "timeout_s": settings.timeout_s,
    }
    others = range(1, settings.ranks)
    leader = Leader(run=run)
    with _closed_on_error(leader):
        if torchrun is not None:
            leader.store = _their_store()
        elif ray is not None:
            actors = RankActors(ray, device)
            leader.after = actors.close
            actors.check_room(len(others))
            leader.store = _own_store(settings.ranks)
            at = actors.host, leader.store.port, settings.ranks
            for rank in others:
                leader.started = [*leader.started, actors.start(rank, partial(_follow_in_actor, *at, rank))]
        else:
            _check_devices(device, settings.ranks)
            leader.store = _store_of_this_machine(settings.ranks)
            for rank in others:
                leader.started = [*leader.started, _start(rank, settings.ranks, leader.store.port)]
        with leader.watched():
            leader.store.set(_WANTED, json.dumps(wanted))
            leader.wait_for("started", settings.ranks)
            leader.ranks = ProcessRanks(leader.store, 0, settings.ranks, **wanted)
        leader.tell("begin", run=str(run.path.resolve()), sides=list(sides))
    return leader


@contextmanager
def _closed_on_error(leader: Leader) -> Iterator[None]:
    """A context that closes the leader where it is left by an error."""
    try:
        yield
    except BaseException:
        leader.broken = True
        leader.close()
        raise


def launched() -> tuple[int, int] | None:
    """Rank and number of the processes that torchrun started, this one among them; None where it started no others."""
    if any(name not in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")):
        return None
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return (rank, world) if world > 1 else None


def follow_if_told() -> None:
    """Under torchrun, on any rank but the first: work for the first rank's run to its end, and end this process."""
    torchrun = launched()
    if torchrun is None or torchrun[0] == 0:
        return
    _follow(_their_store(), *torchrun, local=int(os.environ.get("LOCAL_RANK", torchrun[0])))
    sys.exit(0)


def _their_store() -> Any:
    store, _, _ = next(rendezvous("env://"))
    return store


def _own_store(world: int, port: int | None = None, host: str = _HOST) -> Any:
    """Where ranks that the first one starts find each other: a new one of the first rank, or at its host and port."""
    return TCPStore(host, port or 0, world, is_master=port is None, timeout=MEETING, wait_for_workers=False)


def _store_of_this_machine(world: int) -> Any:
    """The same, for ranks of this machine alone: other machines cannot reach it."""
    with socket.create_server((_HOST, 0)) as listening:
        port = listening.getsockname()[1]
        return TCPStore(
            _HOST,
            port,
            world,
            is_master=True,
            timeout=MEETING,
            wait_for_workers=False,
            master_listen_fd=listening.detach(),
        )


def _check_devices(device: str, ranks: int) -> None:
    if device != "cpu" and torch.cuda.device_count() < ranks:
        raise ValueError(
            f"learner.ranks={ranks} needs a GPU for each rank, and there are {torch.cuda.device_count()}: lower it"
        )


@dataclass(slots=True)
class ChildRank:
    """A rank that is a child process, and the file with what it wrote to stderr."""

    rank: int
    process: subprocess.Popen[bytes]
    errors: IO[bytes]
    patience_s: float = 10.0

    def fate(self) -> str | None:
        code = self.process.poll()
        if code is None:
            return None
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        return f"rank {self.rank} {how}" + (f": {lines[-1]}" if lines and code > 0 else "")

    def end(self, seconds: float) -> None:
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        self.process.kill()
        self.process.wait()
        self.errors.close()


def _start(rank: int, world: int, port: int) -> ChildRank:
    """Start this module as a program, which imports what this process would."""
    errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the rank)
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, str(rank), str(world), str(port)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        start_new_session=True,  # Ctrl-C is for the first rank
    )
    return ChildRank(rank, process, errors)


def _follow_in_actor(host: str, port: int, world: int, rank: int) -> None:
    """Work as a rank in this actor's process, to which Ray shows one GPU."""
    _follow(_own_store(world, port, host), rank, world, local=0, deaf=False)


def _follow(store: Any, rank: int, world: int, *, local: int, deaf: bool = True) -> None:
    """Work for the first rank to the end of its run, on GPU ``local``. ``deaf``: signals are for the first rank."""
    store.wait([_WANTED], timedelta(days=20))  # the first rank may have a model to clone before
    wanted = json.loads(store.get(_WANTED))
    kind = wanted["device"]
    if kind != "cpu":
        torch.cuda.set_device(local)
    store.set(stage_of("started", rank), "")
    for number in (signal.SIGINT, signal.SIGTERM) if deaf else ():  # it ends the update, saves, then ends the others
        signal.signal(number, signal.SIG_IGN)
    ranks = ProcessRanks(store, rank, world, **wanted)
    place = "cpu" if kind == "cpu" or ranks.lockstep else f"{kind}:{local}"  # what is divided moves layer by layer

    def make(message: Mapping[str, Any]) -> dict[str, FollowingSide]:
        run = RunDirectory.open(message["run"])
        config = run.config()
        torch.set_num_threads(config.threads)
        made = {}
        for name, policy in load_policies(run, message["sides"], device=place, samples=False).items():
            policy.temperature = config.rollout.temperature
            policy.remember(config.rollout.ahead)
            steer(policy, config.agent.decoding)  # here, while its weights are whole
            if ranks.lockstep:
                policy.divide(ranks.mesh)
            learner = learner_of(config.algorithm, config.optimizer, config.run_info, policy, config.agent, ranks)
            made[name] = FollowingSide(policy, learner, TrajectoryBuffer(learner.recipe.keep_updates))
        store.set(stage_of("ready", rank), "")
        return made

    follow(ranks, make)
    ranks.close()


if __name__ == "__main__":
    _rank, _world, _port = map(int, sys.argv[1:])
    _follow(_own_store(_world, _port), _rank, _world, local=_rank)
