"""Which types of models can be computed, and by which code.

The package's own decoder (decoder.py) knows qwen2, qwen3 and llama with full attention. Every other causal language
model takes the general path (general.py): transformers' own forward pass and cache, which is slower.
"""

from __future__ import annotations

import warnings
from typing import Any

# Model types that the decoder can compute.
FAMILIES = ("qwen2", "qwen3", "llama")

# Rotary positions whose angles depend only on a token's position: at any length, and up to a certain length. The
# decoder knows these.
_ROPES, _ROPES_TO_A_LENGTH = ("default", "linear", "yarn", "llama3"), ("dynamic", "longrope")


def is_fast(config: Any) -> bool:
    """Whether the decoder knows a model of this configuration."""
    return (
        config.model_type in FAMILIES
        and set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
        and all(_kind(rope) in _ROPES + _ROPES_TO_A_LENGTH for rope in _ropes(config))
    )


def widths(config: Any) -> tuple[int, int, int, int]:
    """The width of the feed-forward layers, the number of query heads, that of key heads, and their width.

    Models call these by several names. What one does not have is 0.
    """
    config = config.get_text_config()

    def first(*names: str) -> int:
        found = (getattr(config, name, None) for name in names)
        return next((value for value in found if isinstance(value, int) and value), 0)

    heads = first("num_attention_heads")
    chosen = first("num_experts_per_tok") * first("moe_intermediate_size", "intermediate_size")
    ffn = max(first("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size") or 4 * config.hidden_size, chosen)
    return ffn, heads, first("num_key_value_heads") or heads, first("head_dim") or config.hidden_size // max(heads, 1)


def check_kind(name: str) -> None:
    """Raises ValueError for a folder or hub name of which transformers makes no language model, or more than one."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception:  # whoever loads the model says why
        return
    kind, instead = config.model_type, "take a causal language model, such as a qwen3, llama, mistral or gemma3_text"
    if config.is_encoder_decoder:
        raise ValueError(f"model {name!r} is a {kind}, which has an encoder and a decoder: {instead}")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(f"model {name!r} is a {kind}, which is no causal language model of transformers: {instead}")
    parts = [part for part in config.sub_configs if "text" not in part and getattr(config, part, None) is not None]
    if parts and MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].config_class is type(config):
        raise ValueError(
            f"model {name!r} is a {kind}, which is more than a language model ({', '.join(sorted(parts))}): save its "
            f"language model as a folder of its own, or {instead}"
        )
    known = {"default", *ROPE_INIT_FUNCTIONS}
    if strange := sorted({_kind(rope) for rope in _ropes(config)} - known):
        raise ValueError(
            f"model {name!r} has rotary positions of type {strange[0]!r}: transformers knows {', '.join(sorted(known))}"
        )


def check_general(model: Any, name: str) -> None:
    """Warns that a model takes the general path. Raises ValueError where it does not continue a text."""
    from turnwise.models.general import check_causal

    check_causal(model, name)
    warnings.warn(
        f"model {name!r} is a {model.config.model_type}, which transformers' own code computes here: the results are "
        f"right, and slower than those of {', '.join(FAMILIES)} with full attention, for which turnwise has its own",
        stacklevel=3,
    )


def check_length(config: Any, length: int) -> None:
    """Raises ValueError where contexts of ``length`` tokens would be computed wrongly.

    The angles of dynamic and longrope positions change for all tokens of a sequence that is longer than a limit. Keys
    that a cache already holds would then be wrong. A table of positions ends somewhere. Warns of contexts that are
    computed correctly but are longer than the model was trained to read.
    """
    config = config.get_text_config()
    limited = _rope_limit(config)
    if limited is not None and length > limited[1]:
        kind, limit = limited
        raise ValueError(
            f"contexts of {length} tokens are too long for this model: beyond {limit} the angles of its {kind} rotary "
            f"positions change, which a cache of keys cannot follow; set agent.max_context_tokens={limit} or less"
        )
    learned = num_positions(config)
    if learned is not None and length > learned:
        if not getattr(config, "rope_parameters", None):
            raise ValueError(
                f"contexts of {length} tokens are too long for this model, which has {learned} positions and no rotary "
                f"ones: set agent.max_context_tokens={learned} or less"
            )
        warnings.warn(
            f"contexts of {length} tokens are longer than the {learned} that this model says it can read; set "
            f"agent.max_context_tokens={learned} or less, or expect worse replies beyond",
            stacklevel=2,
        )


def num_positions(config: Any) -> int | None:
    """The tokens that a model says it can read; None: it does not say."""
    found = getattr(config.get_text_config(), "max_position_embeddings", None)
    return found if isinstance(found, int) else None


def _ropes(config: Any) -> list[dict[str, Any]]:
    """The settings of the rotary positions: none, one, or one for each type of layer."""
    found = getattr(config, "rope_parameters", None) or {}
    return (
        [each for each in found.values() if each]
        if found and all(isinstance(v, dict) for v in found.values())
        else [found]
    )


def _kind(rope: dict[str, Any]) -> str:
    return str(rope.get("rope_type", "default"))


def _rope_limit(config: Any) -> tuple[str, int] | None:
    """The kind of rotary positions whose angles depend on the sequence's length, and up to which length in tokens they
    do not; None: there is no such kind."""
    for rope in _ropes(config):
        if (kind := _kind(rope)) in _ROPES_TO_A_LENGTH:
            limit = rope["original_max_position_embeddings"] if kind == "longrope" else None
            return kind, int(limit or config.max_position_embeddings)
    return None
