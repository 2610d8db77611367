"""vLLM as an engine of rollouts: contexts are lists of tokens, and vLLM's prefix cache holds their keys and values.

A slot keeps its context's tokens. A turn is a request with all of them, of which vLLM computes what its cache does not
hold, in whole blocks. A fork is a copy of the list. Tokens are drawn by our own rule (drawn.py), so replies are those
of ``SlotEngine``, up to the rounding of the logits.

New weights come under a name that was never used before: the hash of the policy's weights and a random end. vLLM would
go on playing an adapter whose name it knows, and its cache finds keys by the adapter's name. With a new name there is
neither a stale adapter nor a stale key. Where all weights are trained they are loaded again, and the cache is emptied.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from turnwise.clock import Clock
from turnwise.models.adapters import write_adapter
from turnwise.models.drawing import LogitsError, Sampling
from turnwise.models.engine import EngineCounts, Reply, torch_threads
from turnwise.models.loading import save_model
from turnwise.models.policy import Policy
from turnwise.models.processing import Course, Processor
from turnwise.models.vllm.drawn import Drawing, heard
from turnwise.trajectory import IntArray

_MEMORY = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class Finished:
    """A request that vLLM finished: its tokens, and for each the reported logits of its row by id.

    ``weights`` names the weights that all of its tokens were computed with. ``cached`` tokens of its prompt were found
    in the cache.
    """

    request: str
    ids: Sequence[int]
    told: Sequence[Mapping[int, float]]
    weights: str
    prompt: int
    cached: int


class Core(Protocol):
    """A running vLLM: in this process (local.py) or behind a server (server.py).

    ``processes``: whether it can run a processor of ours. ``weights`` is the name that it plays under now.
    """

    processes: bool

    @property
    def weights(self) -> str: ...
    def ask(self, request: str, ids: list[int], drawing: Drawing, end_ids: frozenset[int]) -> None:
        """Begin a request: a prompt [P], how its reply is drawn, and the tokens that end it."""
        ...

    def drop(self, request: str) -> None:
        """Abandon a request."""
        ...

    def step(self) -> list[Finished]:
        """Go on with all requests. Returns those that finished."""
        ...

    def adapt(self, name: str, folder: Path) -> None:
        """Play with the adapter in a folder (peft's format). Raises ValueError for a name that was used before."""
        ...

    def reload(self, name: str, folder: Path) -> None:
        """Play with the weights in a folder, and forget the keys of the old ones."""
        ...


@dataclass(slots=True)
class _Slot:
    context: list[int] = field(default_factory=list)
    request: str = ""  # of the reply in progress; "": none
    drawing: Drawing | None = None


class VllmEngine:
    """An ``Engine`` (models/engine.py) on a running vLLM. ``SlotEngine`` documents the methods.

    ``weights`` is the hash of the policy's weights that vLLM plays. ``end_ids`` are the tokens that end a reply, and
    ``threads`` the torch threads of a step in this process; None does not change them.
    """

    def __init__(
        self, core: Core, *, num_slots: int, max_length: int, end_ids: frozenset[int], threads: int | None = None
    ) -> None:
        self.core, self.num_slots, self.max_length, self.end_ids = core, num_slots, max_length, end_ids
        self.threads = threads
        self.counts = EngineCounts()
        self.clock = Clock()
        self._slots: dict[int, _Slot] = {}
        self._asked: dict[str, int] = {}  # request -> slot
        self._num_new = 0  # tokens of prompts that were asked for since the last step
        self._next_slot = self._next_request = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def processes(self) -> bool:
        return self.core.processes

    @property
    def weights(self) -> str:
        return self.core.weights.partition("-")[0]

    def hold(self, policy: Policy) -> None:
        """Play the policy's present weights from now on. Raises RuntimeError where replies are in progress."""
        if policy.adapter_hash == self.weights:
            return
        if self._asked:
            raise RuntimeError("the weights of an engine cannot change while it samples: finish its replies first")
        name = f"{policy.adapter_hash}-{secrets.token_hex(4)}"  # of no engine before, at a server either
        fresh = weights_folder(policy)
        folder = Path(fresh.name)
        if policy.is_adapted:
            write_adapter(folder, policy.model)
            self.core.adapt(name, folder)
        else:
            save_model(policy.sampler, policy.tokenizer, folder)
            self.core.reload(name, folder)
        self._folder = fresh  # kept: vLLM may read an adapter again

    @property
    def num_free(self) -> int:
        return self.num_slots - len(self._slots)

    def open(self) -> int:
        if not self.num_free:
            raise RuntimeError(f"all {self.num_slots} slots of the engine are in use: close one first")
        slot, self._next_slot = self._next_slot, self._next_slot + 1
        self._slots[slot] = _Slot()
        return slot

    def close(self, slot: int) -> None:
        state = self._slots.pop(slot)
        if state.request:
            self.core.drop(state.request)
            del self._asked[state.request]

    def fork(self, slot: int) -> int:
        """Copy a slot's context into a new slot. After a fork in the middle of a reply the copy begins afresh."""
        copy = self.open()
        self._slots[copy].context = list(self._slots[slot].context)
        return copy

    def length(self, slot: int) -> int:
        return len(self._slots[slot].context)

    def submit(
        self,
        slot: int,
        ids: IntArray,
        *,
        fresh: bool,
        key: int,
        sampling: Sampling,
        processor: Processor | None = None,
    ) -> None:
        """As ``SlotEngine.submit``. Raises ValueError for a processor, where vLLM is behind a server."""
        state = self._slots[slot]
        context = ([] if fresh else state.context) + ids.tolist()
        if len(context) + sampling.max_tokens > self.max_length:
            raise ValueError(
                f"context of {len(context) + sampling.max_tokens} tokens exceeds the engine's max_length "
                f"{self.max_length} ({sampling.max_tokens} tokens of the reply included)"
            )
        if processor is not None and not self.processes:
            raise ValueError(
                "a vLLM server runs no processors (agent.constrained, agent.thought_tokens, agent.decoding, "
                "HAPO's heat, a request's response_format or forced call, an attempt that begins within a reply): "
                "leave rollout.vllm.url out, so that vLLM runs in this process"
            )
        state.context = context
        state.request, self._next_request = f"{slot}.{self._next_request}", self._next_request + 1
        state.drawing = Drawing(key, sampling, Course(processor) if processor is not None else None)
        self._asked[state.request] = slot
        self._num_new += len(ids)
        self.core.ask(state.request, context, state.drawing, self.end_ids)

    def step(self) -> list[Reply]:
        """Go on with all replies. Returns those that finished. Raises LogitsError as ``SlotEngine.step`` does."""
        if not self._asked:
            return []
        began, new, self._num_new = self.clock.now(), self._num_new, 0
        with torch_threads(self.threads):
            finished = self.core.step()
        self.counts.steps += 1
        replies = [self._reply(each) for each in finished if each.request in self._asked]
        sampled = sum(len(reply.ids) for reply in replies)
        self.counts.sampled_tokens += sampled
        self.clock.split(self.clock.now() - began, prefill=new, decode=sampled)
        return replies

    def _reply(self, found: Finished) -> Reply:
        slot = self._asked.pop(found.request)
        state = self._slots[slot]
        drawing, state.request = state.drawing, ""
        assert drawing is not None
        if found.weights != self.core.weights:
            raise RuntimeError(f"vLLM played weights {found.weights} while {self.core.weights} were due")
        scores = list[tuple[float, float]]()
        for token, told in zip(found.ids, found.told, strict=True):
            if (score := heard(token, told)) is None:
                raise LogitsError(
                    slot,
                    f"vLLM's logits are nan or infinite at token {len(scores) + 1} of a reply (the temperature is "
                    f"{drawing.sampling.temperature:g}): no token can be drawn from them. Check the dtype and the "
                    "checkpoint",
                )
            scores.append(score)
        self.counts.prefill_tokens += found.prompt - found.cached
        self.counts.reused_tokens += found.cached
        state.context = state.context + list(found.ids)
        logprobs, entropies = np.asarray(scores, np.float32).reshape(-1, 2).T
        course = drawing.course
        return Reply(
            slot=slot,
            ids=np.asarray(found.ids, np.int32),
            logprobs=np.ascontiguousarray(logprobs),
            entropies=np.ascontiguousarray(entropies),
            ended=bool(found.ids) and found.ids[-1] in self.end_ids,
            processing=course.record(drawing.sampling.temperature) if course is not None else None,
        )


def weights_folder(policy: Policy) -> tempfile.TemporaryDirectory[str]:
    """A temporary folder with room for the policy's weights: in memory, or on the disk where that is short."""
    size = sum(weight.nbytes for weight in policy.sampler.parameters())
    in_memory = _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > 2 * size
    return tempfile.TemporaryDirectory(prefix="turnwise-", dir=_MEMORY if in_memory else None)
