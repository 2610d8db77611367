"""A learner of several ranks, as its first rank sees it, and as the others do.

The first rank is the run: it plays the episodes, writes the files and keeps the checkpoints. The others hold a copy of
what learns, and do what they are told (``Leader.tell``): take groups and learn from them, take up a checkpoint, halve
their microbatches. After every update all ranks compare the hashes of their weights. A message is JSON beside tensors
in safetensors; nothing is pickled.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any, Literal, Protocol

from torch import Tensor

from turnwise.errors import StoppedRunError
from turnwise.learning.learner import Learner
from turnwise.learning.metrics import Metrics
from turnwise.learning.ranks import Alone, Ranks
from turnwise.models.past import Weights
from turnwise.models.policy import Policy
from turnwise.replay.buffer import TrajectoryBuffer
from turnwise.replay.codec import from_record, to_record
from turnwise.runs.checkpoints import PAST, POLICY
from turnwise.runs.directory import RunDirectory
from turnwise.training.ranks import ProcessRanks, is_lost, told
from turnwise.trajectory import Group, Task

Stage = Literal["started", "ready"]
"""How far a rank is that was started: it has imported torch; it holds the model."""

MEETING = timedelta(minutes=30)
"""Within which all ranks have to be at each stage."""

_SIZE = struct.Struct("<Q")
_PATIENCE_S = 10.0  # for ranks that are about to end, where this process did not start them


class LostRankError(StoppedRunError):
    """A rank ended or did not answer, or holds other weights than the first one. The run ends and can be resumed."""


def stage_of(stage: Stage, rank: int) -> str:
    """The name in the store by which a rank says that it is at a stage."""
    return f"turnwise/{stage}/{rank}"


class StartedRank(Protocol):
    """A rank that this process started: a child process, or an actor (turnwise.assembly).

    ``patience_s`` is how long it may take until it is known that it has ended.
    """

    patience_s: float

    def fate(self) -> str | None:
        """Which rank it is, how it ended and its last words; None while it runs."""
        ...

    def end(self, seconds: float) -> None:
        """Wait so long for it to end by itself; then end it."""
        ...


@dataclass(slots=True)
class Leader:
    """The first rank's hold on the others. Of one process alone (``Leader()``) there are none, and nothing is told.

    They say through ``store`` how far they are. ``started`` are those that it started itself, ``run`` is the run that
    ends with them, and ``after`` is called when all have ended.
    """

    ranks: Ranks = field(default_factory=Alone)
    store: Any = None
    started: Sequence[StartedRank] = ()
    run: RunDirectory | None = None
    after: Callable[[], None] = lambda: None
    broken: bool = False  # whether the others are in the middle of something that this rank has left

    @property
    def leads(self) -> bool:
        """Whether there are other ranks."""
        return isinstance(self.ranks, ProcessRanks)

    def wait_for(self, stage: Stage, world: int) -> None:
        """Wait until all ``world`` ranks are at a stage. Raises LostRankError where one ends before or is late."""
        longest = MEETING.total_seconds()
        wanted, until = [stage_of(stage, rank) for rank in range(1, world)], time.monotonic() + longest
        while self.store is not None and not self.store.check(wanted):
            fates = [fate for rank in self.started if (fate := rank.fate())]
            if fates or time.monotonic() > until:
                self.broken = True
                late = f"not all {world} ranks of the learner were {stage} after {longest:g} s"
                raise LostRankError(f"{fates[0] if fates else late}. {self._then}")
            time.sleep(0.05)

    def tell(self, what: str, tensors: Mapping[str, Tensor] | None = None, **data: Any) -> None:
        """Have every other rank do something. Raises LostRankError where one is gone."""
        if isinstance(self.ranks, ProcessRanks):
            with self.watched():
                self.ranks.send(_packed({"do": what, **data}, tensors or {}))

    def agree(self, weights: str, when: str) -> None:
        """Raise LostRankError where the other ranks hold other weights than those of this hash."""
        with self.watched():
            hashes = self.ranks.gather(weights)
        if set(hashes) != {weights}:
            self.broken = True
            raise LostRankError(f"the ranks hold different weights {when}: {told(hashes)}. {self._then}")

    @contextmanager
    def watched(self) -> Iterator[None]:
        """A context of work with other ranks. Where one of them is lost, it raises LostRankError, which says how."""
        try:
            yield
        except BaseException as error:
            self.broken = True
            if not is_lost(error):
                raise
            raise LostRankError(f"{self._fate(error)}. {self._then}") from error

    @property
    def _then(self) -> str:
        if self.run is None or not self.run.has_checkpoint:
            return "The run has no checkpoint yet: start it again"
        return (
            "Everything up to the newest checkpoint is safe: "
            f"`turnwise train --resume {self.run.path}` goes on, to the same numbers"
        )

    def _fate(self, error: BaseException) -> str:
        until = time.monotonic() + self._patience_s
        while not (found := [fate for rank in self.started if (fate := rank.fate())]):
            if time.monotonic() > until or "imed out" in str(error):
                reason = str(error).splitlines()[0]
                return f"a rank of the learner did not answer within learner.timeout_s, or is gone ({reason})"
            time.sleep(0.1)
        return f"{found[0]}, and the update cannot go on without it"

    def close(self) -> None:
        """End the other ranks."""
        if not self.broken:
            with suppress(LostRankError):
                self.tell("end")
        for rank in self.started:
            rank.end(0 if self.broken else _PATIENCE_S)
        if isinstance(self.ranks, ProcessRanks):
            with suppress(RuntimeError):
                self.ranks.close()
        self.started, self.ranks = (), Alone()
        self.after()

    @property
    def _patience_s(self) -> float:
        return max((rank.patience_s for rank in self.started), default=_PATIENCE_S)


@dataclass(slots=True)
class FollowingSide:
    """One policy in training, on a rank that is not the first."""

    policy: Policy
    learner: Learner
    buffer: TrajectoryBuffer

    def learn(self, update: int, groups: Sequence[Mapping[str, Any]]) -> Metrics:
        """One update on the groups that the first rank collected."""
        self.buffer.add(_groups(groups), update)
        return self.learner.update(self.buffer, update)

    def sync(self, version: int) -> None:
        """Compute the hash of the weights, and compare it with those of all ranks."""
        self.policy.sync(version)
        self.learner.ranks.gather(self.policy.adapter_hash)

    def halve(self) -> None:
        """Halve the microbatches from now on."""
        self.learner.halve_microbatches()

    def load(self, tensors: Mapping[str, Tensor], learner: Mapping[str, Any], buffer: Mapping[str, Any]) -> None:
        """Take up a checkpoint."""
        restore(self.policy, self.learner, self.buffer, tensors, {"learner": learner, "buffer": buffer})


def restore(
    policy: Policy,
    learner: Learner,
    buffer: TrajectoryBuffer,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Mapping[str, Any]],
) -> None:
    """Take up a side's tensors and state of a checkpoint."""
    learner.optimizer.zero_grad(set_to_none=True)  # an interrupted update may have left some
    own = {name.removeprefix(POLICY): tensor for name, tensor in tensors.items() if name.startswith(POLICY)}
    policy.load_trainable_state(own)
    policy.past.replace(_past(policy, tensors))
    learner.load_state_dict(state["learner"], tensors)
    buffer.load_state_dict(state["buffer"])


def _past(policy: Policy, tensors: Mapping[str, Tensor]) -> list[Weights]:
    """The weights of earlier versions among a side's tensors, under the hashes of what they hold."""
    found: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(PAST):
            version, _, own = name.removeprefix(PAST).partition(".")
            found.setdefault(int(version), {})[own] = tensor.clone()
    return [Weights(version, policy.hash_of(own), own) for version, own in sorted(found.items())]


def follow(ranks: ProcessRanks, make: Callable[[Any], Mapping[str, FollowingSide]]) -> None:
    """Do what the first rank tells, until it says that the run has ended. ``make`` gives the sides of a run."""
    sides: Mapping[str, FollowingSide] = {}
    while True:
        message, tensors = _unpacked(ranks.receive())
        what = message.pop("do")
        if what == "end":
            return
        if what == "begin":
            sides = make(message)
        else:
            side = sides[message.pop("side")]
            with_tensors = {"tensors": tensors} if what == "load" else {}
            getattr(side, what)(**message, **with_tensors)


def plain_groups(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Groups as JSON-able records, without loss."""
    return [{"task": asdict(g.task), "trajectories": [to_record(t) for t in g.trajectories]} for g in groups]


def _groups(records: Sequence[Mapping[str, Any]]) -> list[Group]:
    return [Group(Task(**r["task"]), tuple(map(from_record, r["trajectories"]))) for r in records]


def _packed(message: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    from safetensors.torch import save

    text = json.dumps(message).encode()
    blob: bytes = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    return _SIZE.pack(len(text)) + text + blob


def _unpacked(packed: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors.torch import load

    end = _SIZE.size + _SIZE.unpack_from(packed)[0]
    message: dict[str, Any] = json.loads(packed[_SIZE.size : end])
    return message, load(packed[end:])
