"""Settings of a model: made from nothing, its precision, its adapters. Without torch, so that reading them is quick."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

DType = Literal["auto", "float32", "bfloat16"]

PackedWeights = Literal["auto"] | bool
"""Whether the sampler has a copy of its weights that is faster to multiply with on a CPU (packed_weights.py)."""

AdapterUse = Literal["continue", "frozen", "merge"]
"""How a run goes on from an adapter: it is trained on, frozen below a new one, or added to the base's weights."""

ADAPTER_FILE = "adapter_config.json"
"""In the folder of an adapter in peft's format."""

ORIGIN_FILE = "warmstart.json"
"""In the folder of a model that was cloned here: how, and whether it began from nothing."""


def made_from_scratch(folder: str | Path) -> bool:
    """Whether a folder holds a small model of ours, which was made from nothing and cloned."""
    place = Path(folder) / ORIGIN_FILE
    try:
        about = json.loads(place.read_text())
    except (OSError, ValueError):
        return False
    if not isinstance(about, dict):
        return False
    told = about.get("config")
    before = isinstance(told, dict) and (told.get("model") or {}).get("type") == "scratch"  # written without the flag
    return bool(about.get("from_scratch", before))


INDUCTION_NEEDS: Mapping[str, float] = {
    "num_layers": 2,
    "num_kv_heads": 2,
    "head_dim": 64,
    "hidden_size": 96,
    "rope_theta": 10_000,
}
"""The least of each setting with which untrained induction heads copy with a probability of about .9 or more."""


class ScratchModelConfig(BaseModel):
    """A small Qwen3-type model with random weights and its own tokenizer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["scratch"] = "scratch"
    hidden_size: int = Field(128, ge=8, description="width h")
    num_layers: int = Field(3, ge=1)
    num_heads: int = Field(4, ge=1, description="query heads")
    num_kv_heads: int = Field(2, ge=1, description="key/value heads")
    head_dim: int = Field(32, ge=2)
    ffn_size: int = Field(256, ge=8, description="width of the SwiGLU layer")
    vocab_size: int = Field(1024, ge=300, description="upper limit of the tokenizer's vocabulary")
    qk_norm: float = Field(
        1.0,
        gt=0,
        description="where the norms of queries and keys begin; they bound attention's logits by qk_norm^2 "
        "sqrt(head_dim), and at 1 no small head can look at one token alone. With induction heads those of the first "
        "two layers begin at 1.7",
    )
    rope_theta: float = Field(
        10_000.0, gt=1, description="base of rotary positions: the slowest pair turns by about 1 / rope_theta a token"
    )
    induction_heads: bool | None = Field(
        None,
        description="begin with heads that find where the last two tokens stood before and copy what followed; None: "
        "where the shape carries them ("
        + ", ".join(f"{name} >= {least:g}" for name, least in INDUCTION_NEEDS.items())
        + ")",
    )
    num_phrases: int = Field(
        64,
        ge=0,
        description="set phrases of the world's text (', you see a') that become one token each, at most",
    )
    split_digits: bool = Field(
        False, description="every digit a token of its own, so that long numbers can be copied wherever they stand"
    )
    tools: bool = Field(
        False, description="a chat template that shows tools, calls and results, for worlds with agent.context=roles"
    )

    @model_validator(mode="after")
    def _induction_heads_fit(self) -> ScratchModelConfig:
        """Settle whether there are induction heads, so that a stored configuration says so."""
        short = [name for name, least in INDUCTION_NEEDS.items() if getattr(self, name) < least]
        if self.induction_heads and short:
            needs = ", ".join(f"{name} >= {INDUCTION_NEEDS[name]:g} (now {getattr(self, name):g})" for name in short)
            raise ValueError(f"induction_heads=true needs {needs}: raise this, or leave induction_heads out")
        if self.induction_heads is None:
            object.__setattr__(self, "induction_heads", not short)  # frozen for everyone else
        return self


class LoRAConfig(BaseModel):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685), by peft."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(16, ge=1, description="rank r of the update B A")
    alpha: float = Field(32.0, gt=0, description="the update is scaled by alpha / r")
    target_modules: str | tuple[str, ...] = Field(
        "all-linear", description="module names, or all-linear: every linear layer but the head"
    )


class PretrainedModelConfig(BaseModel):
    """A Hugging Face causal LM with its own tokenizer and chat template."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["pretrained"] = "pretrained"
    path: str = Field(description="folder or hub name of a model, or of a LoRA adapter (peft)")
    dtype: DType = Field(
        "auto", description="auto: as stored, but float32 on a processor that has no instructions for bfloat16"
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations on the way back")
    adapter: AdapterUse = Field(
        "continue",
        description="how RL goes on from an adapter, of the path or cloned. continue: it is trained on; frozen: below "
        "a new one; merge: added to the weights, which half precision rounds",
    )


ModelConfig = Annotated[ScratchModelConfig | PretrainedModelConfig, Field(discriminator="type")]
