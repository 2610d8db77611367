"""The ranks of a learner as processes, joined by ``torch.distributed``: gloo between CPUs, nccl between GPUs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from turnwise.errors import StoppedRunError

_IDLE = timedelta(days=20)  # between two messages all ranks but the first have nothing to do: episodes are played


class ProcessRanks:
    """This process as one of ``world`` that learn together (``turnwise.learning.ranks.Ranks``).

    ``store`` is how they find each other, ``timeout_s`` how long one waits for the others within an update, ``device``
    the kind of device (cpu or cuda). With ``lockstep`` they hold frozen weights together, over ``mesh``. A process can
    be in one such group at a time; ``close`` leaves it.
    """

    def __init__(
        self, store: Any, rank: int, world: int, *, device: str = "cpu", lockstep: bool = False, timeout_s: float = 1800
    ) -> None:
        self.rank, self.world, self.lockstep = rank, world, lockstep
        self._timeout = timedelta(seconds=timeout_s)
        backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=self._timeout)
        self._messages = dist.new_group(backend="gloo", timeout=_IDLE)
        self.mesh = self._mesh(device) if lockstep else None

    def _mesh(self, device: str) -> Any:
        from torch.distributed.device_mesh import init_device_mesh

        return init_device_mesh(device, (self.world,))

    def add_up(self, values: Tensor) -> None:
        """Replace ``values`` [n] by the sum over the ranks.

        Each rank adds a slice of them up in the order of the ranks, and then all get all slices. (A ring would add
        every slice in an order of its own.)
        """
        if self.world == 1:
            return
        size = -(-len(values) // self.world)
        flat = values.new_zeros(self.world * size)
        flat[: len(values)] = values
        shares = torch.empty_like(flat)
        dist.all_to_all_single(shares, flat)
        total, *others = shares.view(self.world, size)
        for other in others:
            total += other
        dist.all_gather(list(flat.view(self.world, size)), total)
        values.copy_(flat[: len(values)])

    def gather(self, own: Any) -> list[Any]:
        """What each rank gave, in their order; sent as JSON."""
        text = _bytes(json.dumps(own).encode())
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        dist.all_gather(sizes, torch.tensor([len(text)]))
        longest = max(int(size) for size in sizes)
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(text)] = text
        found = [torch.empty_like(padded) for _ in range(self.world)]
        dist.all_gather(found, padded)
        return [json.loads(each[: int(size)].numpy().tobytes()) for each, size in zip(found, sizes, strict=True)]

    def send(self, message: bytes) -> None:
        """From the first rank to all others."""
        for part in (torch.tensor([len(message)]), _bytes(message)):
            work: Any = dist.broadcast(part, 0, group=self._messages, async_op=True)
            work.wait(self._timeout)

    def receive(self) -> bytes:
        """Wait for what the first rank sends, for days."""
        size = torch.zeros(1, dtype=torch.int64)
        dist.broadcast(size, 0, group=self._messages)
        message = torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(message, 0, group=self._messages)
        return message.numpy().tobytes()

    def close(self) -> None:
        """Leave the group."""
        if dist.is_initialized():
            dist.destroy_process_group()


def _bytes(message: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(message, np.uint8).copy())


def is_lost(error: BaseException) -> bool:
    """Whether an error is of the connection to other ranks: one of them ended, or did not answer in time."""
    if isinstance(error, StoppedRunError) or not isinstance(error, RuntimeError):
        return False
    names = ("gloo", "NCCL", "TCPStore", "imed out")
    return isinstance(error, dist.DistError) or any(name in str(error) for name in names)


def told(hashes: Sequence[str]) -> str:
    """The weights of each rank, for a message."""
    return ", ".join(f"rank {rank} {found}" for rank, found in enumerate(hashes))
