"""``Draws``: the logits processor that draws for vLLM (drawn.py). One class for both of vLLM's interfaces.

vLLM's first model runner tells a processor of rows that come, go and move (``update_state``). Its second one keeps each
request in a slot (``add_request``) and says with every batch which slot a row is of. The class is named to a server as
``--logits-processors turnwise.models.vllm.processor:Draws``. It imports vLLM, so only what runs vLLM imports it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.v1.sample.logits_processor.interface import LogitsProcessor as OfRows
from vllm.v1.sample.logits_processor.interface import MoveDirectionality
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as OfSlots

from turnwise.models.vllm.drawn import ARGUMENT, Drawing, tell


class Draws(OfRows, OfSlots):  # type: ignore[misc]
    """Draws the tokens of requests that have our extra argument, and leaves other requests alone."""

    def __init__(self, vllm_config: Any, state: Any, is_pin_memory: bool = False) -> None:
        """``state`` is the device in vLLM's first interface, and what the runner knows of its slots in the second."""
        self._prompts = getattr(state, "prompt_len", None)
        self._drawings: dict[int, Drawing] = {}  # by row, or by slot
        self._replies: dict[int, list[int]] = {}  # the reply so far, which vLLM appends to; by row

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Raises ValueError where a request says in words that we do not know how to draw."""
        if (value := (sampling_params.extra_args or {}).get(ARGUMENT)) is not None:
            Drawing.of(value)

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: Any) -> None:
        """Rows that were removed, added and moved, in this order."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self._forget(row)
        for row, params, _, reply in batch_update.added:
            self._forget(row)
            if self.add_request(row, params):
                self._replies[row] = reply
        for source, target, direction in batch_update.moved:
            for kept in (self._drawings, self._replies):
                here, there = kept.pop(source, None), kept.pop(target, None)
                if here is not None:
                    kept[target] = here  # type: ignore[assignment]
                if there is not None and direction == MoveDirectionality.SWAP:
                    kept[source] = there  # type: ignore[assignment]

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """A request in a row or slot, in the place of another one."""
        value = (sampling_params.extra_args or {}).get(ARGUMENT)
        if value is None:
            self._forget(req_idx)
            return False
        self._drawings[req_idx] = Drawing.of(value)
        return True

    def _forget(self, row: int) -> None:
        self._drawings.pop(row, None)
        self._replies.pop(row, None)

    def apply(self, logits: Tensor, ctx: Any = None) -> Tensor:
        """Logits [R, V] float32, in place. Rows of prompts that are still being read are left alone."""
        if ctx is None:
            places = {row: (row, len(self._replies[row])) for row in self._drawings if row < len(logits)}
        else:
            assert self._prompts is not None
            slots, ends = ctx.expanded_idx_mapping.tolist(), ctx.pos.tolist()
            places = {
                row: (slot, end + 1 - int(self._prompts.np[slot]))
                for row, (slot, end) in enumerate(zip(slots, ends, strict=True))
                if slot in self._drawings and end + 1 >= self._prompts.np[slot]
            }
        if places:
            owners, positions = zip(*places.values(), strict=True)
            tell(logits, list(places), [self._drawings[owner] for owner in owners], positions)
        return logits
