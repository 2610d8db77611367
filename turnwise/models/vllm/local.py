"""vLLM in this process.

It is told by environment variables, before it is imported, to start no processes of its own. It needs our objects: a
reply's ``Drawing`` goes to the logits processor as it is, with the processor at work on the reply.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from turnwise.models.kinds import is_fast, num_positions, widths
from turnwise.models.layers import is_half
from turnwise.models.loading import save_model
from turnwise.models.policy import Policy
from turnwise.models.vllm.drawn import ARGUMENT, NUM_TOLD, Drawing
from turnwise.models.vllm.engine import Finished, VllmEngine, weights_folder
from turnwise.models.vllm.install import check_installed
from turnwise.models.vllm.settings import VllmConfig, room_for_rank

_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in this process
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
_LEAST_BATCH = 8192  # tokens


class Local:
    """A ``Core`` (engine.py): vLLM with a policy's model, which it loads from a temporary folder."""

    processes = True

    def __init__(self, policy: Policy, *, num_slots: int, max_length: int, settings: VllmConfig) -> None:
        check_installed()
        _check_device(policy.device)
        _check_length(policy.sampler.config, max_length)
        os.environ.update({name: os.environ.get(name, value) for name, value in _ENVIRONMENT.items()})
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        _check_heads(policy)
        with process_kept(), weights_folder(policy) as folder:
            save_model(policy.unadapted(), policy.tokenizer, folder)
            self._llm = _engine(folder, policy, num_slots, max_length, settings)
        self._llm.engine_core._finalizer.detach()  # it would take along what other engines in this process share
        self._stance = "default" if settings.compiled else "force_eager"  # it compiles parts of its sampler otherwise
        self._adapter: Any = None
        self._names = {"": 0}  # of adapters -> the number that vLLM knows each by
        self._llm.set_weight_version("" if policy.is_adapted else f"{policy.adapter_hash}-base")

    @property
    def weights(self) -> str:
        return str(self._llm.get_weight_version())

    def ask(self, request: str, ids: list[int], drawing: Drawing, end_ids: frozenset[int]) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        given = SamplingParams(
            temperature=0.0,  # our draws are in the logits already
            max_tokens=drawing.sampling.max_tokens,
            logprobs=NUM_TOLD,
            stop_token_ids=sorted(end_ids),
            ignore_eos=True,
            detokenize=False,
            extra_args={ARGUMENT: drawing},
            skip_clone=True,  # the same object, with the processor at work
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self._llm.add_request(request, {"prompt_token_ids": ids}, given, lora_request=self._adapter)

    def drop(self, request: str) -> None:
        self._llm.abort_request([request])

    def step(self) -> list[Finished]:
        with torch.compiler.set_stance(self._stance):
            return [_finished(output) for output in self._llm.step() if output.finished]

    def adapt(self, name: str, folder: Path) -> None:
        from vllm.lora.request import LoRARequest

        if name in self._names:
            raise ValueError(
                f"adapter {name!r} was loaded before: vLLM would go on playing the old one, or keys that its cache "
                "holds under this name. Give new weights a name of their own"
            )
        self._names[name] = len(self._names)
        before, self._adapter = self._adapter, LoRARequest(name, self._names[name], str(folder))
        if before is not None:
            self._llm.remove_lora(before.lora_int_id)
        self._llm.add_lora(self._adapter)
        self._llm.set_weight_version(name)

    def reload(self, name: str, folder: Path) -> None:
        self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
        self._llm.apply_model(_refresh_head)
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM kept keys of the old weights in its cache: replies are in progress")
        self._llm.set_weight_version(name)


def local_engine(
    policy: Policy,
    *,
    num_slots: int,
    max_length: int,
    end_ids: frozenset[int],
    threads: int | None,
    settings: VllmConfig,
) -> VllmEngine:
    """vLLM in this process, playing the policy's present weights."""
    core = Local(policy, num_slots=num_slots, max_length=max_length, settings=settings)
    engine = VllmEngine(core, num_slots=num_slots, max_length=max_length, end_ids=end_ids, threads=threads)
    engine.hold(policy)
    return engine


def _engine(folder: str, policy: Policy, num_slots: int, max_length: int, settings: VllmConfig) -> Any:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    from turnwise.models.vllm.processor import Draws

    weight = next(policy.sampler.parameters())
    given: dict[str, Any] = {
        "model": folder,
        "skip_tokenizer_init": True,
        "dtype": str(weight.dtype).removeprefix("torch."),
        "max_model_len": max_length,
        "max_num_seqs": num_slots,
        "max_num_batched_tokens": max(max_length, _LEAST_BATCH),
        "enable_chunked_prefill": False,  # so that no row is drawn from that has no token yet
        "async_scheduling": False,
        "enable_prefix_caching": True,
        "block_size": settings.block_size,
        "kv_cache_memory_bytes": _cache_bytes(policy, num_slots, max_length, settings),
        "enforce_eager": not settings.compiled,
        "distributed_executor_backend": "uni",
        "logits_processors": [Draws],
        "logprobs_mode": "processed_logits",
        "generation_config": "vllm",
        "disable_log_stats": True,
        "seed": 0,
    }
    if policy.is_adapted:
        given |= {"enable_lora": True, "max_loras": 1, "max_cpu_loras": 1, "max_lora_rank": room_for_rank(policy.rank)}
    return LLMEngine.from_engine_args(EngineArgs(**given))


def _refresh_head(model: Any) -> None:
    """Pack the head's weight again. On a CPU vLLM 0.32 multiplies with a packed copy, and forgets it in a reload where
    the head shares its weight with the embeddings."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)


def _finished(output: Any) -> Finished:
    said = output.outputs[0]
    spans = {span.version if hasattr(span, "version") else span for span in said.weight_versions or ()}
    return Finished(
        request=output.request_id,
        ids=list(said.token_ids),
        told=[{token: entry.logprob for token, entry in place.items()} for place in said.logprobs or ()],
        weights=",".join(sorted(map(str, spans))),
        prompt=len(output.prompt_token_ids),
        cached=output.num_cached_tokens or 0,
    )


def _cache_bytes(policy: Policy, num_slots: int, max_length: int, settings: VllmConfig) -> int:
    config = policy.sampler.config.get_text_config()
    _, _, num_heads, head_dim = widths(config)
    itemsize = 2 if is_half(next(policy.sampler.parameters()).dtype) else 4
    each = 2 * config.num_hidden_layers * num_heads * head_dim * itemsize
    return settings.cache_bytes(num_slots, max_length, each)


def _check_length(config: Any, length: int) -> None:
    """Raises ValueError for contexts that vLLM has no positions for."""
    learned = num_positions(config)
    if learned is not None and length > learned:
        raise ValueError(
            f"vLLM keeps to the {learned} tokens that this model says it can read, and contexts may have {length}: set "
            f"agent.max_context_tokens={learned} or less, or rollout.backend=own"
        )


def _check_device(device: torch.device) -> None:
    """Raises ValueError for a GPU that vLLM would not take."""
    if device.type == "cuda" and device.index not in (None, 0):
        raise ValueError(
            f"vLLM takes the first GPU that it sees, and the model is on {device}: set CUDA_VISIBLE_DEVICES="
            f"{device.index} and device=cuda"
        )


def _check_heads(policy: Policy) -> None:
    """Raises ValueError for heads that vLLM's kernels for a CPU do not compute."""
    if policy.device.type != "cpu" or not is_fast(policy.sampler.config):
        return
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    known, width = CPUAttentionBackend.get_supported_head_sizes(), widths(policy.sampler.config)[-1]
    if width not in known:
        raise ValueError(
            f"vLLM on a CPU computes heads of {', '.join(map(str, known))}, and this model's are {width} wide: set "
            "rollout.backend=own, or model.head_dim for a model from nothing"
        )


@contextmanager
def process_kept() -> Iterator[None]:
    """A context in which vLLM may begin, and after which this process works as before.

    On a CPU vLLM replaces torch's function that sets the number of threads by a warning. It exempts all objects that
    there are from garbage collection.
    """
    setter, num = torch.set_num_threads, torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads = setter
        torch.set_num_threads(num)
        gc.unfreeze()
