"""``turnwise serve-vllm``: a vLLM server that draws by our rule, for ``rollout.vllm.url``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from turnwise.models.settings import DType, PretrainedModelConfig


def serve_vllm(
    model: Annotated[str, typer.Argument(help="Folder or hub name of the base model that the run trains.")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="On this machine alone.")] = 8000,
    max_length: Annotated[int, typer.Option(min=1, help="Tokens of a context: agent.max_context_tokens.")] = 2048,
    rank: Annotated[int, typer.Option(min=1, max=512, help="The highest rank of the adapters: lora.rank.")] = 16,
    num_slots: Annotated[int, typer.Option(min=1, help="Replies at once: rollout.num_slots.")] = 64,
    shards: Annotated[int, typer.Option(min=1, help="rollout.shards: each has an adapter of its own.")] = 1,
    dtype: Annotated[
        str, typer.Option(help="auto (as a run here takes it), float32 or bfloat16: model.dtype.")
    ] = "auto",
    cache_gib: Annotated[float, typer.Option(min=0.01, help="GiB of keys and values.")] = 1.0,
    compiled: Annotated[bool, typer.Option(help="Compile the model: on a GPU, CUDA graphs.")] = False,
) -> None:
    """Serve a model with vLLM, so that runs can sample from it with rollout.vllm.url.

    It loads adapters of whoever reaches the port, so it listens on this machine alone. Ctrl-C ends it.

    [dim]turnwise serve-vllm runs/clone --max-length 1024[/dim]
    """
    if dtype not in get_args(DType):
        raise ValueError(f"--dtype {dtype!r}: expected auto, float32 or bfloat16")
    command, environment = server_command(
        model,
        port=port,
        max_length=max_length,
        rank=rank,
        num_slots=num_slots,
        shards=shards,
        dtype=cast(DType, dtype),
        cache_gib=cache_gib,
        compiled=compiled,
    )
    os.execve(command[0], command, environment)


def server_command(
    model: str,
    *,
    port: int,
    max_length: int,
    rank: int,
    num_slots: int,
    dtype: DType,
    cache_gib: float,
    shards: int = 1,
    compiled: bool = False,
) -> tuple[list[str], dict[str, str]]:
    """The command and the environment of the server. Raises ValueError where no vLLM that fits is installed."""
    import torch

    from turnwise.models.precision import chosen_dtype
    from turnwise.models.vllm.install import check_installed
    from turnwise.models.vllm.settings import room_for_rank
    from turnwise.training.shape import settled_dtype

    check_installed()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settled = PretrainedModelConfig(path=model, dtype=chosen_dtype(dtype, device))
    given = {
        "model": model,
        "host": "127.0.0.1",
        "port": port,
        "dtype": settled_dtype(settled, device),  # vLLM's own auto is never float32
        "max-model-len": max_length,
        "max-num-seqs": num_slots,
        "block-size": 32,
        "kv-cache-memory-bytes": int(cache_gib * (1 << 30)),
        "max-lora-rank": room_for_rank(rank),
        "max-loras": shards + 1,  # theirs and the main process's; alone its old one and its new one
        "logprobs-mode": "processed_logits",
        "logits-processors": "turnwise.models.vllm.processor:Draws",
        "generation-config": "vllm",
    }
    flags = ["--enable-lora", "--enable-prefix-caching", "--enable-prompt-tokens-details"]
    flags += [] if compiled else ["--enforce-eager"]
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    ours = str(Path(__file__).resolve().parents[2])  # where it would be found in a checkout
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [ours, os.environ.get("PYTHONPATH")])),
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_NO_USAGE_STATS": "1",
        **({} if compiled else {"TORCHDYNAMO_DISABLE": "1"}),  # it compiles parts of its sampler otherwise
    }
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *words, *flags], environment
