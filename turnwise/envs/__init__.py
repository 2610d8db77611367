"""Text worlds with the gymnasium API, under ids that begin with ``turnwise/`` (``turnwise/registration.py``)."""

from __future__ import annotations

import turnwise.envs.text_memory  # noqa: F401  (registers shared memory for AnyText)
from turnwise.registration import WORLDS, World, register_worlds

__all__ = ["WORLDS", "World"]

register_worlds()
