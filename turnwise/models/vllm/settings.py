"""Settings of vLLM as the engine of rollouts. Without torch, so that reading them is quick."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Backend = Literal["own", "vllm"]
"""Which engine samples: ours (models/engine.py), or vLLM (models/vllm)."""

_GIB = 1 << 30
_MOST_CACHE = 4 * _GIB

LARGE = 500_000_000
"""Parameters from which on a GPU samples with vLLM by itself, where that is installed."""


_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks of adapters that vLLM makes room for."""


class VllmConfig(BaseModel):
    """How vLLM is run. Its documentation has more on each setting."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str | None = Field(
        None, description="a server of `turnwise serve-vllm`, such as http://127.0.0.1:8000; None: in this process"
    )
    cache_gib: float | None = Field(
        None, gt=0, description="GiB of keys and values; None: as much as all slots need, 4 at most"
    )
    block_size: int = Field(
        32, ge=1, description="tokens of a block of the cache: prefixes are found again in whole blocks"
    )
    compiled: bool = Field(
        False, description="compile the model (on a GPU: CUDA graphs), which takes minutes at the start"
    )

    def cache_bytes(self, num_slots: int, max_length: int, token_bytes: int) -> int:
        """Bytes for keys and values: as configured, or for all slots and a quarter more, within limits.

        ``token_bytes`` are those of one token in all layers.
        """
        if self.cache_gib is not None:
            return int(self.cache_gib * _GIB)
        each = (-(-max_length // self.block_size) + 1) * self.block_size * token_bytes
        return max(2 * each, min(each * num_slots * 5 // 4, _MOST_CACHE))


def room_for_rank(rank: int) -> int:
    """The rank that vLLM makes room for. Raises ValueError where ``rank`` is higher than any."""
    for room in _RANKS:
        if room >= rank:
            return room
    raise ValueError(f"adapters of rank {rank} are too large for vLLM, which takes {_RANKS[-1]} at most")


def chosen_backend(device: str, parameters: int | None, half: bool, available: bool) -> tuple[Backend, str]:
    """The engine of a run that names none, and why. The rule looks at no clock, so that it is the same every time.

    vLLM plays where the model is on a GPU, in half precision, of ``LARGE`` parameters or more, and ``available``. Its
    kernels pay off there; on a CPU ours are as fast or faster at the sizes that a CPU trains (docs/vllm.md).
    ``parameters`` None: unknown.
    """
    if device.partition(":")[0] != "cuda":
        return "own", f"device {device} is no GPU"
    if not half:
        return "own", "the model is in float32"
    if parameters is None or parameters < LARGE:
        told = "an unknown number of" if parameters is None else f"{parameters:,}"
        return "own", f"the model has {told} parameters, less than {LARGE:,}"
    if not available:
        return "own", "no vLLM that fits is installed"
    return "vllm", f"a GPU, half precision and {parameters:,} parameters"
