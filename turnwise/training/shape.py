"""What of a model decides its memory, read from its configuration: no weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from turnwise.models.convert import converted, gguf_of
from turnwise.models.kinds import is_fast, num_positions, widths
from turnwise.models.layers import folds
from turnwise.models.loading import adapter_place, base_of
from turnwise.models.lora_layers import targets_of
from turnwise.models.merging import num_measured
from turnwise.models.precision import chosen_dtype
from turnwise.models.scratch import new_model
from turnwise.models.settings import DType, LoRAConfig, ModelConfig, PretrainedModelConfig, ScratchModelConfig
from turnwise.replay.batch import MAX_GATHERED

FLOAT = 4  # bytes of float32, which optimizers and adapters are kept in


@dataclass(frozen=True, slots=True)
class Shape:
    """What decides a model's memory.

    ``linear`` counts the weights of linear layers, ``lora`` parameters of adapters, ``adapted`` the weights under them,
    ``watched`` those of them in the rows that merges are measured on (``SurvivalMeter``).
    """

    parameters: int
    linear: int
    lora: int
    adapted: int
    watched: int
    ranks: int  # sum of the ranks in one layer whose thin products are kept; 0 where adapters are folded
    num_layers: int
    hidden: int
    ffn: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab: int
    normed_heads: bool  # queries and keys are normalised (Qwen3)
    itemsize: int
    fast: bool = True  # computed by the decoder (models/paths.py)
    layered: int = 0  # parameters in the layers, which can be divided among ranks; 0 where the decoder computes none
    positions: int | None = None  # tokens that the model says it can read

    @classmethod
    def of(cls, model: Any, lora: LoRAConfig | None, itemsize: int) -> Shape:
        """The shape of a causal LM, which may be on the meta device. Adapters are added to the model.

        Families off the fast path (``models/paths.py``) keep more of a layer than is reckoned here.
        """
        parameters = sum(p.numel() for p in model.parameters())
        layered = sum(p.numel() for p in model.model.layers.parameters()) if is_fast(model.config) else 0
        linear = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
        config, adapted, added, watched, ranks = model.config.get_text_config(), 0, 0, 0, 0
        if lora is not None:
            for layer in _with_adapters(model, lora):
                num_out, num_in = layer.base_layer.weight.shape
                adapted += num_out * num_in
                added += lora.rank * (num_out + num_in)
                watched += num_measured(num_out) * num_in
                ranks += 0 if itemsize == FLOAT and folds(num_out, num_in, lora.rank) else lora.rank
        return cls(
            parameters,
            linear,
            added,
            adapted,
            watched,
            ranks // config.num_hidden_layers,
            config.num_hidden_layers,
            config.hidden_size,
            *widths(config),
            config.vocab_size,
            any(name.endswith("q_norm") for name, _ in model.named_modules()),
            itemsize,
            is_fast(model.config),
            layered,
            num_positions(model.config),
        )

    def layer_bytes(self, *, in_blocks: bool) -> int:
        """Bytes kept for the backward pass, for each token of a layer: inputs of norms, products, attention, SwiGLU.

        Attention ``in_blocks`` (``models/block_attention.py``) keeps no results, and no sum for each head.
        """
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        normed = queries + keys if self.normed_heads else 0
        results, sums = (0, 0) if in_blocks else (queries, self.num_heads)
        kept = 4 * self.hidden + 2 * queries + results + 2 * keys + normed + 4 * self.ffn + self.ranks
        in_float = 2 + sums + (self.num_heads + self.num_kv_heads if self.normed_heads else 0)
        return kept * self.itemsize + in_float * FLOAT

    @property
    def sampled_bytes(self) -> int:
        """Bytes that a token takes while it is sampled or read from a prompt; of all layers one is computed at once."""
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return (3 * self.hidden + 3 * queries + 4 * keys + 3 * self.ffn) * self.itemsize

    def gathered_bytes(self, tokens: int, rows: int) -> int:
        """Most bytes that shared beginnings add in a layer: queries, and keys and values gathered for each row.

        ``tokens`` are different ones; counted in every row there are up to ``rows``.
        """
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        again = min(rows, MAX_GATHERED * tokens) - tokens
        return (tokens * queries + again * 2 * keys) * self.itemsize


def shape_of(model: ModelConfig, lora: LoRAConfig | None, device: str = "cpu") -> Shape:
    """The shape of a configured model on ``device``. No weights are read.

    Raises ValueError where it has no configuration.
    """
    if isinstance(model, ScratchModelConfig):
        return scratch_shape(model, lora)
    from transformers import AutoModelForCausalLM

    read, dtype = read_config(model, device)
    try:
        with torch.device("meta"):
            return Shape.of(AutoModelForCausalLM.from_config(read), lora, dtype.itemsize)
    except (AttributeError, TypeError, RuntimeError) as error:  # a family that describes itself in other words
        raise ValueError(f"the memory of a {read.model_type} cannot be planned ({error})") from error


def settled_dtype(model: PretrainedModelConfig, device: str) -> DType:
    """The precision of a model in words, "auto" settled by the rule of precision.py and by what is stored.

    It stays "auto" for a model without a configuration here, and for one that is stored in another type (float16).
    """
    if model.dtype != "auto":
        return model.dtype
    try:
        dtype = read_config(model, device)[1]
    except ValueError:
        return "auto"  # whoever loads it says what is wrong
    known: dict[torch.dtype, DType] = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
    return known.get(dtype, "auto")


def read_config(model: PretrainedModelConfig, device: str) -> tuple[Any, torch.dtype]:
    """A model's configuration, and the type that it is computed in. Raises ValueError where there is none."""
    from transformers import AutoConfig

    asked = chosen_dtype(model.dtype, device)
    adapter = adapter_place(model.path)
    name = model.path if adapter is None else base_of(adapter)
    file, local = gguf_of(name), Path(name).expanduser() if name.startswith(("~", "/", ".")) else None
    expected = "expected a folder with config.json, such a file, or a hub name"
    if local is not None and not local.exists():  # ./name would be asked of the hub, as name
        raise ValueError(f"no model configuration at {name!r}: {expected}")
    try:
        read = AutoConfig.from_pretrained(converted(file, asked) if file else local or name)
    except (OSError, ValueError) as error:
        raise ValueError(f"no model configuration at {name!r} ({str(error).splitlines()[0]}): {expected}") from error
    stored = getattr(read, "dtype", None) or torch.float32
    return read, stored if asked == "auto" else getattr(torch, asked)


def scratch_shape(model: ScratchModelConfig, lora: LoRAConfig | None) -> Shape:
    """The shape of a model with random weights, with as many tokens as its tokenizer may have."""
    model = model.model_copy(update={"induction_heads": False})  # weights have no values here
    with torch.device("meta"):
        return Shape.of(new_model(model, Vocabulary(model.vocab_size + model.num_phrases), seed=0), lora, FLOAT)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Stands for a tokenizer where a model's shape needs one."""

    size: int
    eos_token_id: int = 0
    pad_token_id: int = 0

    def __len__(self) -> int:
        return self.size


def _with_adapters(model: Any, lora: LoRAConfig) -> list[Any]:
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer

    get_peft_model(model, LoraConfig(r=lora.rank, target_modules=targets_of(model, lora), task_type="CAUSAL_LM"))
    return [module for module in model.modules() if isinstance(module, LoraLayer)]
