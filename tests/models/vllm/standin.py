"""A server in the place of vLLM's, in this process: it answers what ``turnwise serve-vllm`` does, by our own engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from tests.models.vllm.test_server import models, serving
from turnwise.models.adapters import read_adapter
from turnwise.models.engine import SlotEngine
from turnwise.models.loading import load_model
from turnwise.models.vllm.drawn import ARGUMENT, CHOSEN, Drawing


class StandIn:
    """Plays the base model of a folder with adapters. ``known`` are their names in order, ``asked`` how often each."""

    def __init__(self, folder: Path, *, stale: bool = False) -> None:
        self.folder, self.stale = folder, stale
        self.known: list[str] = []
        self.asked: dict[str, int] = {}
        self._weights: dict[str, Any] = {}
        self._lock = Lock()

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        with self._lock:
            if path == "/v1/models":
                return models()
            if path == "/v1/load_lora_adapter":
                return self._load(body["lora_name"], Path(body["lora_path"]))
            if path == "/v1/unload_lora_adapter":
                del self._weights[body["lora_name"]]
                return 200, "Success"
            return self._complete(body)

    def _load(self, name: str, folder: Path) -> tuple[int, Any]:
        if name in self._weights:
            return 400, {"message": f"The lora adapter '{name}' has already been loaded."}
        model, _ = load_model(self.folder)
        if not self.stale:
            read_adapter(folder).merge_into(model)
        self._weights[name] = model
        self.known.append(name)
        return 200, "Success: LoRA adapter added"

    def _complete(self, body: dict[str, Any]) -> tuple[int, Any]:
        name, drawing = body["model"], Drawing.of(body["vllm_xargs"][ARGUMENT])
        self.asked[name] = self.asked.get(name, 0) + 1
        ends = frozenset(body["stop_token_ids"])
        engine = SlotEngine(self._weights[name], num_slots=1, max_length=512, end_ids=ends)
        prompt = np.asarray(body["prompt"], np.int32)
        engine.submit(engine.open(), prompt, fresh=True, key=drawing.key, sampling=drawing.sampling)
        replies: list[Any] = []
        while not replies:
            replies = engine.step()
        (reply,) = replies
        size = self._weights[name].config.vocab_size
        told = [
            {f"token_id:{t}": CHOSEN, f"token_id:{(t + 1) % size}": entropy, f"token_id:{(t + 2) % size}": logprob}
            for t, logprob, entropy in zip(
                reply.ids.tolist(), reply.logprobs.tolist(), reply.entropies.tolist(), strict=True
            )
        ]
        said = {"token_ids": reply.ids.tolist(), "logprobs": {"top_logprobs": told}}
        return 200, {"model": name, "choices": [json.loads(json.dumps(said))]}


@contextmanager
def standing_in(folder: Path, **how: Any) -> Iterator[tuple[StandIn, str]]:
    """The server and its address."""
    made = StandIn(folder, **how)
    with serving(made.answer) as url:
        yield made, url
