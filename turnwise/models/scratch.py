"""New small models: a byte-level BPE tokenizer trained on an environment's text, and a Qwen3-type LM.

The result is an ordinary Hugging Face folder. Everything after it works as with a pretrained model.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import torch

from turnwise.models.induction import set_induction_heads
from turnwise.models.settings import ScratchModelConfig

TOOL = "<|tool|>"
PAD, USER, ASSISTANT, SYSTEM, END = "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"

# A word with the space before it, a number, white space, or a mark.
_WORD = re.compile(r" ?[A-Za-z]+| ?\d+|\s+| ?[^\sA-Za-z\d]")

# Three control tokens a turn; ChatML would take nine.
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

# The same with tools: a line for each in the system message, and calls as Hermes writes them.
TOOL_TEMPLATE = (
    "{% set begun = messages[0]['role'] == 'system' %}{% if begun or tools %}{{ '<|system|>' }}"
    "{{ messages[0]['content'] if begun else '' }}{% for t in tools or [] %}{% set f = t['function'] %}"
    "{{ '\\n' if begun or not loop.first else '' }}{{ f['name'] + '(' }}"
    "{{ (f.get('parameters') or {}).get('properties', {}) | join(', ') }}{{ '): ' + (f.get('description') or '') }}"
    "{% endfor %}{{ '<|end|>' }}"
    "{% endif %}{% for m in (messages[1:] if begun else messages) %}{{ '<|' + m['role'] + '|>' + m['content'] }}"
    "{% for c in m.get('tool_calls') or [] %}{{ '\\n' if m['content'] or not loop.first else '' }}"
    "{{ '<tool_call>\\n{\"name\": ' }}{{ c['function']['name'] | tojson }}{{ ', \"arguments\": ' }}"
    "{{ c['function']['arguments'] | tojson }}{{ '}\\n</tool_call>' }}{% endfor %}{{ '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, num_phrases: int = 0, *, split_digits: bool = False, tools: bool = False
) -> Any:
    """A byte-level BPE tokenizer, which can encode any text, with the compact chat template, or that with ``tools``.

    The text of an environment consists largely of set phrases. ``num_phrases`` of them become one token each, which
    shortens episodes by a third or more. Words that carry information stay tokens of their own.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    pieces: Any = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if split_digits:
        pieces = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pieces])
    tokenizer.pre_tokenizer = pieces
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, USER, ASSISTANT, SYSTEM, END, *([TOOL] if tools else [])],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = list(texts)
    tokenizer.train_from_iterator(texts, trainer)
    for phrase in set_phrases(texts, num_phrases):
        tokenizer.add_tokens([AddedToken(phrase, normalized=False)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT, SYSTEM, *([TOOL] if tools else [])],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = TOOL_TEMPLATE if tools else CHAT_TEMPLATE
    return fast


def set_phrases(texts: list[str], num: int, *, certainty: float = 0.95, min_count: int = 50) -> list[str]:
    """Up to ``num`` phrases whose words predict each other. Those that save the most tokens come first.

    For example, "You arrive" is nearly always followed by " at", so that "You arrive at" becomes a phrase. Neighbouring
    pieces are joined, the most frequent pair first, as long as one of the two predicts the other with a probability of
    at least ``certainty`` and the pair occurs at least ``min_count`` times. Numbers are never joined, so that a name
    like "drawer 2" does not become one token.
    """
    lines = Counter(tuple(_WORD.findall(text)) for text in texts)
    for _ in range(4 * num):
        pairs: Counter[tuple[str, str]] = Counter()
        left: Counter[str] = Counter()
        right: Counter[str] = Counter()
        for line, count in lines.items():
            for pair in pairwise(line):
                pairs[pair] += count
                left[pair[0]] += count
                right[pair[1]] += count
        sure = (
            (count, pair)
            for pair, count in pairs.items()
            if count >= min_count
            and count >= certainty * min(left[pair[0]], right[pair[1]])
            and not any(any(c.isdigit() for c in piece) for piece in pair)
        )
        best = max(sure, default=None)
        if best is None:
            break
        lines = _joined(lines, best[1])
    pieces: Counter[str] = Counter()
    for line, count in lines.items():
        for piece in line:
            if len(_WORD.findall(piece)) > 1:
                pieces[piece] += count * (len(_WORD.findall(piece)) - 1)
    return [piece for piece, _ in sorted(pieces.items(), key=lambda item: (-item[1], item[0]))[:num]]


def _joined(lines: Counter[tuple[str, ...]], pair: tuple[str, str]) -> Counter[tuple[str, ...]]:
    made: Counter[tuple[str, ...]] = Counter()
    for line, count in lines.items():
        out: list[str] = []
        for piece in line:
            if out and (out[-1], piece) == pair:
                out[-1] += piece
            else:
                out.append(piece)
        made[tuple(out)] += count
    return made


def new_model(config: ScratchModelConfig, tokenizer: Any, *, seed: int, max_length: int = 4096) -> Any:
    """A Qwen3ForCausalLM in float32 with random weights, drawn with ``seed``, and induction heads where it has them."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    qwen = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=config.ffn_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=max_length,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        use_cache=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(qwen).eval()
    for layer in model.model.layers:
        torch.nn.init.constant_(layer.self_attn.q_norm.weight, config.qk_norm)
        torch.nn.init.constant_(layer.self_attn.k_norm.weight, config.qk_norm)
    if config.induction_heads:
        set_induction_heads(model, seed)
    return model
