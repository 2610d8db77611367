"""An engine in a process of its own, over weights that it shares with this one.

The weights lie in one mapped file, so what a sync writes here is what the engine there reads. (In threads, engines of
small models would wait for one another: Python runs between their small operations, one thread at a time.)
"""

from __future__ import annotations

import json
import pickle
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.error import ResetNeeded
from torch import Tensor, nn

from turnwise.childprocess import START_METHODS, Child, EnvDiedError, EnvRaisedError
from turnwise.errors import AgentError
from turnwise.models.drawing import LogitsError
from turnwise.models.engine import EngineCounts, Reply, Sampling, SlotEngine
from turnwise.models.merging import join
from turnwise.trajectory import IntArray

_LIMIT = ("the longest that an engine's step may take", 3600.0)
_ALIGNMENT = 64
_MEMORY = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class SharedModel:
    """A mapped file, and where in it stands which weight: name -> (offset, shape, dtype)."""

    path: str
    size: int
    kind: type[Any]  # of the model
    config: str  # JSON
    places: dict[str, tuple[int, tuple[int, ...], torch.dtype]]

    def tensors(self) -> dict[str, Tensor]:
        """The weights, in the file."""
        mapped = torch.from_file(self.path, shared=True, size=self.size, dtype=torch.uint8)
        return {
            name: mapped[offset : offset + prod(shape) * dtype.itemsize].view(dtype).view(shape)
            for name, (offset, shape, dtype) in self.places.items()
        }

    def model(self) -> Any:
        """A model over the weights in the file."""
        config = self.kind.config_class.from_dict(json.loads(self.config))
        with torch.device("meta"):
            model = self.kind(config)
        join(model, {name: shape for name, (_, shape, _) in self.places.items()})
        model.model.rotary_emb = type(model.model.rotary_emb)(config=config)  # holds no weights
        model.load_state_dict(self.tensors(), assign=True)
        return model.eval()


@contextmanager
def shared_weights(sampler: Any, *others: nn.Module) -> Iterator[SharedModel]:
    """Move a sampler's weights into a mapped file for the processes that are started meanwhile.

    Its name is removed then. Parameters of ``others`` over the same memory move with them. Once for a sampler.
    """
    if getattr(sampler, "lies_in_a_file", False):
        raise RuntimeError("these weights are shared already, with engines that would not see another move")
    sampler.lies_in_a_file = True
    weights = {name: parameter.data for name, parameter in sampler.named_parameters(remove_duplicate=False)}
    places, offset, seen = {}, 0, dict[int, int]()
    for name, weight in weights.items():
        if weight.data_ptr() not in seen:
            seen[weight.data_ptr()] = offset
            offset += -(-weight.nbytes // _ALIGNMENT) * _ALIGNMENT
        places[name] = seen[weight.data_ptr()], tuple(weight.shape), weight.dtype
    with tempfile.NamedTemporaryFile(prefix="turnwise-", dir=_folder(offset)) as file:
        made = SharedModel(file.name, offset, type(sampler), sampler.config.to_json_string(use_diff=False), places)
        moved = made.tensors()
        by_place = {}
        for name, weight in weights.items():
            moved[name].copy_(weight)
            by_place[weight.data_ptr(), weight.shape] = moved[name]
        for parameter in (p for module in (sampler, *others) for p in module.parameters()):
            if (found := by_place.get((parameter.data_ptr(), parameter.shape))) is not None:
                parameter.data = found
        yield made


def _folder(size: int) -> Path | None:
    """Where a mapped file of ``size`` bytes may lie: in memory where there is room, else None, on the disk.

    (Containers often have 64 MiB there, and who writes to a mapped page that has none is killed without a word.)
    """
    return _MEMORY if _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > 2 * size else None


class RemoteEngine:
    """Slots as an ``Engine`` (engine.py) has them; steps are begun here and done in another process.

    What is asked between two steps, also while one is done, goes with the next.
    """

    def __init__(
        self, model: SharedModel, *, num_slots: int, max_length: int, end_ids: frozenset[int], threads: int | None = 1
    ) -> None:
        self.num_slots, self.max_length = num_slots, max_length
        self.counts, self.is_stepping = EngineCounts(), False
        served = partial(_Served, model, num_slots, max_length, end_ids, threads or torch.get_num_threads())
        needed = (__name__, model.kind.__module__)
        self._child = Child(pickle.dumps(served), START_METHODS[0], _LIMIT, preload=needed, what="engine")
        self._commands: list[tuple[str, tuple[Any, ...]]] = []
        self._contexts: dict[int, list[int]] = {}
        self._unfed: set[int] = set()  # slots whose context is to be computed again
        self._active: set[int] = set()
        self._next = 0

    @property
    def num_free(self) -> int:
        return self.num_slots - len(self._contexts)

    def open(self) -> int:
        """A new empty context; raises RuntimeError when all slots are taken."""
        return self._opened("open")

    def fork(self, slot: int, into: RemoteEngine | None = None) -> int:
        """A copy of a slot. ``into`` another engine it brings the tokens along, to be computed again."""
        if into is None or into is self:
            return self._opened("fork", slot, context=self._contexts[slot])
        handle = into._opened("open", context=self._contexts[slot])
        into._unfed.add(handle)
        return handle

    def _opened(self, command: str, *arguments: Any, context: list[int] | None = None) -> int:
        if not self.num_free:
            raise RuntimeError(f"all {self.num_slots} slots of the engine are in use: close one first")
        handle, self._next = self._next, self._next + 1
        self._contexts[handle] = list(context or ())
        self._commands.append((command, arguments))
        return handle

    def close(self, slot: int) -> None:
        del self._contexts[slot]
        self._active.discard(slot)
        self._unfed.discard(slot)
        self._commands.append(("close", (slot,)))
        if self.is_stepping and not self._active:
            with suppress(LogitsError):
                self.end_step()  # nobody waits for it: whoever plays next begins as after a resume

    def length(self, slot: int) -> int:
        """Tokens in the slot's context, the sampled ones included."""
        return len(self._contexts[slot])

    def submit(self, slot: int, ids: IntArray, *, fresh: bool, key: int, sampling: Sampling) -> None:
        """As ``SlotEngine.submit``: ids [N] int32; raises ValueError beyond ``max_length`` tokens."""
        context = ([] if fresh else self._contexts[slot]) + ids.tolist()
        if len(context) + sampling.max_tokens > self.max_length:
            raise ValueError(
                f"context of {len(context) + sampling.max_tokens} tokens exceeds the engine's max_length "
                f"{self.max_length}"
            )
        if slot in self._unfed and not fresh:
            ids, fresh = np.asarray(context, np.int32), True
        self._unfed.discard(slot)
        self._contexts[slot] = context
        self._active.add(slot)
        self._commands.append(("submit", (slot, ids, fresh, key, sampling)))

    def begin_step(self) -> None:
        """Have a step done, where a reply is awaited and none is being done yet."""
        if not self._active or self.is_stepping:
            return
        commands, self._commands = self._commands, []
        with _explained():
            self._child.tell("step", commands)
        self.is_stepping = True

    def end_step(self) -> tuple[list[Reply], dict[str, int]]:
        """Wait for the step: its replies, but those of slots closed meanwhile, and the tokens fed by stage.

        Raises LogitsError as ``SlotEngine.step`` does.
        """
        self.is_stepping = False
        with _explained():
            replies, tokens, self.counts, fault = self._child.told("step", limit=_LIMIT)
        if fault is not None:
            slot, message = fault
            raise LogitsError(slot if slot in self._active else min(self._active, default=slot), message)
        found = [reply for reply in replies if reply.slot in self._active]
        for reply in found:
            self._active.remove(reply.slot)
            self._contexts[reply.slot] += reply.ids.tolist()
        return found, tokens


@contextmanager
def _explained() -> Iterator[None]:
    """Raises AgentError where the process has ended or failed."""
    try:
        yield
    except (EnvDiedError, EnvRaisedError, TimeoutError, ResetNeeded) as error:
        raise AgentError(f"a sampling engine failed ({error}); rollout.engines=1 samples in this process") from None


_Stepped = tuple[list[Reply], dict[str, int], EngineCounts, tuple[int, str] | None]
"""Finished replies, tokens fed by stage, work in all, and where and how a LogitsError was raised."""


class _Served:
    """What the process holds."""

    def __init__(
        self, model: SharedModel, num_slots: int, max_length: int, end_ids: frozenset[int], threads: int
    ) -> None:
        torch.set_num_threads(threads)
        self._engine = SlotEngine(model.model(), num_slots=num_slots, max_length=max_length, end_ids=end_ids)

    def step(self, commands: list[tuple[str, tuple[Any, ...]]]) -> _Stepped:
        """Do the commands, in order, then a step."""
        for name, arguments in commands:
            if name == "submit":
                slot, ids, fresh, key, sampling = arguments
                self._engine.submit(slot, ids, fresh=fresh, key=key, sampling=sampling)
            else:
                getattr(self._engine, name)(*arguments)
        replies, fault = list[Reply](), None
        try:
            replies = self._engine.step()
        except LogitsError as error:
            fault = error.slot, str(error)
        return replies, dict(self._engine.clock.take().tokens), self._engine.counts, fault
