"""Settings of vLLM as the engine of rollouts. Without torch, so that reading them is quick."""

from __future__ import annotations

from dataclasses import dataclass
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
        None,
        description="a server of `turnwise serve-vllm`, such as http://127.0.0.1:8000; None: in this process, or in "
        "that of each shard",
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


@dataclass(frozen=True, slots=True)
class Facts:
    """What of a run the rule looks at.

    ``ranks`` learn together, ``length`` is that of contexts in tokens, and ``rank`` that of adapters (0: none). None
    for ``parameters``, and for the ``positions`` that the model says it can read: unknown. ``available``: whether a
    vLLM that fits is installed.
    """

    device: str
    sharded: bool = False
    ranks: int = 1
    half: bool = False
    parameters: int | None = None
    length: int = 0
    positions: int | None = None
    rank: int = 0
    available: bool = False


def chosen_backend(facts: Facts) -> tuple[Backend, str]:
    """The engine of a run that names none, and why. The rule looks at no clock, so that it is the same every time.

    vLLM plays where the model is on a GPU, in half precision, of ``LARGE`` parameters or more, and ``available``. Its
    kernels pay off there; on a CPU ours are as fast or faster at the sizes that a CPU trains (docs/vllm.md). What vLLM
    in this process cannot play is played by our own.
    """
    kind, _, number = facts.device.partition(":")
    size = "an unknown number of" if facts.parameters is None else f"{facts.parameters:,}"
    reasons = {
        "shards sample with our own engine, unless rollout.backend=vllm is given": facts.sharded,
        f"device {facts.device} is no GPU": kind != "cuda",
        f"vLLM takes the first GPU that it sees, and the model is on {facts.device}": number not in ("", "0"),
        f"{facts.ranks} ranks learn, and vLLM would join them": facts.ranks > 1,
        "the model is in float32": not facts.half,
        f"the model has {size} parameters, less than {LARGE:,}": (facts.parameters or 0) < LARGE,
        f"contexts may have {facts.length} tokens, and vLLM keeps to the {facts.positions} that the model says it can "
        "read": facts.positions is not None and facts.length > facts.positions,
        f"adapters of rank {facts.rank} are too large for vLLM": facts.rank > _RANKS[-1],
        "no vLLM that fits is installed": not facts.available,
    }
    for reason, holds in reasons.items():
        if holds:
            return "own", reason
    return "vllm", f"a GPU, half precision and {size} parameters"
