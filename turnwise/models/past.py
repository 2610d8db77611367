"""The weights of a policy's last versions, for episodes that are played ahead of the learner (ADR 38)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Weights:
    """A policy's trainable tensors after ``version`` updates, on the CPU, and their hash. Nobody changes them."""

    version: int
    hash: str
    tensors: Mapping[str, Tensor]


class PastWeights:
    """The weights of the newest version that was added, and of ``num`` versions before it."""

    def __init__(self, num: int = 0) -> None:
        self.num = num
        self._held: dict[int, Weights] = {}

    def add(self, weights: Weights) -> None:
        """Take up the newest version. Of a run that goes back, versions after it are forgotten."""
        kept = range(weights.version - self.num, weights.version)
        self._held = {number: held for number, held in self._held.items() if number in kept}
        self._held[weights.version] = weights

    def of(self, version: int) -> Weights:
        """The weights after ``version`` updates. Raises ValueError where they are not held."""
        if version not in self._held:
            raise ValueError(f"the weights after {version} updates are not held: there are those of {[*self._held]}")
        return self._held[version]

    def before(self, version: int) -> list[Weights]:
        """Those of the versions before, oldest first: what a checkpoint of ``version`` holds beside its own."""
        return [self._held[number] for number in sorted(self._held) if number < version]

    def replace(self, held: Iterable[Weights]) -> None:
        """Hold these in the place of all others."""
        self._held = {weights.version: weights for weights in held}
