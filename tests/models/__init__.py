"""Tiny real models for tests: made once a session, never downloaded."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch

from turnwise.models.loading import save_model
from turnwise.models.scratch import new_model, train_tokenizer
from turnwise.models.settings import ScratchModelConfig

TINY = ScratchModelConfig(
    hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, ffn_size=48, vocab_size=400
)

TEXTS = [
    f"You arrive at cabinet {i}. On the cabinet {i}, you see a mug {j}, and a plate 1. go to drawer {j}"
    for i in range(1, 5)
    for j in range(1, 5)
]


@cache
def tokenizer() -> Any:
    return train_tokenizer(TEXTS, TINY.vocab_size)


def tiny_model(seed: int = 0) -> Any:
    """A fresh Qwen3-type model with random weights, float32."""
    return new_model(TINY, tokenizer(), seed=seed)


def scratch_folder(folder: Path) -> Path:
    """The tiny model as an ordinary Hugging Face folder."""
    save_model(tiny_model(), tokenizer(), folder)
    return folder


def chatting_folder(folder: Path, **changes: Any) -> Path:
    """A tiny model whose template has roles and tools. Its logits are large enough for it to learn something."""
    own = train_tokenizer(TEXTS, TINY.vocab_size, tools=True)
    model = new_model(TINY.model_copy(update={"tools": True, **changes}), own, seed=0)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(10)
    save_model(model, own, folder)
    return folder
