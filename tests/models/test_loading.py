"""A model is what its folder says, or it is refused: tensors, adapters, tokens, positions, ends of replies."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models import scratch_folder, tiny_model, tokenizer
from turnwise.agents.prompts import AgentConfig
from turnwise.assembly.players import model_agent, players
from turnwise.assembly.run import Assembly
from turnwise.cloning.warmstart import begin_policy
from turnwise.commands.bench import quiet
from turnwise.config.files import load_config
from turnwise.models import precision
from turnwise.models.engine import Sampling, SlotEngine
from turnwise.models.kinds import check_length
from turnwise.models.loading import end_ids, load_model, load_tokenizer, save_model
from turnwise.models.policy import Policy
from turnwise.models.settings import LoRAConfig


def rewritten(folder: Path, **changes: Any) -> Path:
    """The folder's config.json with other values."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def reheld(folder: Path, change: Any) -> Path:
    """The folder's tensors, changed."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def test_missing_tensors_are_named(tmp_path: Path) -> None:
    folder = scratch_folder(tmp_path)
    reheld(folder, lambda tensors: [tensors.pop(n) for n in list(tensors) if "layers.0.mlp" in n])
    with pytest.raises(ValueError, match=r"lacks model\.layers\.0\.mlp\.down_proj\.weight.*random numbers"):
        load_model(folder)


def test_weights_under_another_prefix_are_named_on_both_sides(tmp_path: Path) -> None:
    folder = scratch_folder(tmp_path)
    reheld(folder, lambda tensors: tensors.update({"value." + n: tensors.pop(n) for n in list(tensors) if "norm" in n}))
    with pytest.raises(ValueError, match=r"lacks model\..* and \d+ more; it holds what .* value\.model\."):
        load_model(folder)


def test_layers_that_the_configuration_does_not_count_are_named(tmp_path: Path) -> None:
    folder = rewritten(
        scratch_folder(tmp_path), num_hidden_layers=1, layer_types=["full_attention"], max_window_layers=1
    )
    with pytest.raises(ValueError, match=r"holds what the model has no place for: model\.layers\.1\."):
        load_model(folder)


def test_other_shapes_are_named(tmp_path: Path) -> None:
    folder = rewritten(scratch_folder(tmp_path), intermediate_size=64)
    with pytest.raises(ValueError, match=r"another shape of .*down_proj\.weight \(\[32, 48\] where .* \[32, 64\]\)"):
        load_model(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_half_a_file_is_one_sentence(name: str, tmp_path: Path) -> None:
    path = scratch_folder(tmp_path) / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="could not load") as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_fast_tokenizer_is_told_what_it_lacks(tmp_path: Path) -> None:
    (scratch_folder(tmp_path) / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"it has no fast tokenizer: put tokenizer\.json .* beside it$"):
        load_model(tmp_path)


def test_the_angles_that_old_checkpoints_hold_are_no_surplus(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    load_model(reheld(scratch_folder(tmp_path), lambda tensors: tensors.update({name: torch.ones(4)})))


def test_a_head_that_is_tied_is_not_missing_and_padding_is_no_gap(tmp_path: Path) -> None:
    model = tiny_model()
    model.resize_token_embeddings(len(tokenizer()) + 22)
    save_model(model, tokenizer(), tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    loaded, _ = load_model(tmp_path)
    torch.testing.assert_close(loaded.lm_head.weight, model.lm_head.weight, rtol=0, atol=0)


def test_a_head_that_was_parted_from_the_embeddings_is_saved(tmp_path: Path) -> None:
    model = tiny_model()
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() + 1)
    save_model(model, tokenizer(), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is False
    loaded, _ = load_model(tmp_path)
    torch.testing.assert_close(loaded.lm_head.weight, model.lm_head.weight, rtol=0, atol=0)
    torch.testing.assert_close(loaded.model.embed_tokens.weight, model.model.embed_tokens.weight, rtol=0, atol=0)


@pytest.mark.parametrize("special", [False, True])
def test_tokens_without_an_embedding_are_named(special: bool, tmp_path: Path) -> None:
    longer = load_tokenizer(scratch_folder(tmp_path))
    longer.add_tokens(["<|tool|>"], special_tokens=special)
    longer.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"tokens without an embedding .*<\|tool\|> \(\d+\)\. Train with model\.resize"
    ):
        load_model(tmp_path)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    for path in scratch_folder(tmp_path).glob("*token*"):
        path.unlink()
    with pytest.raises(ValueError, match="has no tokenizer"):
        load_model(tmp_path)


def test_an_adapter_is_no_whole_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for a model alone is told; ``load_start`` reads both."""
    base = scratch_folder(tmp_path / "base")
    Policy.load(base, lora=LoRAConfig(rank=2)).save_adapter(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    for beside_a_config in (False, True):
        if beside_a_config:
            scratch_folder(tmp_path / "mine")
        with pytest.raises(ValueError, match=r"'mine' is a PEFT adapter of '.*base', not a whole model\. .*merge_and"):
            load_model("mine")
    peft_model = Policy.load(base, lora=LoRAConfig(rank=2)).model
    for lora in (LoRAConfig(rank=2), None):
        with pytest.raises(ValueError, match="PEFT adapters of its own"):
            Policy(peft_model, tokenizer(), lora=lora)


def test_an_adapter_that_transformers_merged_in_by_itself_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a hub name, whose files are not seen before it is loaded."""
    base = scratch_folder(tmp_path / "base")
    model = Policy.load(base, lora=LoRAConfig(rank=2))
    model.save_adapter(tmp_path / "adapter")
    monkeypatch.setattr("turnwise.models.loading.place", lambda path, dtype="auto": str(path))
    with pytest.raises(ValueError, match="is a PEFT adapter, not a whole model"):
        load_model(tmp_path / "adapter")


FACTORS = {"short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [1.0, 3.0, 5.0, 7.0]}
ROPES = {
    "linear": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "dynamic": {"factor": 4.0},
    "longrope": {"factor": 2.0, "original_max_position_embeddings": 32, **FACTORS},
}
LIMITS = {"dynamic": 64, "longrope": 32}


def roped(folder: Path, kind: str) -> Path:
    rope = {"rope_type": kind, "rope_theta": 10000.0, **ROPES[kind]}
    return rewritten(scratch_folder(folder), max_position_embeddings=64, rope_parameters=rope)


@pytest.mark.parametrize("kind", ROPES)
def test_rotary_positions_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    """One context in three pieces beside a longer one, against one forward pass of the same ids."""
    model, _ = load_model(roped(tmp_path, kind))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(parameter.shape[0]))
    length = LIMITS.get(kind, 96)
    engine = SlotEngine(model, num_slots=2, max_length=length, end_ids=frozenset())
    rng = np.random.default_rng(0)
    long, short = (rng.integers(5, 200, n).astype(np.int32) for n in (length - 1, 12))
    slots = [engine.open() for _ in range(2)]
    engine.submit(slots[0], long, fresh=True, key=0, sampling=Sampling(max_tokens=1))
    engine.submit(slots[1], short, fresh=True, key=1, sampling=Sampling(max_tokens=4))
    replies = []
    while len(replies) < 2:
        replies += engine.step()
    for reply, ids in zip(sorted(replies, key=lambda each: slots.index(each.slot)), (long, short), strict=True):
        whole = torch.from_numpy(np.concatenate([ids, reply.ids]).astype(np.int64))
        with torch.no_grad():
            logp = model(whole[None]).logits[0].float().log_softmax(-1)
        own = logp[len(ids) - 1 : -1].gather(-1, whole[len(ids) :, None])[:, 0]
        torch.testing.assert_close(torch.from_numpy(reply.logprobs), own, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ROPES)
def test_contexts_beyond_what_positions_allow_are_refused(kind: str, tmp_path: Path) -> None:
    policy = Policy.load(roped(tmp_path, kind), lora=None)
    config, limit = policy.sampler.config, LIMITS.get(kind)
    if limit is None:
        return check_length(config, 10**6)
    check_length(config, limit)
    with pytest.raises(ValueError, match=f"{kind} rotary positions.*agent.max_context_tokens={limit} or less"):
        SlotEngine(policy.sampler, num_slots=1, max_length=limit + 1, end_ids=frozenset())
    with pytest.raises(ValueError, match=f"beyond {limit}"):
        model_agent(policy, AgentConfig(max_context_tokens=limit + 1), num_slots=2)


def test_positions_of_an_unknown_kind_are_refused(tmp_path: Path) -> None:
    rope = {"rope_type": "spiral", "rope_theta": 10000.0}
    with pytest.raises(ValueError, match=r"positions of type 'spiral': transformers knows .*linear.*yarn"):
        load_model(rewritten(scratch_folder(tmp_path), rope_parameters=rope))


def test_the_ends_of_generation_config_end_replies(tmp_path: Path) -> None:
    model = tiny_model()
    other = tokenizer().convert_tokens_to_ids("<|system|>")
    model.generation_config.eos_token_id = [other, tokenizer().eos_token_id]
    save_model(model, tokenizer(), tmp_path)
    assert end_ids(model) == {other, tokenizer().eos_token_id}
    agent = players(tmp_path, gymnasium.make("turnwise/FrozenLake-v0"), num_slots=2)[""]
    assert {other, tokenizer().eos_token_id} <= agent.engine.end_ids  # type: ignore[union-attr]
    chat = agent.chat  # type: ignore[union-attr]
    ended = np.asarray([*chat.reply("look")[:-1], other], np.int32)
    assert chat.decode(ended) == "look"
    assert chat.extend(ended, "wall").tolist() == chat.extend(chat.reply("look"), "wall").tolist()
    model.generation_config.eos_token_id = 7
    assert end_ids(model) == {7}
    model.generation_config.eos_token_id = None
    assert end_ids(model) == set()


@pytest.mark.parametrize("end", [10**6, -1, "<|end|>", [None], [3, 2.5], True])
def test_ends_that_are_no_tokens_are_refused(end: Any, tmp_path: Path) -> None:
    folder = scratch_folder(tmp_path)
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": end}))
    with pytest.raises(ValueError, match=r"ends replies with .*, which is no token id \(0 to "):
        load_model(folder)


def test_a_damaged_generation_config_is_not_taken_for_none(tmp_path: Path) -> None:
    folder = scratch_folder(tmp_path)
    (folder / "generation_config.json").write_text('{"eos_token_id": [1,')
    with pytest.raises(ValueError, match=r"generation_config.json of model .* is damaged"):
        load_model(folder)


def test_the_command_line_silences_no_warning_of_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    with warnings.catch_warnings():
        quiet()
    assert logging.getLogger("transformers.modeling_utils").isEnabledFor(logging.WARNING)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    model = tiny_model()
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() + 1)
    save_model(model, tokenizer(), tmp_path)
    rewritten(tmp_path, tie_word_embeddings=True)
    load_model(tmp_path)
    assert "NOT tie" in caplog.text
    reheld(tmp_path, lambda tensors: tensors.pop("model.norm.weight"))
    caplog.clear()
    with pytest.raises(ValueError, match=r"lacks model\.norm\.weight"):
        load_model(tmp_path)
    assert "LOAD REPORT" not in caplog.text  # said once, by the error


def test_weights_in_float16_are_not_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may be measured; to train them the type has to be said."""
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: True)  # elsewhere they are read as float32
    folder = scratch_folder(tmp_path)
    model, tokenizer = load_model(folder)
    save_model(model.half(), tokenizer, tmp_path / "half")
    config = load_config("smoke", [f"model.path={tmp_path / 'half'}", "warmstart={}"])
    with pytest.raises(ValueError, match=r"stored in float16.*model\.dtype=bfloat16"):
        begin_policy(Assembly(config).warmstart.cloning, config.model)
    policy = Policy.load(tmp_path / "half", lora=LoRAConfig(rank=2))
    with pytest.raises(ValueError, match="stored in float16"):
        Assembly(config).side("", policy)


def test_contexts_longer_than_a_model_can_read_are_warned_of(tmp_path: Path) -> None:
    config = load_model(rewritten(scratch_folder(tmp_path), max_position_embeddings=128))[0].config
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_length(config, 128)
    with pytest.warns(UserWarning, match=r"longer than the 128 .*agent\.max_context_tokens=128"):
        check_length(config, 129)
