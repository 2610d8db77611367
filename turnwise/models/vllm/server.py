"""vLLM behind a server (``turnwise serve-vllm``), asked over HTTP.

The server draws by our rule too: a request carries how its reply is drawn, in words. Adapters go to it as folders, so
it runs on this machine. Replies are taken in the order in which they were asked for, so that what happens next does not
depend on time.
"""

from __future__ import annotations

import json
from concurrent.futures import Future, ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from turnwise.errors import AgentError
from turnwise.models.policy import Policy
from turnwise.models.vllm.drawn import ARGUMENT, NUM_TOLD, Drawing
from turnwise.models.vllm.engine import Finished, VllmEngine

_LIMIT_S = 600.0
_HOW = "`turnwise serve-vllm MODEL` starts one, and its url is such as http://127.0.0.1:8000"


class Served:
    """A ``Core`` (engine.py): the vLLM server at ``url``. It may have ``num_slots`` requests in progress.

    Raises ValueError where there is no such server, or its contexts are shorter than ``max_length``.
    """

    processes = False

    def __init__(self, url: str, *, num_slots: int, max_length: int) -> None:
        self.url = url.rstrip("/")
        try:
            model = self._send("/v1/models")["data"][0]
            self._base, room = str(model["id"]), int(model.get("max_model_len") or max_length)
        except AgentError as error:
            raise ValueError(f"rollout.vllm.url={url}: {error}. {_HOW}") from None
        except (LookupError, TypeError, ValueError, AttributeError):
            raise ValueError(f"rollout.vllm.url={url}: who answers there is no vLLM server. {_HOW}") from None
        if room < max_length:
            raise ValueError(
                f"the vLLM server at {url} has contexts of {room} tokens, and this agent wants {max_length}: start it "
                f"with --max-length {max_length}, or set agent.max_context_tokens={room}"
            )
        self.weights = ""
        self._threads = ThreadPoolExecutor(num_slots, thread_name_prefix="vllm")
        self._asked: dict[str, Future[Finished]] = {}

    def ask(self, request: str, ids: list[int], drawing: Drawing, end_ids: frozenset[int]) -> None:
        body = {
            "model": self.weights or self._base,
            "prompt": ids,
            "max_tokens": drawing.sampling.max_tokens,
            "temperature": 0.0,  # our draws are in the logits already
            "logprobs": NUM_TOLD,
            "stop_token_ids": sorted(end_ids),
            "ignore_eos": True,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "vllm_xargs": {ARGUMENT: drawing.plain()},
        }
        self._asked[request] = self._threads.submit(self._answer, request, len(ids), body)

    def drop(self, request: str) -> None:
        self._asked.pop(request).cancel()

    def step(self) -> list[Finished]:
        """Wait for the reply that was asked for first."""
        if not self._asked:
            return []
        first = next(iter(self._asked))
        return [self._asked.pop(first).result()]

    def adapt(self, name: str, folder: Path) -> None:
        before = self.weights
        told = self._post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        if "Success" not in str(told):
            raise ValueError(f"the vLLM server did not load adapter {name!r}: {told}")
        self.weights = name
        if before:
            self._post("/v1/unload_lora_adapter", {"lora_name": before})

    def reload(self, name: str, folder: Path) -> None:
        raise ValueError("a vLLM server plays adapters, and this run trains all weights: leave rollout.vllm.url out")

    def _answer(self, request: str, size: int, body: dict[str, Any]) -> Finished:
        answer = self._post("/v1/completions", body)
        try:
            said = answer["choices"][0]
            told = [
                {int(token.removeprefix("token_id:")): value for token, value in place.items()}
                for place in said["logprobs"]["top_logprobs"]
            ]
            details = (answer.get("usage") or {}).get("prompt_tokens_details") or {}
            return Finished(
                request=request,
                ids=said["token_ids"],
                told=told,
                weights=answer["model"],
                prompt=size,
                cached=details.get("cached_tokens") or 0,
            )
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise AgentError(
                f"the vLLM server at {self.url} answered in another form ({error!r}): `turnwise serve-vllm` starts one "
                "that does not"
            ) from None

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        return self._send(path, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _send(self, path: str, *given: Any) -> Any:
        """The answer as JSON values, or as text. Raises AgentError where there is none, and where it is an error."""
        try:
            with urlopen(Request(self.url + path, *given), timeout=_LIMIT_S) as answer:
                text = answer.read().decode()
        except HTTPError as error:
            said = error.read().decode(errors="replace")[:300]
            raise AgentError(f"the vLLM server at {self.url} refused {path} ({error.code}): {said}") from None
        except (OSError, ValueError, HTTPException) as error:  # the last: another program answers, or no such url
            said = " ".join(str(error).split()) or type(error).__name__
            raise AgentError(f"no vLLM server answers at {self.url} ({said})") from None
        try:
            return json.loads(text)
        except ValueError:
            return text


def check(url: str, max_length: int) -> None:
    """Raise ValueError as ``Served`` does."""
    Served(url, num_slots=1, max_length=max_length)


def served_engine(
    policy: Policy, url: str, *, num_slots: int, max_length: int, end_ids: frozenset[int], threads: int | None
) -> VllmEngine:
    """The vLLM server at ``url``, playing the policy's present weights. It must have the policy's base model."""
    core = Served(url, num_slots=num_slots, max_length=max_length)
    engine = VllmEngine(core, num_slots=num_slots, max_length=max_length, end_ids=end_ids, threads=threads)
    engine.hold(policy)
    return engine
