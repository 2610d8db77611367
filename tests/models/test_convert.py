"""GGUF files as model paths: a tiny file written here, read back against the weights that went in."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from turnwise.agents.chat import ChatFormat
from turnwise.cli import app
from turnwise.models import convert as conversion
from turnwise.models.convert import Wheel, converted, gguf_of
from turnwise.models.loading import load_model, load_tokenizer
from turnwise.models.scratch import CHAT_TEMPLATE

gguf = pytest.importorskip("gguf", reason="the extra gguf is not installed")

SHAPE = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2}
SPECIAL = ["<|end|>", "<|user|>", "<|assistant|>"]
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def _bytes() -> list[str]:
    """The 256 letters that stand for bytes in byte-level BPE."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def _interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """A projection's rows in the order of GGUF, which turns neighbouring rows together."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(path: Path, model: Any, template: str | None = CHAT_TEMPLATE) -> None:
    config, tokens = model.config, [*SPECIAL, *_bytes(), "th"]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    if template is not None:
        writer.add_chat_template(template)
    for name, tensor in model.state_dict().items():
        writer.add_tensor(*_renamed(name, tensor.numpy(), config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _renamed(name: str, weight: np.ndarray, config: Any) -> tuple[str, np.ndarray]:
    whole = {"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm", "lm_head.weight": "output"}
    if name in whole:
        return f"{whole[name]}.weight", weight
    _, _, layer, rest = name.split(".", 3)
    part = rest.removesuffix(".weight")
    if part in ("self_attn.q_proj", "self_attn.k_proj"):
        heads = config.num_attention_heads if "q_proj" in part else config.num_key_value_heads
        weight = _interleaved(weight, heads)
    return f"blk.{layer}.{NAMES[part]}.weight", weight


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNWISE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        **SHAPE, num_hidden_layers=2, vocab_size=len(SPECIAL) + 257, max_position_embeddings=64, rms_norm_eps=1e-5
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def file(model: Any, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, model)
    return path


def test_a_converted_file_has_the_weights_that_went_in(model: Any, file: Path) -> None:
    loaded, tokenizer = load_model(file, dtype="float32")
    ids = torch.tensor([[5, 60, 7, 100, 42]])
    with torch.no_grad():
        assert torch.allclose(loaded(ids).logits, model(ids).logits, atol=1e-6)
    assert loaded.dtype == torch.float32
    assert not hasattr(loaded.config, "quantization_config")
    chat = ChatFormat(tokenizer)
    assert chat.decode(chat.reply("look at this")) == "look at this"


def test_the_folder_is_made_once_and_again_when_the_file_changes(model: Any, file: Path, tmp_path: Path) -> None:
    first = converted(file)
    assert converted(file) == first
    assert load_model(file, dtype="bfloat16")[0].dtype == torch.bfloat16
    assert converted(file, "float32") != first
    changed = LlamaForCausalLM(model.config)
    write_gguf(file, changed)
    assert converted(file) != first


def test_the_command_writes_an_ordinary_folder(file: Path, tmp_path: Path) -> None:
    told = CliRunner().invoke(app, ["convert", str(file), "--to", str(tmp_path / "made"), "--dtype", "float32"])
    assert told.exit_code == 0, told.output
    assert (tmp_path / "made" / "model.safetensors").exists()
    assert load_tokenizer(tmp_path / "made").chat_template == CHAT_TEMPLATE


@pytest.mark.parametrize("broken", ["missing", "other", "template"])
def test_files_that_cannot_be_right_are_refused(broken: str, model: Any, file: Path, tmp_path: Path) -> None:
    if broken == "missing":
        with pytest.raises(ValueError, match=r"no file .*tiny2\.gguf.*Did you mean 'tiny\.gguf'"):
            gguf_of(tmp_path / "tiny2.gguf")
        return
    if broken == "other":
        file.write_bytes(b"PK\x03\x04 and more")
        wanted = "not a GGUF file"
    else:
        write_gguf(file, model, template=None)
        wanted = "no chat template"
    with pytest.raises(ValueError, match=wanted):
        load_model(file)
    assert not list((tmp_path / "cache" / "models").glob("tiny*"))


def test_a_name_whose_package_is_missing_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(conversion.NAMED, "tiny", Wheel("no_such_package_here", "no-such==1", "a model"))
    with pytest.raises(ValueError, match=r"start\.py tiny.*pip install --no-deps no-such==1"):
        load_model("tiny")


def test_a_name_finds_the_file_in_its_package(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "__init__.py").touch()
    file.rename(tmp_path / "packed" / "tiny.gguf")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setitem(conversion.NAMED, "tiny", Wheel("packed", "packed==1", "a model"))
    assert gguf_of("tiny") == tmp_path / "packed" / "tiny.gguf"
    assert gguf_of("elsewhere/Model") is None
