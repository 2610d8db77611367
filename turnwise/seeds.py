"""Seeds derived from values of any kind. A leaf: standard library only."""

from __future__ import annotations

import hashlib


def mix(*parts: object) -> int:
    """A 64-bit number from any values: the same everywhere and always (unlike ``hash``)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
