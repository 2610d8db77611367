"""Shared memory for ``AnyText``, so that ``make_vec(..., vectorization_mode="async")`` carries observations.

gymnasium stores a ``Text`` as numbers of characters in a fixed set. Here any string is stored, as its length in bytes
and then UTF-8. Importing this module registers it.

``AsyncVectorEnv`` reads the memory only once, at its start, and expects an object that changes with the memory, as an
array does and a string does not. So it gets a view, which becomes a tuple of strings when observations are copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_uint8
from typing import Any

import numpy as np
from gymnasium.vector.utils import create_shared_memory, read_from_shared_memory, write_to_shared_memory
from numpy.typing import NDArray

from turnwise.envs.interface import AnyText

CAPACITY = 1 << 17  # bytes of text for each environment; ALFWorld's longest observations have about 2,000
_LENGTH = 4  # bytes of the length


class SharedTexts(Sequence[str]):
    """The texts in shared memory as they are now; a copy is the tuple of them."""

    def __init__(self, rows: NDArray[np.uint8]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        return tuple(map(_text, self._rows[index])) if isinstance(index, slice) else _text(self._rows[index])

    def __deepcopy__(self, memo: object) -> tuple[str, ...]:
        return tuple(self)


@create_shared_memory.register(AnyText)
def _create(space: AnyText, n: int = 1, ctx: Any = None) -> Any:
    return ctx.Array(c_uint8, n * (_LENGTH + CAPACITY))


@read_from_shared_memory.register(AnyText)
def _read(space: AnyText, shared_memory: Any, n: int = 1) -> SharedTexts:
    return SharedTexts(_rows(shared_memory))


@write_to_shared_memory.register(AnyText)
def _write(space: AnyText, index: int, values: str, shared_memory: Any) -> None:
    encoded = values.encode("utf-8", errors="surrogatepass")
    if len(encoded) > CAPACITY:
        raise ValueError(
            f"An observation of {len(encoded)} bytes does not fit the {CAPACITY} bytes of shared memory. "
            "Pass vector_kwargs={'shared_memory': False} to make_vec."
        )
    row = _rows(shared_memory)[index]
    row[:_LENGTH] = np.frombuffer(len(encoded).to_bytes(_LENGTH, "little"), np.uint8)
    row[_LENGTH : _LENGTH + len(encoded)] = np.frombuffer(encoded, np.uint8)


def _rows(shared_memory: Any) -> NDArray[np.uint8]:
    """[environments, bytes], a view."""
    return np.frombuffer(shared_memory.get_obj(), np.uint8).reshape(-1, _LENGTH + CAPACITY)


def _text(row: NDArray[np.uint8]) -> str:
    length = int.from_bytes(row[:_LENGTH].tobytes(), "little")
    return row[_LENGTH : _LENGTH + length].tobytes().decode("utf-8", errors="surrogatepass")
