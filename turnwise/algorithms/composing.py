"""A composer around another one: the inner composer makes the streams, and the outer one changes them.

SPEAR is an example: its base's composer makes the stream of fresh episodes, and SPEAR's adds a stream of earlier ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from turnwise.learning.metrics import Metrics
from turnwise.learning.parts import Composer, Samples, Streams
from turnwise.learning.planning import Scorer
from turnwise.replay.buffer import TrajectoryBuffer


class ComposerAround(Composer):
    """Passes every call on to ``inner``. A subclass overrides the methods that it changes.

    The inner composer is called as any other part is: before the first update, before and after each update. Its state
    is saved within this one's, under ``inner``.
    """

    def __init__(self, inner: Composer) -> None:
        self.inner, self.streams = inner, inner.streams

    def compose(self, update: int, samples: Samples, buffer: TrajectoryBuffer) -> Streams:
        return self.inner.compose(update, samples, buffer)

    def check_sources(self) -> None:
        self.inner.check_sources()

    def attach(self, scorer: Scorer) -> None:
        self.inner.attach(scorer)

    def before_update(self, update: int, streams: Streams) -> None:
        self.inner.before_update(update, streams)

    def after_update(self, update: int, streams: Streams, metrics: Metrics) -> None:
        self.inner.after_update(update, streams, metrics)

    def state_dict(self) -> dict[str, Any]:
        return {"own": self.own_state(), "inner": self.inner.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.load_own_state(state["own"])
        self.inner.load_state_dict(state["inner"])

    def own_state(self) -> dict[str, Any]:
        """What a checkpoint must hold of this composer, without the inner one's state; JSON-able."""
        return {}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Restore what ``own_state`` returned."""
